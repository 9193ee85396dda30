"""Reading files of torch.save that anybody may have written or damaged: nothing is executed, any damage is noticed."""

import hashlib
import os
import zipfile
from typing import Any

import torch

from anomalyclip import CHECKPOINT_FORMAT

SEAL = b"sha256:"  # a checkpoint ends in this and the hash of all that stands before the hash, in hex
HASH_LENGTH = 64
MOST_UNPACKED = 10  # times the size of a file; weights hardly compress, so more is an attack on the memory


def damage(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with the bytes of a file of torch.save; None if all are as they were written.

    Of files that end in SEAL any changed byte shows, of other zip archives those of their members.
    """
    with open(path, "rb") as file:
        head, size = file.read(4), os.fstat(file.fileno()).st_size
        file.seek(max(size - len(SEAL) - HASH_LENGTH, 0))
        tail = file.read()
        if tail.startswith(SEAL):
            file.seek(0)
            digest, left = hashlib.sha256(), size - HASH_LENGTH
            while left and (block := file.read(min(left, 2**20))):
                digest.update(block)
                left -= len(block)
            if digest.hexdigest().encode() != tail[len(SEAL) :]:
                return "is damaged: its hash is another"
        elif not head.startswith(b"PK"):
            return None  # torch.save's older format
        elif tail[-22:-18] != b"PK\5\6" or tail[-2:] != bytes(2):  # an archive's end, without a comment
            return "is damaged: its end is not the one of an archive"
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MOST_UNPACKED * size:
            return f"unpacks to more than {MOST_UNPACKED} times its size"
        bad = None if tail.startswith(SEAL) else archive.testzip()
        return bad and f"is damaged at {bad!a:.60}"


def read_torch(path: str | os.PathLike[str], expected: str) -> Any:
    """What torch.save wrote, tensors on the CPU; nothing in the file is executed.

    Raises:
        ValueError: If the file is damaged, or holds other things than tensors and plain values.
    """
    try:
        problem = damage(path)
        if not problem:
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        problem = "no such file"
    except Exception as error:  # torch.load has no error class of its own for files that are none of its
        problem = f"found {type(error).__name__} on reading"
    raise ValueError(f"{path}: {problem}, expected {expected}")


def read_checkpoint(path: str | os.PathLike[str], *needed: str) -> dict[str, Any]:
    """The dict that train.py saved, tensors on the CPU, with the entries `needed`; nothing in the file is executed.

    Raises:
        ValueError: If the file is not such a checkpoint, damaged, or one of a newer format.
    """
    entries = {"format", "config", "model", *needed}
    checkpoint = read_torch(path, "a checkpoint of train.py")
    if not isinstance(checkpoint, dict) or not entries <= checkpoint.keys():
        raise ValueError(
            f"{path}: found a file without {', '.join(sorted(entries))}, expected a checkpoint of train.py"
        )
    if not isinstance(checkpoint["format"], int) or checkpoint["format"] > CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path}: found checkpoint format {checkpoint['format']!r:.20} of a newer version, "
            f"expected {CHECKPOINT_FORMAT}"
        )
    return checkpoint
