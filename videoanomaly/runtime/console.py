"""What a user sees of a script: one-line errors, exit statuses, notes, and names that a terminal can show."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

# all but the tab; some would end a line of a message
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")


PATIENCE = 30.0  # seconds that other processes give the first one to tell an error that all of them have

Options = TypeVar("Options")


class InputError(ValueError):
    """Bad input of the user: one line that names the file, what was found and what was expected."""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main()` and exits with the status it returns.

    An InputError becomes one line and status 2, a failing system or a diverging training one line and status 1; of the
    processes that torchrun started only the first one prints, and the first one of each machine tells errors; what it
    does not tell in time, another does.
    """
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")
    try:
        status = main()
    except InputError as error:
        if int(os.environ.get("LOCAL_RANK", 0)):
            time.sleep(PATIENCE)  # the first process has the same error: once it has told it, torchrun ends this one
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except (OSError, FloatingPointError) as error:
        print(f"failed: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    sys.exit(status)


def as_text(name: str) -> str:
    """A name to show: bytes that are no text become \\x.., which can be printed, control characters a replacement."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", os.fsencode(name).decode("utf-8", "backslashreplace"))


def note(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{text}\n")  # one write: lines of several threads do not mix
    sys.stderr.flush()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an InputError, and which takes no abbreviated options.

    Args:
        doc: The script's docstring, shown as it is.
    """

    def __init__(self, doc: str | None):
        super().__init__(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """`argument --x: 0: expected ...` is told as `--x 0: expected ...`."""
        raise InputError(re.sub(r"^argument (\S+?)(/\S+)*: (?=\S+: expected )", r"\1 ", message))


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
