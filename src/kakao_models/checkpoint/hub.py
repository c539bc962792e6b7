"""Finds checkpoints: on the Hub, in a folder, inside this package."""

import difflib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kakao_models.files.atomic import write_text
from kakao_models.files.pointers import refuse_pointers

logger = logging.getLogger(__name__)

# Arguments that say where a checkpoint is, as in transformers
HUB_ARGUMENTS = ("revision", "token", "subfolder", "cache_dir", "force_download", "local_files_only")
# What an image processor and a tokenizer are read from, as far as a checkpoint has them
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_SECONDS = 4  # to wait for the Hub's answer

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints"


def bundled_checkpoints() -> list[str]:
    """Names of the checkpoints that ship inside the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "config.json").is_file())


def resolve(name_or_path: str | os.PathLike) -> str:
    """The name or path to pass to transformers and huggingface_hub for `name_or_path`.

    A folder of that name wins, then a checkpoint inside the package; anything else is left to the Hub.
    """
    name = os.fspath(name_or_path)
    if not os.path.isdir(name) and name in bundled_checkpoints():
        return str(BUNDLED / name)
    return name


def called(name_or_path: str | os.PathLike) -> str:
    """The name of a checkpoint for display: of a folder, the last part of its path."""
    name = os.fspath(name_or_path)
    return Path(name).resolve().name if os.path.isdir(name) else name


class HubError(OSError):
    """The Hub refuses, fails, or does not answer. If only a file is missing: see `MissingFile`."""


class HubUnreachable(HubError):
    """The Hub does not answer, or says that it can't now: what is in the local cache may be used instead."""


class MissingFile(FileNotFoundError):
    """A checkpoint has no such file."""


class NotCached(MissingFile):
    """The local cache has no such file, and the Hub is not to be asked."""


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Selects from `kwargs` the arguments that say where a checkpoint is."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}


def pin(name_or_path: str | os.PathLike, **where: Any) -> dict[str, Any]:
    """`where`, with the commit that its revision is now: every file that is fetched with the result is of that commit.

    The Hub is asked once, and not about a folder or a commit. Where it does not answer, the commit that the local cache
    knows is taken with a warning, and the Hub is not asked again.

    Args:
        where: HUB_ARGUMENTS, as in transformers.

    Raises:
        HubError: the Hub refuses, or does not answer and the cache has no commit.
        NotCached: the Hub is not to be asked, and the cache has no commit.
        TypeError: another argument than HUB_ARGUMENTS.
        FileNotFoundError: neither a folder nor a possible name on the Hub.
    """
    if unknown := sorted(where.keys() - set(HUB_ARGUMENTS)):
        raise TypeError(f"unknown argument {unknown[0]!r}; expected one of {', '.join(HUB_ARGUMENTS)}")
    repo = resolve(name_or_path)
    where = {name: value for name, value in where.items() if value not in (None, "")}
    if os.path.isdir(repo):
        return where
    _check_name(repo)
    from huggingface_hub import HfApi
    from huggingface_hub.file_download import REGEX_COMMIT_HASH

    revision = where.get("revision") or "main"
    revision = getattr(revision, "resolved", revision)  # huggingface_hub's ResolvedRevision
    if REGEX_COMMIT_HASH.fullmatch(revision):
        return where | {"revision": revision}
    ref = _cache_of(repo, where) / "refs" / revision
    if not _offline(where):
        try:
            with asking(repo, where, revision=revision):
                api = HfApi(token=where.get("token"))
                info = api.model_info(repo, revision=revision, timeout=_timeout(), expand=["sha"])
                commit = str(info.sha)  # never None where it is asked for
        except HubUnreachable as error:
            if not ref.is_file():
                raise
            where["local_files_only"] = True
            logger.warning("%s. Using commit %s of the local cache instead", error, ref.read_text()[:8])
        else:
            _remember(ref, commit)
            return where | {"revision": commit}
    if not ref.is_file():
        if (_cache_of(repo, where) / "snapshots" / revision).is_dir():
            return where  # a commit
        raise NotCached(_not_cached(repo, f"revision {revision}"))
    return where | {"revision": ref.read_text().strip()}


def fetch(name_or_path: str | os.PathLike, filename: str, **where: Any) -> Path:
    """Path of a file of a checkpoint. From the Hub it is downloaded, unless the local cache has it at that commit.

    No failed request is repeated, where huggingface_hub makes six attempts in 25 seconds; a download that breaks is resumed.

    Args:
        where: HUB_ARGUMENTS, as in transformers. Several files of one commit need the result of `pin`.

    Raises:
        HubError: the Hub refuses, fails or does not answer.
        MissingFile: the checkpoint has no such file.
        FileNotFoundError: no such folder.
        PointerError: the file is a Git LFS pointer.
    """
    path = _fetched(name_or_path, filename, where)
    refuse_pointers([path])
    return path


def _fetched(name_or_path: str | os.PathLike, filename: str, where: dict[str, Any]) -> Path:
    source = resolve(name_or_path)
    if os.path.isdir(source):
        path = Path(source, where.get("subfolder") or "", filename)
        if not path.is_file():
            raise MissingFile(f"{name_or_path}: the folder {path.parent} has no {filename}. Is it a checkpoint?")
        return path
    where = pin(source, **where)
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    commit, anew, token = where["revision"], where.get("force_download", False), where.get("token")
    filename = f"{where.get('subfolder', '')}/{filename}".lstrip("/")
    cache = where.get("cache_dir")
    cached = None if anew else try_to_load_from_cache(source, filename, cache, commit)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:
        raise MissingFile(f"{source} has no {filename} (commit {commit[:8]})")
    if _offline(where):
        raise NotCached(_not_cached(source, f"{filename} of commit {commit[:8]}"))
    with asking(source, where, revision=commit, filename=filename):
        try:
            get_hf_file_metadata(hf_hub_url(source, filename, revision=commit), token=token, timeout=_timeout())
        except EntryNotFoundError:
            _remember(_cache_of(source, where) / ".no_exist" / commit / filename, "")  # read by try_to_load_from_cache
            raise
        file = hf_hub_download(source, filename, revision=commit, cache_dir=cache, token=token, force_download=anew)
        return Path(file)


def fetch_all(name_or_path: str | os.PathLike, files: Iterable[str], **where: Any) -> tuple[str, dict[str, Any]]:
    """Downloads those of `files` that the checkpoint has. Returns the name or path and the HUB_ARGUMENTS with which
    transformers' `from_pretrained` reads them from the cache, at one commit and without asking the Hub.

    Raises:
        HubError, FileNotFoundError: see `fetch`; MissingFile if the checkpoint has none of them.
    """
    where = pin(name_or_path, **where)
    missing, there = [], []
    for filename in files:
        try:
            there.append(fetch(name_or_path, filename, **where))
        except MissingFile as error:
            missing.append(error)
    if not there:
        raise missing[0]
    return resolve(name_or_path), cached_only(where)


def remember_place(config: Any, name_or_path: str | os.PathLike, where: Mapping[str, Any]) -> None:
    """Records in a loaded model's configuration where it was loaded from, without the token. Saved files leave this out."""
    kept = {name: value for name, value in where.items() if name not in ("token", "force_download") and value}
    config.name_or_path, config._loaded_from = resolve(name_or_path), kept


def place_of(model: Any) -> dict[str, Any]:
    """The HUB_ARGUMENTS (revision, subfolder, ...) that a model was loaded with, so that its processor is fetched from the
    same commit. Empty for models of transformers' own classes."""
    return dict(getattr(getattr(model, "config", None), "_loaded_from", {}))


def cached_only(where: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `where`, as `pin` returns it, that reads only what is already downloaded."""
    return {**where, "force_download": False, "local_files_only": True}


def pin_data_set(name: str) -> str | None:
    """The commit of a data set on the Hub, asked for once; None where the Hub is not to be asked.

    Raises:
        HubError: the Hub refuses, or does not answer.
        FileNotFoundError: the name can be none on the Hub.
    """
    if _offline({}):
        return None
    from huggingface_hub import HfApi

    with asking(name, {}, kind="data set"):
        return HfApi().dataset_info(name, timeout=_timeout(), expand=["sha"]).sha


@contextmanager
def asking(
    repo: str, where: Mapping[str, Any], *, revision: str = "main", filename: str = "", kind: str = "checkpoint"
) -> Iterator[None]:
    """Turns what a request to the Hub fails with into a `HubError` or `MissingFile` of one sentence.

    Args:
        kind: "checkpoint" or "data set".
    """
    try:
        yield
    except Exception as error:
        translated = _translated(error, repo, where, revision, filename, kind)
        if translated is None:
            raise
        raise translated from error


def _translated(error: BaseException, repo: str, where, revision: str, filename: str, kind: str) -> OSError | None:
    from huggingface_hub import errors

    nowhere = f"{repo}: there is no such folder here"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _translated(error.__cause__, repo, where, revision, filename, kind)
    if isinstance(error, errors.HFValidationError):
        return FileNotFoundError(f"{nowhere}, and this is not a valid name on the Hub ({error})")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return MissingFile(f"{repo} has no {filename} (commit {revision[:8]})")
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repo}: this repository is gated, and the Hub refused access ({_answer(error)}). {_token_hint(where)}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        answer = f"and the Hub has no such repository, or it is private ({_answer(error)})"
        return HubError(f"{nowhere}, {answer}. Is the name right? {_token_hint(where)}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision!r} on the Hub ({_answer(error)})")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (408, 429) or status >= 500:
            return HubUnreachable(f"{repo}: the Hub answered {status}, try again later")
        hint = f". {_token_hint(where)}" if status in (401, 403) else ""
        return HubError(f"{repo}: the Hub refused to send {filename or 'the list of files'} ({_answer(error)}){hint}")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return OSError(error.errno, f"{repo}: {filename} can't be written: {error.strerror}", error.filename)
    # The HTTP client's own errors, whose module changes with huggingface_hub's version; and those of a download
    modules = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    if not modules & {"httpx", "httpx2", "huggingface_hub"} and not isinstance(error, (OSError, RuntimeError)):
        return None
    reason = " ".join(str(error).split()) or type(error).__name__
    if filename:
        return HubUnreachable(
            f"{repo}: {filename} can't be downloaded, the connection to the Hugging Face Hub broke ({reason}). Try again: "
            "what has arrived is kept"
        )
    offline = "HF_HUB_OFFLINE=1 takes what is in the local cache"
    if kind == "checkpoint":
        offline = "Without a network use align-small, which is inside this package"
    return HubUnreachable(f"{nowhere}, and the Hugging Face Hub can't be reached ({reason}). {offline}")


def _answer(error) -> str:
    """Status and sentence of the Hub."""
    message = error.server_message or error.response.reason_phrase
    return f"{error.response.status_code}: {' '.join(message.split())}"


def _token_hint(where: Mapping[str, Any]) -> str:
    from huggingface_hub import get_token

    token = where.get("token")
    if token is False or not (token if isinstance(token, str) else get_token()):
        return "A private or gated one needs a token: `hf auth login`, HF_TOKEN, or token="
    return "The token that was sent may not read it"


def _not_cached(repo: str, what: str) -> str:
    return f"{repo}: the local cache has no {what}, and the Hub is not asked (HF_HUB_OFFLINE, local_files_only, no network)"


def _check_name(name: str) -> None:
    """Raises FileNotFoundError where `name` can only be a path, or is nearly that of a checkpoint inside this package."""
    bundled = bundled_checkpoints()
    if os.path.exists(name):
        folder = os.path.dirname(name) or "."
        raise FileNotFoundError(f"{name} is a file, expected the folder of a checkpoint. Give {folder}")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise FileNotFoundError(
            f"{name}: no such folder. Expected one, a name on the Hub (owner/name), or {' or '.join(bundled)}"
        )
    if "/" not in name and (near := difflib.get_close_matches(name, bundled, n=1, cutoff=0.7)):
        raise FileNotFoundError(f"{name}: no such folder or checkpoint. Did you mean {near[0]}?")


def _offline(where: Mapping[str, Any]) -> bool:
    from huggingface_hub import constants

    return bool(where.get("local_files_only")) or constants.is_offline_mode()


def _timeout() -> float:
    """Seconds to wait for an answer: what HF_HUB_ETAG_TIMEOUT says, else few enough to say soon that there is no network."""
    from huggingface_hub import constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT
    return _SECONDS if seconds == constants.DEFAULT_ETAG_TIMEOUT else seconds


def _cache_of(repo: str, where: Mapping[str, Any]) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(where.get("cache_dir") or constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))


def _remember(file: Path, text: str) -> None:
    """Writes a note into the cache, as huggingface_hub does, where that can be written to."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            write_text(file, text)


def read_object(file: Path) -> dict:
    """The content of a JSON file.

    Raises:
        ValueError: it is not a JSON object.
        PointerError: it is a Git LFS pointer.
    """
    refuse_pointers([file])
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a JSON file ({error}). Is the download complete?") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


def read_config(file: Path) -> dict:
    """The content of a config.json.

    Raises:
        ValueError: it is not a JSON object, or its `model_type` is not a string.
        PointerError: it is a Git LFS pointer.
    """
    config = read_object(file)
    if not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"{file}: expected an object with a model_type")
    return config


@contextmanager
def described_by(file: Path | str) -> Iterator[None]:
    """Turns the errors that wrong values in a config.json, or in a recipe, cause into a ValueError that names the place."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, StrictDataclassError, TypeError) as error:
        kind = "" if isinstance(error, StrictDataclassError) else f"{type(error).__name__}: "
        raise ValueError(f"{file} is not a valid model configuration: {kind}{' '.join(str(error).split())}") from error


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names, without repetition.

    Raises:
        OSError: it is not an index, or names something that can't be a file of weights beside it.
    """
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        wrong = [name for name in names if Path(name).name != name or Path(name).suffix != suffix]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{index} is not a valid shard index ({error!r}). Is the download complete?") from error
    if wrong or not names:
        raise OSError(f"{index} names {(wrong or [''])[0]!r}, expected the name of a {suffix} file in the same folder")
    return names
