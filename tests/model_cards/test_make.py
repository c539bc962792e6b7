"""The cards of what was published: written by their script, read by the Hub's parser, and their code runs."""

import importlib.util
import re
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import ModelCard

from kakao_models import AlignConfig, AlignVisionConfig, ViTConfig, ViTForImageClassification, ViTImageProcessor
from kakao_models.conversion.card import in_transformers

FOLDER = Path(__file__).parents[2] / "model_cards"
NAMES = ["align-base", "vit-large-patch16-224", "vit-large-patch16-384", "vit-large-patch16-512"]


def module():
    spec = importlib.util.spec_from_file_location("make_cards", FOLDER / "make.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_cards_are_what_their_script_writes():
    cards = module().cards()
    assert list(cards) == NAMES
    for name, text in cards.items():
        assert (FOLDER / f"{name}.md").read_text(encoding="utf-8") == text, (
            f"run model_cards/make.py: {name}.md is older"
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_reads_the_front_matter(name):
    card = ModelCard.load(FOLDER / f"{name}.md")
    data = card.data
    assert data.license == "apache-2.0" and data.datasets and data.base_model and data.tags
    assert (data.library_name == "transformers") == (name != "vit-large-patch16-224")
    figures = {(result.dataset_name, result.metric_type, result.metric_value) for result in data.eval_results or ()}
    expected = {
        "align-base": {
            ("imagenet", "top1", 62.7),
            ("coco", "image_to_text_r1", 59.3),
            ("coco", "image_to_text_r1", 61.2),
        },
        "vit-large-patch16-224": set(),
        "vit-large-patch16-384": {("imagenet", "top1", 86.72)},
        "vit-large-patch16-512": {("imagenet", "top1", 87.24)},
    }[name]
    assert expected <= figures and all(result.source_url for result in data.eval_results or ())
    assert "top1" not in str(expected) or card.text.count("reproduces these") == 1
    for heading in (
        "How to use",
        "Intended use",
        "Limits",
        "Bias and responsible use",
        "Training data",
        "Training procedure",
    ):
        assert f"\n## {heading}\n" in card.text


@pytest.mark.parametrize("name", ["align-base", "vit-large-patch16-224", "vit-large-patch16-384"])
def test_the_code_of_a_card_runs_on_a_checkpoint_of_its_layout(name, tmp_path, monkeypatch):
    if name == "align-base":
        tiny.align_folder(tmp_path / "model", preprocessing="tf")
    else:
        size = 16 if name.endswith("224") else None
        config = tiny.vit_config(representation_size=size)
        tiny.fill(ViTForImageClassification(config)).save_pretrained(tmp_path / "model")
        ViTImageProcessor(size=tiny.IMAGE_SIZE, preprocessing="tf").save_pretrained(tmp_path / "model")
    tiny.picture(1).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == (3 if name.endswith("224") else 4)
    rows = []
    for code in blocks:
        assert f'"kakaobrain/{name}"' in code
        names = {}
        exec(code.replace(f"kakaobrain/{name}", "model"), names)
        if "probabilities" in names:
            rows.append(
                torch.tensor(
                    names["probabilities"].__array__()
                    if hasattr(names["probabilities"], "__array__")
                    else names["probabilities"]
                )
            )
    assert len(rows) == 3 and rows[0].shape == (1, 2 if name == "align-base" else 7)
    assert all(torch.allclose(row, rows[0], atol=1e-4) for row in rows)
    assert name.endswith("224") or torch.allclose(
        rows[0].sum(-1), torch.ones(1)
    )  # classes of the pretrained one are independent


def test_which_models_transformers_can_run():
    assert in_transformers(AlignConfig()) and in_transformers(ViTConfig())
    assert not in_transformers(ViTConfig(representation_size=1024, num_labels=21841))
    assert in_transformers(ViTConfig(representation_size=1024, num_labels=0))
    assert not in_transformers(
        AlignConfig(use_visual_projection=True, vision_config=AlignVisionConfig.efficientnet("b3").to_dict())
    )
    assert not in_transformers(tiny.align_config())  # its first block keeps size and width
