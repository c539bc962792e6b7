"""The tasks of mteb (Massive Text Embedding Benchmark), and so of MIEB, with an `Embedder` of any framework and engine.

    import mteb
    from kakao_models.evaluate.mteb import MtebEncoder

    mteb.evaluate(MtebEncoder("kakaobrain/align-base"), mteb.get_tasks(tasks=["CIFAR10ZeroShot"]))

Needs mteb 2 (`pip install 'kakao-models[mieb]'`). Data sets come from the Hugging Face Hub.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kakao_models.inference.embedder import Embedder, l2_normalize

from .cache import CachedEmbedder
from .published import MIEB
from .results import Result

try:
    import mteb
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ModuleNotFoundError as error:
    raise ImportError(f"mieb needs {error.name}: pip install 'kakao-models[mieb]'") from error

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult


logger = logging.getLogger(__name__)


class MtebEncoder(AbsEncoder):
    """An ALIGN as mteb calls models.

    A query of an image and a text is the sum of both embeddings, each scaled to length 1 before (Jia et al. 2021, section
    5.4). mteb's own class for ALIGN adds them as they are, so that the longer one counts more.

    Args:
        model_name: a checkpoint, as `Embedder` takes it, or an `Embedder`.
        revision: branch, tag or commit of a Hub id.
        device: the device that runs the model; by default `Embedder` chooses.
        options: further arguments of `Embedder`, such as framework="flax" or engine="openvino".

    Raises:
        ValueError: the model has no text tower.
    """

    def __init__(
        self,
        model_name: str | os.PathLike | Embedder,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ):
        if not isinstance(model_name, Embedder):
            options |= {"revision": revision} if revision else {}
            options |= {"device": device} if device else {}
            model_name = Embedder(model_name, **options)
        self.embedder = model_name
        if not self.embedder.engine.reads_texts:
            raise ValueError(
                f"{self.embedder.name} has no text tower, but mteb compares texts with images. Use an AlignModel"
            )
        self.mteb_model_meta = _meta(self.embedder, revision)

    def encode(self, inputs: Iterable[dict], **kwargs: Any) -> np.ndarray:
        """Embeddings (N, D) float32 of what a data loader of mteb yields: texts, images, or an image and a text each."""
        has = getattr(getattr(inputs, "dataset", None), "features", None)
        batches: Iterable[dict] = inputs
        if has is None:
            batches = list(inputs)
            has = set().union(*batches)
        if not {"text", "image"} & set(has):
            raise ValueError(f"mteb gave {', '.join(map(str, has))}, expected text or image")
        texts: list[str] = []

        def images() -> Iterator:
            for batch in batches:
                texts.extend(batch.get("text", ()))
                for image in batch.get("image", ()):  # without an alpha channel, as mteb reads images
                    yield image.convert("RGB") if isinstance(image, Image.Image) else image

        found = None
        if "image" in has:
            found = self.embedder.images(images(), on_error="raise", progress=False)
        else:
            list(images())
        if "text" not in has:
            assert found is not None
            return found
        rows = self.embedder.texts(texts, progress=False)
        return rows if found is None else l2_normalize(found) + l2_normalize(rows)


def _meta(embedder: Embedder, revision: str | None) -> ModelMeta:
    name = str(embedder.name)
    name = Path(name).name if Path(name).is_dir() else name
    return ModelMeta.create_empty(
        {
            "loader": MtebEncoder,
            "name": name if name.count("/") == 1 else f"local/{name}",  # mteb wants an owner
            "revision": revision,
            "modalities": ["image", "text"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "embed_dim": embedder.dim,
            "languages": ["eng-Latn"],
            "use_instructions": False,
        }
    )


def task_names(tasks: str) -> list[str]:
    """Names of tasks, split at commas; "published" are those for which kakaobrain/align-base has a published result."""
    return (
        list(MIEB["tasks"]) if tasks == "published" else [name for part in tasks.split(",") if (name := part.strip())]
    )


def run_tasks(embedder: Embedder, tasks: Sequence["str | AbsTask"], *, batch_size: int = 32) -> Result:
    """The main score of each task, as mteb computes it, in the metrics of one `Result`. Scores that are not numbers are left out.

    Args:
        tasks: names, or tasks of mteb.
        batch_size: inputs that mteb reads at a time.

    Raises:
        ValueError: no tasks, a name that mteb does not know, or a task with other inputs than images and texts.
    """
    if not tasks:
        raise ValueError("mieb: got no tasks, expected names such as CIFAR10ZeroShot")
    chosen = [_task(task) if isinstance(task, str) else task for task in tasks]
    for task in chosen:
        if others := set(task.metadata.modalities) - {"image", "text"}:
            raise ValueError(
                f"{task.metadata.name}: has inputs of {', '.join(sorted(others))}, expected images and texts"
            )
    encoder = MtebEncoder(embedder)
    metrics, settings, details = {}, {"mteb": mteb.__version__}, {}
    for task in chosen:
        name = task.metadata.name
        done = mteb.evaluate(encoder, task, cache=None, encode_kwargs={"batch_size": batch_size}, co2_tracker=False)
        result: TaskResult = done.task_results[0]
        score = float(result.get_score())
        if np.isfinite(score):
            metrics[name] = score
        else:
            logger.warning(
                f"{name}: mteb gives {score}, so this task is left out (a correlation with a constant is undefined, for example)"
            )
        settings[f"{name} revision"] = result.dataset_revision
        details[name] = {split: [_numbers(part) for part in parts] for split, parts in result.scores.items()}
    model = encoder.mteb_model_meta.name.removeprefix("local/")
    return Result(
        *("mieb", model, "MIEB", metrics),
        counts={"tasks": len(metrics)},
        settings=settings,
        details=details,
        fingerprints={"model": CachedEmbedder(embedder).fingerprint},
    )


def _task(name: str) -> "AbsTask":
    try:
        return mteb.get_task(name)
    except KeyError as error:
        raise ValueError(f"mieb: mteb {mteb.__version__} has no task {name!r} ({str(error.args[0])[:200]})") from error


def _numbers(scores: dict) -> dict[str, float]:
    """The finite numbers among scores; JSON has no others."""
    kinds = (int, float)
    return {k: float(v) for k, v in scores.items() if isinstance(v, kinds) and np.isfinite(v) and "nauc" not in k}
