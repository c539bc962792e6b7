"""A classifier on ALIGN's image tower in PyTorch, which its twins in Keras and Flax are compared with."""

import numpy as np
import tiny
import torch

from kakao_models import AlignForImageClassification

PIXELS = np.random.default_rng(0).uniform(-1, 1, (4, 3, 32, 32))
LOGITS = np.random.default_rng(3).standard_normal((4, 7))
# problem_type → labels
LABELS = {
    "single_label_classification": np.array([3, 0, 6, 6]),
    "multi_label_classification": np.random.default_rng(1).integers(0, 2, (4, 7)).astype(np.float64),
    "regression": np.random.default_rng(2).standard_normal((4, 7)),
}
# Sums in another order: rounding, which shrinks with precision
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
GRADIENTS = {"float32": 1e-4, "float64": 1e-8}


def folder(path) -> str:
    return tiny.align_classifier_folder(path, **tiny.FEW_BLOCKS)


def reference(path, dtype: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Outputs for `PIXELS` with hidden states, and the gradients of their loss by their keys in model.safetensors."""
    model = AlignForImageClassification.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    labels = torch.from_numpy(LABELS["single_label_classification"])
    output = model(torch.from_numpy(PIXELS).to(model.dtype), labels=labels, output_hidden_states=True)
    output.loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return dict(output), gradients


def losses(path) -> dict[str, float]:
    """problem_type → the loss of `LOGITS` and `LABELS` in PyTorch, in float64."""
    model, found = AlignForImageClassification.from_pretrained(path), {}
    for kind, labels in LABELS.items():
        model.config.problem_type = kind
        found[kind] = model._loss(torch.from_numpy(LOGITS), torch.from_numpy(labels)).item()
    return found


def differ(got, wanted: torch.Tensor) -> float:
    got, wanted = np.asarray(got), wanted.detach().numpy()
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / max(1, np.abs(wanted).max()))
