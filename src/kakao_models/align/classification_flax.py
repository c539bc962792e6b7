"""ALIGN's image tower as a classifier, in Flax NNX: the same as classification_torch.py.

Axes: B batch  C channels  H, W height, width
"""

import jax
import jax.numpy as jnp
from flax import nnx

from kakao_models.align.config import AlignVisionConfig
from kakao_models.align.modeling_flax import FlaxAlignPreTrainedModel, FlaxAlignVisionModel
from kakao_models.align.weights import align_slots
from kakao_models.checkpoint.classification_flax import FlaxImageClassifier, FlaxImageClassifierOutput
from kakao_models.checkpoint.weightmap import Slot


class FlaxAlignForImageClassification(FlaxImageClassifier, FlaxAlignPreTrainedModel):
    """The image tower and a linear head on its pooled output (B, C).

    `from_pretrained(folder_of_an_align, num_labels=10, ignore_mismatched_sizes=True)` takes the tower of an ALIGN and
    starts a head at zero, where every class has the same probability.
    """

    config_class = AlignVisionConfig
    key_prefix = "vision_model."
    tensors_elsewhere = (r"text_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$")
    tensors_replaceable = (r"classifier\.",)

    def __init__(self, config: AlignVisionConfig, *, rngs: nnx.Rngs):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = FlaxAlignVisionModel(config, rngs=rngs)
        width, zeros = config.output_channels, nnx.initializers.zeros
        head = config.num_labels > 0
        self.classifier = nnx.Linear(width, config.num_labels, kernel_init=zeros, rngs=rngs) if head else None

    def _slots(self) -> list[Slot]:
        return align_slots(self.config, "nnx", head=True)

    def __call__(
        self,
        pixel_values: jax.Array | None = None,  # (B, 3, H, W) in [-1, 1]
        labels: jax.Array | None = None,  # (B,) class numbers, or (B, classes) for several labels an image
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | FlaxImageClassifierOutput:
        """Logits (B, classes) and, with labels, the loss of `FlaxImageClassifier`."""
        outputs = self.vision_model(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        pooled = outputs.pooler_output  # (B, C)
        logits = pooled if self.classifier is None else self.classifier(pooled)  # (B, classes)
        output = FlaxImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, jnp.asarray(labels)),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()
