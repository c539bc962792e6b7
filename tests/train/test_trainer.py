"""Whole runs: chunks, processes and interruptions change nothing; what goes wrong is said."""

import fnmatch
import importlib.machinery
import importlib.util
import inspect
import json
import re
import shutil
import sys
import types
from pathlib import Path

import datasets
import pytest
import ranks
import tiny
import torch
import training
import transformers
from tolerances import TOLERANCE
from torch.nn import functional as F
from training import weights
from transformers.trainer_utils import HPSearchBackend

from kakao_models import AlignForImageClassification, AlignModel, Embedder, ViTForImageClassification, ViTImageProcessor
from kakao_models.align.modeling_torch import contrastive_loss
from kakao_models.train import base_trainer
from kakao_models.train.arguments import TrainArguments
from kakao_models.train.data import StreamData
from kakao_models.train.freezing import freeze, rest_frozen
from kakao_models.train.trainer import AlignTrainer, ViTTrainer
from kakao_models.train.transform import DataError, SampleTransform

pytestmark = pytest.mark.usefixtures("one_thread")


def close(ours: dict, theirs: dict, limit: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name], rtol=0, atol=limit, msg=lambda m, name=name: f"{name}: {m}")


def test_a_step_is_the_originals_step_by_hand(tmp_path):
    """Loss, gradient and update, from the model's own dense loss and three lines of SGD."""
    trainer = training.align_trainer(tmp_path, max_steps=1, weight_decay=0.1)
    by_hand = training.align_trainer(tmp_path).model.train()
    (batch,) = list(trainer.get_train_dataloader())[:1]
    names = "pixel_values", "input_ids", "attention_mask"
    loss = by_hand(**{name: batch[name] for name in names}, return_loss=True).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    with torch.no_grad():
        for name, p in by_hand.named_parameters():
            if p.grad is not None:
                norm = "batchnorm" in name or "_bn." in name or "depthwise_norm" in name
                p -= 0.05 * (p.grad + (0.0 if norm else 0.1) * p)
    result = trainer.train()
    assert result.training_loss == pytest.approx(loss.item(), abs=1e-5)
    close(weights(trainer), by_hand.state_dict(), TOLERANCE["runs float32"])


@pytest.mark.parametrize(
    "options", [{"chunk_size": 8}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}]
)
def test_a_run_in_chunks_is_the_run_of_the_whole_batch(options, tmp_path):
    whole, chunked = training.align_trainer(tmp_path), training.align_trainer(tmp_path, **options)
    assert len(chunked.chunks) > 1
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (whole, chunked) if t.train()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 3
    close(weights(chunked), weights(whole), TOLERANCE["runs float32"])


@pytest.mark.parametrize(
    "world, options", [pytest.param(2, {}, marks=pytest.mark.slow), (4, {}), (2, {"chunk_size": 4})]
)
def test_processes_together_are_one_process(world, options, tmp_path):
    plain = {"max_grad_norm": 0.0, "learning_rate": 1e-3}  # clipped, gradients of twice the length would be the same
    options = {"per_device_train_batch_size": 16 // world, **options, **plain}
    results = ranks.run(ranks.align_run, world, tmp_path / "ranks", str(tmp_path), options)
    alone = training.align_trainer(tmp_path, **plain)
    alone.train()
    for result in results:
        close(result["weights"], weights(alone), TOLERANCE["runs float32"])
    # dropouts of processes differ: with one seed they would drop the same units in each share of a batch
    assert [result["seed"] for result in results] == [alone.args.seed + rank for rank in range(world)]
    assert results[0]["loss"] == pytest.approx(alone.state.log_history[-1]["train_loss"], abs=1e-4)


def test_sharded_parameters_take_the_step_of_whole_ones(tmp_path):
    results = ranks.run(ranks.sharded_step, 2, tmp_path / "ranks", str(tmp_path))
    trainer = training.align_trainer(tmp_path)
    alone = training.align_step(trainer.model.double(), next(iter(trainer.get_train_dataloader())))
    for result in results:
        assert result["sharded"] == {n for n, p in trainer.model.named_parameters()} - {"temperature"}
        assert "doesn't support scalar parameters. Change temperature" in result["refusal"]
        assert result["loss"].item() == pytest.approx(alone["loss"].item(), abs=1e-12)
        close(result["weights"], alone["weights"], TOLERANCE["chunks float64"])
    with pytest.raises(ValueError, match="fsdp: set shard=True of TrainArguments"):
        training.align_trainer(tmp_path, fsdp=True)
    with pytest.raises(ValueError, match="shard and ema_decay exclude each other"):
        training.align_trainer(tmp_path, shard=True, ema_decay=0.9)


def test_runs_with_shared_out_parameters_are_those_with_whole_ones_and_go_on_from_each_other(tmp_path):
    plain = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 0.5}
    options = {
        "align": {**plain, "per_device_train_batch_size": 8, "chunk_size": 4, "loss": "sigmoid"},
        "vit": {**plain, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    }
    whole = {"align": plain | {"loss": "sigmoid"}, "vit": plain}
    make = {"align": training.align_trainer, "vit": training.vit_trainer}

    def forget(folder):
        for kind in options:
            shutil.rmtree(folder / kind / "checkpoint-4")

    alone = {}
    for kind, settings in whole.items():
        alone[kind] = make[kind](tmp_path / "whole" / kind, **settings)
        alone[kind].train()
    first, second = ranks.run(ranks.sharded_runs, 2, tmp_path / "ranks", str(tmp_path / "shards"), options, False)
    forget(tmp_path / "whole")
    again, _ = ranks.run(ranks.sharded_runs, 2, tmp_path / "more", str(tmp_path / "whole"), options, True)
    for kind, trainer in alone.items():
        expected, parameters = weights(trainer), dict(trainer.model.named_parameters())
        close(first[kind]["weights"], expected, TOLERANCE["runs float32"])
        close(again[kind]["weights"], expected, TOLERANCE["runs float32"])  # from a checkpoint of whole parameters
        assert first[kind]["sharded"] == second[kind]["sharded"] == {n for n, p in parameters.items() if p.ndim}
        numbers = sum(p.numel() for p in parameters.values())
        assert first[kind]["metrics"]["eval_mine/numbers"] == second[kind]["metrics"]["eval_mine/numbers"] == numbers
        saved = type(trainer.model).from_pretrained(tmp_path / "shards" / kind / "final")
        assert saved.config.architectures == [type(trainer.model).__name__]
        close({name: x for name, x in saved.state_dict().items()}, first[kind]["weights"], 0)
    forget(tmp_path / "shards")
    for kind, settings in whole.items():  # and the other way round
        trainer = make[kind](tmp_path / "shards" / kind, **settings)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 4
        close(weights(trainer), weights(alone[kind]), TOLERANCE["runs float32"])


def test_the_moving_average_is_evaluated_and_saved(tmp_path):
    seen = []

    def evaluation(model, processor):
        seen.append({name: x.clone() for name, x in model.state_dict().items()})
        return {"score": len(seen)}

    trainer = training.align_trainer(tmp_path, ema_decay=0.9, max_steps=2)
    trainer.evaluations = {"mine": evaluation}
    trainer.train()
    metrics, raw = trainer.evaluate(), weights(trainer)
    assert metrics["eval_mine/score"] == len(seen) == 1
    assert torch.equal(seen[-1]["temperature"], trainer.ema.values["temperature"])
    assert not torch.equal(seen[-1]["temperature"], raw["temperature"])
    trainer.save_final(tmp_path / "final")
    saved = type(trainer.model).from_pretrained(tmp_path / "final").state_dict()
    assert torch.equal(saved["temperature"], trainer.ema.values["temperature"])
    close(weights(trainer), raw, 0)


def test_a_frozen_tower_stays_as_it_is_and_rates_differ(tmp_path):
    trainer = training.align_trainer(tmp_path, freeze=["vision_model"], lr_scale={"text_model": 0.0}, max_steps=2)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, x in weights(trainer).items() if not torch.equal(x, before[name])}
    assert changed == {"text_projection.weight", "text_projection.bias", "temperature"}
    with pytest.raises(ValueError, match="AlignModel has no part 'image_tower'; its parts are text_model"):
        training.align_trainer(tmp_path, freeze=["image_tower"])
    with pytest.raises(ValueError, match="freeze: .* has no part ''"):
        training.align_trainer(tmp_path, freeze=[""])


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_with_chunks_a_frozen_tower_runs_once_and_the_run_is_the_same(tower, tmp_path):
    options = {"freeze": [tower], "max_steps": 2, "dropout": 0.0}
    whole, chunked = (
        training.align_trainer(tmp_path, **options),
        training.align_trainer(tmp_path, chunk_size=4, **options),
    )
    rows = {name: 0 for name in ("vision_model", "text_model")}

    def count(name):
        def hook(module, *_):
            rows[name] += 1

        return hook

    first = {"vision_model": "embeddings", "text_model": "embeddings"}
    for name, inner in first.items():
        getattr(getattr(chunked.model, name), inner).register_forward_hook(count(name))
    whole.train(), chunked.train()
    close(weights(chunked), weights(whole), TOLERANCE["runs float32"])
    assert rows == {name: 2 * 4 * (1 if name == tower else 2) for name in rows}  # steps * chunks * passes
    assert "forward" not in vars(getattr(chunked.model, tower))


def test_where_the_temperature_alone_is_trained_chunks_are_the_whole_too(tmp_path):
    parts = ["vision_model", "text_model", "text_projection", "visual_projection"]
    made = training.align_trainer(tmp_path)
    options = {"freeze": [part for part in parts if getattr(made.model, part, None) is not None]}
    whole, chunked = (
        training.align_trainer(tmp_path, **options),
        training.align_trainer(tmp_path, chunk_size=4, **options),
    )
    before = whole.model.temperature.item()
    whole.train(), chunked.train()
    assert chunked.model.temperature.item() == pytest.approx(whole.model.temperature.item(), abs=1e-6)
    assert whole.model.temperature.item() != before


def test_frozen_modules_are_found_inside_of_wrappers():
    model = torch.nn.ModuleDict({"tower": torch.nn.Dropout(), "other": torch.nn.Dropout()})
    wrapped = torch.nn.ModuleDict({"_orig_mod": torch.nn.ModuleDict({"module": model})})  # compiled after DDP
    rest_frozen(wrapped.train(), ["tower"])
    assert not model["tower"].training and model["other"].training


def test_bfloat16_and_gradient_checkpointing_train_too(tmp_path):
    plain = training.align_trainer(tmp_path, max_steps=2)
    plain.train()
    other = training.align_trainer(
        tmp_path, max_steps=2, bf16=True, activation_checkpointing=True, channels_last=True, chunk_size=8
    )
    other.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    assert {x.dtype for x in other.model.parameters()} == {torch.float32}


@pytest.mark.slow  # a minute of tracing
def test_a_compiled_run_is_the_run(tmp_path):
    options = {"chunk_size": 8}
    plain = training.align_trainer(tmp_path, max_steps=2, **options)
    plain.train()
    compiled = training.align_trainer(tmp_path, max_steps=2, torch_compile_backend="aot_eager", **options)
    compiled.train()
    assert compiled.model_wrapped is not compiled.model  # it is compiled, not passed over
    close(weights(compiled), weights(plain), TOLERANCE["runs float32"])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    trainer = training.align_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.text_projection.weight[0, 0] = torch.nan
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan. The batch's 16 sample keys are in"):
        trainer.train()
    assert len((tmp_path / "bad_batch.txt").read_text().splitlines()) == 16
    assert torch.equal(trainer.model.temperature, before["temperature"])


def test_broken_samples_are_written_down(tmp_path):
    records = training.records(32)
    records[5]["captions"] = []
    trainer = training.align_trainer(tmp_path, data=training.Records(records), max_steps=2)
    trainer.train()
    assert "no caption" in (tmp_path / "broken_samples.txt").read_text()
    with pytest.raises(DataError, match="20 samples in a row"):
        bare = [{"image": record["image"]} for record in records]
        training.align_trainer(tmp_path, data=training.Records(bare)).train()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_device_train_batch_size": 18, "chunk_size": 8}, "both must be multiples .* Try 16 in chunks of 8"),
        ({"optimizer": "adamax"}, "optimizer: got 'adamax', expected one of lamb, adamw, sgd"),
        ({"freeze": "vision_model"}, "freeze: expected a list of names of modules, got 'vision_model'"),
        ({"lr_scale": {"vision_model": "slow"}}, "lr_scale: expected a factor of at least 0 for each name, got "),
        ({"temperature_range": ["low", 1]}, "temperature_range: expected the lowest and the highest, above 0, got "),
        ({"schedule": "constant", "end_lr": 1e-5}, "end_lr: got 1e-05, but the schedule 'constant' does not end there"),
        ({"schedule": {0: 1.0, 9: 0.1}, "end_lr": 1e-5}, "end_lr: got 1e-05, but the schedule .* does not end there"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        training.align_trainer(tmp_path, **options)


def test_vit_accumulates_micro_batches_to_the_step_of_the_whole_batch(tmp_path):
    whole = training.vit_trainer(tmp_path, max_steps=2)
    parts = training.vit_trainer(tmp_path, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    whole.train(), parts.train()
    close(weights(parts), weights(whole), TOLERANCE["runs float32"])


def test_vit_steps_by_hand(tmp_path):
    trainer = training.vit_trainer(tmp_path, max_steps=1, weight_decay=0.0, max_grad_norm=0.0)
    model = training.vit_trainer(tmp_path).model.train()
    (batch,) = list(trainer.get_train_dataloader())[:1]
    F.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]).backward()
    expected = {name: p.detach() - 0.05 * p.grad for name, p in model.named_parameters()}
    trainer.train()
    close({name: p.detach() for name, p in trainer.model.named_parameters()}, expected, TOLERANCE["runs float32"])


def test_the_loss_of_the_documentation_trains_saves_and_loads_its_parameter(tmp_path, monkeypatch):
    """docs/train.md, in chunks and without; the parameter is that of the whole batch, and goes on from a checkpoint."""
    page = Path(__file__).parents[2].joinpath("docs/train.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"```python\n(.*?)```", page.split("### A loss with its own parameter")[1].split("\n## ")[0], re.S
    )
    monkeypatch.chdir(tmp_path)
    for path in tiny.picture_folder(Path("photos"), 8):
        path.with_suffix(".txt").write_text(f"photo {path.stem}", encoding="utf-8")
    names = {}
    exec(block, names)
    saved = names["model"]
    assert isinstance(saved, names["PairModel"]) and saved.margin.item() != 0
    runs = []
    for options in ({}, {"chunk_size": 4}):
        made = training.align_trainer(tmp_path, count=16, per_device_train_batch_size=8, max_steps=2, **options)
        config = made.model.config
        torch.manual_seed(0)
        model = names["PairModel"](config)
        model.load_state_dict({"margin": torch.tensor(0.5), **made.model.state_dict()})
        arguments = made.args
        arguments.save_strategy, arguments.save_steps = "steps", 1
        arguments.output_dir = str(tmp_path / f"run{len(runs)}")
        scores = {"recall": lambda model, processor: {"dim": Embedder(model, processor=processor).dim}}
        trainer = names["PairTrainer"](
            model,
            arguments,
            train_dataset=made.train_dataset,
            processing_class=made.processing_class,
            evaluations=scores,
        )
        trainer.train()
        assert trainer.evaluate()["eval_recall/dim"] == 16
        runs.append(weights(trainer))
        shutil.rmtree(Path(arguments.output_dir, "checkpoint-2"))
        trainer.model.margin.data.zero_()
        trainer.train(resume_from_checkpoint=True)
        close(weights(trainer), runs[-1], 0)
    close(*runs, TOLERANCE["runs float32"])
    assert runs[0]["margin"].item() != 0.5


def test_logs_say_temperature_and_rate(tmp_path):
    trainer = training.align_trainer(tmp_path, schedule="cosine", warmup_steps=1)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["learning_rate"] for log in logs] == pytest.approx([0.0, 0.05, 0.025])
    assert logs[0]["temperature"] == pytest.approx(0.1) and logs[-1]["temperature"] != logs[0]["temperature"]
    assert json.dumps(logs) and logs[0]["memory_gb"] > 0


def test_the_trainer_needs_no_module_of_unix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    spec = importlib.util.spec_from_file_location("as_on_windows", base_trainer.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = training.align_trainer(tmp_path)
    assert module.BaseTrainer._speed(trainer) == {"samples_per_second": 0.0}


def test_a_stream_trains_and_goes_on_where_it_stopped(tmp_path):
    rows = [{"image": row["image"], "caption": row["captions"][0]} for row in training.records(24)]
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 8}

    def trainer():
        made = training.align_trainer(tmp_path, **options)
        stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
        made.train_dataset = StreamData(stream, made.train_dataset.prepare, batch_size=8)
        return made

    again = training.check_resume(trainer, tmp_path / "checkpoint-4")
    assert again.state.global_step == 4


def test_the_temperature_stays_within_its_bounds_and_the_optimizer_gets_its_options(tmp_path):
    options = {"optimizer": "adamw", "optimizer_options": {"betas": [0.5, 0.6]}, "temperature_range": [0.098, 0.099]}
    trainer = training.align_trainer(tmp_path, **options, ema_decay=0.5)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert 0.0979 < trainer.model.temperature.item() < 0.0991
    free = training.align_trainer(tmp_path, **(options | {"temperature_range": None}))
    free.train()
    assert not 0.0979 < free.model.temperature.item() < 0.0991
    assert trainer.ema.values["temperature"].item() < 0.0997  # it is bounded before it is averaged


class Ranked(SampleTransform):
    """Puts into a batch, beside what there is, where each sample is in it."""

    def collate(self, items):
        return super().collate(items) | {"place": torch.arange(len(items))}


class Weighted(AlignTrainer):
    def contrastive_loss(self, image_embeds, text_embeds, temperature, batch):
        assert batch.keys() == {"place"} and batch["place"].tolist() == list(range(len(image_embeds)))
        logits = image_embeds @ text_embeds.t() / temperature
        return (F.cross_entropy(logits, batch["place"], reduction="none") * (1 + batch["place"])).mean()


def test_a_loss_of_ones_own_sees_the_batch_in_its_order_with_chunks_too(tmp_path):
    found = []
    for options in ({}, {"chunk_size": 8}):
        plain = training.align_trainer(tmp_path, **options)
        prepare = plain.train_dataset.prepare
        plain.train_dataset.prepare = Ranked(prepare.augment, prepare.image_processor, prepare.tokenizer)
        trainer = Weighted(plain.model, plain.args, train_dataset=plain.train_dataset)
        trainer.train()
        found.append(weights(trainer))
    close(*found, TOLERANCE["runs float32"])


def test_a_run_with_the_sigmoid_loss_in_chunks_and_processes_is_that_of_the_whole_batch(tmp_path):
    plain = {"loss": "sigmoid", "max_grad_norm": 0.0, "learning_rate": 1e-2}
    whole = training.align_trainer(tmp_path, **plain)
    assert whole.model.logit_bias.item() == -10 and whole.model.config.logit_bias_init_value == -10
    chunked = training.align_trainer(tmp_path, chunk_size=8, **plain)
    whole.train(), chunked.train()
    close(weights(chunked), weights(whole), TOLERANCE["runs float32"])
    assert whole.model.logit_bias.item() > -9.99
    options = {"per_device_train_batch_size": 8, "chunk_size": 4, **plain}
    for result in ranks.run(ranks.align_run, 2, tmp_path / "ranks", str(tmp_path), options):
        close(result["weights"], weights(whole), TOLERANCE["runs float32"])
    assert whole.evaluate(training.records(8))["eval_loss"] > 0
    whole.save_final(tmp_path / "saved")
    again = AlignModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.logit_bias, whole.model.logit_bias)
    # the softmax does not know the bias, which then is not trained
    made = training.align_trainer(tmp_path)
    AlignTrainer(again, made.args, train_dataset=made.train_dataset).train()
    assert torch.equal(again.logit_bias, whole.model.logit_bias)
    with pytest.raises(ValueError, match="loss='sigmoid' and compute_loss_func exclude each other: leave out one"):
        AlignTrainer(align_model(), whole.args, compute_loss_func=lambda output, labels, num_items_in_batch: 0)
    with pytest.raises(ValueError, match="loss: got 'hinge', expected one of contrastive, sigmoid"):
        training.align_trainer(tmp_path, loss="hinge")
    with pytest.raises(ValueError, match="loss: sigmoid is for an AlignModel; the loss of a classifier follows"):
        training.vit_trainer(tmp_path, loss="sigmoid")


def test_chunks_want_a_text_for_each_picture(tmp_path):
    trainer = training.align_trainer(tmp_path, chunk_size=8)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["input_ids"], batch["attention_mask"] = (batch[name].repeat(2, 1) for name in ("input_ids", "attention_mask"))
    with pytest.raises(ValueError, match="chunks need one text for each of 16 images, got .*'input_ids': 32"):
        trainer.training_step(trainer.model, batch)


def test_what_training_asks_of_the_tokenizer_is_not_saved_with_it(tmp_path):
    trainer = training.align_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_final(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None


# called like transformers' Trainer


def plain(folder, **options) -> transformers.TrainingArguments:
    sizes = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 2, "learning_rate": 0.05}
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "optim": "sgd"}
    return transformers.TrainingArguments(str(folder), **(sizes | quiet | options))


def align_model() -> AlignModel:
    return training.align_trainer(Path("unused"), count=16).model


def vit_model(**config) -> ViTForImageClassification:
    return tiny.fill(ViTForImageClassification(tiny.vit_config(**config)))


def classifier(**config) -> AlignForImageClassification:
    vision = tiny.align_config().vision_config
    vision.num_labels, vision.drop_connect_rate = 7, 0.0
    for name, value in config.items():
        setattr(vision, name, value)
    return tiny.fill(AlignForImageClassification(vision))


ROWS = [{"image": r["image"], "caption": r["captions"][0], "label": r["label"]} for r in training.records(16)]
IMAGES = ViTImageProcessor(size=32)


def prepared(processor, **targets) -> list[dict]:
    """Inputs of a model for `ROWS`, as a user of transformers makes them."""
    pixels = processor(images=[row["image"] for row in ROWS], return_tensors="pt")["pixel_values"]
    return [{"pixel_values": x, **{name: y[i] for name, y in targets.items()}} for i, x in enumerate(pixels)]


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_arguments_are_those_of_transformers_in_their_order():
    theirs = list(inspect.signature(transformers.Trainer.__init__).parameters)
    for cls in (AlignTrainer, ViTTrainer):
        ours = inspect.signature(cls.__init__).parameters
        assert [name for name, p in ours.items() if p.kind is not p.KEYWORD_ONLY] == theirs


@pytest.mark.parametrize("options", [{}, {"optim": "adamw_torch", "lr_scheduler_type": "cosine", "weight_decay": 0.1}])
def test_with_plain_arguments_and_prepared_data_it_is_transformers_trainer(options, tmp_path):
    labels, options = torch.arange(16) % 7, options | {"gradient_accumulation_steps": 2, "num_train_epochs": 2}
    for make in (vit_model, classifier):
        data, runs = prepared(IMAGES, labels=labels), []
        for cls in (transformers.Trainer, ViTTrainer):
            arguments = plain(tmp_path, max_steps=-1, per_device_train_batch_size=3, **options)
            trainer = cls(make(), arguments, train_dataset=data, eval_dataset=data, compute_metrics=accuracy)
            result = trainer.train()
            metrics = {n: v for n, v in trainer.evaluate().items() if n in ("eval_loss", "eval_accuracy", "epoch")}
            runs.append((weights(trainer), result.training_loss, result.global_step, metrics))
        close(runs[1][0], runs[0][0], 0)
        assert runs[0][1:] == runs[1][1:]


def test_an_aligns_step_is_that_of_transformers_trainer(tmp_path):
    """Where one batch holds all samples, both compare the same pairs; transformers' is told so by `return_loss`."""
    processor = training.align_processor()
    tokens = processor(text=[row["caption"] for row in ROWS], return_tensors="pt", padding="max_length")
    data, runs = prepared(processor, **tokens), []
    for cls, extra in ((transformers.Trainer, {"return_loss": True}), (AlignTrainer, {})):

        def collate(items, extra=extra):
            return transformers.default_data_collator(items) | extra

        sizes = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}
        trainer = cls(align_model(), plain(tmp_path, remove_unused_columns=False, **sizes), collate, data, data)
        result = trainer.train()
        runs.append((weights(trainer), result.training_loss, trainer.evaluate()["eval_loss"]))
    close(runs[1][0], runs[0][0], TOLERANCE["runs float32"])
    assert runs[1][1:] == pytest.approx(runs[0][1:], abs=1e-5)


def test_accumulated_gradients_are_chunks_of_prepared_data_too_and_arguments_stay(tmp_path):
    processor = training.align_processor()
    tokens = processor(text=[row["caption"] for row in ROWS], return_tensors="pt", padding="max_length")
    data, arguments = prepared(processor, **tokens), plain(tmp_path)
    parts = plain(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    whole, chunked = (AlignTrainer(align_model(), args, train_dataset=data[:15]) for args in (arguments, parts))
    whole.train(), chunked.train()
    assert chunked.state.epoch == 2  # the 7 of 15 samples that fill no batch are left out
    close(weights(chunked), weights(whole), TOLERANCE["runs float32"])
    assert (parts.per_device_train_batch_size, parts.gradient_accumulation_steps) == (4, 2)
    assert chunked.args is parts and not parts.dataloader_drop_last
    with pytest.raises(DataError, match="7 samples are fewer than a batch of 8"):
        AlignTrainer(align_model(), arguments, train_dataset=data[:7]).train()
    with pytest.raises(ValueError, match="a batch has pixel_values, but no input_ids"):
        AlignTrainer(align_model(), arguments, train_dataset=prepared(processor)).train()


def test_without_arguments_it_has_transformers_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = ViTTrainer(vit_model(), train_dataset=ROWS, processing_class=IMAGES)
    assert trainer.args.output_dir == "tmp_trainer" and trainer.args.per_device_train_batch_size == 8
    with pytest.raises(RuntimeError, match="requires either a `model` or `model_init`"):
        AlignTrainer()


def test_predictions_of_an_align_are_embeddings_and_their_rows(tmp_path):
    processor, model = training.align_processor(), align_model().eval()
    seen = {}

    def metrics(prediction):
        seen["rows"] = prediction.label_ids
        return {"mean": float(prediction.predictions.mean())}

    trainer = AlignTrainer(
        model, plain(tmp_path), eval_dataset=ROWS[:11], processing_class=processor, compute_metrics=metrics,
        preprocess_logits_for_metrics=lambda embeds, rows: embeds[0] * 0 + rows[:, None],
    )  # fmt: skip
    assert trainer.evaluate()["eval_mean"] == 5.0 and seen["rows"].tolist() == list(range(11))
    result = AlignTrainer(model, plain(tmp_path), processing_class=processor).predict(ROWS[:11])
    inputs = processor([row["image"] for row in ROWS[:11]], [row["caption"] for row in ROWS[:11]], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    for ours, expected in zip(result.predictions, (output.image_embeds, output.text_embeds)):
        torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=0, atol=1e-6)
    losses = [model(**{n: x[part] for n, x in inputs.items()}, return_loss=True).loss.item() * size
              for part, size in ((slice(0, 8), 8), (slice(8, 11), 8))]  # fmt: skip
    assert result.metrics["test_loss"] == pytest.approx((losses[0] + losses[1] * 3 / 8) / 11, abs=1e-5)


def test_predictions_of_a_classifier_need_no_labels(tmp_path):
    model = vit_model()
    trainer = ViTTrainer(model, plain(tmp_path), processing_class=IMAGES, compute_metrics=accuracy)
    result = trainer.predict([{"image": row["image"]} for row in ROWS])
    with torch.no_grad():
        expected = model(IMAGES(images=[row["image"] for row in ROWS], return_tensors="pt")["pixel_values"]).logits
    torch.testing.assert_close(torch.from_numpy(result.predictions), expected, rtol=0, atol=1e-6)
    assert result.label_ids is None and "test_accuracy" not in result.metrics
    assert "test_accuracy" in trainer.predict(ROWS).metrics


def test_several_evaluation_sets_and_evaluations_are_all_reported(tmp_path):
    sets = {"one": ROWS[:4], "other": ROWS[4:]}
    trainer = ViTTrainer(
        vit_model(), plain(tmp_path, eval_strategy="steps", eval_steps=2), train_dataset=ROWS, eval_dataset=sets,
        processing_class=IMAGES, compute_metrics=accuracy, evaluations={"mine": lambda model, processor: {"score": 1}},
    )  # fmt: skip
    trainer.train()
    logged = {name for log in trainer.state.log_history for name in log}
    expected = {"eval_one_loss", "eval_one_accuracy", "eval_other_loss", "eval_other_accuracy", "eval_mine/score"}
    assert expected <= logged and expected <= trainer.evaluate().keys()
    assert trainer.evaluate(ROWS[:4])["eval_loss"] == pytest.approx(trainer.evaluate("one")["eval_loss"])
    with pytest.raises(ValueError, match="evaluation requires an eval_dataset"):
        ViTTrainer(vit_model(), plain(tmp_path)).evaluate()


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_checkpoint_is_loaded_with_all_of_its_weights(ema, tmp_path):
    """transformers passes over the keys of a ViT's file that have other names in memory."""
    rate = {"learning_rate": 1.0, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    arguments = training.arguments(tmp_path, ema_decay=ema, max_steps=3, **rate, **best)
    arguments.per_device_train_batch_size = 8
    trainer = ViTTrainer(vit_model(), arguments, train_dataset=ROWS, eval_dataset=ROWS, processing_class=IMAGES)
    trainer.train()
    logged = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(logged), abs=1e-6) and max(logged) != logged[-1]
    trainer.save_model(str(tmp_path / "best"))
    saved = ViTForImageClassification.from_pretrained(tmp_path / "best")
    again = ViTTrainer(saved, plain(tmp_path), eval_dataset=ROWS, processing_class=IMAGES)
    assert again.evaluate()["eval_loss"] == pytest.approx(max(logged), abs=1e-6)


@pytest.mark.parametrize("make", [vit_model, classifier])
def test_a_resumed_classifier_has_all_weights_of_its_checkpoint(make, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.5}

    def trainer():
        arguments = plain(tmp_path, **options)
        return ViTTrainer(make(), arguments, train_dataset=ROWS, processing_class=training.align_processor())

    straight = trainer()
    straight.train()
    shutil.rmtree(tmp_path / "checkpoint-2")
    again = trainer()
    again.train(resume_from_checkpoint=True)
    close(weights(again), weights(straight), 0)
    with pytest.raises(ValueError, match="Can't find a valid checkpoint at nowhere"):
        trainer().train(resume_from_checkpoint="nowhere")


def test_a_search_over_hyperparameters_has_a_model_and_chunks_of_its_own_in_each_trial(tmp_path, monkeypatch):
    trials = [{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
              {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
              {"learning_rate": 0.0}]  # fmt: skip
    seen = []

    class Backend:
        ensure_available = staticmethod(lambda: None)
        default_hp_space = None

        @staticmethod
        def run(trainer, n_trials, direction, **options):
            for number, params in enumerate(trials):
                trainer.train(trial=types.SimpleNamespace(number=number, params=params))
                seen.append((len(trainer.chunks), trainer.objective, weights(trainer), trainer.ema.model))
            return seen

    optuna = types.ModuleType("optuna")  # imported where results are reported
    optuna.__spec__ = importlib.machinery.ModuleSpec("optuna", None)
    optuna.trial = types.SimpleNamespace(BaseTrial=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Backend)
    options = {"eval_strategy": "epoch", "num_train_epochs": 1, "max_steps": -1, "ema_decay": 0.5}
    arguments = training.arguments(tmp_path, freeze=["text_model"], **options)
    trainer = AlignTrainer(
        args=arguments, model_init=align_model, train_dataset=ROWS, eval_dataset=ROWS,
        processing_class=training.align_processor(),
    )  # fmt: skip
    trainer.hyperparameter_search(lambda trial: trial.params, backend="optuna")
    assert [chunks for chunks, *_ in seen] == [1, 2, 2]
    close(seen[1][2], seen[0][2], TOLERANCE["runs float32"])
    assert seen[0][1] == pytest.approx(seen[1][1], abs=1e-4) and seen[2][1] != pytest.approx(seen[1][1], abs=1e-4)
    assert len({id(model) for *_, model in seen}) == 3 and seen[2][3] is trainer.model
    untrained = align_model().state_dict()
    assert all(torch.equal(seen[0][2][n], x) for n, x in untrained.items() if n.startswith("text_model"))


def test_the_search_of_the_documentation_finds_the_best_of_its_trials(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    page = Path(__file__).parents[2].joinpath("docs/train.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"```python\n(.*?)```", page.split("## Search for hyperparameters")[1].split("\n## ")[0], re.S
    )
    monkeypatch.chdir(tmp_path)
    for part in ("train", "dev"):
        for path in tiny.picture_folder(Path("photos", part), 8):
            path.with_suffix(".txt").write_text(f"photo {path.stem}", encoding="utf-8")
    names = {}
    exec(block, names)
    best, logs = names["best"], names["trainer"].state.log_history
    assert 1e-5 <= best.hyperparameters["learning_rate"] <= 1e-3
    assert best.objective <= next(log["eval_loss"] for log in logs if "eval_loss" in log)  # of the last trial


def test_a_loss_function_sees_all_samples_with_chunks_too(tmp_path):
    def loss(output, labels, num_items_in_batch=None):
        assert labels is None and output.logits_per_image.shape == (8, 8)
        return contrastive_loss(output.logits_per_image, 0.1)

    runs, parts = [], {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    for options, function in (({}, None), ({}, loss), (parts, loss)):
        trainer = AlignTrainer(
            align_model(), plain(tmp_path, **options), train_dataset=ROWS, eval_dataset=ROWS,
            processing_class=training.align_processor(), compute_loss_func=function,
        )  # fmt: skip
        trainer.train()
        runs.append((weights(trainer), trainer.evaluate()["eval_loss"]))
    for found, value in runs[1:]:
        close(found, runs[0][0], TOLERANCE["runs float32"])
        assert value == pytest.approx(runs[0][1], abs=1e-5)


@pytest.mark.parametrize("make", [vit_model, classifier])
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_losses_that_are_means_are_the_same_in_micro_batches(make, problem, tmp_path):
    labels, runs = torch.rand(16, 7, generator=torch.Generator().manual_seed(0)), []
    data = prepared(IMAGES, labels=labels.round() if problem.startswith("multi") else labels)
    for options in ({"per_device_train_batch_size": 16}, {"gradient_accumulation_steps": 2}):
        model = make(problem_type=problem)
        freeze(model, ["vision_model"] if make is classifier else [])  # batch norms see micro-batches
        arguments = TrainArguments(**plain(tmp_path, optim="adamw_torch_fused").to_dict() | options | {
            "optimizer": "sgd", "freeze": ["vision_model"] if make is classifier else [], "optim_args": None,
        })  # fmt: skip
        trainer = ViTTrainer(model, arguments, train_dataset=data)
        runs.append((trainer.train().training_loss, weights(trainer)))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    close(runs[1][1], runs[0][1], TOLERANCE["runs float32"])


def test_optimizers_may_be_passed(tmp_path):
    model = vit_model()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    data = {"train_dataset": ROWS, "processing_class": IMAGES}
    passed = ViTTrainer(model, training.arguments(tmp_path), optimizers=(optimizer, schedule), **data)
    assert passed.create_optimizer() is optimizer and passed.create_scheduler(3) is schedule
    kind = torch.optim.Adagrad, {"lr": 0.1}
    assert isinstance(
        ViTTrainer(vit_model(), training.arguments(tmp_path), optimizer_cls_and_kwargs=kind, **data).create_optimizer(),
        torch.optim.Adagrad,
    )
    mixed = training.arguments(tmp_path, optimizer=None, optim="adamw_torch", lr_scheduler_type="cosine", ema_decay=0.9)
    trainer = ViTTrainer(vit_model(), mixed, **data)
    assert type(trainer.create_optimizer()) is torch.optim.AdamW and trainer.ema is not None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optim": "adafactor"}, "optim: got 'adafactor', but optimizer='sgd' and schedule replace it"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: got 'cosine', .*or set optimizer=None"),
        ({"optimizer": None, "schedule": "cosine"}, "schedule needs an optimizer of this package"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: a smaller batch has fewer negatives.*chunk_size"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: .*Set model.config.label_smoothing"),
    ],
)
def test_what_align_cannot_do_is_one_sentence(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        training.align_trainer(tmp_path, **options)


def test_a_classifier_has_no_temperature_and_no_chunks(tmp_path):
    with pytest.raises(ValueError, match="temperature_range is for an AlignModel"):
        training.vit_trainer(tmp_path, temperature_range=[0.1, 1.0])
    with pytest.raises(ValueError, match="chunk_size is only for ALIGN's loss"):
        training.vit_trainer(tmp_path, chunk_size=4)


def test_an_upload_has_complete_checkpoints_and_nothing_unfinished(tmp_path, monkeypatch):
    uploads = []

    class Api:
        def create_repo(self, name, **options):
            return types.SimpleNamespace(repo_id=name)

        def upload_folder(self, folder_path, path_in_repo=None, ignore_patterns=(), **options):
            files = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()}
            ignored = {name for name in files for pattern in ignore_patterns if fnmatch.fnmatch(name, pattern)}
            uploads.append((path_in_repo, files - ignored))
            return types.SimpleNamespace(done=lambda: True, result=lambda: None)

    monkeypatch.setattr(transformers.trainer, "hf_api", Api)
    hub = {"push_to_hub": True, "hub_model_id": "me/vit", "hub_strategy": "all_checkpoints", "save_steps": 1}
    arguments = plain(tmp_path, save_strategy="steps", **hub)
    (tmp_path / "_unfinished" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "_unfinished" / "checkpoint-9" / "optimizer.pt").write_bytes(b"torn")
    ViTTrainer(vit_model(), arguments, train_dataset=ROWS, processing_class=IMAGES).train()
    model = {"config.json", "model.safetensors", "preprocessor_config.json", "training_args.bin"}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert uploads == [
        (None, model), ("checkpoint-1", model | state), (None, model), ("checkpoint-2", model | state)
    ]  # fmt: skip


def test_two_processes_evaluate_and_train_with_plain_arguments_as_one(tmp_path):
    options = {"per_device_eval_batch_size": 3, "max_grad_norm": 0.0, "learning_rate": 1e-3}
    options |= {"optim": "sgd", "max_steps": 1, "disable_tqdm": True, "load_best_model_at_end": True}
    options |= {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    results = ranks.run(ranks.plain_align_run, 2, tmp_path / "ranks", str(tmp_path), 4, options)
    alone = ranks.plain_align_run(0, 1, str(tmp_path), 8, options)
    for result in results:
        close(result["weights"], alone["weights"], TOLERANCE["runs float32"])
        assert result["rows"].tolist() == list(range(10)) and result["best"] == str(tmp_path / "checkpoint-1")
        torch.testing.assert_close(result["images"], alone["images"], rtol=0, atol=1e-5)


def test_the_python_of_the_documentation_runs(tmp_path, monkeypatch):
    """docs/train.md, with small data and a small ViT in the place of the released one."""
    page = Path(__file__).parents[2].joinpath("docs/train.md").read_text(encoding="utf-8")
    section = page.split("## From Python, like transformers' Trainer")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    for part in ("train", "dev"):
        for path in tiny.picture_folder(Path("photos", part), 8):
            path.with_suffix(".txt").write_text(f"photo {path.stem}", encoding="utf-8")
    tiny.picture_folder(Path("pets"), 3)
    for number in (1, 2):
        Path("pets", f"00{number}.png").rename(f"pets/{number}.png")
    tiny.vit_folder(Path("kakaobrain/vit-large-patch16-384"))
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = [{} for _ in blocks]
    for block, values in zip(blocks, names):
        exec(block, values)
    assert len(blocks) == 3 and {"eval_r1"} <= names[0]["trainer"].evaluate().keys()
    assert AlignModel.from_pretrained("align-photos") is not None
    assert names[1]["logits"].shape == (1, 2)
