"""The systems by name (arXiv:2310.02835, Sec. 4.2; each class cites its source): building, reading and optimising them."""

import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, VideoModel
from videoanomaly.runtime.console import InputError
from videoanomaly.systems.actionclip import ActionCLIP
from videoanomaly.systems.base import Defaults, System
from videoanomaly.systems.clip_zeroshot import ClipZeroShot
from videoanomaly.systems.mgfn import MGFN
from videoanomaly.systems.rtfm import RTFM
from videoanomaly.systems.s3r import S3R
from videoanomaly.systems.ssrl import SSRL
from videoanomaly.systems.sultani import Sultani
from videoanomaly.systems.ur_dmu import URDMU
from videoanomaly.systems.vadclip import VadCLIP

SYSTEMS = {system.NAME: system for system in (ClipZeroShot, ActionCLIP, Sultani, RTFM, S3R, SSRL, MGFN, URDMU, VadCLIP)}
MODELS = {AnomalyCLIP.NAME: AnomalyCLIP} | SYSTEMS
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
    "vadclip": Defaults(
        2e-5, 1e-2, 1_250, small_lr=1e-4, batch_size=128, num_segments=256, optimizer="AdamW", schedule="steps"
    ),
}


def build(args, config: AnomalyCLIPConfig, clip: dict, data: tuple | None = None) -> VideoModel:
    """The model of --model; with data, that is lists, features and Temporal features or None, also what it takes from
    them.

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


def num_trained(model: VideoModel, epochs: int) -> int:
    """Parameters that a run trains: those of the optimiser and the class head, whose turn comes later; none without
    epochs.
    """
    trained = [p.numel() for name, p in model.named_parameters() if p.requires_grad or name.startswith("class_head.")]
    return sum(trained) if epochs else 0


def make_optimizer(name: str, model: VideoModel, lr: float, *, released: bool) -> torch.optim.Optimizer:
    """The one of the system's paper; `released` AnomalyCLIP has PyTorch's betas, where App. B says 0.98."""
    defaults = DEFAULTS[name]
    options = {"lr": lr, "weight_decay": defaults.weight_decay}
    if defaults.optimizer != "Adagrad":
        options["betas"] = (0.9, 0.999) if released else defaults.betas
    groups = (
        model.parameter_groups()
        if name in SYSTEMS
        else [{"params": [p for p in model.parameters() if p.requires_grad]}]
    )
    return getattr(torch.optim, defaults.optimizer)(groups, **options)
