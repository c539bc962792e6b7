"""Preprocessing of ALIGN's images; see `AlignImageProcessor`."""

from typing import ClassVar

from kakao_models.pixels.preprocessing import Preprocessing

MAX_TOKENS = 64  # the released models were trained on texts of at most 64 tokens


class AlignPreprocessing(Preprocessing):
    fields = (*Preprocessing.fields, "rescale_offset", "include_top")
    transformers_defaults: ClassVar[dict] = {
        "resample": 3,
        "do_center_crop": False,
        "rescale_factor": 1 / 255,
        "rescale_offset": False,
        "do_normalize": True,
        "include_top": True,
    }

    size = 346
    do_center_crop = True
    crop_size = 289
    rescale_factor = 1 / 127.5
    rescale_offset = True
    do_normalize = False
