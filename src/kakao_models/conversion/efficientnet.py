"""An EfficientNet that others published, as a source of a conversion: only the image tower."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kakao_models.align.processing import AlignImageProcessor
from kakao_models.align.towers import read_published
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.tensors import LazyTensors
from kakao_models.checkpoint.weightmap import permuted
from kakao_models.conversion.recognize import check_overrides
from kakao_models.conversion.source_checkpoint import SourceCheckpoint


def read_efficientnet(path: Path, *, image_size: int | None = None, **overrides: Any) -> SourceCheckpoint:
    """Recognises the EfficientNet of a file or folder, as `read_published` does, and presents its tensors under the keys of the
    original ALIGN's image tower.

    Args:
        image_size: the even number of pixels that the tower is for; by default the published one of its size.
        overrides: sizes to compare with the tensors'.

    Raises:
        ValueError: see `read_published`; or an override that contradicts the tensors.
    """
    tower = read_published(path, image_size=image_size)
    check_overrides(overrides, [tower.config])
    slots = [replace(slot, key=slot.key.removeprefix("vision_model.")) for slot in align_tpu_slots(tower.config)]
    entries = {slot.key: (tower.tensors.shape(slot.key), partial(tower.tensors.get, slot.key)) for slot in slots}
    return SourceCheckpoint(
        family="efficientnet",
        config=tower.config,
        slots=slots,
        tensors=LazyTensors({s.local_key: permuted(entries[s.key], s.axes, s.local_axes, s.key) for s in slots}),
        skipped=dict(tower.skipped),
        files=tower.files,
        kind=tower.kind,
        names={slot.local_key: tower.names.get(slot.key, "constant") for slot in slots},
        assumed=tower.assumed,
        image_processor=AlignImageProcessor(**tower.preprocessing),
        license={"license": "apache-2.0"} if path.suffix == ".h5" else {},  # a state dict may come from anyone
    )
