"""Uploading folders to the Hub."""

from pathlib import Path

from kakao_models.checkpoint.report import verify


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
    files = "\n".join(f"  {path.name}  {path.stat().st_size:,} bytes" for path in sorted(folder.iterdir()))
    if dry_run:
        return f"to {repo} would go\n{files}"
    url = upload(folder, repo, private=private, create_pr=create_pr, commit_message="Upload converted checkpoint")
    return f"to {url} went\n{files}"


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    token: str | bool | None = None,
) -> str:
    """Uploads a folder as it is, and returns the address of the commit or pull request. Arguments as for `push`.

    Raises:
        OSError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=commit_message, create_pr=create_pr)
    except HfHubHTTPError as error:
        raise OSError(f"{repo}: the Hub refused the upload: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the HTTP client's own errors, whose module changes with huggingface_hub's version
        raise OSError(f"{repo}: the Hub can't be reached ({error}). Nothing was uploaded: try again later") from error
    return commit.pr_url or commit.commit_url
