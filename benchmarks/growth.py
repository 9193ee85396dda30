"""Time and memory against size, for python -m benchmarks --growth: each point in a process of its own, a table and a
picture.

A curve is called linear between two neighbouring points where the time grows with an exponent of 0.8 to 1.2: 1 is twice
the time for twice the size, 0 no more time, 2 four times.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from benchmarks.measure import Setup, gib, in_subprocess, machine, pick
from videoanomaly.runtime.files import write_atomically

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend that needs no screen)

Point = tuple[float, float, float]  # size, seconds, bytes
LINEAR = (0.8, 1.2)
SIZES = {
    "frames": (1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6),
    "videos": (10, 30, 100, 300, 1000),
    "classes": (1, 2, 5, 10, 20, 50),
    "batch": (2, 4, 8, 16, 32, 64),
    "predict": (1, 4, 16, 64),
    "extract": (1, 4, 16, 64),
    "triage": (1, 3, 10),
    "search": (1, 10, 100, 1000),
}
QUICK = {
    "frames": (1e3, 1e4),
    "videos": (10, 30),
    "classes": (1, 5),
    "batch": (2, 8),
    "extract": (1, 2),
    "search": (1, 10),
}
UNITS = {"predict": "minutes", "extract": "minutes", "triage": "hours", "search": "hours"}
COLUMNS = 4  # of the picture
WORK = {
    "frames": "one video of so many frames, features to metrics.json; 13 classes, E 32",
    "videos": "frame metrics and bootstrap with 100 draws, videos of 1,000 frames, 6 classes",
    "classes": "text tower of ViT-B/16, forward and backward",
    "batch": "training step with so many videos, S 32, F 16, E 64",
    "predict": "predict.py --stride 5 on one video of so many minutes, 320x240, 25 frames/s; a small CLIP of 96x96",
    "extract": "extract_features.py --stride 5 on the same",
    "triage": "predict.py --triage on so many hours of such videos, at 5% of the encoding",
    "search": "search.py in features of so many hours, 2 rows/s of 512 values",
}


def exponents(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """Between neighbouring points: the exponent with which the value grows."""
    return [math.log(values[i + 1] / values[i]) / math.log(sizes[i + 1] / sizes[i]) for i in range(len(sizes) - 1)]


def verdict(sizes: Sequence[float], seconds: Sequence[float]) -> str:
    """Where the time is linear in the size, where it grows slower and where faster."""
    parts = []
    for i, exponent in enumerate(exponents(sizes, seconds)):
        kind = "slower" if exponent < LINEAR[0] else "faster" if exponent > LINEAR[1] else "linear"
        if parts and parts[-1][0] == kind:
            parts[-1][2:] = [sizes[i + 1], [*parts[-1][3], exponent]]
        else:
            parts.append([kind, sizes[i], sizes[i + 1], [exponent]])
    words = {"slower": "slower than the size", "linear": "linear", "faster": "faster than the size"}
    return "; ".join(
        f"{words[kind]} from {first:,.0f} to {last:,.0f} (exponent {np.mean(found):.2f})"
        for kind, first, last, found in parts
    )


def markdown(curves: dict[str, list[Point]]) -> str:
    texts = []
    for name, points in curves.items():
        sizes, seconds, memory = zip(*points)
        rows = [
            [UNITS.get(name, name), *(f"{n:,.0f}" for n in sizes)],
            ["---"] * (len(sizes) + 1),
            ["seconds", *(f"{s:.3g}" for s in seconds)],
            ["peak memory", *map(gib, memory)],
        ]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        texts.append(f"{name}: {WORK[name]}\n\n{table}\n\nThe time grows {verdict(sizes, seconds)}.\n")
    return "\n".join(texts)


def draw(path: Path, curves: dict[str, list[Point]]) -> None:
    """Time (left) and peak memory (right) of each curve, logarithmic, with the straight line through the last point."""
    blocks = math.ceil(len(curves) / COLUMNS)
    figure, axes = plt.subplots(2 * blocks, COLUMNS, figsize=(16, 6 * blocks), squeeze=False, layout="constrained")
    columns = axes.reshape(blocks, 2, COLUMNS).swapaxes(1, 2).reshape(-1, 2)
    for axis in columns[len(curves) :].flat:
        axis.set_axis_off()
    for column, (name, points) in zip(columns, curves.items()):
        sizes, seconds, memory = map(np.array, zip(*points))
        column[0].loglog(sizes, seconds, "o-")
        column[0].loglog(sizes, seconds[-1] * sizes / sizes[-1], ":", color="grey", label="linear")
        column[0].set(title=name, ylabel="seconds")
        column[0].legend(frameon=False)
        column[1].semilogx(sizes, memory / 2**30, "o-")
        column[1].set(
            xlabel=UNITS.get(name, name), ylabel="peak memory of the process, GiB", ylim=(0, 1.1 * memory.max() / 2**30)
        )
        for axis in column:
            axis.set_xticks(sizes, [f"{n:,.0f}" if n < 1e4 else f"{n / 1e3:,.0f}k" for n in sizes], fontsize=8)
            axis.minorticks_off()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=80))
    plt.close(figure)


def run(setup: Setup, folder: Path) -> None:
    """Measures all curves and writes growth.md and growth.png into the folder."""
    curves: dict[str, list[Point]] = {}
    for name, sizes in pick(setup.quick, QUICK, SIZES).items():
        start = time.perf_counter()
        common = (setup.quick, setup.device, torch.get_num_threads())
        module = "benchmarks.archive_points" if name in UNITS else "benchmarks.points"
        curves[name] = [(n, *in_subprocess(module, "point", name, int(n), *common)) for n in sizes]
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    text = f"# Growth of time and memory\n\n![the curves](growth.png)\n\n{machine(setup)}\n\n{markdown(curves)}"
    write_atomically(folder / "growth.md", lambda file: file.write(text.encode()))
    draw(folder / "growth.png", curves)
    print(text)
