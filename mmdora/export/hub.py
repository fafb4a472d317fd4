"""Sends a folder with an exported checkpoint or an adapter to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects

from mmdora.errors import MmdoraError
from mmdora.files import PARTIAL
from mmdora.models.locate import bundled, locate

LEFT_OUT = ("*.bin", "*.pt", "*.pth", "*.pkl", f"*{PARTIAL}", ".*")
"""Patterns of files that are never sent: pickles, unfinished files and hidden files."""


def check_repo(repo: str) -> None:
    """Raise an MmdoraError unless `repo` has the form USER/NAME. It is called before the export is made."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise MmdoraError(f"--push-to-hub {repo!r}: expected USER/NAME")


def check_base(source: str) -> None:
    """Raise an MmdoraError if the files of an adapter name a folder of this machine as their base."""
    base = locate(source).base
    if base not in bundled() and Path(base).is_dir():
        raise MmdoraError(
            f"{source}: its base is the folder {base}, which others do not have; push the merged checkpoint (without "
            "--adapter), or push the base and name it in the files of the adapter"
        )


def preview(folder: Path, repo: str, *, private: bool = True) -> str:
    """What `push` would send, for people: the repository, each file with its size, the card. Nothing is sent."""
    check_repo(repo)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    sent = sorted(filter_repo_objects(files, ignore_patterns=list(LEFT_OUT)))
    lines = [f"a push would send to {repo} ({'private' if private else 'public'}, if it is new):"]
    lines += [f"{files[name]:>15,} bytes  {name}" for name in sent]
    card = folder / "README.md"
    return "\n".join(lines) + (f"\n\n{card.read_text(encoding='utf-8')}" if card.is_file() else "")


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Make the repository if need be and send the folder as one commit.

    Args:
        repo: USER/NAME.
        private: whether a new repository is private; an existing one is not changed.

    Returns:
        The address of the commit.

    Raises:
        MmdoraError: if there is no such folder, no token, no right to write there, or no connection.
    """
    check_repo(repo)
    if not any(folder.glob("*.safetensors")):
        raise MmdoraError(f"{folder}: holds no safetensors; push an exported checkpoint or an adapter folder")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=list(LEFT_OUT), commit_message=f"Upload {folder.name}"
        )
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        hint = "log in with `hf auth login`, or set HF_TOKEN to a token that may write" if code in (401, 403) else ""
        reason = hint or " ".join(str(error).split())[:200]
        raise MmdoraError(f"--push-to-hub {repo}: the hub refused ({code}): {reason}; {folder} is whole") from None
    except HFValidationError as error:
        raise MmdoraError(f"--push-to-hub {repo}: {error}") from None
    except OSError as error:  # There is no connection, or offline mode is on.
        reason = " ".join(str(error).split())[:200]
        raise MmdoraError(f"--push-to-hub {repo}: cannot reach the hub ({reason}); {folder} is whole") from None
    return str(made.commit_url)
