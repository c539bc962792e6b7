"""Uploading converted folders to the Hub, after they were checked against their report."""

from pathlib import Path

from kakao_models.checkpoint.upload import upload
from kakao_models.conversion.report import verify_report


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    checked: bool = False,
) -> str:
    """Uploads a folder that `convert` made, if it still matches its report.

    Args:
        repo: "owner/name"; created if it does not exist.
        private: make a private repository.
        create_pr: upload as a pull request.
        dry_run: only list the files.
        checked: whether the caller has compared the folder with its report just now.

    Returns:
        Text with the address and the files.

    Raises:
        ValueError: the folder differs from its report.
        OSError: the Hub can't be reached, or refuses.
    """
    if wrong := [] if checked else verify_report(folder):
        raise ValueError(f"{folder} differs from what was verified, so nothing is uploaded: " + "; ".join(wrong[:5]))
    verified = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]  # the report has no others
    files = "\n".join(f"  {path.name}  {path.stat().st_size:,} bytes" for path in verified)
    if dry_run:
        return f"would upload to {repo}:\n{files}"
    options = dict(private=private, create_pr=create_pr, commit_message="Upload converted checkpoint")
    names = [path.name for path in verified]
    try:
        url, kept, changed = upload(folder, repo, files=names, **options)
    except OSError as error:
        again = f"kakao-models verify {folder} --push-to-hub {repo}"
        raise OSError(f"{error}. The folder {folder} is complete and stays: {again} uploads it") from error
    more = (
        f"\nother files stay in the repository: {', '.join(kept[:20])}. Are there older weights among them?"
        if kept
        else ""
    )
    return (f"uploaded to {url}:\n{files}" if changed else f"{url} already has all files: nothing was uploaded") + more
