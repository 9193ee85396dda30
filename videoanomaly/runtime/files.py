"""Files that appear whole or not at all, and lists of lines."""

import json
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from videoanomaly.runtime.console import CONTROLS, InputError

LONGEST_LINE = 10**5  # characters; a line of an annotation list has 20 for each interval


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(binary_file)` so that the file at `path` appears complete or not at all; devices and pipes stay.

    Raises:
        OSError: If it cannot be written; nothing is left behind, and a file that was there stays.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # /dev/stdout, >(gzip)
        with open(path, "wb") as file:
            write(file)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "w+b") as file:  # not "wb", for which NumPy writes past Python and loses the error
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # a full disk: torch.save raises another error over the system's
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"{path}: cannot be written ({getattr(cause, 'strerror', None) or str(cause).splitlines()[0]})"
        ) from error
    finally:
        with suppress(OSError):  # it is gone if all went well; a read-only disk would raise once more
            temporary.unlink()
    if os.name == "posix":  # the new name survives a power cut only once the folder is written, too
        with suppress(OSError):  # network shares and folders that cannot be listed refuse it; the file is there
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: str | Path, content: object) -> None:
    """Plain values, indented."""
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def csv_cell(text: str) -> str:
    """Text for a table: with an apostrophe before it where a spreadsheet would take it for a formula (OWASP)."""
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@＝＋－＠") else text


def read_lines(path: str | Path) -> list[tuple[str, str]]:
    """Non-blank lines of a text file, as (place for error messages, stripped line).

    Raises:
        InputError: If the file cannot be read, holds no line, or something that is no plain text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}), expected a text file") from error
    text = unicodedata.normalize("NFC", text)  # as one way of writing an accent
    lines = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: is empty, expected at least one line")
    for where, line in lines:
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{where}: found {len(line)} characters, expected at most {LONGEST_LINE}; is this a text file?"
            )
        if odd := CONTROLS.search(line):
            raise InputError(f"{where}: found the control character {odd[0]!r}, expected plain text")
    return lines


def files_by_name(folders: Iterable[Path], suffix: str) -> dict[str, list[tuple[Path, Path]]]:
    """(folder, file) of all files below some folders by their names in NFC, without suffix; not in hidden folders.

    Macs write the accents of names apart from their letters (NFD), so that a name can have two spellings.
    """
    found: dict[str, list[tuple[Path, Path]]] = {}
    for folder in folders:
        for place, subfolders, names in os.walk(folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if name.endswith(suffix):
                    stem = unicodedata.normalize("NFC", name.removesuffix(suffix))
                    found.setdefault(stem, []).append((folder, Path(place, name)))
    return found


def check_inside(path: str | Path, folder: str | Path) -> None:
    """Refuses a file that a symbolic link below a folder leads out of it; the folder itself may be a link.

    Raises:
        InputError: If it is such a file.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{path}: is a link to {os.path.realpath(path)}, expected a file inside {folder}")


def remove_temporary_files(folder: Path) -> None:
    """Those that `write_atomically` left when it was killed, but in subfolders that are another run's by their lock;
    call it with the folder locked.
    """
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not Path(place, name, ".lock").exists()]
        for name in names:
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", name):
                Path(place, name).unlink(missing_ok=True)
