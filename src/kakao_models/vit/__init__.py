"""ViT as trained on COYO-Labeled-300M."""
