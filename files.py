"""What all scripts share: one-line errors, the device, files that appear whole, and lists of lines.

Without NumPy and PyTorch, so that a script answers --help without waiting for them.
"""

import os
import re
import sys
import uuid
from contextlib import suppress
from pathlib import Path

CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")  # all but the tab; some would end a line of a message
LONGEST_LINE = 10**5  # characters; a line of an annotation list has 20 for each interval


class InputError(ValueError):
    """Bad input of the user: one line that names the file, what was found and what was expected."""


def run_script(main):
    """Runs `main()` and exits with the status it returns.

    An InputError becomes one line and status 2, a failing system or a diverging training one line and status 1; of the
    processes that torchrun started only the first one prints, and the first one of each machine tells errors.
    """
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")
    try:
        status = main()
    except InputError as error:
        if not int(os.environ.get("LOCAL_RANK", 0)):
            print(f"error: {error}", file=sys.stderr)
        status = 2
    except (OSError, FloatingPointError) as error:
        print(f"failed: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    sys.exit(status)


def check_device(name):
    """The device to run on: the one named, else the first CUDA device, else the CPU."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


def write_atomically(path, write):
    """Calls `write(binary_file)` so that the file at `path` appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # a full disk: torch.save raises another error over the system's
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"{path}: cannot be written ({getattr(cause, 'strerror', None) or str(cause).splitlines()[0]})") from error
    finally:
        with suppress(OSError):  # it is gone if all went well; a read-only disk would raise once more
            temporary.unlink()
    if os.name == "posix":  # the new name survives a power cut only once the folder is written, too
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def read_lines(path):
    """Non-blank lines of a text file, as (place for error messages, stripped line)."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}), expected a text file") from error
    lines = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: is empty, expected at least one line")
    for where, line in lines:
        if len(line) > LONGEST_LINE:
            raise InputError(f"{where}: found {len(line)} characters, expected at most {LONGEST_LINE}; is this a text file?")
        if odd := CONTROLS.search(line):
            raise InputError(f"{where}: found the control character {odd[0]!r}, expected plain text")
    return lines


def check_inside(path, folder):
    """Refuses a file that a symbolic link below a folder leads out of it; the folder itself may be a link."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{path}: is a link to {os.path.realpath(path)}, expected a file inside {folder}")
