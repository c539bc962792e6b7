"""Uploading converted folders to the Hub, after they were checked against their report."""

from pathlib import Path

from kakao_models.checkpoint.upload import upload
from kakao_models.conversion.report import verify_report


def push(folder: Path, repo: str, *, private: bool = False, create_pr: bool = False, dry_run: bool = False) -> str:
    """Uploads a folder that `convert` made, if it still matches its report.

    Args:
        repo: "owner/name"; created if it does not exist.
        private: make a private repository.
        create_pr: upload as a pull request.
        dry_run: only list the files.

    Returns:
        Text with the address and the files.

    Raises:
        ValueError: the folder differs from its report.
        OSError: the Hub can't be reached, or refuses.
    """
    if wrong := verify_report(folder):
        raise ValueError(f"{folder} differs from what was verified, so nothing is uploaded: " + "; ".join(wrong[:5]))
    verified = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]  # the report has no others
    files = "\n".join(f"  {path.name}  {path.stat().st_size:,} bytes" for path in verified)
    if dry_run:
        return f"would upload to {repo}:\n{files}"
    options = dict(private=private, create_pr=create_pr, commit_message="Upload converted checkpoint")
    url = upload(folder, repo, files=[path.name for path in verified], **options)
    return f"uploaded to {url}:\n{files}"
