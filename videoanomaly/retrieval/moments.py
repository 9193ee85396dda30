"""The rows of an archive that lie nearest to a text, file by file, whatever their number.

Files are memory-mapped and read once, some rows at a time, as fast as they come from the disk or the memory: nothing
is built beforehand and nothing grows with the archive but the list of files. Of neighbouring moments the best counts.

Shapes: Q texts, N rows of a file, D feature size.
"""

import csv
import heapq
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoanomaly.data.features import FeatureFolder, LazyArray
from videoanomaly.runtime.console import InputError, as_text
from videoanomaly.runtime.files import csv_cell
from videoanomaly.video.frame_clock import clock

AT_ONCE = 64  # files given to the threads
ROWS_AT_ONCE = 2**12  # 4 MB of 512 float16: they stay in the processor's cache


class Moment(NamedTuple):
    """A place in a video; of two the better one is greater."""

    score: float  # cosine of features and text, both re-centred where that was asked for
    name: str  # of the video
    time: float  # seconds
    row: int


def file_names(folder: FeatureFolder) -> list[str]:
    """The videos of a folder of features: as its meta.json lists them, else all its .npy files."""
    if folder.meta:
        names = sorted(folder.meta["videos"])
    else:
        root = Path(folder.root)
        names = sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.npy"))
    if not names:
        raise InputError(f"{folder.root}: found no features, expected .npy files")
    return names


def mean_row(folder: FeatureFolder, names: Iterable[str]) -> Tensor:
    """The mean of all rows, (D,): most of an archive is normal."""
    total, count = torch.zeros(()), 0
    for name in names:
        rows = folder.open(name)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = torch.from_numpy(np.array(rows[start : start + ROWS_AT_ONCE])).float().mean(dim=1)  # over crops
            total, count = total + part.double().sum(0), count + len(part)
    return (total / count).float()


def similarities(rows: np.ndarray | LazyArray, directions: Tensor, centre: Tensor | None) -> Tensor:
    """Cosines of rows (N, crops, D) with Q directions of length 1, highest over the crops, (Q, N)."""
    parts = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        x = torch.from_numpy(np.array(rows[start : start + ROWS_AT_ONCE])).float()
        x = x if centre is None else x - centre
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)  # (N, crops, 1)
        parts.append((x @ directions.T / lengths).amax(dim=1).T)  # (Q, N)
    return torch.cat(parts, dim=1)


def best_of_file(scores: np.ndarray, apart: int, most: int) -> list[int]:
    """The rows of the highest scores, (N,), of which no two lie within so many rows of each other; best first."""
    left, found = scores.astype(np.float32), []
    while len(found) < most and len(left):
        row = int(left.argmax())
        if left[row] == -np.inf:
            break
        found.append(row)
        left[max(row - apart, 0) : row + apart + 1] = -np.inf
    return found


def search(
    folder: FeatureFolder,
    names: Sequence[str],
    texts: Tensor,
    *,
    top: int,
    apart: float,
    centre: Tensor | None = None,
    threads: int = 1,
    done: Callable[[int], object] = lambda rows: None,
) -> list[list[Moment]]:
    """For each text its best moments, best first.

    Args:
        folder: Of the features.
        names: Of its videos.
        texts: Their features, (Q, D).
        top: Moments for each text.
        apart: Seconds between two moments of a video.
        centre: Taken from rows and texts, (D,); None: nothing is.
        threads: Files read at once.
        done: Called with the number of rows of each file.
    Raises:
        InputError: If a file cannot be read, or its features are of another size.
    """
    directions = texts if centre is None else texts - centre
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)

    def of_file(name: str) -> list[list[Moment]]:
        rows = folder.open(name)
        if rows.shape[-1] != len(directions[0]):
            raise InputError(f"{name}: found features of size {rows.shape[-1]}, expected {len(directions[0])}")
        rate = folder.frame_rate(name) / folder.frames_per_feature
        scores = similarities(rows, directions, centre).numpy()
        done(len(rows))
        return [
            [Moment(float(of[row]), name, row / rate, row) for row in best_of_file(of, round(apart * rate), top)]
            for of in scores
        ]

    best: list[list[Moment]] = [[] for _ in texts]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), AT_ONCE):  # not all at once: results would wait for each other in memory
            for found in pool.map(of_file, names[start : start + AT_ONCE]):
                best = [heapq.nlargest(top, old + new) for old, new in zip(best, found)]
    return best


def table(found: Mapping[str, Sequence[Moment]]) -> str:
    """The moments of all texts as CSV; seconds, rows from 0."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["text", "rank", "score", "video", "seconds", "row"])
    for text, moments in found.items():
        for rank, moment in enumerate(moments, 1):
            score, name, time, row = moment
            writer.writerow([csv_cell(text), rank, f"{score:.4f}", csv_cell(as_text(name)), f"{time:.3f}", row])
    return file.getvalue()


def print_table(found: Mapping[str, Sequence[Moment]]) -> None:
    """The same for people."""
    for text, moments in found.items():
        print(as_text(text))
        for moment in moments:
            print(f"  {moment.score:.3f}  {clock(moment.time)}  {as_text(moment.name)}")
