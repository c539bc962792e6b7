"""The page's models: each is loaded on first use, and only a few stay in memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from kakao_models.inference.pipelines import ImagePipeline, pipeline
from kakao_models.pixels.limits import MAX_SHOWN_PIXELS

ZERO_SHOT, CLASSES = "zero-shot-image-classification", "image-classification"
DEFAULT_VIT = "kakaobrain/vit-large-patch16-384"
KEPT = 4  # models in memory: two that are compared, the index's and a ViT


class Models:
    """Pipelines by task and name of a model.

    Args:
        offered: names of ALIGN models to choose from, the first of which is chosen.
        vit: the ViT that is filled in.
        others: whether any other Hub id or folder may be named too.
        kept: number of models that stay in memory, those used last.
        options: further arguments of `pipeline`, such as `device`.
    """

    def __init__(
        self, offered: Iterable[str], vit: str = DEFAULT_VIT, *, others: bool = True, kept: int = KEPT, **options: Any
    ):
        self.offered, self.vit, self.others = list(dict.fromkeys(offered)), vit, others
        self._kept, self._options = kept, options
        self._loaded: OrderedDict[tuple[str, str], ImagePipeline] = OrderedDict()
        self._lock = threading.Lock()  # two threads must not load one model twice

    def offer(self, name: str) -> None:
        if name not in self.offered:
            self.offered.append(name)

    def get(self, task: str, name: str, loading: Callable[[str], None] = lambda name: None) -> ImagePipeline:
        """The pipeline, loaded if need be; `loading` is told the name first.

        Raises:
            ValueError: no name, a model that isn't offered, or one that can't do the task.
            OSError: no such checkpoint, or it can't be fetched.
        """
        name = (name or "").strip()
        if not name:
            raise ValueError("Name a model: a Hub id such as kakaobrain/align-base, or a folder")
        known = [*self.offered, self.vit]
        if not self.others and name not in known:
            raise ValueError(f"{name}: this page runs {', '.join(known)} only")
        with self._lock:
            if (task, name) not in self._loaded:
                loading(name)
                while len(self._loaded) >= self._kept:  # before the next is loaded: both might not fit
                    self._loaded.popitem(last=False)
                options = {"image_options": {"max_pixels": MAX_SHOWN_PIXELS}} | self._options
                self._loaded[task, name] = pipeline(task, name, **options)
            self._loaded.move_to_end((task, name))
            return self._loaded[task, name]
