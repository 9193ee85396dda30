"""What the benchmarks measure with: functions that take turns, peak memory, and a line of the table."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

HERE = Path(__file__).parent.parent
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """How to measure, for all rows alike."""

    quick: bool  # small sizes
    rounds: int
    device: str
    folder: Path  # for the rows' own files
    videos: tuple[Path, ...] = ()  # real ones, the smallest first; without any they are made


@dataclass
class Line:
    """A line of the table; empty texts and None where there is nothing to say."""

    work: str
    ours: str = ""
    peer: str = ""
    ratios: list[float] | None = None  # the peer's time over ours, of each round
    goal: str = ""
    reached: bool | None = None
    difference: float | None = None  # of the outputs
    tolerance: float = 0.0
    note: str = ""
    failed: bool = False

    @property
    def wrong(self) -> bool:
        return self.failed or self.difference is not None and not self.difference <= self.tolerance  # NaN is wrong, too


def take_turns(
    functions: Mapping[str, Callable[[], Any]], rounds: int, device: str, warm_up: bool = True
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Calls the functions in turn, once each to warm up unless they take minutes, then `rounds` times.

    Returns:
        What each gave at first, and the seconds of each in each round.
    """

    def timed(function):
        start = time.perf_counter()
        result = function()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return result, time.perf_counter() - start

    results = {name: timed(function)[0] for name, function in functions.items()} if warm_up else {}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: (-1) ** i]:  # there and back, so that no one always comes first
            result, took = timed(functions[name])
            results.setdefault(name, result)
            seconds[name].append(took)
    return results, seconds


def spread(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """Median, smallest and largest: "12.3 (12.1-12.9) ms"."""
    median, least, most = (f"{scale * f(values):.3g}" for f in (np.median, np.min, np.max))
    return f"{median} {unit}" if len(values) == 1 else f"{median} ({least}-{most}) {unit}"


def rates(seconds: list[float], count: float, unit: str) -> str:
    return spread([count / s for s in seconds], unit)


def against(
    work: str,
    peer: str,
    ours: list[float],
    theirs: list[float],
    show: Callable[[list[float]], str],
    least: float | None = None,
    **others: Any,
) -> Line:
    """A line that compares the seconds of two; `show` prints seconds, `least` is the ratio that is the goal.

    `others` are further fields of the line.
    """
    ratios = [b / a for a, b in zip(ours, theirs)]
    goal: dict[str, Any] = {} if least is None else {"goal": f"{least:g}x", "reached": bool(np.median(ratios) >= least)}
    return Line(work, show(ours), f"{peer}: {show(theirs)}", ratios, **(goal | others))


def relative(ours: ArrayLike | torch.Tensor, theirs: ArrayLike | torch.Tensor) -> float:
    """Largest difference of two arrays over the largest value."""
    a, b = (torch.as_tensor(x).detach().double().cpu() for x in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


def peak_memory(device: str) -> int:
    """Most bytes that this process held on the device, or in memory.

    getrusage would start a child at what its parent held before exec; Linux's VmHWM does not.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_subprocess(module: str, function: str, *values: Any) -> Any:
    """What a function of plain values gives in a new process, as JSON; its peak memory is then its own."""
    code = (
        f"import json, sys; from videoanomaly.runtime import memory; import {module}; memory.keep_freed_memory(); "
        f"print('\\n' + json.dumps({module}.{function}(*json.loads(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(values)], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def pick(quick: bool, small: T, full: T) -> T:
    return small if quick else full


def gemm_rate(dtype: torch.dtype, setup: Setup) -> list[float]:
    """FLOP/s of a matrix product of the image tower's feed-forward, for more images where that takes no time."""
    n = 197 * pick(setup.quick, 16, 1024 if setup.device.startswith("cuda") else 64)
    x, weight = (
        torch.randn(n, 768, device=setup.device).to(dtype),
        torch.randn(3072, 768, device=setup.device).to(dtype),
    )
    _, seconds = take_turns(
        {"linear": partial(torch.nn.functional.linear, x, weight)}, pick(setup.quick, 2, 7), setup.device
    )
    return [2 * n * 768 * 3072 / s for s in seconds["linear"]]


def machine(setup: Setup) -> str:
    device = torch.cuda.get_device_name(setup.device) if setup.device.startswith("cuda") else "CPU"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    size = "small sizes (--quick): the ratios say nothing" if setup.quick else "full sizes"
    return (
        f"{time.strftime('%Y-%m-%d')}, {device}, {name}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {setup.rounds} rounds, {size}"
    )
