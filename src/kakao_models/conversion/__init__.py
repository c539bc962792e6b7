"""Checkpoints of the original TPU code, and of other formats, to `model.safetensors` and back, verified."""
