"""Video anomaly recognition around anomalyclip.py: data, videos, systems, evaluation, prediction, streams."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (told before an older Python stumbles over a file or a package)
    sys.exit(f"error: found Python {sys.version.split()[0]}, expected 3.11 or later")

# isort: split

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videoanomaly.prediction.api import Recogniser as Recogniser

__version__ = "1.0"


def __getattr__(name: str) -> object:
    """`from videoanomaly import Recogniser` reads torch and all else, no other import of the package does."""
    if name == "Recogniser":
        return import_module("videoanomaly.prediction.api").Recogniser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
