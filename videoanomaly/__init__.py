"""Video anomaly recognition around anomalyclip.py: data, videos, systems, evaluation, prediction, streams."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (told before an older Python stumbles over a file or a package)
    sys.exit(f"error: found Python {sys.version.split()[0]}, expected 3.11 or later")
