"""Which precision a machine is fast in, found out once."""

import time
from functools import cache

import torch
from torch import Tensor

from videoanomaly.runtime.precision import AUTO, FULL

ROUNDS = 6  # of the trial product, the first to warm up; with SIZES about 50 ms on two cores
SIZES = (256, 1024, 1024)  # rows, inputs, outputs
GAIN = 1.2  # times faster than float32, at least; with instructions of its own bfloat16 is 2 to 9 times faster
AMPERE = (8, 0)  # the first CUDA devices with bfloat16 in their tensor cores


def choose_precision(asked: str, device: str) -> str:
    """The precision to compute in: the one that was asked for, or for "auto" the one that the device is fast in."""
    return asked if asked != AUTO else fast_precision(device)


@cache
def fast_precision(device: str) -> str:
    """bfloat16 where the device has instructions for it and they pay, else float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        is_fast = torch.cuda.get_device_capability(device) >= AMPERE
    else:
        is_fast = kind == "cpu" and has_instructions() and gains()
    return "bfloat16" if is_fast else FULL


def has_instructions() -> bool:
    """Whether oneDNN, which computes products on CPUs, can do so in bfloat16; it obeys ONEDNN_MAX_CPU_ISA."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and ask is not None and bool(ask())


@torch.inference_mode()
def gains() -> bool:
    """Whether a product takes less time in bfloat16: some machines have it in name alone."""
    rows, inputs, outputs = SIZES
    x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    pairs = [(x, weight), (x.bfloat16(), weight.bfloat16())]
    full, narrow = (min(times) for times in zip(*([seconds(*pair) for pair in pairs] for _ in range(ROUNDS))))
    return full > GAIN * narrow


def seconds(x: Tensor, weight: Tensor) -> float:
    begun = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - begun
