"""What a user sees of a script: one-line errors, exit statuses, notes, and names that a terminal can show."""

import argparse
import io
import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from videoanomaly.runtime.signals import sigterm_as_interrupt
from videoanomaly.runtime.torchrun import is_main, rank_and_world

# all but the tab; some would end a line of a message
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
UNSEEN = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # categories of Unicode: control and format characters, separators
INVISIBLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u2800\u3164\ufe0e\ufe0f\uffa0"  # letters and marks, by category
)
SIGPIPE = 13  # Windows has none
PATIENCE = 10.0  # seconds that other processes give the first one to tell an error that all of them have
# also what old terminals obey, what turns the direction of a line, and halves of letters
UNSHOWN = re.compile(CONTROLS.pattern[:-1] + r"\x80-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")
# in a text, with all that follows: a password may hold blanks
ADDRESS = re.compile(r"([^\s'\"=]{2,}:/|[^\s'\"=]+:\S.*@|\S*\?.*=).*", re.S)

Options = TypeVar("Options")


class InputError(ValueError):
    """Bad input of the user: one line that names the file, what was found and what was expected."""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main()` and exits with the status it returns.

    An InputError becomes one line and status 2, a failing system or a diverging training one line and status 1, Ctrl-C
    and SIGTERM the word "stopped" and status 130 or 143; a reader of the output that is gone ends it quietly. Of the
    processes that torchrun started only the first one prints, and the first one of each machine tells errors; what it
    does not tell in time, another does.
    """
    open_streams()
    try:
        with sigterm_as_interrupt():
            status = status_of(main)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        if is_main():
            tell("stopped")
        status = 128 + number
    close_streams()
    sys.exit(status)


def status_of(main: Callable[[], int | None]) -> int | None:
    """The exit status of a script, whose errors are told here."""
    try:
        status = main()
        sys.stdout.flush()
    except InputError as error:
        if rank_and_world()[1]:
            time.sleep(PATIENCE)  # the first process has the same error: once it has told it, torchrun ends this one
        tell(f"error: {without_worker(error)}")
        return 2
    except BrokenPipeError:  # as `head` leaves it
        return 128 + SIGPIPE
    except (OSError, FloatingPointError) as error:
        tell(f"failed: {without_worker(error)}")
        return 1
    return status


def open_streams() -> None:
    """Whatever the console is: letters that it lacks are shown as \\x.., and a closed stream takes what nobody sees."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None or name == "stdout" and not is_main():
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def close_streams() -> None:
    """What cannot be written any more is dropped; Python's own last attempt would tell of it and change the status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def without_worker(error: Exception) -> str:
    """The line of an error, also of one that a DataLoader's worker raised, around which torch puts its traceback."""
    text = str(error)
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


def tell(text: str) -> None:
    """One line on stderr, if anybody reads it."""
    with suppress(OSError):
        note(text)


def as_text(name: str) -> str:
    """A name to show: bytes that are no text become \\x.., which can be printed, control characters a replacement."""
    shown = UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", name)
    return shown.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def some_of(names: Iterable[str]) -> str:
    """The first three of some names, to show."""
    shown = sorted(set(map(as_text, names)))
    return ", ".join([*shown[:3], *["..."] * (len(shown) > 3)])


def count(number: int, word: str) -> str:
    """Such as 1 event, or 1,000 events."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """About so long, such as 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def reveal(text: str) -> str:
    """A name with what cannot be seen of it by code points, `Falling<U+200B>`; two that look alike are told apart."""
    return "".join(f"<U+{ord(c):04X}>" if is_unseen(c) else c for c in text)


def is_unseen(letter: str) -> bool:
    return letter in INVISIBLE or unicodedata.category(letter) in UNSEEN and letter != " "


def lookalike(name: str, others: Iterable[str]) -> str:
    """What an error message adds where another name looks the same; nothing without one."""

    def seen(text: str) -> str:
        return "".join(c for c in unicodedata.normalize("NFKC", text) if not is_unseen(c) and c != " ")

    found = [other for other in others if other != name and seen(other) == seen(name)]
    return f"; {reveal(found[0])} looks alike" if found else ""


def differences(name: str, found: Any, expected: Any) -> str:
    """`found NAME = VALUE, expected VALUE` of two values that differ; of dicts and lists what differs alone."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [key for key in found | expected if found.get(key) != expected.get(key)]
        return "; ".join(differences(key, found.get(key), expected.get(key)) for key in names)
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        if len(found) == len(expected):
            found, expected = zip(*(pair for pair in zip(found, expected) if pair[0] != pair[1]))
        else:
            found, expected = [x for x in found if x not in expected], [x for x in expected if x not in found]
        found, expected = (", ".join(map(str, values)) or "nothing" for values in (found, expected))
    return f"found {name} = {found}, expected {expected}"


def note(text: str) -> None:
    """One line on stderr, as `as_text` shows it."""
    sys.stderr.write(f"{as_text(text)}\n")  # one write: lines of several threads do not mix
    sys.stderr.flush()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an InputError, which takes no abbreviated options, and for which ~ is the home folder
    where a shell leaves it alone: behind = and between quotes.

    Args:
        doc: The script's docstring, shown as it is.
    """

    def __init__(self, doc: str | None):
        super().__init__(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(self, argv: Any = None, namespace: Any = None) -> Any:
        """`parse_args` calls it."""
        return super().parse_known_args(list(map(expand_home, sys.argv[1:] if argv is None else argv)), namespace)

    def error(self, message: str) -> NoReturn:
        """`argument --x: 0: expected ...` is told as `--x 0: expected ...`; addresses are left out, with passwords."""
        message = ADDRESS.sub("...", message)
        raise InputError(re.sub(r"^argument (\S+?)(/\S+)*: (?=\S+: expected )", r"\1 ", message)) from None


def expand_home(word: str) -> str:
    """A word of a command line, of which what stands behind ~ or ~user is below that home folder.

    Raises:
        InputError: If the user has no home.
    """
    option, path = re.findall(r"\A(--[\w-]+=)?(.*)", word, re.DOTALL)[0]
    if path.partition("/")[0] == "~" == os.path.expanduser("~"):
        raise InputError(f"{word}: found no home folder of this user, expected a path that begins elsewhere")
    return option + os.path.expanduser(path)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option: a whole number, no smaller."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
        return value

    number.__name__ = "whole number"  # as argparse names it where the text is none
    return number


def options_of(kind: type[Options], given: dict[str, Any]) -> Options:
    """A dataclass of options out of all that a command line gave, by name."""
    return kind(**{f.name: given[f.name] for f in fields(kind)})  # pyright: ignore[reportArgumentType]  (a dataclass)
