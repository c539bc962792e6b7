"""Finding checkpoints, and tensors on disk and in each framework's variables."""
