"""Where checkpoints are found: the Hub, a folder, inside this package."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints"


def bundled_checkpoints() -> list[str]:
    """Names of the checkpoints that ship inside the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "config.json").is_file())


def resolve(name_or_path: str | os.PathLike) -> str:
    """What transformers and huggingface_hub should be given for `name_or_path`.

    A folder of that name wins, then a checkpoint inside the package; anything else is left to the Hub.
    """
    name = os.fspath(name_or_path)
    if not os.path.isdir(name) and name in bundled_checkpoints():
        return str(BUNDLED / name)
    return name


def called(name_or_path: str | os.PathLike) -> str:
    """What others may call a checkpoint: its name, of a folder without the path on this machine."""
    name = os.fspath(name_or_path)
    return Path(name).resolve().name if os.path.isdir(name) else name


class HubUnreachable(OSError):
    """The Hub did not answer, and the file is not in the local cache."""


def fetch(
    name_or_path: str | os.PathLike,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Path of a file of a checkpoint; from the Hub it is downloaded unless the cache has it.

    Arguments are as in transformers. One attempt is made to reach the Hub where huggingface_hub makes six, which take 25
    seconds to fail.

    Raises:
        HubUnreachable: no connection, and not in the cache.
        OSError: no such checkpoint, or it has no such file.
    """
    source = resolve(name_or_path)
    if os.path.isdir(source):
        path = Path(source, subfolder, filename)
        if not path.is_file():
            raise OSError(f"{name_or_path}: the folder {path.parent} has no {filename}. Is it a checkpoint's folder?")
        return path
    filename = f"{subfolder}/{filename}".lstrip("/")
    place = dict(revision=revision, cache_dir=cache_dir)
    return _from_hub(source, filename, place, token, force_download, local_files_only)


def read_config(file: Path) -> dict:
    """The content of a config.json.

    Raises:
        ValueError: it is no JSON object, or its `model_type` is no string.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file ({error}). Is the download complete?") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"{file}: wanted an object that says of itself which model_type it describes")
    return config


@contextmanager
def described_by(file: Path) -> Iterator[None]:
    """Turns what a config.json of wrong values leads to, in transformers and huggingface_hub, into a ValueError that names it."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, StrictDataclassError, TypeError) as error:
        kind = "" if isinstance(error, StrictDataclassError) else f"{type(error).__name__}: "
        raise ValueError(f"{file} describes no model: {kind}{' '.join(str(error).split())}") from error


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names, without repetition.

    Raises:
        OSError: it is no index, or names what can be no file of weights beside it.
    """
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        wrong = [name for name in names if Path(name).name != name or Path(name).suffix != suffix]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{index} is no index of weights ({error!r}). Is the download complete?") from error
    if wrong or not names:
        raise OSError(
            f"{index} names {(wrong or [''])[0]!r}, which is no name of a file beside it that ends in {suffix}"
        )
    return names


def _from_hub(repo: str, filename: str, place: dict, token, anew: bool, cached_only: bool) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    bundled = ", ".join(bundled_checkpoints()) or "none"
    try:
        cached = None if anew else try_to_load_from_cache(repo, filename, **place)
        if isinstance(cached, str):
            return Path(cached)
        if not cached_only:
            get_hf_file_metadata(hf_hub_url(repo, filename, revision=place["revision"]), token=token)
        return Path(
            hf_hub_download(repo, filename, token=token, force_download=anew, local_files_only=cached_only, **place)
        )
    except HFValidationError:
        raise OSError(
            f"{repo}: no such folder, and no name of a checkpoint on the Hub (owner/name) or in this package ({bundled})"
        ) from None
    except HfHubHTTPError as error:
        raise OSError(
            f"{repo}: the Hub does not give {filename}: {str(error).splitlines()[0]} Is the name right, and "
            f"revision {place['revision'] or 'main'}? A private or gated checkpoint needs a token. In this package: {bundled}"
        ) from error
    except Exception as error:  # the HTTP client's own errors, whose module changes with huggingface_hub's version
        raise HubUnreachable(
            f"{repo}: no such folder, and the Hugging Face Hub can't be reached to get it from ({error})"
        ) from error
