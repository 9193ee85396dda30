"""Several processes that work as one, and their devices.

    torchrun --nproc-per-node 8 --nnodes 4 ... train.py ...

Outside torchrun there is one process, and every function does what is right for it: nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.torchrun import rank_and_world

T = TypeVar("T")


@contextmanager
def process_group(device: str, timeout: timedelta | None = None) -> Iterator[None]:
    """The processes are connected inside: by gloo on CPUs, by nccl on CUDA. One process alone needs no connection.

    Args:
        device: Of this process, see `local_device`.
        timeout: After which a process waits no longer for the others (default: PyTorch's, 10 or 30 minutes).
    """
    if rank_and_world()[2] == 1:
        yield
        return
    if torch.device(device).type != "cpu":
        torch.cuda.set_device(device)  # what nccl connects; without it all would take the first
    store, rank, world_size = next(dist.rendezvous("env://"))
    # one machine: torchrun restarts with the old store, dead addresses and all
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        timeout=timeout,
        store=store,
        rank=rank,
        world_size=world_size,
    )
    try:
        yield
        # gloo's threads outlive DistributedDataParallel and abort a Python that ends while they free a tensor
        wait_for_all()
    finally:
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replaces the tensor by its sum over all processes, in its own precision, and returns it. No gradient passes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor.detach())
    return tensor


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def gather(value: T) -> list[T]:
    """The values (anything that can be pickled) of all processes, in their order."""
    world_size = rank_and_world()[2]
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def gather_living(value: T) -> list[T] | None:
    """As `gather`; None where a process died: then nothing can be exchanged any more."""
    try:
        return gather(value)
    except RuntimeError:  # gloo's connection to it is closed
        return None


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(sum_over_ranks(torch.tensor(float(flag))) > 0)


def same_for_all(work: Callable[[], T]) -> T:
    """What `work()` returns here; an InputError in any process is raised in all, so that none waits for another."""
    if rank_and_world()[2] == 1:
        return work()
    result, message = None, None
    try:
        result = work()
    except InputError as error:
        message = str(error)
    for found in filter(None, gather(message)):
        raise InputError(found)
    return cast("T", result)


class AllGather(torch.autograd.Function):  # torch.distributed.nn.functional.all_gather is deprecated
    """See `all_gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad.clone(memory_format=torch.contiguous_format))[dist.get_rank()]


def all_gather(x: Tensor) -> Tensor:
    """The tensors of all processes, (...) of each -> (ranks, ...); a gradient is the sum over the processes."""
    return cast("Tensor", AllGather.apply(x.contiguous()))


def gather_videos(x: Tensor) -> Tensor:
    """The videos of all processes, (B / ranks, ...) of each -> (B, ...), in the order of one; gradients go back.

    Each process holds its share of a batch as the whole batch is: first half abnormal, second half normal.
    """
    if rank_and_world()[2] == 1:
        return x
    parts = all_gather(x).unflatten(1, (2, -1))  # (ranks, 2, B / ranks / 2, ...)
    return parts.transpose(0, 1).flatten(0, 2)  # (B, ...)


def split_model(model: nn.Module, device: str) -> nn.Module:
    """The model to call on this process's share of a batch, so that all together do what one does with the whole.

    Batch normalisation sees the inputs of all processes. Gradients are averaged over the processes, which is the
    gradient of the whole batch if each takes the same loss of all gathered predictions (`gather_videos`).
    """
    rank, _, world_size = rank_and_world()
    if world_size == 1:
        return model

    def gather_input(module: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
        return all_gather(inputs[0]).flatten(0, 1) if module.training else None

    def keep_own(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        return output.chunk(world_size)[rank] if module.training else None

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):  # SyncBatchNorm knows CUDA alone
            module.register_forward_pre_hook(gather_input)
            module.register_forward_hook(keep_own)
    is_cpu = torch.device(device).type == "cpu"
    # unused: CLIP's temperature takes part with some settings only
    return nn.parallel.DistributedDataParallel(
        model, device_ids=None if is_cpu else [device], find_unused_parameters=True
    )


def check_device(name: str | None) -> str:
    """The device to run on: the one named, else the first CUDA device, else the CPU.

    Raises:
        InputError: If torch cannot use it.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name
