"""Where a checkpoint or a result comes from: texts by name that tell neither this machine's folders nor passwords."""

import re
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath

from videoanomaly import __version__
from videoanomaly.runtime.addresses import is_address, public_name
from videoanomaly.runtime.console import as_text

PROJECT = Path(__file__).parents[2]
LONGEST = 4000  # characters of a command


def provenance(command: str, encoder: Mapping | None) -> dict[str, str | None]:
    """What made something just now.

    Args:
        command: As `command_line` gives it.
        encoder: What meta.json tells of the features' encoder, if that is known.
    """
    return {
        "code": __version__,
        "commit": commit_of(PROJECT),
        "torch": version("torch"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "encoder": as_text(encoder["encoder"]) if encoder else None,
        "encoder_sha256": encoder["weights_sha256"] if encoder else None,
        "command": command,
    }


def provenance_text(found: Mapping[str, str | None]) -> str:
    """One line of it, for the screen."""
    known = {
        name: value[:12] if name.endswith(("commit", "sha256")) else value for name, value in found.items() if value
    }
    return ", ".join(as_text(f"{name} {value}") for name, value in known.items())


def command_line(script: str, argv: list[str] | None) -> str:
    """The command of this run as `main` got it: of absolute paths the last part, addresses without their secrets."""
    words = [script, *(public_word(word) for word in (sys.argv[1:] if argv is None else argv))]
    return as_text(shlex.join(words))[:LONGEST]


def public_word(word: str) -> str:
    option, text = re.findall(r"\A(--[\w-]+=)?(.*)", word, re.DOTALL)[0]
    if is_address(text):
        return option + public_name(text)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f"{option}.../{kind(text).name}"
    return word


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out there, read from git's own files; None where there is no repository."""
    try:
        git = folder / ".git"
        if git.is_file():  # of another working tree of a repository
            git = folder / git.read_text().strip().removeprefix("gitdir: ")
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            head = branch_commit(git, head.removeprefix("ref: "))
        return head if re.fullmatch("[0-9a-f]{40,64}", head) else None
    except (OSError, UnicodeDecodeError):
        return None


def branch_commit(git: Path, ref: str) -> str:
    """Of a branch, which lies in a file of its own or as a line `COMMIT REF` in packed-refs; "" if it is in neither."""
    shared = git / "commondir"
    home = git / shared.read_text().strip() if shared.is_file() else git
    if (home / ref).is_file():
        return (home / ref).read_text().strip()
    packed = home / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), "")
