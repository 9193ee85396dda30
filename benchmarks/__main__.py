"""Measures this project beside what people use today: same inputs, same threads, taking turns, and the outputs
compared.

    python -m benchmarks --markdown bench.md    # every row at full size; hours on two cores, so choose --rows
    python -m benchmarks --quick                # every row small, under five minutes: do all run and agree?
    python -m benchmarks --rows text train --device cuda
    python -m benchmarks --rows extraction --videos DIR
    python -m benchmarks --growth docs          # time and memory against sizes

The packages to compare with are in benchmarks/requirements.txt; a row whose package is missing says so. A figure is the
median of the rounds, with the smallest and largest in brackets; a ratio is that of the times of the same round, above 1
where we are faster. All keep freed memory (memory.py), which makes the peers faster than they are by themselves. Exit
status 1: outputs differ by more than they may, or a row failed. Letters as in anomalyclip.py.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import growth
from benchmarks.data_rows import bootstrap, evaluation, loading
from benchmarks.measure import Line, Setup, machine, pick, spread
from benchmarks.model_rows import accelerator, image_bf16, image_fp32, text, train
from benchmarks.peers import MissingPeer
from benchmarks.video_rows import extraction, limits, real_videos, startup
from videoanomaly.runtime.console import InputError, Parser, run_script
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import check_device

ROWS = {
    row.__name__: row
    for row in (
        limits,
        image_fp32,
        image_bf16,
        text,
        train,
        loading,
        evaluation,
        bootstrap,
        extraction,
        startup,
        accelerator,
    )
}


def markdown(lines: list[Line], setup: Setup) -> str:
    """The table, under a line on date, machine and versions."""
    head = ["work", "ours", "compared with", "ratio", "goal", "outputs differ by", "remarks"]
    rows = [head, ["---"] * len(head)] + [
        [
            line.work,
            line.ours,
            line.peer,
            spread(line.ratios, "x") if line.ratios else "",
            line.goal and f"{line.goal}: {'yes' if line.reached else 'no'}",
            ""
            if line.difference is None
            else f"{line.difference:.1e} (may {line.tolerance:g}){' WRONG' if line.wrong else ''}",
            ("FAILED " if line.failed else "") + line.note,
        ]
        for line in lines
    ]
    table = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
    return f"{machine(setup)}\n\n{table}\n"


def write_table(path: str, lines: list[Line], setup: Setup) -> None:
    write_atomically(path, lambda file: file.write(markdown(lines, setup).encode()))


def run_row(name: str, setup: Setup) -> list[Line]:
    try:
        return ROWS[name](setup)
    except MissingPeer as error:
        return [Line(name, note=f"needs {error}")]
    except Exception as error:  # the other rows are still worth having
        return [Line(name, note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", failed=True)]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows of the table (default: all)")
    add("--quick", action="store_true", help="small models and inputs: a check that every row runs and agrees")
    add("--rounds", type=int, help="rounds of every comparison (default: 5, 1 with --quick)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--threads", type=int, help="threads of torch, for all alike (default: as torch chooses)")
    add("--videos", metavar="DIR", help="folder of real videos to decode and extract (default: made ones)")
    add("--markdown", help="write the table into this file as well")
    add("--growth", metavar="FOLDER", help="instead measure growth: FOLDER/growth.md and FOLDER/growth.png")
    args = parser.parse_args(argv)
    args.rounds = pick(args.quick, 1, 5) if args.rounds is None else args.rounds
    for name in ("rounds", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name} {value}: expected at least 1")
    args.videos = () if args.videos is None else real_videos(args.videos)
    args.device = check_device(args.device)
    return args


def measure_rows(names: list[str], setup: Setup, table: str | None) -> list[Line]:
    """The rows one after the other; the file `table` is written after each, so that a stopped run leaves them."""
    torch.backends.cudnn.allow_tf32 = False  # as the scripts do
    lines: list[Line] = []
    for name in names:
        start = time.perf_counter()
        lines += run_row(name, setup)
        if table:
            write_table(table, lines, setup)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return lines


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a row failed or gave another output than its peer."""
    keep_freed_memory()
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(args.quick, args.rounds, args.device, Path(folder), args.videos)
        if args.growth:
            growth.run(setup, Path(args.growth))
            return 0
        lines = measure_rows(args.rows, setup, args.markdown)
    print(markdown(lines, setup))
    return int(any(line.wrong for line in lines))


if __name__ == "__main__":
    run_script(main)
