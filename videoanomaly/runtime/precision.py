"""The precision of inference: its names, how features and checkpoints record it, and what is said where it differs.

`videoanomaly/runtime/fast_precision.py` chooses one for `auto`; this file needs no torch, so that --help stays quick.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from videoanomaly.runtime.console import InputError, as_text, note

AUTO, FULL = "auto", "float32"
NAMES = (FULL, "bfloat16", "float16")  # torch's own
PRECISIONS = (AUTO, *NAMES)
PRECISION_HELP = (
    "of the numbers in matrix products and convolutions; auto: bfloat16 where the machine is fast in it, else float32 "
    "(default: %(default)s)"
)


def check_precision(where: str, value: str) -> str:
    if value not in PRECISIONS:
        raise InputError(f"{where}: found {value!r:.60}, expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    return value


def precision_of(encoder: Mapping[str, Any] | None) -> str:
    """In which features were made, as meta.json or a checkpoint tells; what older versions made is float32."""
    return (encoder or {}).get("precision", FULL)


def without_precision(encoder: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What tells whether features go together: encoders that differ in precision alone do."""
    return None if encoder is None else {key: value for key, value in encoder.items() if key != "precision"}


@cache  # once each
def note_difference(where: str, found: str, expected: str) -> None:
    """One line where features are in another precision than those that they go with."""
    if found != expected:
        note(f"note: {as_text(where)}: features in {found} go with ones in {expected}, scores differ slightly")
