"""Tokenizers that need no transformers: the same tokens, and whatever is unusual is left to it."""

import json
import shutil

import pytest

from kakao_models import AlignProcessor
from kakao_models.inference.light_processors import Tokenizer, read_light_tokenizer

HARD = [
    "a cat",
    "Café naïve ÀÉ",
    "東京 photo",
    "",
    "x" * 300,
    "[MASK] [SEP] [pad]",
    "word " * 90,
    "tab\tnew\nline \u200b",
]


@pytest.mark.parametrize("name", ["align-small", None])
def test_tokens_are_those_of_transformers(align, name):
    folder = name or align
    light, whole = read_light_tokenizer(folder, {}), AlignProcessor.from_pretrained(folder).tokenizer
    assert isinstance(light, Tokenizer) and light.pad_token_id == whole.pad_token_id
    assert light(HARD, max_length=64)["input_ids"] == whole(HARD, truncation=True, max_length=64)["input_ids"]


@pytest.mark.parametrize(
    "change",
    [
        {"do_lower_case": False},
        {"tokenizer_class": "RobertaTokenizer"},
        {"extra_special_tokens": ["<x>"]},
        {"sep_token": "</s>"},
    ],
)
def test_an_unusual_tokenizer_is_left_to_transformers(align, tmp_path, change):
    folder = shutil.copytree(align, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert read_light_tokenizer(str(folder), {}) is None
