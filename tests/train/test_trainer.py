"""Whole runs: chunks, processes and interruptions change nothing; what goes wrong is said."""

import json
import shutil

import datasets
import pytest
import ranks
import torch
import training
from tolerances import TOLERANCE
from torch.nn import functional as F

from kakao_models.train.data import StreamData
from kakao_models.train.trainer import AlignTrainer, rest_frozen
from kakao_models.train.transform import DataError, SampleTransform


@pytest.fixture(autouse=True)
def one_thread():
    """As in the other processes of these tests: another number of threads adds up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in trainer.model.state_dict().items()}


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
    with pytest.raises(ValueError, match="fsdp: .* a scalar, which FSDP refuses. .* chunk_size"):
        training.align_trainer(tmp_path, fsdp=True)


@pytest.mark.parametrize(
    "stop, options",
    [(3, {}), (2, {"chunk_size": 8, "dataloader_num_workers": 1})],  # within an epoch of two batches, and at its end
)
def test_a_run_killed_with_signal_9_goes_on_and_ends_bit_identical(stop, options, tmp_path):
    options |= {"dropout": 0.2, "optimizer": "lamb", "warmup_steps": 2, "max_steps": 5, "ema_decay": 0.9}
    options |= {"save_strategy": "steps", "save_steps": stop}
    straight = training.align_trainer(tmp_path / "straight", **options)
    straight.train()
    ranks.kill_run(tmp_path / "killed", options, after=stop + 1)
    again = training.align_trainer(tmp_path / "killed", **options)
    torch.manual_seed(99)  # whatever the new process begins with
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5
    for one, other in ((weights(straight), weights(again)), (straight.ema.values, again.ema.values)):
        assert all(torch.equal(x, other[name]) for name, x in one.items())
    states = [t.optimizer.state_dict()["state"] for t in (straight, again)]
    for number, state in states[0].items():
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(states[1][number][k])) for k, x in state.items())


@pytest.mark.parametrize("damaged", ["model.safetensors", "ema.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_checkpoint_damaged_from_outside_is_named(damaged, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "ema_decay": 0.9}
    training.align_trainer(tmp_path, **options).train()
    file = tmp_path / "checkpoint-1" / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded .*Delete this folder"):
        training.align_trainer(tmp_path, **options | {"max_steps": 2}).train(resume_from_checkpoint=True)


def test_a_finished_run_gone_on_with_makes_no_further_step(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "schedule": "constant", "ema_decay": 0.9}
    straight = training.align_trainer(tmp_path, **options)  # three steps, in epochs of two
    straight.train()
    again = training.align_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for one, other in ((weights(straight), weights(again)), (straight.ema.values, again.ema.values)):
        assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_torn_checkpoint_is_never_loaded(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "save_total_limit": 1}
    trainer = training.align_trainer(tmp_path, **options)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # older ones are gone
    # what a process leaves that is killed while it writes the next
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / ".unfinished" / "checkpoint-3")
    (tmp_path / ".unfinished" / "checkpoint-3" / "model.safetensors").write_bytes(b"torn")
    again = training.align_trainer(tmp_path, **(options | {"max_steps": 3}))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3 and not (tmp_path / ".unfinished").exists()


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
    with pytest.raises(ValueError, match="there is no 'image_tower' in AlignModel; it has text_model"):
        training.align_trainer(tmp_path, freeze=["image_tower"])


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
    with pytest.raises(DataError, match="20 samples drawn one after another"):
        bare = [{"image": record["image"]} for record in records]
        training.align_trainer(tmp_path, data=training.Records(bare)).train()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_device_train_batch_size": 18, "chunk_size": 8}, "both must be multiples .* Try 16 in chunks of 8"),
        ({"optimizer": "adamax"}, "optimizer: got 'adamax', wanted one of lamb, adamw, sgd"),
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


def test_logs_say_temperature_and_rate(tmp_path):
    trainer = training.align_trainer(tmp_path, schedule="cosine", warmup_steps=1)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["learning_rate"] for log in logs] == pytest.approx([0.0, 0.05, 0.025])
    assert logs[0]["temperature"] == pytest.approx(0.1) and logs[-1]["temperature"] != logs[0]["temperature"]
    assert json.dumps(logs)


def test_a_stream_trains_and_goes_on_where_it_stopped(tmp_path):
    rows = [{"image": row["image"], "caption": row["captions"][0]} for row in training.records(24)]
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 8}

    def trainer():
        made = training.align_trainer(tmp_path, **options)
        stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
        made.train_dataset = StreamData(stream, made.train_dataset.prepare, batch_size=8)
        return made

    straight = trainer()
    straight.train()
    expected = weights(straight)
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert all(torch.equal(x, expected[name]) for name, x in weights(again).items())


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
        trainer = Weighted(plain.model, plain.args, plain.train_dataset, plain.processing_class)
        trainer.train()
        found.append(weights(trainer))
    close(*found, TOLERANCE["runs float32"])


def test_chunks_want_a_text_for_each_picture(tmp_path):
    trainer = training.align_trainer(tmp_path, chunk_size=8)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["input_ids"], batch["attention_mask"] = (batch[name].repeat(2, 1) for name in ("input_ids", "attention_mask"))
    with pytest.raises(ValueError, match="chunks need a text for each of 16 pictures, got .*'input_ids': 32"):
        trainer.training_step(trainer.model, batch)


def test_what_training_asks_of_the_tokenizer_is_not_saved_with_it(tmp_path):
    trainer = training.align_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_final(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
