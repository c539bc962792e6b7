"""Cut vocabularies: texts of kept pieces are what they were, and others can still be written."""

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models
from tolerances import TOLERANCE
from transformers import BertTokenizer, PreTrainedTokenizerFast

from kakao_models import AlignImageProcessor, AlignModel, AlignProcessor, AlignTextModel, Embedder
from kakao_models.align.vocabulary import cut_vocabulary

KEPT = ["a red cat and a small dog", "the house, in green."]


def model_and_tokenizer(cls: type = AlignModel):
    """[PAD] is not 0, so that nothing holds by accident."""
    words = [*tiny.vocabulary()]
    words = [*words[5:], *words[:5]]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    config = tiny.align_config()
    config.text_config.pad_token_id = tokenizer.pad_token_id
    return tiny.fill(cls(config if cls is AlignModel else config.text_config)), tokenizer


@pytest.mark.parametrize("cls", [AlignModel, AlignTextModel])
@torch.inference_mode()
def test_texts_of_kept_pieces_have_the_same_hidden_states(cls):
    model, tokenizer = model_and_tokenizer(cls)
    text = model.text_model if cls is AlignModel else model
    before = tokenizer(KEPT, padding=True, return_tensors="pt")
    states, size = text(**before).last_hidden_state, len(tokenizer)
    shorter = cut_vocabulary(model, tokenizer, KEPT)
    after = shorter(KEPT, padding=True, return_tensors="pt")
    assert not torch.equal(before["input_ids"], after["input_ids"])
    assert tokenizer.convert_ids_to_tokens(before["input_ids"][0]) == shorter.convert_ids_to_tokens(
        after["input_ids"][0]
    )
    assert torch.equal(text(**after).last_hidden_state, states)
    assert len(tokenizer) == size and "bird" in tokenizer.get_vocab() and "bird" not in shorter.get_vocab()
    # "small" and its like, characters of ASCII, and the special tokens
    words = {"red", "cat", "and", "small", "dog", "the", "house", "in", "green"}
    assert {piece for piece in shorter.get_vocab() if len(piece.removeprefix("##")) > 1 and piece[0] != "["} == words
    assert len(shorter) == text.config.vocab_size == len(text.get_input_embeddings().weight)
    assert text.get_input_embeddings().padding_idx == text.config.pad_token_id == shorter.pad_token_id
    assert shorter.unk_token_id not in shorter("bird tree 1")["input_ids"]


def test_what_is_saved_loads_with_its_tokenizer(tmp_path):
    model, tokenizer = model_and_tokenizer()
    shorter = cut_vocabulary(model, tokenizer, KEPT)
    processor = AlignProcessor(AlignImageProcessor(size=40, crop_size=32), shorter)
    with torch.inference_mode():
        features = model.get_text_features(**processor(text=KEPT, return_tensors="pt")).pooler_output
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AlignProcessor.from_pretrained(tmp_path).tokenizer.get_vocab() == shorter.get_vocab()
    assert abs(Embedder(tmp_path).texts(KEPT) - features.numpy()).max() < TOLERANCE["batching"]
    assert AlignModel.from_pretrained(tmp_path).config.text_config.vocab_size == len(shorter)


def test_rare_pieces_can_go_too():
    model, tokenizer = model_and_tokenizer()
    shorter = cut_vocabulary(model, tokenizer, [*KEPT, "a cat"], at_least=2)
    assert {"cat", "a"} <= shorter.get_vocab().keys() and "dog" not in shorter.get_vocab()


def test_added_tokens_stay():
    model, tokenizer = model_and_tokenizer()
    tokenizer.add_tokens(["<new>"])
    model.text_model.resize_token_embeddings(len(tokenizer))
    vector = model.text_model.get_input_embeddings().weight[-1]
    shorter = cut_vocabulary(model, tokenizer, KEPT)
    (number,) = shorter("<new>", add_special_tokens=False)["input_ids"]
    assert torch.equal(model.text_model.get_input_embeddings().weight[number], vector)


def test_other_tokenizers_are_refused():
    model, tokenizer = model_and_tokenizer()
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(ValueError, match=r"expected a WordPiece tokenizer, such as BERT's, got .* \(BPE\)"):
        cut_vocabulary(model, other, KEPT)
    tokenizer.add_tokens([f"new{number}" for number in range(9)])
    with pytest.raises(
        ValueError, match="the tokenizer has .* tokens, but the model has .*. Does the tokenizer belong to it?"
    ):
        cut_vocabulary(model, tokenizer, KEPT)
