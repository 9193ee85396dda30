"""The systems that train.py --model knows, and their settings (arXiv:2310.02835, Sec. 4.2; each class cites its source)."""
import math
from dataclasses import fields
from typing import NamedTuple

import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, VideoModel
from binary_systems import MGFN, RTFM, S3R, SSRL, URDMU, Sultani, System
from prompted_systems import ActionCLIP, ClipZeroShot, VadCLIP
from videoanomaly.runtime.console import InputError

SYSTEMS = {system.NAME: system for system in (ClipZeroShot, ActionCLIP, Sultani, RTFM, S3R, SSRL, MGFN, URDMU, VadCLIP)}
MODELS = {AnomalyCLIP.NAME: AnomalyCLIP} | SYSTEMS
SMALL_STEPS = 500  # of any of them on data sets that no paper has, which are small; on the demo their losses settle by then
SNIPPET = 16  # frames of a segment in the papers


class Defaults(NamedTuple):
    """Of one system, as in its paper. `custom` and `demo` are small: there SMALL_STEPS hold, and the preset's sizes.

    AnomalyCLIP's rates and epochs are in train.py's presets. Feature rows of a segment are as many as --num-frames says, else
    as the data set's preset does (demo: 2), for all systems; else AnomalyCLIP has the 16 of its config, however many frames
    lie from row to row, and the others have `num_frames`.
    """

    lr: float | None = None
    weight_decay: float = 0.0
    steps: int | None = None  # the epochs are as many as take these, whatever the data set
    epochs: int | None = None  # where the paper counts these
    small_lr: float | None = None  # of small data sets, where it is not lr
    batch_size: int = 64
    num_segments: int = 32
    num_frames: int | None = None  # feature rows; None: those of SNIPPET frames
    optimizer: str = "Adam"
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"  # "cosine" after a warm-up, "constant", or "steps", a tenth after 2/5 and 4/5 of the epochs


DEFAULTS = {
    "anomalyclip": Defaults(weight_decay=0.2, optimizer="AdamW", betas=(0.9, 0.98), schedule="cosine"),
    "clip-zeroshot": Defaults(1.0, steps=0),
    "actionclip": Defaults(5e-6, 0.2, epochs=50, num_frames=8, optimizer="AdamW", schedule="cosine"),
    "sultani": Defaults(0.01, 2e-3, 20_000, batch_size=60, optimizer="Adagrad"),
    "rtfm": Defaults(1e-3, 5e-3, 15_000),
    "s3r": Defaults(1e-3, 5e-3, 15_000),
    "ssrl": Defaults(1e-3, 5e-3, 15_000),
    # 1000 epochs of UCF-Crime; on a planted problem it does not settle at 1e-3
    "mgfn": Defaults(1e-3, 5e-4, 51_000, small_lr=1e-4, batch_size=32),
    "ur-dmu": Defaults(1e-4, 5e-5, 3_000, batch_size=128, num_segments=200),
    # 10 epochs of UCF-Crime, where each of ten crops counts as a video; 2e-5 is too slow for SMALL_STEPS
    "vadclip": Defaults(2e-5, 1e-2, 1_250, small_lr=1e-4, batch_size=128, num_segments=256, optimizer="AdamW", schedule="steps"),
}


# ---- settings ----


def preset(args, settings: dict) -> dict:
    """Settings of a run with `args`, where it gives none: those of the data set, changed as the system needs.

    Raises:
        InputError: If something is given that the system has no use for.
    """
    if args.model == AnomalyCLIP.NAME:
        return settings
    system, defaults, small = SYSTEMS[args.model], DEFAULTS[args.model], is_small(args.dataset)
    unused = unused_options(args.model)
    for name in sorted(unused):
        if getattr(args, name, None) not in (None, []):
            raise InputError(f"--{name.replace('_', '-')}: found with --model {args.model}, which has no use for it")
    if args.directions not in (None, *system.DIRECTIONS):
        raise InputError(f"--directions {args.directions}: expected {' or '.join(system.DIRECTIONS)} with --model {args.model}")
    own = {"lr": small and defaults.small_lr or defaults.lr, "epochs": None if small else defaults.epochs,
           "directions": system.DIRECTIONS[0], "num_frames": settings.get("num_frames", defaults.num_frames)}
    own |= {} if small else {"batch_size": defaults.batch_size, "num_segments": defaults.num_segments}
    own |= {"topk": 1} if "topk" in unused else {}  # which fits any number of segments
    return {name: value for name, value in settings.items() if name not in unused} | own


def unused_options(model: str) -> set[str]:
    """Names of settings of train.py that a system has no use for."""
    if model == AnomalyCLIP.NAME:
        return set()
    unused = {f.name for f in fields(AnomalyCLIPConfig)} - set(SYSTEMS[model].OPTIONS)
    unused |= {"lambdas", "temporal_features", "temporal_frames_per_feature"}
    unused |= {"clip"} if SYSTEMS[model].DIRECTIONS == ("direct",) else set()
    return unused | ({"epochs", "lr"} if DEFAULTS[model].steps == 0 else set())


def is_small(dataset: str) -> bool:
    return dataset in ("custom", "demo")


def complete(args, num_abnormal: int, num_normal: int, frames_per_feature: int) -> None:
    """Sets what follows from the data where nothing was given: rows of a segment, and epochs that take the system's steps."""
    defaults = DEFAULTS[args.model]
    if args.model == AnomalyCLIP.NAME:
        return
    if args.num_frames is None:
        args.num_frames = max(SNIPPET // frames_per_feature, 1)
    if args.epochs is None:
        steps = SMALL_STEPS if is_small(args.dataset) and defaults.steps != 0 else defaults.steps
        args.epochs = -(-steps // -(-max(num_abnormal, num_normal) // (args.batch_size // 2)))  # as BalancedBatches


# ---- models ----


def build(args, config: AnomalyCLIPConfig, clip: dict, data: tuple | None = None) -> VideoModel:
    """The model of --model; with data, that is lists, features and Temporal features or None, also what it takes from them.

    Raises:
        InputError: If CLIP does not fit the features, or a prompt is too long.
    """
    learned = learn_from(args, *data) if data else {}
    try:
        return MODELS[args.model](config, **clip, **learned)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "too long" not in str(error):  # what the tokenizer says
            raise
        raise InputError(str(error)) from None


def learn_from(args, lists, features, temporal) -> dict:
    """The model's arguments that come from the training videos without a gradient."""
    from videoanomaly.data.prototype import normality_prototype
    from videoanomaly.runtime.processes import same_for_all

    folders = {"prototype": features, "temporal_prototype": temporal}
    learned = {name: normality_prototype(folder, lists.train) for name, folder in folders.items() if folder}
    if args.model in SYSTEMS:
        learned |= same_for_all(lambda: SYSTEMS[args.model].learn(lists, features, args.dataset, args.seed))
    return learned


def finish(model: VideoModel, lists, features) -> None:
    """What some systems learn after the last epoch."""
    if isinstance(model, System):
        model.finish(lists.train, features)


def from_dict(checkpoint: dict) -> VideoModel:
    """The model of a checkpoint; those of before there were other systems do not name theirs.

    Raises:
        ValueError: If the checkpoint is not one of this version.
    """
    name = checkpoint.get("system", AnomalyCLIP.NAME)
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"the checkpoint's system is not one of this version: {str(name)[:60]!r}")
    return MODELS[name].from_dict(checkpoint)


# ---- optimisation ----


def num_trained(model: VideoModel, epochs: int) -> int:
    """Parameters that a run trains: those of the optimiser and the class head, whose turn comes later; none without epochs."""
    trained = [p.numel() for name, p in model.named_parameters() if p.requires_grad or name.startswith("class_head.")]
    return sum(trained) if epochs else 0


def make_optimizer(name: str, model: VideoModel, lr: float, *, released: bool) -> torch.optim.Optimizer:
    """The one of the system's paper; `released` AnomalyCLIP has PyTorch's betas, where App. B says 0.98."""
    defaults = DEFAULTS[name]
    options = {"lr": lr, "weight_decay": defaults.weight_decay}
    if defaults.optimizer != "Adagrad":
        options["betas"] = (0.9, 0.999) if released else defaults.betas
    groups = model.parameter_groups() if name in SYSTEMS else [{"params": [p for p in model.parameters() if p.requires_grad]}]
    return getattr(torch.optim, defaults.optimizer)(groups, **options)


def learning_rate(step: int, steps_per_epoch: int, epochs: int, peak: float, released: bool, kind: str = "cosine") -> float:
    """Linear warm-up from zero over the first tenth of the epochs, then a cosine to zero (App. B); other kinds: see Defaults.

    The released code changes it once an epoch, so that its whole first epoch has rate zero; we change it every step.
    """
    if kind != "cosine":
        return peak * (0.1 ** (5 * step // (2 * steps_per_epoch * epochs)) if kind == "steps" else 1)
    epoch = step // steps_per_epoch if released else (step + 1) / steps_per_epoch
    warmup = max(1, epochs // 10) if released else epochs / 10
    if epoch < warmup:
        return peak * epoch / warmup
    return peak * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2 if epochs > warmup else peak
