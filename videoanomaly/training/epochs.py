"""One epoch of a training, and what it works with: batches, learning rate, losses, the step.

Shapes: B videos of a batch, S segments of F rows of D values.
"""

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from tqdm import tqdm

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.data.sampling import BalancedBatches, RestOfEpoch, SegmentDataset
from videoanomaly.data.training_data import TrainingData
from videoanomaly.runtime.console import duration
from videoanomaly.runtime.memory import workers_that_fit
from videoanomaly.runtime.processes import any_rank, gather_videos, split_model
from videoanomaly.runtime.signals import obey_parent_alone
from videoanomaly.runtime.torchrun import is_main, processes_here, rank_and_world
from videoanomaly.settings import TrainingSettings
from videoanomaly.systems.base import Trainable


class Training(NamedTuple):
    """What an epoch works with."""

    model: Trainable
    forward: Callable  # the model, compiled or split over processes
    loader: torch.utils.data.DataLoader
    batches: RestOfEpoch  # the loader's
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]  # learning rate at a step
    device: str
    amp: bool
    tell_time: Callable[[int], None] | None = None  # called after each step with the number of all that are done


def batch_losses(training: Training, batch: dict) -> dict[str, torch.Tensor]:
    """Losses of the whole batch, of which this process has a share: the same in all processes."""
    device = training.device
    inputs = [batch[k].to(device, non_blocking=True) for k in ("features", "temporal_features") if k in batch]
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=training.amp):
        prediction = training.forward(*inputs)
    labels = gather_videos(batch["label"].to(device))
    prediction = type(prediction)(*(None if x is None else gather_videos(x) for x in prediction))
    losses = cast(Callable, training.model.losses)
    return losses(prediction, labels[: len(labels) // 2])


class TimeLeft:
    """Called after each step, says once how long all of them take, by the second to the fourth that this run did."""

    def __init__(self, num_steps: int):
        self.num_steps, self.times = num_steps, []

    def __call__(self, step: int) -> None:
        """step: How many of all are done."""
        if len(self.times) < 4:
            self.times.append(time.perf_counter())
        if len(self.times) == 4:
            seconds = (self.times[3] - self.times[0]) / 3 * (self.num_steps - step)
            print(f"training: {self.num_steps - step} steps left, about {duration(seconds)}", flush=True)
            self.times.append(0.0)  # it is told


def train_epoch(training: Training, epoch: int, begun: dict, signals: list) -> dict:
    """Goes on with an epoch from where it was begun (see NOT_BEGUN) to its end or the first signal; what is done."""
    start, done, sums = time.perf_counter(), begun["steps"], dict(begun["sums"])
    loader, optimizer = training.loader, training.optimizer
    training.batches.set_epoch(epoch, done)
    training.model.train()
    bar = tqdm(loader, initial=done, leave=False, unit="step", disable=not (is_main() and sys.stderr.isatty()))
    for batch in bar:
        for group in optimizer.param_groups:
            group["lr"] = training.schedule(epoch * len(loader) + done) * group.get("scale", 1)
        losses = batch_losses(training, batch)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        optimizer.step()
        done += 1
        if training.tell_time:
            training.tell_time(epoch * len(loader) + done)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
        if any_rank(bool(signals)):
            break
    return {"steps": done, "sums": sums, "seconds": begun["seconds"] + time.perf_counter() - start}


def mean_losses(done: dict) -> dict[str, float]:
    means = {name: float(value) / done["steps"] for name, value in done["sums"].items()}
    if not math.isfinite(total := means["total"]):
        raise FloatingPointError(f"the loss became {total} in this epoch; try a lower --lr, or look at the features")
    return means


def learning_rate(
    step: int, steps_per_epoch: int, epochs: int, peak: float, released: bool, kind: str = "cosine"
) -> float:
    """Linear warm-up from zero over the first tenth of the epochs, then a cosine to zero (App. B); other kinds: see
    Defaults.

    The released code changes it once an epoch, so that its whole first epoch has rate zero; we change it every step.
    """
    if kind != "cosine":
        return peak * (0.1 ** (5 * step // (2 * steps_per_epoch * epochs)) if kind == "steps" else 1)
    epoch = step // steps_per_epoch if released else (step + 1) / steps_per_epoch
    warmup = max(1, epochs // 10) if released else epochs / 10
    if epoch < warmup:
        return peak * epoch / warmup
    return peak * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2 if epochs > warmup else peak


def make_loader(settings: TrainingSettings, config: AnomalyCLIPConfig, data: TrainingData, device: str):
    """The loader of training batches, and its batch sampler."""
    videos, released = data.lists.train, config.variant == "released"
    sizes = {"num_segments": config.num_segments, "num_frames": config.num_frames}
    how = {"temporal_features": data.temporal, "released": released, "mean": settings.system.SEES_MEANS}
    dataset = SegmentDataset(videos, data.features, **sizes, **how)
    labels = [video.label for video in videos]
    batches = RestOfEpoch(BalancedBatches(labels, settings.batch_size, settings.seed, released=released))
    batch_bytes = settings.batch_size // rank_and_world()[2] * dataset.sample_bytes()
    workers = workers_that_fit(settings.workers, batch_bytes, processes_here())
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device != "cpu",
        persistent_workers=workers > 0,
        worker_init_fn=obey_parent_alone,
        generator=torch.Generator(),  # of its own, so that workers change no other draw
    )
    return loader, batches


def make_training(
    settings: TrainingSettings,
    config: AnomalyCLIPConfig,
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    device: str,
) -> Training:
    released = config.variant == "released"
    loader, batches = make_loader(settings, config, data, device)
    compiled = cast(torch.nn.Module, torch.compile(model)) if settings.compile else model
    forward = split_model(compiled, device)
    rate = {"epochs": settings.epochs, "peak": settings.lr, "released": released, "kind": model.DEFAULTS.schedule}
    schedule = partial(learning_rate, steps_per_epoch=len(loader), **rate)
    return Training(model, forward, loader, batches, optimizer, schedule, device, settings.amp)
