"""What the benchmarks measure with: functions that take turns, peak memory, and a line of the table."""

import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent.parent


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


def take_turns(functions: dict, rounds: int, device: str, warm_up: bool = True) -> tuple[dict, dict[str, list[float]]]:
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
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: (-1) ** i]:  # there and back, so that no one always comes first
            result, took = timed(functions[name])
            results.setdefault(name, result)
            seconds[name].append(took)
    return results, seconds


def spread(values, unit: str, scale: float = 1.0) -> str:
    """Median, smallest and largest: "12.3 (12.1-12.9) ms"."""
    median, least, most = (f"{scale * f(values):.3g}" for f in (np.median, np.min, np.max))
    return f"{median} {unit}" if len(values) == 1 else f"{median} ({least}-{most}) {unit}"


def rates(seconds: list[float], count: float, unit: str) -> str:
    return spread([count / s for s in seconds], unit)


def against(
    work: str, peer: str, ours: list[float], theirs: list[float], show, least: float | None = None, **others
) -> Line:
    """A line that compares the seconds of two; `show` prints seconds, `least` is the ratio that is the goal."""
    ratios = [b / a for a, b in zip(ours, theirs)]
    goal = {} if least is None else {"goal": f"{least:g}x", "reached": bool(np.median(ratios) >= least)}
    return Line(work, show(ours), f"{peer}: {show(theirs)}", ratios, **(goal | others))


def relative(ours, theirs) -> float:
    """Largest difference of two arrays over the largest value."""
    ours, theirs = (torch.as_tensor(x).detach().double().cpu() for x in (ours, theirs))
    return float((ours - theirs).abs().max() / theirs.abs().max())


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


def in_subprocess(module: str, function: str, *values):
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


def pick(args, quick, full):
    return quick if args.quick else full


def machine(args) -> str:
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    size = "small sizes (--quick): the ratios say nothing" if args.quick else "full sizes"
    return (
        f"{time.strftime('%Y-%m-%d')}, {device}, {name}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds, {size}"
    )
