"""The Python of docs/*.md runs as it stands, with small models in the place of the released ones; commands are parsed."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pages
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import typer
import yaml

from kakao_models import AlignVisionConfig
from kakao_models.cli import app
from kakao_models.demo.photos import BUNDLED
from kakao_models.train.recipe import read_recipe

# Blocks that run in other test files, which have what they need: page -> part of the block -> file
ELSEWHERE = {
    "demo.md": {"gradio_client": "demo/test_security.py"},
    "export.md": {
        "onnxruntime": "export/test_onnx.py",
        "openvino.Core": "export/test_openvino.py",
        "saved_model.load": "export/test_saved_model.py",
        "tf.lite": "export/test_litert.py",
        "deserialize": "export/test_stablehlo.py",
        "torch.export.load": "export/test_pt2.py",
    },
    "integrations.md": {"": "test_docs.py"},
    "quickstart.md": {"": "test_docs.py"},
    "serve.md": {"InferenceClient": "serve/test_service.py", "OpenAI": "serve/test_service.py"},
    "train.md": {
        "Photos()": "train/test_recipe.py",
        "PairTrainer": "train/test_trainer.py",
        "hyperparameter_search": "train/test_trainer.py",
        "align-photos": "train/test_trainer.py",
        "ViTTrainer": "train/test_trainer.py",
        "RandomCrop": "train/test_trainer.py",
    },
}
# Blocks that run in no test: page -> part of the block -> reason
NOT_RUN = {
    "evaluate.md": {"import mteb": "it needs mteb; tests/evaluate/test_mteb.py calls the encoder as mteb does"},
    "jax.md": {
        "make_mesh((4, 2)": "it needs eight devices; tests/train/devices_flax.py simulates them in a process of its own"
    },
    "scaling.md": {"fully_shard(": "it needs processes; tests/ranks.py has its steps"},
}


def listed(table: dict, page: str, code: str) -> bool:
    return any(part in code for part in table.get(page, {}))


def runnable(page: str) -> list[str]:
    """The blocks of a page that run here, in their order."""
    found = pages.blocks(pages.read(page))
    return [code for code in found if not listed(ELSEWHERE, page, code) and not listed(NOT_RUN, page, code)]


PAGES = [page for page in sorted(file.name for file in pages.DOCS.glob("*.md")) if runnable(page)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Text of a page -> what stands for it: small models."""
    root = tmp_path_factory.mktemp("models")
    align = tiny.align_folder(root / "align", config=tiny.one_block_config())
    return {
        "kakaobrain/align-base": align,
        "kakaobrain/vit-large-patch16-384": tiny.vit_folder(root / "vit"),
        "align-small": align,
    }


def for_convert(folder: Path) -> None:
    from kakao_models.conversion.convert import convert_back

    text = tiny.align_config().text_config.to_dict() | {"hidden_size": 64, "num_attention_heads": 1}  # as published
    vision = AlignVisionConfig.efficientnet("b0", width_coefficient=0.25, hidden_dim=80).to_dict()
    config = tiny.align_config(vision_config=vision, text_config=text)
    convert_back(tiny.align_folder(folder / "start", config=config), folder / "coyo-align-b7-base/model-weights")
    tiny.tokenizer().save_pretrained(folder / "bert-base-uncased")


def for_evaluate(folder: Path) -> dict:
    photos = tiny.picture_folder(folder / "some", 3)
    captions = [f"photo {number}" for number in range(6)]
    return {"photos": photos, "captions": captions, "photo_ids": [0, 1, 2], "photo_of_caption": [0, 0, 1, 1, 2, 2]}


def batch_of(config) -> dict[str, np.ndarray]:
    size, count = config.vision_config.image_size, config.vision_config.virtual_batch_size
    words = np.random.default_rng(0).integers(5, len(tiny.vocabulary()), (count, 4)).astype(np.int32)
    pixels = np.stack([np.asarray(tiny.picture(n, size, size), np.float32).transpose(2, 0, 1) for n in range(count)])
    return {"pixel_values": pixels / 127.5 - 1, "input_ids": words, "attention_mask": np.ones_like(words)}


def for_jax(folder: Path) -> dict:
    return {"config": tiny.one_block_config(), "batch": batch_of(tiny.one_block_config())}


def for_tensorflow(folder: Path) -> dict:
    tf = pytest.importorskip("tensorflow")
    batch = batch_of(tiny.one_block_config())
    return {"dataset": tf.data.Dataset.from_tensors(batch), "images": tf.constant(batch["pixel_values"])}


def write_table(file: Path, column: str) -> None:
    pictures = [path.read_bytes() for path in tiny.picture_folder(file.parent / "more", 8)]
    texts = [f"photo {number}" for number in range(len(pictures))]
    pq.write_table(pa.table({"image": pictures, column: texts}), file)


def for_search(folder: Path) -> None:
    pytest.importorskip("pymilvus")
    write_table(folder / "coyo.parquet", "text")


def for_train(folder: Path) -> dict:
    """What the blocks on towers, distillation and losses take for given."""
    import published
    import torch
    import training

    torch.save(published.lite0(), folder / "efficientnet-lite0.pth")
    published.bert_folder(folder / "bert-base-uncased")
    write_table(folder / "train.parquet", "caption")
    recipe = {"output": "soft", "about": "A test.", "data": "photos/train", "batch_size": 8, "steps": 1, "lr": 1e-4}
    recipe |= {"optimizer": "sgd", "weight_decay": 0.0, "augment": {}, "workers": 0, "trainer": {"use_cpu": True}}
    recipe["start"] = tiny.align_folder(folder / "align")
    Path("mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    trainer = training.align_trainer(folder, per_device_train_batch_size=8, max_steps=1)
    names = {"model": trainer.model, "arguments": trainer.args, "processor": trainer.processing_class}
    return names | {"network": lambda pixels: pixels.flatten(1)[:, :9]}


GIVEN = {
    "convert.md": for_convert,
    "evaluate.md": for_evaluate,
    "jax.md": for_jax,
    "search.md": for_search,
    "tensorflow.md": for_tensorflow,
    "train.md": for_train,
}
# Texts of a page that a test replaces beside the models; {here} is its folder
REPLACED = {
    "export.md": {'to="openvino"': 'to="pt2"', 'quantize="int8"': 'quantize="float16"'},  # the cheapest
    "jax.md": {"/runs/1": "{here}/runs/1"},
    # a second strategy in a process would meet the one of another test; XLA compiles for long
    "tensorflow.md": {
        "tf.distribute.MirroredStrategy()": "tf.distribute.get_strategy()",
        "spare_batch_norms(model))": "spare_batch_norms(model), jit_compile=False)",
    },
}
NEEDS = {"jax.md": "flax", "tensorflow.md": "tensorflow"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that pages name."""
    for photo in ("cat.jpg", "sunset.jpg"):
        shutil.copy(BUNDLED / photo, tmp_path)
    shutil.copy(BUNDLED / "mountains.jpg", tmp_path / "shoe.jpg")
    tiny.picture(1).save(tmp_path / "tax-report.png")
    for part in ("train", "dev"):
        for path in tiny.picture_folder(tmp_path / "photos" / part, 8):
            path.with_suffix(".txt").write_text(f"photo {path.stem}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_their_order(page, here, models):
    pytest.importorskip(NEEDS.get(page, "torch"))
    given = GIVEN.get(page, lambda folder: None)(here) or {}
    names = dict(given)
    replaced = {} if page == "pipelines.md" else models  # whose relevance needs the calibration of align-small
    replaced = replaced | {old: new.format(here=here) for old, new in REPLACED.get(page, {}).items()}
    for code in runnable(page):
        names = dict(given) if page == "train.md" else names  # whose blocks are programs of their own
        pages.run(code, page, names, replaced)
        if "keras" in sys.modules:  # a policy is that of its own block
            sys.modules["keras"].config.set_dtype_policy("float32")


def test_every_block_runs_somewhere_or_has_a_reason():
    for table in (ELSEWHERE, NOT_RUN):
        for page, parts in table.items():
            for part, note in parts.items():
                assert any(part in code for code in pages.blocks(pages.read(page))), f"{page} has no block with {part}"
                for file in re.findall(r"[\w/]+\.py", note):
                    assert (Path(__file__).parent / file.removeprefix("tests/")).is_file(), note


TEXTS = sorted(
    file
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "model_cards/*.md", "src/**/*.md")
    for file in pages.ROOT.glob(pattern)
)
CALL = r"(?:kakao-models|python -m kakao_models\.cli|torchrun [^\n]*?-m kakao_models\.cli)"


def commands(file: Path) -> Iterator[list[str]]:
    """The words of each call of kakao-models in a text: in indented lines, in shell blocks and within sentences."""
    text = file.read_text(encoding="utf-8")
    shell = "\n".join(pages.blocks(text, "(?:bash|sh|shell|console)"))
    lines = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(rf"^    (?:\$ |.*\| )?{CALL} (.*)$", lines, flags=re.MULTILINE)
    found += re.findall(rf"^(?:\$ )?{CALL} (.*)$", re.sub(r"\\\n\s*", " ", shell), flags=re.MULTILINE)
    found += re.findall(rf"`{CALL} ([^`]*)`", re.sub(r"\n", " ", text))
    for line in found:
        line = re.sub(r"\[[^\]]*\](?!')|\.\.\.", " ", line) if "[--" in line or "[TEXT]" in line else line
        words = shlex.split(line, comments=True)
        end = next((place for place, word in enumerate(words) if re.fullmatch(r"[|<>;]|&&|2>.*", word)), len(words))
        yield words[:end]


def check(words: list[str]) -> None:
    """Fails where the command does not have a subcommand or an option."""
    command, name = typer.main.get_command(app), "kakao-models"
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        word, *words = words
        if word.isupper() or word == "...":  # stands for any
            return
        assert word in command.commands, f"{name} has no command {word}"
        command, name = command.commands[word], f"{name} {word}"
    options = {option: param for param in command.params for option in (*param.opts, *param.secondary_opts)}
    queue = list(words)
    while queue:
        option, given, _ = queue.pop(0).partition("=")
        if not re.match(r"--?[A-Za-z]", option) or option == "--help":
            continue
        assert option in options, f"{name} has no option {option}"
        if not given and not options[option].is_flag:
            del queue[:1]  # its value, which a sentence may leave out


@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(pages.ROOT))) for file in TEXTS])
def test_commands_have_the_options_that_a_text_gives_them(file):
    for words in commands(file):
        check(words)
        if words[:1] == ["train"] and "--config" in words:
            recipe = words[words.index("--config") + 1]
            if not recipe.endswith(".yaml"):  # one inside the package; its keys are checked too
                read_recipe(words[1], recipe, [word for word in words if re.match(r"\w[\w.]*=", word)])


def test_commands_are_found_and_checked():
    found = [words for file in TEXTS for words in commands(file)]
    assert len(found) > 100 and ["serve", "align-small"] in found
    for wrong in (["classify", "--label", "a"], ["embedd"], ["index", "build", "--sync", "--rot", "x"]):
        with pytest.raises(AssertionError, match="has no"):
            check(wrong)
