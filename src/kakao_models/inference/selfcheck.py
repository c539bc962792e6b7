"""Chooses the engine for a model on this machine: measured on photographs and texts, against PyTorch in float32.

Measurements are kept in the user's cache, by the model's architecture, the machine and the versions of the engines, so that
each is made once.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from kakao_models.files.atomic import write_text
from kakao_models.inference.engine_towers import EngineChoice, TowerEngine
from kakao_models.inference.progress import Progress
from kakao_models.inference.runners import (
    GRAPH_ENGINES,
    PACKAGES,
    EngineError,
    cache_folder,
    missing_package,
    threads,
)

logger = logging.getLogger("kakao_models")

MIN_COSINE = 0.9999  # of an engine's embedding with the plain model's, for the worst of the inputs
PHOTOS = sorted(Path(__file__).parents[1].joinpath("photos").glob("*.jpg"))
TEXTS = [
    "a cat", "a photo of a moose", "a man with a camera", "an astronaut in an orange suit, smiling", "the sea at night",
    "two dogs play in the snow while a child watches them from the window of a red house", "invoice", "map of a city",
]  # fmt: skip
MAX_SECONDS = 20.0  # after which "auto" measures no further engine, until the next start
_REPEATS, _ENOUGH = 3, 1.0  # runs, and the seconds after which fewer do
_FORMAT = 1  # of measurements; a change of the fused models or their graphs makes another

Inputs = Mapping[str, tuple[np.ndarray, ...]]  # "image" and "text" → what a runner is called with


def choose(
    engine: TowerEngine,
    inputs: Inputs,
    name: str | None,
    dtype: str | None,
    *,
    keep: bool = True,
) -> None:
    """Gives an engine its choices, by what they measure.

    Args:
        inputs: photographs and texts, prepared.
        name: "auto" for the fastest, or one of `runners.ENGINES`.
        dtype: "float32" (also None), "bfloat16", "float16", or "auto" for the fastest that holds `MIN_COSINE`: float32,
            bfloat16, or, of ALIGN's images in OpenVINO, the early blocks in the one and the late ones in the other.

    Raises:
        EngineError: the requested engine is not available here, or its outputs differ from the model's.
    """
    reference: dict[str, np.ndarray] = {}
    candidates = {what: _candidates(engine, what, name, dtype) for what in inputs}
    engine.checks = []
    begin, choices = time.monotonic(), {}
    with Progress("engines measured", sum(map(len, candidates.values())), None) as bar:
        for what, arrays in inputs.items():
            entries = []
            for choice in candidates[what]:
                known = keep and missing_package(choice.engine) is None
                entry = _known(engine, what, choice, arrays) if known else None
                if entry is None and any("error" not in other for other in entries):
                    if time.monotonic() - begin > MAX_SECONDS:
                        entry = {"error": f"{choice}: not measured yet, after {MAX_SECONDS:.0f} s of measuring"}
                if entry is None:
                    if what not in reference:
                        reference[what] = engine.run(what, _reference(engine), *arrays)
                    entry = _measured(engine, what, choice, arrays, reference[what])
                    if keep and "error" not in entry:
                        _remember(engine, what, choice, arrays, entry)
                entries.append(entry | {"what": what, "engine": choice.engine, "dtype": choice.dtype})
                bar.advance(1)
            best = _best(entries, name, dtype)
            for entry in entries:
                entry["chosen"] = entry is best
            engine.checks += entries
            choices[what] = EngineChoice(best["engine"], best["dtype"])
            logger.info("%s", explain(entries))
    engine.settle(choices)


def _reference(engine: TowerEngine) -> EngineChoice:
    """The engine that others are compared with: PyTorch in float32, or without it the first that is installed."""
    if not engine.source.light:
        return EngineChoice("torch", "float32")
    return EngineChoice(next((name for name in GRAPH_ENGINES if missing_package(name) is None), "onnx"), "float32")


def explain(checks: list[dict]) -> str:
    """The choice and its reason, a line per tower."""
    lines = []
    for what in dict.fromkeys(entry["what"] for entry in checks):
        outcomes = []
        for entry in sorted((e for e in checks if e["what"] == what), key=lambda e: not e["chosen"]):
            choice = EngineChoice(entry["engine"], entry["dtype"])
            if "error" in entry:
                outcomes.append(f"{choice}: {entry['error']}")
            else:
                outcomes.append(f"{choice} {entry['seconds'] * 1e3:.0f} ms, cosine {entry['cosine']:.6f}")
        lines.append(f"{what}: {outcomes[0]}" + (f" (others: {'; '.join(outcomes[1:])})" if outcomes[1:] else ""))
    return "\n".join(lines)


def _candidates(engine: TowerEngine, what: str, name: str | None, dtype: str | None) -> list[EngineChoice]:
    gpu = not str(engine.device).startswith("cpu")
    if name in (None, "auto"):
        # Compiling takes minutes on a CPU: there it is for those who ask for it.
        names = ["torch", "compile"] if gpu else ["torch", "openvino", "onnx"]
        names = [name for name in names if missing_package(name) is None]
    else:
        names = [name]
    dtypes = {None: ["float32"], "auto": ["float32", "bfloat16"]}.get(dtype, [dtype])
    choices = [EngineChoice(name, dtype) for dtype in dtypes for name in names]
    if dtype == "auto":
        choices = [choice for choice in choices if choice != ("onnx", "bfloat16")]  # ONNX Runtime has no such kernels
        if "openvino" in names and what == "image" and engine.reads_texts:
            choices.append(EngineChoice("openvino", "mixed"))
    return choices


def _best(entries: list[dict], name: str | None, dtype: str | None) -> dict:
    """The fastest of those that hold; what was asked for by name holds at lower precision, as long as it is sound."""
    least = -1.0 if dtype in ("bfloat16", "float16") else MIN_COSINE
    holding = [entry for entry in entries if "error" not in entry and entry["cosine"] >= least]
    if holding:
        return min(holding, key=lambda entry: entry["seconds"])
    reasons = "; ".join(
        entry.get("error") or f"{entry['engine']} in {entry['dtype']}: cosine {entry['cosine']:.6f}"
        for entry in entries
    )
    if len(entries) == 1 and "error" in entries[0]:
        raise EngineError(entries[0]["error"])
    raise EngineError(
        f"no engine reproduces this model's outputs here (expected cosine >= {MIN_COSINE} to PyTorch in float32): "
        f"{reasons}. Use engine='torch' with dtype='float32'"
    )


def _measured(
    engine: TowerEngine, what: str, choice: EngineChoice, arrays: tuple[np.ndarray, ...], reference: np.ndarray
) -> dict:
    try:
        rows = engine.run(what, choice, *arrays)
    except EngineError as error:
        return {"error": str(error)}
    except (RuntimeError, ValueError, OSError, ImportError, NotImplementedError) as error:
        return {"error": f"{choice} failed ({str(error).strip().partition(chr(10))[0]:.200})"}
    if rows.shape != reference.shape or not np.isfinite(rows).all():
        return {"error": f"{choice} gives NaN or infinity"}
    seconds = []
    while len(seconds) < _REPEATS and sum(seconds) < _ENOUGH:
        start = time.perf_counter()
        engine.run(what, choice, *arrays)
        seconds.append(time.perf_counter() - start)
    return {"cosine": float(_cosines(rows, reference).min()), "seconds": min(seconds)}


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)


# --- what was measured before


def _place(engine: TowerEngine, what: str, choice: EngineChoice, arrays: tuple[np.ndarray, ...]) -> tuple[Path, dict]:
    """The file of a measurement, and all that it depends on."""
    exact = choice.dtype == "float32"  # where rounding shows, each model has another cosine
    about = {
        "format": _FORMAT,
        "model": engine.source.architecture if exact else engine.fingerprint,
        "what": what,
        "engine": choice.engine,
        "dtype": choice.dtype,
        "inputs": [[array.dtype.name, *array.shape] for array in arrays]
        if exact
        else hashlib.sha256(b"".join(np.ascontiguousarray(array) for array in arrays)).hexdigest(),
        "device": str(engine.device),
        "machine": machine(),
        "version": _version(choice.engine),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "checks" / f"{digest[:40]}.json", about


def _known(engine: TowerEngine, what: str, choice: EngineChoice, arrays: tuple[np.ndarray, ...]) -> dict | None:
    path, about = _place(engine, what, choice, arrays)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        cosine, seconds = float(saved["cosine"]), float(saved["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or torn
        return None
    if saved.get("about") != about or not (-1.001 <= cosine <= 1.001 and seconds > 0):
        return None
    return {"cosine": cosine, "seconds": seconds}


def _remember(
    engine: TowerEngine, what: str, choice: EngineChoice, arrays: tuple[np.ndarray, ...], entry: dict
) -> None:
    path, about = _place(engine, what, choice, arrays)
    with suppress(OSError):  # a home that can't be written to: it is measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(entry | {"about": about}, indent=1))


def machine() -> dict:
    """Describes this machine's CPU, threads and system: a measurement is reused only where they are the same."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        properties = [next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags")]
        digest = hashlib.sha256("\n".join(properties).encode()).hexdigest()[:16]
        name = f"{digest} {properties[0].partition(':')[2].strip()}"
    return {"processor": name, "threads": threads(), "system": platform.system()}


def _version(engine: str) -> str:
    try:
        return version(PACKAGES[engine])
    except PackageNotFoundError:  # on the path, but not installed
        return "unknown"
