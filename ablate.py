"""Runs the tables of the paper, row by row, and writes them beside its numbers (evaluation/paper_tables.py).

    python ablate.py --table 7 --dataset demo                                      # 7 to 15, D.16, D.17: ablations
    python ablate.py --table 2 --dataset ucfcrime --root data/UCFCrime --jobs 8    # 1, 2, 3: beside other systems
    python ablate.py --table recipe --dataset demo --seeds 5                       # --recipe beyond, and others
    python ablate.py --table 11 --dataset custom --root data/mine -- --directions direct --epochs 50

Options behind -- go to train.py, which trains each row with each seed in a process of its own, as evaluate.py evaluates
it; of several GPUs each gets one in turn. The same command once more goes on where it stopped: what is finished is not
run again. Writes into OUT: table.md, table.csv, table.png, recognition.png (mAUC and mAP of each row, as Fig. 1), and
per row and seed the folder that train.py makes and a .log beside it. Exits with status 1 if a run failed; the others go
on.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import csv
import io
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from anomalyclip import PROMPTS
from videoanomaly import plots
from videoanomaly.data.datasets import DATASETS
from videoanomaly.evaluation import tables
from videoanomaly.evaluation.paper_tables import COMPARED, TABLES, Row, Table
from videoanomaly.runtime.addresses import refuse_addresses
from videoanomaly.runtime.console import InputError, Parser, at_least, differences, run_script
from videoanomaly.runtime.files import write_atomically, write_json
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.runtime.signals import stop_signals
from videoanomaly.settings import OPTIONAL
from videoanomaly.systems.catalogue import SYSTEMS

HERE = Path(__file__).parent
OURS = ("--model", "--dataset", "--root", "--features", "--seed", "--out", "--resume", "--evaluate", "--no-evaluate")
METRICS = ("AUC", "AP", "mAUC", "mAP", "event mAP")  # in per cent
RATE = "false alarms/h"
OPERATION = {  # at the default threshold, of metrics.json; in per cent but for the rate
    "event recall": "event_recall",
    RATE: "false_alarms_per_hour",
    "normal alarmed": "normal_alarmed",
    "balanced accuracy": "balanced_accuracy",
}
MEASURED = (*METRICS, *OPERATION)
SIZES = ("segment rows", "parameters", "training seconds")
MAY_CHANGE = ("out", "device", "workers", "resume", "evaluate")  # settings of train.py, from one start to the next


class Run(NamedTuple):
    """One row with one seed."""

    row: Row
    seed: int
    folder: Path

    @property
    def metrics(self) -> Path:
        """What the evaluation writes before its pictures."""
        return self.folder / "eval" / "metrics.json"

    @property
    def log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    def __str__(self):
        return f"{self.row.label}, seed {self.seed}"


class Options(NamedTuple):
    """Of the command line."""

    table: str
    dataset: str
    root: str | None
    features: str | None
    temporal_features: str | None
    seeds: int
    out: Path
    jobs: int | None
    rest: list[str]  # options for train.py


def parse_args(argv: list[str] | None = None) -> Options:
    argv = sys.argv[1:] if argv is None else list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--table", required=True, choices=TABLES, help="number of the table in the paper, or recipe")
    add("--dataset", required=True, choices=DATASETS, help="data set to run it on")
    add("--root", help="folder of lists and annotations, as in train.py")
    add("--features", help="folder of .npy features (default: found under --root)")
    add("--temporal-features", help="I3D features, for the row of Table 15 that has them")
    add("--seeds", type=at_least(1), default=3, help="runs of each row, with seeds 0, 1, ... (default: 3)")
    add("--out", help="output folder (default: runs/DATASET-table-NUMBER)")
    add("--jobs", type=at_least(1), help="runs at a time (default: one per GPU, one without)")
    args = parser.parse_args(argv[:split])
    refuse_addresses(vars(args) | {"--": argv[split + 1 :]})
    args.out = Path(args.out or f"runs/{args.dataset}-table-{args.table}")
    if args.temporal_features and args.table != "15":
        raise InputError(f"--temporal-features: is for Table 15, expected it behind -- with Table {args.table}")
    options = Options(**vars(args), rest=argv[split + 1 :])
    check_rest(options)
    return options


def check_rest(options: Options) -> None:
    """Options for train.py must leave alone what the rows are about."""
    rows = {word for row in TABLES[options.table].rows for word in row.options.split() if word.startswith("--")}
    for word in options.rest:
        name = word.partition("=")[0]
        if name in rows:
            raise InputError(
                f"{name} behind --: the rows of Table {options.table} set it, expected other options of train.py"
            )
        if name in OURS:
            raise InputError(f"{name} behind --: ablate.py sets it, expected it before --, if at all")


def data_options(options: Options) -> list[str]:
    """What all rows have in common of necessity."""
    given = {"--root": options.root, "--features": options.features}
    return ["--dataset", options.dataset, *(word for name, value in given.items() if value for word in (name, value))]


def row_options(row: Row, options: Options) -> list[str]:
    """A row's own options, and those for all rows, as far as its system has a use for them."""
    own = [word.format(temporal_features=options.temporal_features) for word in shlex.split(row.options)]
    return [*own, *(word for option in split_options(options.rest) if takes(row.model, option) for word in option)]


def takes(model: str, option: list[str]) -> bool:
    """Whether a system has a use for an option of train.py; of --directions, each for its own values."""
    name, value = option_name(option[0]), option[-1].rpartition("=")[2]
    if name == "directions":
        return value in SYSTEMS[model].DIRECTIONS
    return name not in OPTIONAL - SYSTEMS[model].OPTIONS


def split_options(words: list[str]) -> list[list[str]]:
    """Words of a command line as options, each with its values."""
    starts = [i for i, word in enumerate(words) if word.startswith("--")] + [len(words)]
    return [words[begin:end] for begin, end in zip(starts, starts[1:])]


def option_name(word: str) -> str:
    return word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")


def why_missing(row: Row, options: Options, settings: dict) -> str:
    """Why a row cannot be run at all; empty if it can."""
    if "{temporal_features}" in row.options and not options.temporal_features:
        return "needs --temporal-features, a folder of I3D features"
    if row.model == "clip-zeroshot" and settings["directions"] == "direct":
        return "needs features of a CLIP"
    if "--num-ctx" in row.options and settings["directions"] in ("direct", *PROMPTS):
        return f"--directions {settings['directions']} has no context vectors"
    return row.missing


# ---- before the work ----


def check_input(options: Options) -> dict:
    """Has train.py look at all that the rows share, down to each file of features, and make the demo's data; the
    settings that it would train with. CLIP is opened by the rows that need it: others shall go on if it is not there.
    """
    words = [*data_options(options), *options.rest]
    words += ["--temporal-features", options.temporal_features] if options.temporal_features else []
    with tempfile.TemporaryDirectory() as folder:
        run_check([*words, "--out", folder, "--check"])
        return json.loads(Path(folder, "settings.json").read_text())["settings"]


def run_check(words: list[str]) -> None:
    """Runs train.py; its one-line error is ours."""
    command = [sys.executable, str(HERE / "train.py"), *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    *notes, last = done.stderr.splitlines() or [""]
    if done.returncode:
        sys.stderr.writelines(f"{line}\n" for line in notes)
        raise InputError(last.removeprefix("error: ") or f"train.py ended with status {done.returncode}")
    sys.stderr.write(done.stderr)


def check_settings(options: Options, settings: dict) -> None:
    """A folder holds runs of one table with equal settings; writes them into a new one."""
    path = options.out / "settings.json"
    new = {k: v for k, v in settings.items() if k not in MAY_CHANGE}
    new = json.loads(json.dumps(new | {"table": options.table, "temporal_features": options.temporal_features}))
    if not path.exists():
        return write_json(path, new)
    try:
        old = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}), expected what ablate.py writes") from None
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise InputError(
                f"{path}: {differences(name, old.get(name), new.get(name))} as given now; go on with the same "
                "settings, or choose another --out"
            )


def plan(options: Options, settings: dict) -> list[Run]:
    """All runs of the table, seed by seed, so that a table that is stopped early has all rows."""
    rows = [row for row in TABLES[options.table].rows if not why_missing(row, options, settings)]
    return [Run(row, seed, options.out / f"{slug(row.label)}-{seed}") for seed in range(options.seeds) for row in rows]


def check_free(runs: list[Run]) -> None:
    """Refuses where a run that an ablate.py started which was killed is still at work; it ends by itself."""
    for run in runs:
        for folder in (run.folder, run.metrics.parent):
            if folder.exists():
                with lock_folder(folder):
                    pass


def slug(label: str) -> str:
    """A label as the name of a folder: "8, shared" is "8-shared", "L_A+" is "l_aplus"."""
    return re.sub(r"\W+", "-", label.lower().replace("+", "plus")).strip("-")


# ---- runs ----


def places(options: Options, settings: dict) -> list[dict[str, str]]:
    """Environment variables of each run that goes on at a time: a GPU in turn, or a share of the CPU's cores."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    if settings["device"] or not torch.cuda.is_available():
        jobs = options.jobs or 1
        return [{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}] * jobs if jobs > 1 else [{}]
    return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(options.jobs or len(gpus))]


def commands(run: Run, options: Options, settings: dict) -> list[list[str]]:
    """What a run consists of: a training, which goes on where it stopped, then an evaluation."""
    training = [
        *data_options(options),
        *row_options(run.row, options),
        "--seed",
        str(run.seed),
        "--out",
        str(run.folder),
        "--resume",
        "--no-evaluate",
    ]
    evaluation = ["--ckpt", str(run.folder / "last.pt"), "--timelines", "0"]
    evaluation += ["--device", settings["device"]] if settings["device"] else []
    return [["train.py", *training], ["evaluate.py", *evaluation]]


def start(run: Run, command: list[str], place: dict[str, str]) -> subprocess.Popen:
    """Starts one of a run's commands; what it prints is added to the run's log."""
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(HERE / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | place,
        )


def finish(run: Run, status: int) -> str:
    """Tells how a run ended; the last line it printed if it failed, else nothing."""
    if run.metrics.exists():
        values = read_run(run)
        print(f"{run}: " + "  ".join(f"{name} {show(values[name])}" for name in METRICS), flush=True)
        return ""
    lines = [line for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    reason = lines[-1] if lines and status > 0 else f"it ended with status {status}"
    print(f"{run}: failed: {reason}", file=sys.stderr, flush=True)
    return reason


def run_all(runs: list[Run], options: Options, settings: dict) -> tuple[dict[Run, str], int]:
    """Runs all, as many at a time as there are places.

    Returns:
        Last lines of those that failed, and the number of the signal that stopped it all, 0 if none did.
    """
    waiting, running, failed = list(runs), {}, {}
    where = places(options, settings) if runs else []
    with stop_signals() as signals:
        try:
            while running or waiting and not signals:
                for place in set(range(len(where))) - running.keys():
                    if waiting and not signals:
                        run = waiting.pop(0)
                        first, *rest = commands(run, options, settings)
                        running[place] = run, rest, start(run, first, where[place])
                time.sleep(0.05)
                for place, (run, rest, process) in list(running.items()):
                    if process.poll() is None:
                        if signals:
                            process.terminate()  # it saves first; more than one of these change nothing
                    elif process.returncode == 0 and rest and not signals:
                        running[place] = run, rest[1:], start(run, rest[0], where[place])
                    else:
                        del running[place]
                        if not signals and (reason := finish(run, process.returncode)):
                            failed[run] = reason
        finally:
            for *_, process in running.values():
                process.kill()
                process.wait()
    return failed, signals[0] if signals else 0


def read_run(run: Run) -> dict[str, float | None]:
    """What is MEASURED of a finished run, and its SIZES; None where there is no value.

    Raises:
        InputError: If one of its files is damaged.
    """
    path = run.metrics
    try:
        results = json.loads(path.read_text())
        values = {name: results[name] for name in METRICS[:4]} | {"event mAP": results["events"]["mAP"]}
        values |= {name: results["operation"].get(key) for name, key in OPERATION.items()}  # older files lack some
        scales = {name: 1 if name == RATE else 100 for name in MEASURED}
        values = {name: None if value is None else scales[name] * float(value) for name, value in values.items()}
        path = run.folder / "training.json"  # not there in tables that an older version began
        took = dict(json.loads(path.read_text())) if path.exists() else {}
        return values | {name: None if took.get(name) is None else float(took[name]) for name in SIZES}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: is damaged ({error!r}), expected what train.py and evaluate.py write; delete {run.folder} "
            "to run it again"
        ) from None


# ---- tables ----


def show(value: float | None, pattern: str = ".2f") -> str:
    return "" if value is None else f"{value:{pattern}}"


def gather(options: Options, settings: dict, runs: list[Run], failed: dict[Run, str]) -> list[dict]:
    """Each row with its values of the finished seeds by name, the paper's, and a note on what is not there."""
    table, gathered = TABLES[options.table], []
    for row in table.rows:
        own = [run for run in runs if run.row == row]
        done = [read_run(run) for run in own if run.metrics.exists()]
        missing = why_missing(row, options, settings)
        notes = (
            [f"not available: {missing}"]
            if missing
            else [
                f"seed {run.seed} {'failed: ' + failed[run] if run in failed else 'is not finished'}"
                for run in own
                if not run.metrics.exists()
            ]
        )
        values = {name: [v[name] for v in done if v[name] is not None] for name in (*MEASURED, *SIZES)}
        gathered.append(
            {
                "row": row,
                "values": values,
                "paper": dict(zip(table.metrics, row.paper)),
                "seeds": len(done),
                "note": "; ".join(notes),
            }
        )
    return gathered


def cells(table: Table, gathered: list[dict]) -> list[list[str]]:
    """The table as text, first row the header: ours beside the paper's."""
    others = ("event mAP", *OPERATION) if table.compares else ()
    beside = (cell for name in table.metrics for cell in (name, f"{name}, paper"))
    rows = [["", *beside, *others, *(SIZES if table.compares else ()), "seeds", "note"]]
    for entry in gathered:
        values = entry["values"]
        row = [entry["row"].label]
        for name in table.metrics:
            row += [tables.mean_sd(values[name]), show(entry["paper"][name])]
        row += [tables.mean_sd(values[name]) for name in others]
        if table.compares:
            row += [f"{values[name][0]:,.0f}" if values[name] else "" for name in SIZES[:2]]
            row += [tables.mean_sd(values["training seconds"], ".1f")]
        rows.append([*row, str(entry["seeds"]), entry["note"]])
    return rows


def to_markdown(options: Options, gathered: list[dict]) -> str:
    table, shared = TABLES[options.table], shlex.join(["train.py", *data_options(options), *options.rest])
    of_paper = "" if options.table == "recipe" else " of the paper"
    text = (
        f"Table {options.table}{of_paper}, {table.title}: ours on {options.dataset}, "
        f"the paper's numbers of {table.dataset}. "
        f"Per cent, mean ± standard deviation over seeds. {table.note}{COMPARED if table.compares else ''}"
        f"All rows: `{shared}`."
    )
    return f"{text}\n\n{tables.to_markdown([cells(table, gathered)])}"


def to_csv(gathered: list[dict]) -> str:
    """All that is MEASURED of each row: mean, standard deviation (empty below two seeds), and the paper's."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [name + end for name in MEASURED for end in ("", " sd", " paper")]
    writer.writerow(["row", "options", "seeds", *columns, *SIZES, "note"])
    for entry in gathered:
        numbers = []
        for name in MEASURED:
            values = entry["values"][name]
            numbers += [
                show(statistics.mean(values), ".4f") if values else "",
                show(statistics.stdev(values), ".4f") if len(values) > 1 else "",
                show(entry["paper"].get(name)),
            ]
        sizes = [f"{statistics.mean(entry['values'][name]):.0f}" if entry["values"][name] else "" for name in SIZES]
        writer.writerow([entry["row"].label, entry["row"].options, entry["seeds"], *numbers, *sizes, entry["note"]])
    return file.getvalue()


def write_tables(options: Options, gathered: list[dict]) -> None:
    """Everything that is written of a table, finished or not."""

    table, labels = TABLES[options.table], [entry["row"].label for entry in gathered]
    for name, text in {"table.md": to_markdown(options, gathered), "table.csv": to_csv(gathered)}.items():
        write_atomically(options.out / name, lambda file, text=text: file.write(text.encode()))
    for name, metrics in {"table.png": table.metrics, "recognition.png": ("mAUC", "mAP")}.items():
        values = {metric: [entry["values"][metric] for entry in gathered] for metric in metrics}
        paper = {metric: [entry["paper"].get(metric) for entry in gathered] for metric in metrics}
        plots.row_bars(
            options.out / name,
            labels,
            values,
            paper,
            title=f"{table.title}: {options.dataset}",
            paper_label=f"paper, {table.dataset}",
        )
    print(f"\n{tables.align(cells(table, gathered))}\n\ntables and pictures: {options.out}")


def main(argv=None) -> int | None:
    """Returns the exit status: 1 if a run failed, 128 and the signal that stopped it, if one did."""
    options = parse_args(argv)
    settings = check_input(options)
    with lock_folder(options.out):
        check_settings(options, settings)
        runs = plan(options, settings)
        rest = [run for run in runs if not run.metrics.exists()]
        for run in runs:
            if run not in rest:
                read_run(run)  # tells of a damaged one before the work
        check_free(rest)
        print(
            f"Table {options.table} on {options.dataset}: {len(runs)} runs, {len(runs) - len(rest)} of them finished",
            flush=True,
        )
        failed, number = run_all(rest, options, settings)
        write_tables(options, gather(options, settings, runs, failed))
    if number:
        print("stopped; the same command goes on")
        return 128 + number
    return 1 if failed else None


if __name__ == "__main__":
    run_script(main)
