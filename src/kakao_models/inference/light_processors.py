"""A checkpoint's image preprocessing and tokenizer for running it, without transformers, whose import takes longer than
all the rest. Where a checkpoint is in any way unusual these give None, and the complete classes take over.
"""

import importlib
import json
from typing import Any

from kakao_models.checkpoint.hub import PROCESSOR_FILES, MissingFile, fetch
from kakao_models.checkpoint.kinds import MODEL_KINDS
from kakao_models.pixels.preprocessing import Preprocessing, warn_of_processor

BERT_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast")
# In tokenizer_config.json, with transformers' defaults → in the normalizer of tokenizer.json
_NORMALIZING = {
    ("do_lower_case", True): "lowercase",
    ("strip_accents", None): "strip_accents",
    ("tokenize_chinese_chars", True): "handle_chinese_chars",
}
_MORE_TOKENS = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")


def preprocessing_class(model_type: str) -> type[Preprocessing]:
    """The preprocessing of a kind of model, whose defaults are those of the kind."""
    kind = MODEL_KINDS[model_type]
    return getattr(importlib.import_module(f"kakao_models.{kind.folder}.preprocessing"), kind.preprocessing)


def read_preprocessing(name: str, model_type: str, where: dict) -> Preprocessing | None:
    """Reads the image processor's file, or its part of the processor's file, which comes first where a folder has both."""
    preprocessing = preprocessing_class(model_type)
    for filename in reversed(PROCESSOR_FILES):
        try:
            values = json.loads(fetch(name, filename, **where).read_text(encoding="utf-8"))
            if filename == "processor_config.json":
                warn_of_processor(values)
                values = values["image_processor"]
            return preprocessing.of(values)
        except MissingFile:
            continue
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
    return None


class Tokenizer:
    """Texts → ids, by the `tokenizers` library alone; for texts of which nothing but ids is expected."""

    def __init__(self, tokenizer: Any, pad_token_id: int, tokenize_chinese_chars: bool):
        self.backend_tokenizer, self.pad_token_id = tokenizer, pad_token_id
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.unk_token_id = tokenizer.token_to_id("[UNK]")
        tokenizer.no_padding()

    def __call__(self, texts: list[str], *, truncation: bool = True, max_length: int) -> dict[str, list]:
        self.backend_tokenizer.enable_truncation(max_length)
        return {"input_ids": [encoding.ids for encoding in self.backend_tokenizer.encode_batch_fast(texts)]}


def read_light_tokenizer(name: str, where: dict) -> Tokenizer | None:
    """Reads tokenizer.json, if it is a BERT's and agrees with tokenizer_config.json."""
    import tokenizers

    try:
        file, config_file = (fetch(name, filename, **where) for filename in ("tokenizer.json", "tokenizer_config.json"))
    except MissingFile:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if not _plain_bert(content, config):
            return None
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001  tokenizers raises Exception itself; the complete class will say what is wrong
        return None
    pad = tokenizer.token_to_id("[PAD]")
    return None if pad is None else Tokenizer(tokenizer, pad, content["normalizer"]["handle_chinese_chars"])


def _plain_bert(content: dict, config: dict) -> bool:
    normalizer, model = content["normalizer"], content["model"]
    usual = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk")}
    return (
        config.get("tokenizer_class") in BERT_TOKENIZERS
        and normalizer["type"] == "BertNormalizer"
        and normalizer.get("clean_text", True)
        and all(config.get(ours, usually) == normalizer[theirs] for (ours, usually), theirs in _NORMALIZING.items())
        and content["pre_tokenizer"]["type"] == "BertPreTokenizer"
        and content["post_processor"]["type"] in ("TemplateProcessing", "BertProcessing")
        and model.get("type", "WordPiece") == "WordPiece"
        and model["unk_token"] == "[UNK]"
        and not any(config.get(key) for key in _MORE_TOKENS)
        and all(_text(config.get(key, value)) == value for key, value in usual.items())
        and all(entry["content"].startswith("[") for entry in content["added_tokens"])
    )


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token
