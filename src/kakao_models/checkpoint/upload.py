"""Uploading folders to the Hub."""

from pathlib import Path

from kakao_models.checkpoint.report import verify

# An older upload's goes in the same commit: a file model.safetensors that is left beside new shards is what would be loaded.
_WEIGHTS = "model*.safetensors*"


def push(folder: Path, repo: str, *, private: bool = False, create_pr: bool = False, dry_run: bool = False) -> str:
    """Uploads a folder that `convert` made, if it still is what its report says.

    Args:
        repo: "owner/name"; made if it is not there.
        private: make a private repository.
        create_pr: upload as a pull request.
        dry_run: upload nothing.

    Returns:
        What was, or would be, uploaded, and where to.

    Raises:
        ValueError: the folder differs from its report.
        OSError: the Hub can't be reached, or refuses.
    """
    if wrong := verify(folder):
        raise ValueError(f"{folder} is not what was proven, nothing is uploaded: " + "; ".join(wrong[:5]))
    proven = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]  # no other is in the report
    files = "\n".join(f"  {path.name}  {path.stat().st_size:,} bytes" for path in proven)
    if dry_run:
        return f"to {repo} would go\n{files}"
    options = dict(private=private, create_pr=create_pr, commit_message="Upload converted checkpoint")
    url = upload(folder, repo, files=[path.name for path in proven], **options)
    return f"to {url} went\n{files}"


def upload(
    folder: Path,
    repo: str,
    *,
    files: list[str] | None = None,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    token: str | bool | None = None,
) -> str:
    """Uploads a folder, or these `files` of it, as it is, and returns the address of the commit or pull request. Weights of an
    older upload go. Arguments as for `push`.

    Raises:
        OSError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        about = dict(commit_message=commit_message, create_pr=create_pr, allow_patterns=files, delete_patterns=_WEIGHTS)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, **about)
    except HfHubHTTPError as error:
        raise OSError(f"{repo}: the Hub refused the upload: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the HTTP client's own errors, whose module changes with huggingface_hub's version
        raise OSError(f"{repo}: the Hub can't be reached ({error}). Nothing was uploaded: try again later") from error
    return commit.pr_url or commit.commit_url
