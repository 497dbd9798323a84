"""Send an exported folder to the hub, or say what would be sent."""

from __future__ import annotations

from pathlib import Path

from dynarank.errors import UserError, first_line, kind_and_first_line


def check_repository(name: str) -> None:
    """Raise `UserError` for what is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    # The hub's own check takes a name without an owner, too.
    reason = "" if "/" in name else "it names no owner"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = first_line(error)
    if reason:
        raise UserError(f"--push-to-hub {name}: must be OWNER/NAME ({reason.rstrip('.')})")


def describe_push(folder: Path, repository: str, private: bool) -> list[str]:
    """Return what a push would send, a line each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kind = "private" if private else "public"
    lines = [f"would send {len(files)} files to {repository} ({kind}, made if it is not there):"]
    for path in files:
        lines.append(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    return lines


def push(folder: Path, repository: str, private: bool) -> str:
    """Send a folder's files in one commit, and return where they are.

    The repository is made where there is none. The token is the one of HF_TOKEN, or of the hub's
    own login.

    Raises:
        UserError: the hub refuses, or cannot be reached. The folder stays as it is.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Add an adapter by dynarank"
        )
    except Exception as error:  # every client and proxy has its own way of not connecting
        raise UserError(
            f"--push-to-hub {repository}: {kind_and_first_line(error)}. Give a token that may "
            "write there by HF_TOKEN, or log in by `hf auth login`; --dry-run sends nothing"
        ) from None
    return str(commit.repo_url)
