"""ALIGN's image tower as a classifier, in PyTorch: for a linear probe, or to be fine-tuned as a whole.

Axes: B batch  C channels  H, W height, width
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification, initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from kakao_models.align.config import AlignVisionConfig
from kakao_models.align.modeling_torch import AlignPreTrainedModel, AlignVisionModel
from kakao_models.checkpoint.classification_torch import ImageClassifier


class AlignForImageClassification(ImageClassifier, AlignPreTrainedModel):
    """The image tower and a linear head on its pooled output (B, C).

    `from_pretrained(folder_of_an_align, num_labels=10, ignore_mismatched_sizes=True)` takes the tower of an ALIGN and
    starts a head at zero, where every class has the same probability.
    """

    config: AlignVisionConfig
    config_class = AlignVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    tensors_elsewhere = (r"text_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$")
    tensors_replaceable = (r"classifier\.",)

    def __init__(self, config: AlignVisionConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = AlignVisionModel(config)
        width = config.output_channels
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier and isinstance(module, nn.Linear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def freeze_backbone(self) -> None:
        """Freezes the image tower for a linear probe: only the head is trained, and batch norms keep their statistics in
        training mode too."""
        self.vision_model.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "AlignForImageClassification":
        super().train(mode)
        if not any(p.requires_grad for p in self.vision_model.parameters()):
            self.vision_model.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,  # (B, 3, H, W) in [-1, 1]
        labels: torch.Tensor | None = None,  # (B,) class numbers, or (B, classes) for several labels an image
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | ImageClassifierOutputWithNoAttention:
        """Logits (B, classes) and, with labels, the loss of `ImageClassifier`."""
        outputs = self.vision_model(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)  # (B, classes)
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self._loss(logits, labels, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


AutoModelForImageClassification.register(AlignVisionConfig, AlignForImageClassification, exist_ok=True)
