"""Settings of a system, compared on worlds with looks that neither training nor CLIP has seen (docs/recipe.md).

    torchrun --nproc-per-node 2 -m videoanomaly.demo.train_clip --third 0 --amp --steps 1200 \\
        --out runs/dev/clip0 --weights runs/dev/clip0.npz                       # a quarter of an hour; thirds 0, 1, 2
    python -m benchmarks.development world runs/dev/clip0.npz --third 0 --seed 100 --out runs/dev/w00
    python -m benchmarks.development compare runs/dev/w00 runs/dev/w01 --out runs/dev/log
    python -m benchmarks.development compare runs/dev/w00 runs/dev/w01 --model rtfm --out runs/dev/rtfm

`world` renders a world and encodes it. `compare` trains each of VARIANTS on each world with each seed, as users do, and
writes OUT/recipe.md: means, and paired differences to the first variant with their standard errors over worlds and
seeds; with --model another system, at learning rates and lengths around its own. What is finished is not run again. The
test's videos take no part.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import HERE
from videoanomaly.data.datasets import DATASETS
from videoanomaly.demo.train_clip import unpack
from videoanomaly.demo.world import write_world
from videoanomaly.runtime.console import InputError, Parser, at_least, run_script
from videoanomaly.runtime.files import write_atomically
from videoanomaly.settings import SMALL_STEPS
from videoanomaly.systems.catalogue import SYSTEMS

COUNTS = {"train": (120, 17), "development": (42, 9)}  # normal videos, videos of each class


def as_options(settings: dict[str, Any]) -> str:
    """Of train.py."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def of_demo(*names: str) -> str:
    """Settings of the demo, as options."""
    return as_options({name: DATASETS["demo"].settings[name] for name in names})


OF_ALL = of_demo("batch_size", "num_frames")
DEMO = f"{of_demo('lr', 'epochs', 'embed_dim')} {OF_ALL}"
BEYOND = f"--recipe beyond {as_options(DATASETS['demo'].beyond)}"
VARIANTS = {  # options of train.py; of those given twice the last counts
    "paper": "",
    "paper, smoothed": "--smoothing 0.5",
    "without L_N+": "--smoothing 0.5 --lambdas top_normal=0",
    "engineered prompts": "--smoothing 0.5 --directions engineered",
    "engineered, without L_N+": "--smoothing 0.5 --directions engineered --lambdas top_normal=0",
    "engineered, L_N+ 0.1": "--smoothing 0.5 --directions engineered --lambdas top_normal=0.1",
    "ensemble, L_N+ 0.1": "--smoothing 0.5 --directions ensemble --lambdas top_normal=0.1",
    "beyond": BEYOND,
    "beyond, L_N+ 0.1": f"{BEYOND} --lambdas top_normal=0.1",
    "beyond, features alone": f"{BEYOND} --temporal-input features",
    "beyond, class head": f"{BEYOND} --class-head",
}
METRICS = ("AUC", "mAUC", "event mAP")


def variants_of(model: str) -> dict[str, str]:
    """Names of what is compared, with options of train.py."""
    if model == "anomalyclip":
        return {name: f"{DEMO} {options}" for name, options in VARIANTS.items()}
    defaults = SYSTEMS[model].DEFAULTS
    lr = defaults.small_lr or defaults.lr
    assert lr is not None, f"{model} has no learning rate of its own"
    batches = -(-COUNTS["train"][0] // (DATASETS["demo"].settings["batch_size"] // 2))  # of an epoch
    searched = {"own": ""} | {f"rate x {times:.2g}": f"--lr {times * lr:.3g}" for times in (1 / 3, 3, 10)}
    searched["steps x 3"] = f"--epochs {-(-3 * SMALL_STEPS // batches)}"
    return {f"{model}, {name}": f"--smoothing 0.5 {OF_ALL} {options}" for name, options in searched.items()}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=("world", "compare"))
    add("paths", nargs="+", type=Path, help="world: weights of a demo CLIP; compare: worlds")
    add("--third", type=int, choices=range(3), help="world: of the looks, which that CLIP has not seen")
    add("--seed", type=at_least(0), default=100, help="world: its seed (default: 100)")
    add("--seeds", type=at_least(1), default=1, help="compare: so many of each training (default: 1)")
    trained = [name for name, system in SYSTEMS.items() if "lr" in system.OPTIONS]
    add("--model", choices=trained, default="anomalyclip", help="compare: the system (default: anomalyclip)")
    add("--jobs", type=at_least(1), default=2, help="compare: trainings at a time (default: 2)")
    add("--out", type=Path, required=True, help="folder")
    args = parser.parse_args(argv)
    if args.what == "world" and (args.third is None or len(args.paths) > 1):
        raise InputError("world: expected the weights of one CLIP and its --third")
    for path in args.paths:
        needed = path if args.what == "world" else path / "world.json"
        if not needed.is_file():
            raise InputError(
                f"{needed}: found no such file, expected {'weights' if args.what == 'world' else 'a world'}"
            )
    return args


def script(name: str, *words: object, log: Path | None = None) -> None:
    command = [sys.executable, HERE / name, *map(str, words)]
    beside_others = {"OMP_NUM_THREADS": "1"} if log else {}
    done = subprocess.run(command, capture_output=log is not None, text=True, env=os.environ | beside_others)
    if log:
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise InputError(f"{name} ended with status {done.returncode}" + (f", see {log}" if log else ""))


def make_world(weights: Path, third: int, seed: int, root: Path) -> None:
    write_world(root, COUNTS, seed, third=third)
    unpack(root / "clip.pt", weights)
    words = ("--videos", root, "--out", root / "features", "--clip", root / "clip.pt")
    script("extract_features.py", *words, "--stride", 2)


def train_and_evaluate(world: Path, model: str, name: str, options: str, seed: int, out: Path) -> list[float]:
    """The metrics of one training, in per cent."""
    folder = out / f"{world.name}-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    metrics, told = folder / "eval" / "metrics.json", folder / "options.txt"
    if told.exists() and told.read_text() != options:
        raise InputError(f"{told}: found {told.read_text()!r}, expected {options!r}, as now; choose another --out")
    if not metrics.exists():
        folder.mkdir(parents=True, exist_ok=True)
        told.write_text(options)
        data = ("--dataset", "custom", "--root", world, "--features", world / "features")
        common = ("--out", folder, "--seed", seed, "--folds", 0, "--workers", 0, "--resume")
        clip = ("--clip", world / "clip.pt") if "clip" in SYSTEMS[model].OPTIONS else ()
        script("train.py", "--model", model, *data, *clip, *common, *options.split(), log=folder / "train.log")
        words = ("--ckpt", folder / "last.pt", "--out", folder / "eval", "--bootstrap", 1, "--timelines", 0)
        script("evaluate.py", *words, log=folder / "evaluate.log")
    found = json.loads(metrics.read_text())
    return [100 * value for value in (found["AUC"], found["mAUC"], found["events"]["mAP"])]


def table(values: dict[str, np.ndarray]) -> str:
    """Of each variant's metrics (n, 3), the same worlds and seeds in the same order."""
    first = next(iter(values.values()))
    rows = [f"| | {' | '.join(METRICS)} | differences to the first |", "|---" * (len(METRICS) + 2) + "|"]
    for name, found in values.items():
        apart = found - first
        error = apart.std(axis=0, ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.full(3, np.nan)
        differences = ", ".join(f"{mean:+.1f} ± {sd:.1f}" for mean, sd in zip(apart.mean(axis=0), error))
        rows.append(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in found.mean(axis=0))} | {differences} |")
    return "\n".join([*rows, ""])


def compare(worlds: list[Path], model: str, num_seeds: int, jobs: int, out: Path) -> None:
    variants = variants_of(model)
    runs = [
        (world, model, name, variants[name], seed, out)
        for name in variants
        for world in worlds
        for seed in range(num_seeds)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda run: train_and_evaluate(*run), runs))
    values = {name: np.array([v for (_, _, n, *_), v in zip(runs, found) if n == name]) for name in variants}
    text = table(values)
    write_atomically(out / "recipe.md", lambda file: file.write(text.encode()))
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.what == "world":
        make_world(args.paths[0], args.third, args.seed, args.out)
    else:
        compare(args.paths, args.model, args.seeds, args.jobs, args.out)


if __name__ == "__main__":
    run_script(main)
