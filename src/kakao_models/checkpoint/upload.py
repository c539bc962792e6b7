"""Uploading folders to the Hub."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from kakao_models.checkpoint.shards import WEIGHT_NAMES


class Uploaded(NamedTuple):
    url: str  # of the commit or pull request
    kept: list[str]  # files that were in the repository and stay, such as weights in other formats
    changed: bool  # whether anything was uploaded: if all files are there already, no commit or pull request is made


def upload(
    folder: Path,
    repo: str,
    *,
    files: list[str] | None = None,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    token: str | bool | None = None,
) -> Uploaded:
    """Uploads a folder, or these `files` of it, as it is. The same commit removes the weights of an older upload: a
    model.safetensors beside new shards would be loaded instead of them.

    Raises:
        OSError: the Hub can't be reached, or refuses; or the repository changed during the upload. Of two uploads at once, the
            second fails as a whole: the repository never has files of both.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_name(repo)
    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        before = api.model_info(repo)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=commit_message,
            create_pr=create_pr,
            allow_patterns=files,
            delete_patterns=list(WEIGHT_NAMES),
            parent_commit=before.sha,
        )
    except HfHubHTTPError as error:
        raise OSError(f"{repo}: the Hub refused the upload: {_reason(error)}") from error
    except Exception as error:  # the HTTP client's own errors, whose module changes with huggingface_hub's version
        raise OSError(f"{repo}: the Hub can't be reached ({error}). Nothing was uploaded: try again later") from error
    new = files or [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    kept = {file.rfilename for file in before.siblings or ()} - {*new, ".gitattributes"}
    return Uploaded(
        commit.pr_url or commit.commit_url,
        sorted(name for name in kept if not any(fnmatch(name, pattern) for pattern in WEIGHT_NAMES)),
        commit.oid != before.sha,
    )


def check_name(repo: str) -> None:
    """Raises ValueError unless `repo` may be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} can't be the name of a repository, expected owner/name: {error}") from error


def check_token(token: str | bool | None = None) -> None:
    """Asks the Hub whether it knows the token: before long work whose result is to be uploaded.

    Raises:
        OSError: it does not, or it can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        HfApi(token=token).whoami()
    except LocalTokenNotFoundError as error:
        raise OSError(f"an upload needs a token. {_LOG_IN}") from error
    except HfHubHTTPError as error:
        raise OSError(f"the Hub refuses the token: {_reason(error)}") from error
    except Exception as error:
        raise OSError(f"the Hub can't be reached ({error}). Convert without --push-to-hub, and upload later") from error


_LOG_IN = "Run `hf auth login`, or set HF_TOKEN"


def _reason(error: Any) -> str:
    """The Hub's answer in a sentence, and what to do."""
    status = getattr(error.response, "status_code", None)
    message = getattr(error, "server_message", None) or str(error).splitlines()[0]
    if status == 401:
        return f"{message} (401). {_LOG_IN}"
    if status == 403:
        return (
            f"{message} (403). Use a token with write access to this repository, or upload a pull request (create_pr)"
        )
    if status == 412:
        return (
            "the repository changed during the upload, by another upload or by a first try of this one whose answer was lost. "
            "Look at its last commit, then upload again"
        )
    return message
