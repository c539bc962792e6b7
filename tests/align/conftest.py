from pathlib import Path

import goldens
import numpy as np
import pytest

from kakao_models import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.shards import write_safetensors
from kakao_models.checkpoint.weightmap import to_canonical


def align_config(original: dict) -> AlignConfig:
    """Our configuration for that of a recorded run."""
    image, text = (original[name].split("-")[1] for name in ("img_encoder_name", "txt_encoder_name"))
    widths = {name: original[name] for name in ("width_coefficient", "depth_coefficient") if name in original}
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
    sizes = {name: original[name] for name in names.split() if name in original}
    return AlignConfig(
        vision_config=AlignVisionConfig.efficientnet(image, **widths).to_dict(),
        text_config=AlignTextConfig.bert(text, **sizes).to_dict(),
        projection_dim=original["embed_dim"],
        use_visual_projection=image != "b7",
    )


def write_folder(folder: Path, config: AlignConfig, original: dict[str, np.ndarray]) -> Path:
    """A Hub folder with the weights of an original checkpoint, through the weight table."""
    config.save_pretrained(folder)
    arrays = to_canonical(align_tpu_slots(config), original)
    write_safetensors(folder / "model.safetensors", arrays)
    return folder


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """name of a recorded run → folder with its configuration and weights."""
    folders = {}

    def make(name: str) -> Path:
        if name not in folders:
            golden = goldens.load(name)
            folders[name] = write_folder(tmp_path_factory.mktemp(name), align_config(golden.config), golden.original)
        return folders[name]

    return make
