"""Activation checkpointing that computes again only what is cheap."""

from functools import partial

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

CHECKPOINTING = ("activations", "blocks")

# Operations whose results are kept: all that multiply matrices with weights. What lies between them (normalisation,
# activations, gates, dropout, attention over 64 tokens) is little work for much memory.
_KEPT = [torch.ops.aten.convolution.default, torch.ops.aten.mm.default, torch.ops.aten.addmm.default]


def checkpointing(what: str) -> dict:
    """Arguments of `model.activation_checkpointing_enable` (before transformers 6 also `gradient_checkpointing_enable`).

    Args:
        what: "activations" keeps the results of convolutions and linear layers and computes the rest again: about half
            of the memory for a few percent of the time. "blocks" keeps only what comes into a block and runs the whole
            block again: less memory, and a third more work.
    """
    if what not in CHECKPOINTING:
        raise ValueError(f"checkpointing: got {what!r}, expected one of {', '.join(CHECKPOINTING)}")
    kept = {"context_fn": partial(create_selective_checkpoint_contexts, _KEPT)} if what == "activations" else {}
    return {"use_reentrant": False, **kept}
