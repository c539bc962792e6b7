"""Distillation: whole steps of the trainer, and where targets come from."""

import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import training
from tolerances import TOLERANCE
from torch.nn import functional as F
from training import weights

from kakao_models import Embedder
from kakao_models.data.embed import embed_table
from kakao_models.samples.sources import Joined, Records, open_source
from kakao_models.train.distill import Distillation, DistillTrainer, build_distillations, read_embeddings
from kakao_models.train.loss import tiled_contrastive_loss
from kakao_models.train.targets import class_loss, cosine_loss, pair_loss, relation_loss
from kakao_models.train.trainer import AlignTrainer


def teacher_of(count: int = 32, width: int = 9) -> dict[str, np.ndarray]:
    return {str(n): row for n, row in enumerate(np.random.default_rng(1).random((count, width), np.float32))}


def trainer_of(tmp_path, terms: dict[str, Distillation], contrastive: float = 1.0, **options) -> DistillTrainer:
    plain = training.align_trainer(tmp_path, **options)
    return distilled(plain, terms, contrastive=contrastive)


def distilled(plain: AlignTrainer, terms: dict[str, Distillation], cls=DistillTrainer, **options) -> DistillTrainer:
    """The same run with teachers."""
    data = {"train_dataset": plain.train_dataset, "processing_class": plain.processing_class}
    return cls(plain.model, plain.args, **data, distill=terms, **options)


ALL = {
    "relations": {"weight": 0.5},
    "texts": {"loss": "relations", "of": "texts"},
    "pairs": {"weight": 2.0, "temperature": 0.3},
    "cosine": {},
    "classes": {"classes": tiny.WORDS[:16], "per_step": 7, "student_temperature": 0.2},
}


def all_terms() -> dict[str, Distillation]:
    table = teacher_of(width=16)
    return {name: Distillation(**{"targets": table, "loss": name} | values) for name, values in ALL.items()}


def test_a_step_is_the_sum_of_its_terms_by_hand(tmp_path):
    trainer = trainer_of(tmp_path, all_terms(), contrastive=0.25, max_steps=1, max_grad_norm=0.0, weight_decay=0.0)
    model = training.align_trainer(tmp_path).model.train()
    (batch,) = list(trainer.get_train_dataloader())[:1]
    output = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    images, texts = output.image_embeds, output.text_embeds
    teacher = torch.stack([torch.from_numpy(teacher_of(width=16)[name]) for _, name in batch["ids"]])
    columns = teacher.sum(0).argsort(descending=True)[:7]
    prompts = [f"a photo of a {tiny.WORDS[column]}." for column in columns.tolist()]
    tokens = trainer.processing_class(text=prompts, return_tensors="pt")
    names = F.normalize(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output, dim=1)
    terms = {
        "relations": 0.5 * relation_loss(images, teacher, 0.1, 0.1),
        "texts": relation_loss(texts, teacher, 0.1, 0.1),
        "pairs": 2 * pair_loss(images, texts, teacher, 0.3, model.temperature),
        "cosine": cosine_loss(images, teacher),
        "classes": class_loss(images, names, teacher[:, columns], 1.0, 0.2),
    }
    loss = 0.25 * tiled_contrastive_loss(images, texts, model.temperature) + sum(terms.values())
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    assert trainer.train().training_loss == pytest.approx(loss.item(), abs=1e-4)
    for name, x in model.state_dict().items():
        ours = trainer.model.state_dict()[name]
        torch.testing.assert_close(
            ours, x, rtol=0, atol=TOLERANCE["runs float32"], msg=lambda m, name=name: f"{name}: {m}"
        )
    logged = trainer.state.log_history[0]
    assert logged["distill/cosine"] == pytest.approx(terms["cosine"].item(), abs=1e-5)
    assert {name for name in logged if name.startswith("distill/")} == {f"distill/{name}" for name in ALL}


@pytest.mark.parametrize("contrastive", [1.0, 0.0])
def test_chunks_change_nothing(contrastive, tmp_path):
    whole = trainer_of(tmp_path, all_terms(), contrastive)
    chunked = trainer_of(tmp_path, all_terms(), contrastive, chunk_size=8)
    assert len(chunked.chunks) > 1
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (whole, chunked) if t.train()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 3
    for name, x in whole.model.state_dict().items():
        other = chunked.model.state_dict()[name]
        torch.testing.assert_close(
            other, x, rtol=0, atol=TOLERANCE["runs float32"], msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_teacher_may_stand_alone_and_be_a_function_of_the_batch(tmp_path):
    table, seen = teacher_of(), []

    def teacher(batch) -> torch.Tensor:
        seen.append(batch["pixel_values"].shape)
        rows = [table[key.rpartition(" ")[2]] for key in batch["keys"]]  # "row 7"
        assert not torch.is_grad_enabled()
        return torch.from_numpy(np.stack(rows))

    runs = [trainer_of(tmp_path, {"mine": Distillation(targets=targets)}, 0.0) for targets in (table, teacher)]
    temperature = runs[0].model.temperature.item()
    for run in runs:
        run.train()
    assert seen == [(16, 3, 32, 32)] * 3
    one, other = (run.model.state_dict() for run in runs)
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    # nothing but weight decay moves what the loss does not see
    assert runs[0].model.temperature.item() == pytest.approx(temperature * (1 - 0.05 * 1e-4) ** 3, abs=1e-6)
    assert runs[0].state.log_history[0]["distill/mine"] == pytest.approx(runs[0].state.log_history[0]["loss"], abs=1e-4)


def test_samples_without_a_target_are_left_out_and_told(tmp_path):
    table = teacher_of()
    del table["3"]
    trainer = trainer_of(tmp_path, {"mine": Distillation(targets=table)}, max_steps=2)
    trainer.train()
    assert (tmp_path / "broken_samples.txt").read_text() == "row 3: distill: mine has no target\n"
    rows, present = trainer.distill["mine"].rows([(0, "3"), (0, "4")])
    assert present.tolist() == [False, True] and rows[0].abs().max() == 0
    with pytest.raises(ValueError, match="targets for 1 sources, but the data has source number 1"):
        trainer.distill["mine"].rows([(1, "3")])


def test_each_source_has_its_own_teacher(tmp_path):
    rows = training.records(16)
    data = Joined([Records(rows), Records(rows)])
    assert [data.identify(data.read(shard, 3), shard, 3) for shard in (0, 1)] == [(0, "3"), (1, "3")]
    terms = {"mine": Distillation(targets=[teacher_of(16), None])}
    distilled(training.align_trainer(tmp_path, data=data), terms).train()
    assert not (tmp_path / "broken_samples.txt").exists()


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv without ids", "several csv", "folder", "tar"])
def test_ids_are_those_of_data_embed(kind, tmp_path):
    pictures = tmp_path / "pictures"
    tiny.picture_folder(pictures, 3)
    source = pictures
    if kind == "parquet":
        source = tmp_path / "table.parquet"
        rows = {"image": [path.read_bytes() for path in sorted(pictures.iterdir())], "caption": ["a", "b", "c"]}
        pq.write_table(pa.table(rows), source, row_group_size=2)
    elif kind == "tar":
        source = tmp_path / "00000.tar"
        with tarfile.open(source, "w") as tar:
            for path in sorted(pictures.iterdir()):
                tar.add(path, path.name)
    elif kind == "several csv":  # of an image with two captions the first row counts, of a folder all rows
        source = tmp_path / "tables"
        source.mkdir()
        first = [f"../pictures/00{n}.png,a {word}\n" for n, word in [(0, "cat"), (1, "dog"), (0, "tree")]]
        (source / "a.csv").write_text("image,caption\n" + "".join(first))
        (source / "b.csv").write_text("image,caption\n../pictures/002.png,a house\n")
    elif kind.startswith("csv"):
        source, own = tmp_path / "table.csv", "without" not in kind
        rows = [f"{n + 5}," * own + f"pictures/00{n}.png,a cat\n" for n in range(3)]
        source.write_text("id," * own + "image,caption\n" + "".join(rows))
    embedder = Embedder(tiny.align_folder(tmp_path / "align"))
    embed_table(embedder, source, tmp_path / "out", model="align")
    table, data = read_embeddings(tmp_path / "out"), open_source(str(source))
    places = [(shard, row) for shard, count in enumerate(data.counts) for row in range(count)]
    ids = [data.identify(data.read(*place), *place) for place in places]
    assert {source for source, _ in ids} == {0}
    ids = [name for _, name in ids]
    assert ids == (["0", "1", "3"] if kind == "several csv" else list(table))
    expected = embedder.images([path for path in sorted(pictures.iterdir())])
    np.testing.assert_allclose(np.stack([table[name] for name in ids]), expected, rtol=0, atol=TOLERANCE["batching"])


def test_evaluation_is_the_contrastive_loss(tmp_path):
    plain, samples, modes = training.align_trainer(tmp_path), training.records(8), []
    plain.args.eval_strategy, plain.args.eval_steps = "steps", 1

    class Seen(DistillTrainer):
        def _class_embeddings(self, model, *args):
            modes.append(model.training)
            return super()._class_embeddings(model, *args)

    terms = {"mine": Distillation(targets=teacher_of(width=16), loss="classes", classes=tiny.WORDS[:16])}
    trainer = distilled(plain, terms, Seen, contrastive=0.0, eval_dataset=samples)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate(samples)["eval_loss"]
    trainer.train()
    assert modes == [True] * 3  # class names are embedded in training mode after an evaluation too


def test_batches_without_ids_are_refused(tmp_path):
    plain, names = training.align_trainer(tmp_path), ("pixel_values", "input_ids", "attention_mask")
    batch = next(iter(plain.get_train_dataloader()))
    rows = [{name: batch[name][row] for name in names} for row in range(16)]
    terms = {"mine": Distillation(targets=teacher_of())}
    trainer = DistillTrainer(plain.model, plain.args, train_dataset=rows, distill=terms)
    with pytest.raises(
        ValueError, match="distill: mine: targets are looked up by id, but the batch has no ids. Pass images"
    ):
        trainer.train()


def test_settings_of_a_recipe(tmp_path):
    pq.write_table(pa.table({"id": [0, 1], "embedding": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "teacher.parquet")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    file = str(tmp_path / "teacher.parquet")
    given = {"targets": file, "loss": "classes", "classes": str(tmp_path / "classes.txt"), "templates": "small"}
    term = build_distillations({"a": given | {"weight": "5e-1"}}, None)["a"]
    assert term.weight == 0.5 and term.classes == ["cat", "dog"] and len(term.templates) == 7
    assert term.rows([(0, "1")])[0].tolist() == [[3.0, 4.0]]
    two = Joined([Records(training.records(2))] * 2)
    assert build_distillations({"a": {"targets": [None, file]}}, two)["a"].expected(1)
    for changes, source, message in (
        ({"temprature": 1}, None, "distill: a has no key 'temprature'; did you mean 'temperature'"),
        ({"loss": "kl"}, None, "distill: loss has no key 'kl', expected one of relations"),
        ({"loss": "pairs"}, None, "only the loss 'classes' takes the names of classes"),
        ({"temperature": 0}, None, "temperature must be above 0, got 0"),
        ({"weight": "much"}, None, "weight must be a number, got 'much'"),
        ({}, two, "expected one file for each of the 2 sources of data, or null"),
        ({"targets": "gone.parquet"}, None, "gone.parquet: expected a .parquet, or a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            build_distillations({"a": given | changes}, source)


def test_a_batch_without_any_target_takes_the_other_losses(tmp_path):
    term = Distillation(targets={}, loss="classes", classes=["cat", "dog"])
    assert term.rows([(0, "1"), (0, "2")])[0].shape == (2, 2)
    trainer = trainer_of(tmp_path, {"mine": Distillation(targets=[None], loss="classes", classes=["cat", "dog"])})
    plain = training.align_trainer(tmp_path)
    trainer.train(), plain.train()
    assert all(torch.equal(x, weights(plain)[name]) for name, x in weights(trainer).items())


def test_a_teacher_of_another_width_or_number_of_classes_is_refused(tmp_path):
    term = Distillation(targets=teacher_of(), loss="cosine")
    with pytest.raises(ValueError, match="a teacher of the model's dimension 16, got 9. 'relations' takes any"):
        trainer_of(tmp_path, {"mine": term}).train()
    term = Distillation(targets=teacher_of(), loss="classes", classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"probabilities \(at least 0\) of 2 classes, got shape \(16, 9\)"):
        trainer_of(tmp_path, {"mine": term}).train()


def test_long_names_of_classes_are_cut_as_captions_are(tmp_path):
    words = [f"{word} {'very ' * 100}" for word in tiny.WORDS[:9]]
    trainer = trainer_of(tmp_path, {"mine": Distillation(targets=teacher_of(), loss="classes", classes=words)})
    trainer.processing_class.tokenizer.init_kwargs["max_length"] = 128  # as the one of align-small
    trainer.args.max_steps, embed, lengths = 1, trainer.model.get_text_features, []

    def embedded(**inputs):
        lengths.append(inputs["input_ids"].shape[1])
        return embed(**inputs)

    trainer.model.get_text_features = embedded
    trainer.train()
    assert max(lengths) == 64
