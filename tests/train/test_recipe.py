"""Recipes, and whole runs of them: from data to a folder for the Hub."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import published
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import tiny
import torch
import training
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file
from tolerances import TOLERANCE
from typer.testing import CliRunner

from kakao_models import AlignModel, AlignProcessor, AlignTrainer, Embedder, ViTForImageClassification, ViTTrainer
from kakao_models.align.classification_torch import AlignForImageClassification
from kakao_models.samples.columns import CAPTIONS
from kakao_models.samples.sources import open_source
from kakao_models.train.callbacks import JsonLines, ProgressBar
from kakao_models.train.cli import app
from kakao_models.train.recipe import as_yaml, names, read_recipe
from kakao_models.train.run import _metadata, build_trainer, card, run


def kind_of(name: str) -> str:
    return "vit" if name.startswith("vit") or name == "align_classifier" else "align"


@pytest.mark.parametrize("name", names())
def test_every_recipe_here_is_read_and_says_what_it_needs(name):
    recipe = read_recipe(kind_of(name), name)
    assert "hours" in recipe.about.lower() and "metric" in recipe.about.lower()
    again = Path(name).stem
    assert yaml.safe_load(as_yaml(recipe))["batch_size"] == recipe.batch_size and again == name


@pytest.mark.parametrize(
    "name, settings",
    [
        ("align_b3_mini_cc3m", (16384, 5e-3, 10_000, 100_000, "lamb", 1e-5)),
        ("align_b7_base_coyo700m", (65536, 2e-3, 40_000, 300_000, "lamb", 1e-5)),
        ("align_retrieval_coco", (2048, 1e-5, 0, 6000, "lamb", 1e-5)),
        ("align_retrieval_flickr30k", (2048, 1e-5, 0, 3000, "lamb", 1e-5)),
        ("vit_l16_finetune_384", (512, 0.06, 500, 20_000, "sgd", 0.0)),
        ("vit_l16_pretrain", (4096, 6e-4, 10_000, None, "adamw", 0.1)),
    ],
)
def test_recipes_have_the_originals_numbers(name, settings):
    r = read_recipe(kind_of(name), name)
    assert (r.batch_size, r.lr, r.warmup, r.steps, r.optimizer, r.weight_decay) == settings


@pytest.mark.parametrize(
    "change, message",
    [
        ("chunksize=4", "a recipe for align has no key 'chunksize'; did you mean 'chunk_size'?"),
        ("learn_rate=4", "a recipe for align has no key 'learn_rate', expected one of about, output, data, "),
        ("batch_size=many", "batch_size must be int, got 'many'"),
        ("epochs=3", "give either steps or epochs"),
        ("steps=0", "steps must be at least 1, got 0"),
        ("lr=nan", "lr must be float, got 'nan'"),
        ("precision=int8", "precision must be fp32, bf16 or fp16, got 'int8'"),
        ("checkpointing=layers", "checkpointing must be activations, blocks or false, got 'layers'"),
        ("lr", "lr: expected key=value"),
        ("steps=[1", "steps=[1: the value is not valid YAML"),
        ("steps.x=5", "steps.x=5: steps is 100000, which has no keys"),
    ],
)
def test_what_is_no_setting_is_said(change, message):
    with pytest.raises(ValueError) as error:
        read_recipe("align", "align_b3_mini_cc3m", [change])
    assert message in str(error.value)


def test_all_that_a_recipe_lacks_is_said_at_once(tmp_path):
    (tmp_path / "mine.yaml").write_text("about: mine\nsteps: 3\nbatch_size: 16\n")
    with pytest.raises(ValueError, match="a recipe for align needs output, data, lr, weight_decay, which"):
        read_recipe("align", str(tmp_path / "mine.yaml"), ["optimizer=lamb"])


@pytest.mark.parametrize(
    "change, message",
    [
        ("augment.cropp=3", "recipe: augment has no key 'cropp'; did you mean 'crop'?"),
        ("trainer.use_cpus=true", "recipe: trainer has no key 'use_cpus'; did you mean 'use_cpu'?"),
    ],
)
def test_a_misspelt_key_of_a_mapping_is_said_too(change, message, tmp_path):
    start = tiny.align_folder(tmp_path / "start")
    recipe = read_recipe("align", recipe_file(tmp_path, data="none.parquet", start=start), [change])
    with pytest.raises(ValueError) as error:
        run(recipe)
    assert message in str(error.value)


def test_values_of_another_kind_within_mappings_are_one_sentence(tmp_path):
    start, data = tiny.align_folder(tmp_path / "start"), write_parquet(tmp_path / "train.parquet")
    file = recipe_file(tmp_path, start=start, data=data)
    for change, message in (
        ("augment.resize=big", "recipe: augment.resize: expected pixels, got 'big'"),
        ("distort.grey=much", "recipe: distort: Distorted does not take these values: .*'grey': 'much'"),
        ("model.projection_dim=x", "recipe: model is not a valid model configuration: .*'projection_dim'"),
        ("columns.image=3", "recipe: columns.image: expected the name of a column, got 3"),
        ("vocabulary.at_least=x", "recipe: vocabulary.at_least: expected a number of occurrences, got 'x'"),
        ("evaluate.retrieval=null", "evaluate.retrieval: expected data, or arguments .* got None"),
        ("distill.a.targets=3", "recipe: distill: a: targets: expected one file .* got \\[3\\]"),
    ):
        with pytest.raises(ValueError, match=message):
            build_trainer(read_recipe("align", file, [change]))


def test_a_start_of_half_precision_is_trained_in_float32(tmp_path):
    for kind, cls, make in (
        ("align", AlignModel, tiny.align_folder),
        ("vit", ViTForImageClassification, tiny.vit_folder),
    ):
        cls.from_pretrained(make(tmp_path / "full")).bfloat16().save_pretrained(tmp_path / kind)
        for file in (tmp_path / "full").glob("*"):
            if not (tmp_path / kind / file.name).exists():
                (tmp_path / kind / file.name).write_bytes(file.read_bytes())
        assert cls.from_pretrained(tmp_path / kind).dtype == torch.bfloat16
        settings = {"start": str(tmp_path / kind), "data": write_parquet(tmp_path / "train.parquet")}
        changes = [] if kind == "align" else ["classes=3", "new_head=true", "augment={}"]
        trainer = build_trainer(read_recipe(kind, recipe_file(tmp_path, **settings), changes))
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_what_a_recipe_names_is_looked_for_before_anything_is_fetched(tmp_path):
    start = recipe_file(tmp_path, data="none.parquet", start="owner/model")
    for change, message in (
        ("evaluate.retrieval=gone.parquet", "gone.parquet"),
        ("start=owner/model", "recipe: start: owner/model: there is no such folder here, .* use align-small"),
        ("start=null", "recipe: tokenizer: bert-base-uncased: there is no such folder here, .* use align-small"),
    ):
        with pytest.raises(OSError, match=message):
            run(read_recipe("align", start, [change]))


def test_changes_reach_into_mappings_and_numbers_are_numbers():
    recipe = read_recipe("align", "align_b3_mini_cc3m", ["model.projection_dim=64", "lr=5e-3", "evaluate.knn.k=3"])
    assert recipe.model == {"projection_dim": 64, "temperature_init_value": 1.0, "label_smoothing": 0.1}
    assert recipe.lr == 0.005 and recipe.evaluate == {"knn": {"k": 3}}
    inner = read_recipe(
        "align", "align_b3_mini_cc3m", ["lr_scale.vision_model=1e-1", "temperature_range=[1E-2, .5e+0]"]
    )
    assert inner.lr_scale == {"vision_model": 0.1} and inner.temperature_range == [0.01, 0.5]
    assert yaml.safe_load(as_yaml(dataclasses.replace(recipe, output="1e5")))["output"] == "1e5"
    assert "output: '1e5'" in as_yaml(dataclasses.replace(recipe, output="1e5"))
    with pytest.raises(ValueError, match="epochs must be above 0, got 0.0"):
        read_recipe("align", "align_b3_mini_cc3m", ["steps=null", "epochs=0"])
    with pytest.raises(ValueError, match="nothing is neither a file nor a recipe of this package .*align_b7_base"):
        read_recipe("align", "nothing")


def test_recipes_as_json():
    said = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert {"align_b3_mini_cc3m", "vit_l16_finetune_384"} <= {recipe["name"] for recipe in said}
    show = ["align", "--config", "align_b3_mini_cc3m", "lr=5e-3", "--show", "--json"]
    assert json.loads(CliRunner().invoke(app, show).stdout)["lr"] == 0.005


def write_parquet(path: Path, count: int = 24) -> str:
    rows = training.records(count)
    table = {"image": [png(row["image"]) for row in rows], "captions": [row["captions"] for row in rows]}
    classes = ["cat", "dog", "bird"]
    table |= {"label": [row["label"] % 3 for row in rows], "label_name": [classes[row["label"] % 3] for row in rows]}
    pq.write_table(pa.table(table), path)
    return str(path)


def png(picture: Image.Image) -> dict:
    import io

    out = io.BytesIO()
    picture.save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def recipe_file(tmp_path: Path, **settings) -> str:
    values = {
        "about": "A test.",
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 4,
        "optimizer": "sgd",
        "lr": 0.05,
        "weight_decay": 1e-4,
        "workers": 0,
        "log_every": 1,
        "save_every": 2,
        "trainer": {"use_cpu": True},
        "augment": {"resize": 36, "crop": 32},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | settings))
    return str(path)


def read_logs(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_align_run_ends_in_a_folder_for_the_hub(tmp_path):
    data = write_parquet(tmp_path / "train.parquet")
    evaluate = {
        "retrieval": data,
        "zero_shot": {"data": data, "templates": "small"},
        "knn": {"data": data, "train": data},
    }
    start = tiny.align_folder(tmp_path / "start", preprocessing="tf", resample=2)
    file = recipe_file(tmp_path, data=data, start=start, evaluate=evaluate, evaluate_every=2, ema=0.5, chunk_size=8)
    recipe = read_recipe("align", file, ["model.vision_config.virtual_batch_size=4", "chunk_size=4"])
    metrics = run(recipe)
    out = tmp_path / "out"
    assert metrics["eval_knn/top1"] == 1.0  # each picture is its own neighbour
    assert 0 < metrics["eval_retrieval/image_to_text_r10"] <= 1 and "eval_zero_shot/top1" in metrics
    logs = read_logs(out / "training.jsonl")
    assert [line["step"] for line in logs if "loss" in line] == [1, 2, 3, 4]
    wanted = {"temperature", "learning_rate", "samples_per_second", "memory_gb", "hours"}
    assert all(wanted <= line.keys() for line in logs if "loss" in line)
    assert [line["step"] for line in logs if "eval_knn/top1" in line] == [2, 4]
    picture = Image.open(out / "training.png")
    assert picture.format == "PNG" and picture.width > 800
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\n")
    assert f"| knn/top1 | {metrics['eval_knn/top1']:.4g} |" in card and "train.parquet" in card and "A test." in card
    assert read_recipe("align", str(out / "recipe.yaml")) == recipe
    embedder = Embedder(out)  # model, processor and tokenizer are there, and preprocessing is the start's
    assert embedder.images([tiny.picture(0)]).shape == (1, 16)
    assert embedder.image_processor.preprocessing == "tf"
    model = AlignModel.from_pretrained(out)
    assert not torch.equal(model.temperature, AlignModel.from_pretrained(start).temperature)
    assert (out / "checkpoint-4" / "ema.safetensors").is_file()
    with pytest.raises(FileExistsError, match="has checkpoint-4: resume from it, or choose another output"):
        run(recipe, resume=False)


def test_published_towers_a_cut_vocabulary_and_a_teacher_are_keys_of_a_recipe(tmp_path):
    data = write_parquet(tmp_path / "train.parquet")
    table = pq.read_table(data)
    pq.write_table(table.rename_columns(["texts" if name in CAPTIONS else name for name in table.column_names]), data)
    torch.save(published.lite0(), tmp_path / "lite0.pth")
    bert = str(published.bert_folder(tmp_path / "bert"))
    embeddings = np.random.default_rng(0).random((24, 9)).tolist()
    pq.write_table(pa.table({"id": [*range(24)], "embedding": embeddings}), tmp_path / "teacher.parquet")
    (tmp_path / "more.txt").write_text("a picture of the sea\n")
    settings = {
        "data": data,
        "image_tower": str(tmp_path / "lite0.pth"),
        "text_tower": bert,
        "image_size": 64,
        "vocabulary": {"texts": [data, str(tmp_path / "more.txt")]},
        "columns": {"caption": "texts"},
        "distill": {"lite": {"targets": str(tmp_path / "teacher.parquet"), "loss": "pairs", "weight": 0.5}},
        "contrastive": 0.5,
        "model": {"projection_dim": 24, "vision_config": {"virtual_batch_size": None}},
        "steps": 2,
        "lr": 1e-3,
        "augment": {},
    }
    recipe = read_recipe("align", recipe_file(tmp_path, **settings))
    trainer = build_trainer(recipe)
    assert trainer.train_dataset.prepare.augment.crop == 64 and trainer.train_dataset.prepare.augment.resize == 77
    start = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    states = torch.load(tmp_path / "lite0.pth")
    assert torch.equal(
        start["vision_model.encoder.blocks.16.expansion.expand_conv.weight"], states["_conv_head.weight"]
    )
    run(recipe)
    out = tmp_path / "out"
    vocabulary = AlignProcessor.from_pretrained(out).tokenizer.get_vocab()
    assert "picture" in vocabulary and "with" not in vocabulary
    model = AlignModel.from_pretrained(out)
    assert model.config.text_config.vocab_size == len(vocabulary) and model.config.projection_dim == 24
    assert not torch.equal(
        model.state_dict()["vision_model.embeddings.convolution.weight"], states["_conv_stem.weight"]
    )
    logs = [line for line in read_logs(out / "training.jsonl") if "loss" in line]
    assert all("distill/lite" in line for line in logs) and len(logs) == 2
    assert Embedder(out).images([tiny.picture(0)]).shape == (1, 24)
    assert read_recipe("align", str(out / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ["text_tower=some/bert", "tokenizer=other"],
            "tokenizer: text_tower some/bert has its own; leave tokenizer out",
        ),
        (["contrastive=0"], "and 1 without distill, got 0"),
    ],
)
def test_keys_that_do_not_go_together(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_recipe("align", recipe_file(tmp_path, data="none.parquet"), changes)


def test_towers_are_looked_for_before_anything_is_fetched(tmp_path):
    published.bert_folder(tmp_path / "bert")
    towers = [f"text_tower={tmp_path / 'bert'}", "image_tower=owner/tower"]
    with pytest.raises(OSError, match="recipe: image_tower: owner/tower: there is no such folder"):
        run(read_recipe("align", recipe_file(tmp_path, data="none.parquet"), towers))
    with pytest.raises(OSError, match="recipe: text_tower: owner/bert: there is no such folder"):
        run(read_recipe("align", recipe_file(tmp_path, data="none.parquet"), ["text_tower=owner/bert"]))
    with pytest.raises(ValueError, match="distill needs a DistillTrainer, got AlignTrainerOfMine"):
        mine = type("AlignTrainerOfMine", (AlignTrainer,), {})
        settings = {"start": tiny.align_folder(tmp_path / "start"), "data": write_parquet(tmp_path / "train.parquet")}
        recipe = read_recipe("align", recipe_file(tmp_path, **settings), ["distill.a.targets=gone.parquet"])
        build_trainer(recipe, mine)


def pictures(folder: Path) -> str:
    for number in range(12):
        name = ["bird", "cat", "dog"][number % 3]
        (folder / name).mkdir(parents=True, exist_ok=True)
        tiny.picture(number % 3).save(folder / name / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize("backbone", ["vit", "align"])
def test_a_classifier_learns_the_folders_of_its_pictures(backbone, tmp_path):
    data = pictures(tmp_path / "data")
    make = tiny.align_folder if backbone == "align" else tiny.vit_folder
    start = make(tmp_path / "start")
    settings = {"data": data, "start": start, "backbone": backbone, "evaluate": {"accuracy": data}, "batch_size": 12}
    settings |= {"steps": 60, "lr": 0.1, "clip": 1.0, "augment": {"area": [0.8, 1.0]}, "save_every": 1000}
    settings |= {"image_size": 32, "new_head": True, "log_every": 20, "chunk_size": 6, "weight_decay": 0.0}
    file = recipe_file(tmp_path, **settings)
    changes = ["freeze=[vision_model]"] if backbone == "align" else []
    metrics = run(read_recipe("vit", file, changes))
    assert metrics["eval_accuracy/top1"] > 0.9
    cls = AlignForImageClassification if backbone == "align" else ViTForImageClassification
    model = cls.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == ["bird", "cat", "dog"]
    if backbone == "align":  # a linear probe: the tower is the start's
        tower = AlignModel.from_pretrained(start).vision_model.state_dict()
        assert all(torch.equal(x, tower[name]) for name, x in model.vision_model.state_dict().items())
    losses = [line["loss"] for line in read_logs(tmp_path / "out" / "training.jsonl") if "loss" in line]
    assert losses[0] == pytest.approx(1.0986, abs=1e-3)  # log 3: a head of zeros


def test_the_command_classifies_with_what_two_steps_of_its_recipe_made(command, tmp_path):
    data, start = pictures(tmp_path / "data"), tiny.align_folder(tmp_path / "start")
    settings = {"output": tmp_path / "out", "data": data, "start": start, "batch_size": 12, "chunk_size": 6}
    settings |= {"epochs": "null", "steps": 2, "warmup": 0, "workers": 0, "evaluate": "{}", "trainer.use_cpu": "true"}
    changes = [f"{name}={value}" for name, value in settings.items()]
    code, _, err = command("train", "vit", "--config", "align_classifier", *changes)
    assert code == 0, err
    photo = sorted(Path(data).glob("*/*"))[0]
    code, out, err = command("classify", photo, "--model", tmp_path / "out", "--json")
    assert code == 0, err
    scores = {entry["label"]: entry["score"] for entry in json.loads(out)[0]["scores"]}
    assert scores.keys() == {"bird", "cat", "dog"} and len({round(score, 4) for score in scores.values()}) > 1
    logits = Embedder(tmp_path / "out", framework="torch").class_logits([photo])[0].astype(np.float64)
    wanted = dict(zip(["bird", "cat", "dog"], np.exp(logits) / np.exp(logits).sum()))
    assert scores == pytest.approx(wanted, abs=TOLERANCE["scores"])
    code, out, err = command(
        "evaluate", "classify", "--data", data, "--model", tmp_path / "out", "--no-cache", "--json"
    )
    assert code == 0 and json.loads(out)["counts"]["classes"] == 3, err


def test_how_many_classes_has_to_be_known(tmp_path):
    start = tiny.align_folder(tmp_path / "start")
    data = write_parquet(tmp_path / "train.parquet")
    pq.write_table(pq.read_table(data).drop(["label_name"]), data)
    file = recipe_file(tmp_path, data=data, start=start, augment={})
    for backbone in ("align", "vit"):
        with pytest.raises(ValueError, match="classes: the data do not name their classes"):
            run(read_recipe("vit", file, [f"backbone={backbone}"]))


def test_the_command_says_what_a_worker_found_without_its_traceback(tmp_path):
    data, start = write_parquet(tmp_path / "train.parquet"), tiny.align_folder(tmp_path / "start")
    settings = {"data": data, "start": start, "backbone": "align", "classes": 2, "workers": 1, "augment": {}}
    file = recipe_file(tmp_path, **settings)
    done = CliRunner().invoke(app, ["vit", "--config", file])
    assert isinstance(done.exception, ValueError)
    message = str(done.exception)
    assert message.startswith("train.parquet:0:") and message.endswith(
        "label 2 is out of range, the model has classes 0..1"
    )


def test_another_head_than_the_starts_has_to_be_asked_for(tmp_path):
    data, start = pictures(tmp_path / "data"), tiny.vit_folder(tmp_path / "start")
    file = recipe_file(tmp_path, data=data, start=start, image_size=32, augment={})
    with pytest.raises(ValueError, match="classes is 3, but .* has 7: set new_head: true"):
        run(read_recipe("vit", file))


def test_torchrun_of_the_command_is_the_run_of_one_process(tmp_path):
    data = write_parquet(tmp_path / "train.parquet", 32)
    start = tiny.align_folder(tmp_path / "start")
    settings = {"data": data, "start": start, "batch_size": 16, "chunk_size": 4, "lr": 1e-3, "clip": 1.0, "steps": 2}
    settings["model"] = {
        "vision_config": {"virtual_batch_size": 4, "drop_connect_rate": 0.0},
        "text_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    file = recipe_file(tmp_path, **settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "kakao_models.cli", "train", "align", "--config", file, f"output={tmp_path / 'two'}"]
    done = subprocess.run([*torchrun, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "oneDNN" not in done.stderr and list((tmp_path / "two" / "runs").rglob("events*"))  # without TensorFlow
    assert done.stdout.count(f"{tmp_path / 'two'}: trained") == 1
    run(read_recipe("align", file))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "two"))
    assert one.keys() == two.keys()
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=0, atol=TOLERANCE["runs float32"], msg=name)
    losses = [
        [line["loss"] for line in read_logs(tmp_path / n / "training.jsonl") if "loss" in line] for n in ("out", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 2


class Own:
    """A data set of one's own: neither a `Source`, nor a sequence."""

    counts = [5, 3]

    def read(self, shard: int, row: int) -> dict:
        return ROWS[5 * shard + row]


class Items(torch.utils.data.Dataset):
    """Like many data sets, it makes an item for any number, and so has no end but by its length."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, number: int) -> dict:
        return ROWS[number % len(ROWS)]


ROWS = [{"image": row["image"], "label": row["label"]} for row in training.records(8)]
OBJECTS = {
    "list": (lambda: ROWS * 3, "<list of 24 samples>"),
    "short list": (lambda: ROWS, [{"image": "<Image>", "label": row["label"]} for row in ROWS]),
    "datasets": (lambda: datasets.Dataset.from_list(ROWS), "<Dataset of 8 samples>"),
    "stream": (lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "<IterableDataset>"),
    "torch": (Items, "<Items of 8 samples>"),
    "object": (Own, "<Own of 8 samples>"),
    "source": (lambda: open_source(ROWS), "<Records of 8 samples>"),
    "mixture": (
        lambda: [{"path": Own(), "weight": 2}, {"path": ROWS, "weight": np.float64(0.5)}],
        [{"path": "<Own of 8 samples>", "weight": 2}, {"path": ROWS, "weight": 0.5}],
    ),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_run_takes_data_of_ones_own_and_describes_them(kind, vit, tmp_path):
    make, described = OBJECTS[kind]
    changes = {"start": vit, "steps": 1, "augment": {}, "classes": 7}
    recipe = read_recipe("vit", recipe_file(tmp_path, data="mine", **changes))
    run(dataclasses.replace(recipe, data=make(), streaming=kind == "stream"))
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["data"]
    if kind == "mixture":
        described[1]["path"] = OBJECTS["short list"][1]
    assert written == described
    card = (tmp_path / "out" / "README.md").read_text()
    assert json.dumps(described) in card and ViTForImageClassification.from_pretrained(tmp_path / "out")
    if kind == "object":
        with pytest.raises(ValueError, match="<Own of 8 samples> was a Python object"):
            run(read_recipe("vit", str(tmp_path / "out" / "recipe.yaml"), [f"output={tmp_path / 'other'}"]))


def test_the_data_set_of_the_documentation_trains(align, tmp_path, monkeypatch):
    page = Path(__file__).parents[2].joinpath("docs/train.md").read_text(encoding="utf-8")
    section = page.split("### Bring your own data set")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    for shard, count in ((0, 6), (1, 2)):
        folder = Path("photos", str(shard))
        for row, path in enumerate(tiny.picture_folder(folder, count)):
            path.rename(folder / f"{row}.png")
    Path(recipe_file(tmp_path, data="mine", start=align, steps=1, augment={})).rename("mine.yaml")
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(block, {})
    assert "<Photos of 8 samples>" in Path("out/README.md").read_text()
    assert "broken" not in " ".join(path.name for path in Path("out").iterdir())


@pytest.mark.parametrize(
    "data, message",
    [
        (datasets.Dataset.from_list(ROWS[:1]).to_iterable_dataset(), "is read in its order: set streaming: true"),
        ({"train": ROWS}, r"got several data sets \(train\): choose one"),
        ([(row["image"], 0) for row in ROWS], "got Image, expected a path, a list of dicts"),
        (iter(ROWS), "got list_iterator, expected a path, a list of dicts"),
        (object(), "got object, expected a path, a list of dicts"),
    ],
)
def test_data_that_are_none_are_refused(data, message, vit, tmp_path):
    recipe = read_recipe("vit", recipe_file(tmp_path, data="mine", start=vit, augment={}, classes=7))
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(recipe, data=data))


def test_the_size_is_that_of_the_start_unless_the_recipe_says_otherwise(align, vit, tmp_path):
    data = write_parquet(tmp_path / "train.parquet", 8)

    def trainer(kind, *changes, start=align):
        settings = {"data": data, "start": start, "augment": {}, "classes": 7}
        if kind == "align":
            del settings["classes"]
        return build_trainer(read_recipe(kind, recipe_file(tmp_path, **settings), changes))

    def augment(made):
        return made.train_dataset.prepare.augment

    assert (augment(trainer("align")).resize, augment(trainer("align")).crop) == (40, 32)
    assert augment(trainer("vit", "augment.kind=random", start=vit)).crop == 32
    assert augment(trainer("vit", "backbone=align", "classes=3")).size == 32
    larger = trainer("align", "image_size=64")
    assert (augment(larger).resize, augment(larger).crop) == (80, 64)
    assert (
        larger.processing_class.image_processor.crop_size["height"]
        == larger.model.config.vision_config.image_size
        == 64
    )
    assert augment(trainer("vit", "image_size=48", start=vit)).size == 48
    other = trainer("align", "image_size=32", "augment.crop=24")  # smaller crops than the images it is used on
    assert augment(other).crops[0].crop == 24 and other.processing_class.image_processor.crop_size["height"] == 32
    message = "takes images of 32 x 32 pixels. Leave {} out, or set image_size: 48 .*, or image_size: 32 to train at"
    with pytest.raises(ValueError, match=f"augment.crop is 48, but .* {message.format('crop')}"):
        trainer("align", "augment.crop=48")
    for backbone, start in (("vit", vit), ("align", align)):
        with pytest.raises(ValueError, match=f"augment.size is 48, but .* {message.format('size')}"):
            trainer("vit", "augment.size=48", f"backbone={backbone}", "classes=3", "new_head=true", start=start)


def test_a_run_of_several_resolutions_steps_through_them(vit, align, tmp_path):
    data, sizes = write_parquet(tmp_path / "train.parquet", 16), []

    class Seen(ViTTrainer):
        def training_step(self, model, inputs, *args):
            sizes.append(inputs["pixel_values"].shape[-1])
            return super().training_step(model, inputs, *args)

    def trained(kind, start, cls, **settings):
        sizes.clear()
        values = {"data": data, "start": start, "steps": 6, "save_every": 100} | settings
        build_trainer(read_recipe(kind, recipe_file(tmp_path, **values)), cls).train()
        return sizes

    heads = {"classes": 3, "new_head": True}
    assert trained("vit", vit, Seen, augment={"size": [16, 24, 32]}, **heads) == [16, 16, 24, 24, 32, 32]
    stages = {"size": [16, 32], "by": "step"}
    # two micro-batches a step
    assert trained("vit", vit, Seen, augment=stages, chunk_size=4, steps=2, **heads) == [16, 16, 32, 32]
    for augment, message in (
        ({"crop": []}, r"augment.crop: expected pixels, or a list of them, got \[\]"),
        ({"crop": ["large", 32]}, "augment.crop: expected pixels, or a list of them"),
        ({"crop": 32, "by": "step"}, "augment.by is 'step', but crop is a single size: make it a list"),
        ({"crop": [16, 32], "by": "epoch"}, "by='stage' or 'step'; got 2 sizes and by='epoch'"),
        ({"crop": [16, 24]}, r"augment.crop is \[16, 24\], but .* takes images of 32 x 32"),
    ):
        with pytest.raises(ValueError, match=message):
            trained("align", align, None, augment=augment)


def test_a_run_is_uploaded_while_it_trains_and_at_its_end(hub, vit, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # made for another address
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.tokens.add("hf_mine")
    upload = {"push_to_hub": True, "hub_model_id": "me/vit", "hub_strategy": "every_save"}
    settings = {"start": vit, "steps": 2, "save_every": 1, "augment": {}, "classes": 7, "ema": 0.5, "license": "mit"}
    file = recipe_file(tmp_path, data="mine", trainer={"use_cpu": True} | upload, **settings)
    recipe = dataclasses.replace(read_recipe("vit", file), data=ROWS)
    run(recipe)
    repository, out = hub.repositories["me/vit"], tmp_path / "out"
    commits = {message: repository.commits[commit] for commit, message in repository.messages.items()}
    assert list(commits)[0] == "Training in progress, step 1" and list(commits)[-1] == "End of training"
    first, final = commits["Training in progress, step 1"], commits["End of training"]
    average = load_file(out / "checkpoint-1" / "ema.safetensors")  # what is evaluated is uploaded
    bias = safetensors.torch.load(first["model.safetensors"])["classifier.bias"]
    assert torch.equal(bias, average["classifier.bias"])
    for name in ("model.safetensors", "README.md", "recipe.yaml", "preprocessor_config.json"):
        assert final[name] == (out / name).read_bytes(), name
    assert b"license: mit" in final["README.md"] and b"<Image>" in final["README.md"]
    assert not any(name.startswith(("checkpoint-", "_")) for name in final)
    requests = len(hub.requests)
    run(recipe)
    assert len(hub.requests) == requests  # it has ended


def test_an_error_ends_the_progress_bar(tmp_path):
    """Otherwise the terminal would stay without a cursor."""
    bar, ended = ProgressBar(), []
    bar.bar = SimpleNamespace(stop=lambda: ended.append(True))

    def train(**options):
        raise FloatingPointError("the loss is nan")

    trainer = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=[JsonLines(), bar, ProgressBar()]), train=train
    )
    with pytest.raises(FloatingPointError):
        run(read_recipe("align", recipe_file(tmp_path, data="none.parquet")), build=lambda recipe: trainer)
    assert ended == [True]


def test_a_run_that_has_ended_is_evaluated_once_and_not_touched_again(align, tmp_path):
    data, seen = write_parquet(tmp_path / "train.parquet", 8), []
    settings = {"data": data, "start": align, "steps": 2, "augment": {}, "evaluate": {"retrieval": data}}
    recipe = read_recipe("align", recipe_file(tmp_path, **settings, evaluate_every=1))

    def build(recipe):
        trainer = build_trainer(recipe)
        evaluation = trainer.evaluations["retrieval"]
        trainer.evaluations["retrieval"] = lambda *arguments: (
            seen.append(trainer.state.global_step) or evaluation(*arguments)
        )
        return trainer

    def state():
        files = {path: path for path in (tmp_path / "out").rglob("*") if path.is_file()}
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    metrics = run(recipe, build=build)
    assert seen == [1, 2] and all(name.startswith("eval_retrieval/") for name in metrics)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "epoch |" not in card and "seconds |" not in card and "| retrieval/image_to_text_r1 |" in card
    before = state()
    assert run(recipe, build=build) == metrics and seen == [1, 2] and state() == before
    longer = dataclasses.replace(recipe, steps=3)
    run(longer, build=build)  # another recipe goes on
    assert seen == [1, 2, 3]
    Path(tmp_path, "out", "_finished.json").unlink()  # as after a run that was killed at its end
    assert run(longer, build=build).keys() == metrics.keys() and seen == [1, 2, 3, 3]


def test_a_card_names_the_models_and_data_sets_of_the_hub_that_it_comes_from(align, tmp_path):
    parts = ["hf://owner/pictures:train", {"path": "hf://owner/more/small", "weight": 2}, {"path": tiny, "weight": 1}]
    towers = {"data": parts, "text_tower": "owner/bert", "image_tower": "b0"}
    assert _metadata(read_recipe("align", recipe_file(tmp_path, **towers | {"data": parts[:1]}))) == {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["kakao-models", "align"],
        "base_model": "owner/bert",
        "datasets": ["owner/pictures"],
    }
    recipe = dataclasses.replace(read_recipe("align", recipe_file(tmp_path, data="a.tar", start=align)), data=parts)
    found = _metadata(recipe)
    assert "base_model" not in found and found["datasets"] == ["owner/pictures", "owner/more"]
    Path(tmp_path, "start").mkdir()
    Path(tmp_path, "start", "config.json").write_text("{}")
    Path(tmp_path, "start", "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    start = dataclasses.replace(recipe, start=str(tmp_path / "start"))
    assert _metadata(start)["license"] == "apache-2.0"
    assert _metadata(dataclasses.replace(start, license="mit"))["license"] == "mit"


def test_null_takes_a_setting_away(tmp_path):
    file = recipe_file(tmp_path, data="data", start="start", evaluate={"retrieval": "dev"}, steps=1)
    recipe = read_recipe("align", file, ["evaluate=null", "workers=null", "start=null"])
    assert recipe.evaluate == {} and recipe.workers == 2 and recipe.start is None
    with pytest.raises(ValueError, match="batch_size must be int, got None"):
        read_recipe("align", file, ["batch_size=null"])


def test_recipes_as_a_table():
    lines = CliRunner().invoke(app, ["recipes"]).stdout.splitlines()
    assert lines[0].split() == ["name", "command", "model", "data", "batch", "length"]
    rows = {line.split()[0]: re.split(r"  +", line)[1:] for line in lines[1:10]}
    assert list(rows) == names()
    assert rows["align_retrieval_coco"] == [
        "align",
        "from kakaobrain/align-base",
        "coco/train.parquet",
        "2,048",
        "6,000 steps",
    ]
    for name, (command, *_) in rows.items():
        assert CliRunner().invoke(app, [command, "--config", name, "--show"]).exit_code == 0


@pytest.mark.parametrize(
    "best, said", [(True, "after 4 of 8 steps, which had the best knn/top1."), (False, "after 8 steps.")]
)
def test_a_card_says_which_steps_its_weights_are_of(best, said):
    state = SimpleNamespace(global_step=8, best_global_step=4, epoch=1.0, log_history=[])
    arguments = SimpleNamespace(
        load_best_model_at_end=best, metric_for_best_model="knn/top1", device=torch.device("cpu"), world_size=1
    )
    trainer = SimpleNamespace(state=state, args=arguments, model=torch.nn.Linear(2, 2))
    assert said in card(read_recipe("align", "align_retrieval_coco"), trainer, {}).replace("\n", " ")
