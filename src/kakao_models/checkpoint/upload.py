"""Uploading folders to the Hub."""

from pathlib import Path

from kakao_models.checkpoint.shards import WEIGHT_NAMES


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
    """Uploads a folder, or these `files` of it, as it is, and returns the address of the commit or pull request. The same commit
    removes the weights of an older upload: a model.safetensors beside new shards would be loaded instead of them.

    Raises:
        OSError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=commit_message,
            create_pr=create_pr,
            allow_patterns=files,
            delete_patterns=list(WEIGHT_NAMES),
        )
    except HfHubHTTPError as error:
        raise OSError(f"{repo}: the Hub refused the upload: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the HTTP client's own errors, whose module changes with huggingface_hub's version
        raise OSError(f"{repo}: the Hub can't be reached ({error}). Nothing was uploaded: try again later") from error
    return commit.pr_url or commit.commit_url
