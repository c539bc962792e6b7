"""Cuts a vocabulary to the word pieces that a corpus uses: half of a small BERT is its table of word vectors."""

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from kakao_models.align.modeling_torch import AlignModel, AlignTextModel
from kakao_models.align.processing import read_tokenizer

_AT_ONCE = 10_000  # texts that are tokenized together


def cut_vocabulary(
    model: AlignModel | AlignTextModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], at_least: int = 1
) -> PreTrainedTokenizerBase:
    """Takes all word pieces out of `model` that `texts` do not use, and gives the tokenizer for what is left.

    Special and added tokens stay, and single ASCII characters, so that any other English word can still be written in pieces. Kept
    pieces get new ids in their old order; their vectors are copied. Texts of kept pieces have the same tokens, and so the same
    hidden states, as before: WordPiece takes the longest piece that fits, and what was longest still is.

    Args:
        model: changed in place: its table of word vectors, and `vocab_size` and `pad_token_id` of its configuration.
        tokenizer: a WordPiece tokenizer, such as BERT's; it is not changed.
        at_least: how often a piece must occur in `texts`.

    Raises:
        ValueError: another kind of tokenizer, or one that is not this model's.
    """
    text = model.text_model if isinstance(model, AlignModel) else model
    table = text.get_input_embeddings()
    if len(tokenizer) > len(table.weight):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model has {len(table.weight)}. Does the tokenizer belong to it?"
        )
    description = _describe(tokenizer)
    vocabulary = description["model"]["vocab"]
    counts: Counter[int] = Counter()
    texts = iter(texts)
    while part := list(itertools.islice(texts, _AT_ONCE)):
        rows = tokenizer(part, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        counts.update(itertools.chain.from_iterable(rows))
    added = {token["id"] for token in description["added_tokens"]} | set(tokenizer.all_special_ids)
    used = {number for piece, number in vocabulary.items() if counts[number] >= at_least or _is_ascii_character(piece)}
    kept = sorted(added | used)
    new = {old: number for number, old in enumerate(kept)}
    description["model"]["vocab"] = {piece: new[old] for piece, old in vocabulary.items() if old in new}
    shorter = _rebuild(tokenizer, description, new)
    with torch.no_grad():
        smaller = nn.Embedding(len(kept), table.embedding_dim, padding_idx=shorter.pad_token_id)
        smaller = smaller.to(table.weight.device, table.weight.dtype)
        smaller.weight.copy_(table.weight[torch.tensor(kept)])
        smaller.weight.requires_grad_(table.weight.requires_grad)
    text.set_input_embeddings(smaller)
    for config in {id(c): c for c in (text.config, getattr(model.config, "text_config", text.config))}.values():
        config.vocab_size, config.pad_token_id = len(kept), shorter.pad_token_id
    return shorter


def _is_ascii_character(piece: str) -> bool:
    return len(piece.removeprefix("##")) == 1 and piece.isascii()


def _describe(tokenizer: PreTrainedTokenizerBase) -> dict:
    """The content of tokenizer.json."""
    description = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
    if description["model"].get("type") != "WordPiece":
        raise ValueError(
            f"cut_vocabulary: expected a WordPiece tokenizer, such as BERT's, got {type(tokenizer).__name__} "
            f"({description['model'].get('type')})"
        )
    return description


def _rebuild(tokenizer: PreTrainedTokenizerBase, description: dict, new: dict[int, int]) -> PreTrainedTokenizerBase:
    """The tokenizer of a changed tokenizer.json, read as from a checkpoint; all ids become those of `new`."""
    for token in description["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in ((description["post_processor"] or {}).get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    description["truncation"] = description["padding"] = None  # every call says these
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "vocab.txt").unlink(missing_ok=True)
        Path(folder, "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
        config = Path(folder, "tokenizer_config.json")
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # the same again, by their old ids
        config.write_text(json.dumps(settings), encoding="utf-8")
        shorter = read_tokenizer(folder)
    shorter.name_or_path = tokenizer.name_or_path
    added = {token["content"]: token["id"] for token in description["added_tokens"]}
    if shorter.get_vocab() != description["model"]["vocab"] | added:
        raise ValueError(
            f"cut_vocabulary: the reduced {type(tokenizer).__name__} changes when transformers reads it back"
        )
    return shorter
