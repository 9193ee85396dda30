"""Where things are, processes of torchrun, and what a test may need."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent  # of the project
SHARED = ROOT.parent / "shared"  # real annotations, videos and reference numbers, where they are at hand
REFERENCE = SHARED / "reference" / "checkpoint"
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason="needs the authors' checkpoint in ../shared")
REFERENCE_DATA = str(REFERENCE / "dataset")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def torchrun(*script: str, processes: int = 2, options: tuple = ()) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *options,
        *script,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
