"""The systems by name (arXiv:2310.02835, Sec. 4.2; each class cites its source): building, reading, optimising them."""

import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from videoanomaly.runtime.console import InputError
from videoanomaly.systems.actionclip import ActionCLIP
from videoanomaly.systems.base import Trainable
from videoanomaly.systems.checks import check_claims
from videoanomaly.systems.clip_zeroshot import ClipZeroShot
from videoanomaly.systems.mgfn import MGFN
from videoanomaly.systems.one_class import OneClassGaussian
from videoanomaly.systems.ours import AnomalyCLIPSystem
from videoanomaly.systems.rtfm import RTFM
from videoanomaly.systems.s3r import S3R
from videoanomaly.systems.ssrl import SSRL
from videoanomaly.systems.sultani import Sultani
from videoanomaly.systems.ur_dmu import URDMU
from videoanomaly.systems.vadclip import VadCLIP

SYSTEMS: dict[str, type[Trainable]] = {
    system.NAME: system
    for system in (
        *(AnomalyCLIPSystem, ClipZeroShot, ActionCLIP, Sultani, RTFM, S3R, SSRL, MGFN, URDMU, VadCLIP),
        OneClassGaussian,
    )
}


def build(name: str, config: AnomalyCLIPConfig, **arguments) -> Trainable:
    """The system of that name.

    Args:
        arguments: Of its constructor: CLIP, and what `learn` gave.
    Raises:
        InputError: If CLIP does not fit the features, or a prompt is too long.
    """
    try:
        return SYSTEMS[name](config, **arguments)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "too long" not in str(error):  # what the tokenizer says
            raise
        raise InputError(str(error)) from None


def from_dict(checkpoint: dict) -> Trainable:
    """The model of a checkpoint; those of before there were other systems do not name theirs.

    Raises:
        ValueError: If the checkpoint is not one of this version.
    """
    name = checkpoint.get("system", AnomalyCLIP.NAME)
    if not isinstance(name, str) or name not in SYSTEMS:
        raise ValueError(f"the checkpoint's system is not one of this version: {str(name)[:60]!r}")
    check_claims(SYSTEMS[name], checkpoint)
    return SYSTEMS[name].from_dict(checkpoint)


def num_trained(model: Trainable, epochs: int) -> int:
    """Parameters that a run trains: those of the optimiser and the class head, whose turn comes later; none without
    epochs.
    """
    trained = [p.numel() for name, p in model.named_parameters() if p.requires_grad or name.startswith("class_head.")]
    return sum(trained) if epochs else 0


def make_optimizer(model: Trainable, lr: float, *, released: bool) -> torch.optim.Optimizer:
    """The one of the system's paper; `released` AnomalyCLIP has PyTorch's betas, where App. B says 0.98."""
    defaults = model.DEFAULTS
    options: dict = {"lr": lr, "weight_decay": defaults.weight_decay}
    if defaults.optimizer != "Adagrad":
        options["betas"] = (0.9, 0.999) if released else defaults.betas
    return getattr(torch.optim, defaults.optimizer)(model.parameter_groups(), **options)
