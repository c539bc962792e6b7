"""ALIGN's image tower as a classifier, in Keras 3: the same as classification_torch.py.

Axes: B batch  C channels  H, W height, width
"""

from kakao_models.align.config import AlignVisionConfig
from kakao_models.align.modeling_tf import TFAlignPreTrainedModel, TFAlignVisionModel
from kakao_models.align.weights import align_slots
from kakao_models.checkpoint.classification_tf import TFImageClassifier, TFImageClassifierOutput
from kakao_models.checkpoint.keras import Tensor, dense, image_signatures


class TFAlignForImageClassification(TFImageClassifier, TFAlignPreTrainedModel):
    """The image tower and a linear head on its pooled output (B, C).

    `from_pretrained(folder_of_an_align, num_labels=10, ignore_mismatched_sizes=True)` takes the tower of an ALIGN and
    starts a head at zero, where every class has the same probability. `fit` trains as `TFImageClassifier` says; for a linear
    probe set `model.vision_model.trainable = False` before `compile`.
    """

    config_class = AlignVisionConfig
    key_prefix = "vision_model."
    tensors_elsewhere = (r"text_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$")
    tensors_replaceable = (r"classifier\.",)

    def __init__(self, config: AlignVisionConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = TFAlignVisionModel(config)
        width = config.output_channels
        self.classifier = dense(width, config.num_labels, std=0.0) if config.num_labels > 0 else None

    def _slots(self):
        return align_slots(self.config, "keras", head=True)

    def call(
        self,
        pixel_values: Tensor | None = None,  # (B, 3, H, W) in [-1, 1]
        labels: Tensor | None = None,  # (B,) class numbers, or (B, classes) for several labels an image
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,  # which `fit` gives only to a call that names it
    ) -> tuple | TFImageClassifierOutput:
        """Logits (B, classes) and, with labels, the loss of `TFImageClassifier`."""
        outputs = self.vision_model(
            pixel_values, output_hidden_states=output_hidden_states, return_dict=True, training=training
        )
        pooled = outputs.pooler_output  # (B, C)
        logits = pooled if self.classifier is None else self.classifier(pooled)  # (B, classes)
        output = TFImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def signatures(self) -> dict[str, tuple]:
        return image_signatures(self)
