"""ALIGN: an EfficientNet and a BERT trained to agree on images and their texts."""
