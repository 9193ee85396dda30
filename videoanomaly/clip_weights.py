"""CLIP for a script: one-line errors, and the weights that are expected."""

import torch

import clip_model
from videoanomaly.runtime.console import InputError


def training_clip(ckpt: str, name: str | None, checkpoint: dict) -> torch.nn.Module:
    """The CLIP whose text tower the training used: `name`, else as the checkpoint's settings name it."""
    name, expected = name or checkpoint["settings"].get("clip"), checkpoint.get("clip_sha256")
    if not (name and expected):
        raise InputError(
            f"{ckpt}: --classes and --explain need the CLIP of the training, the checkpoint does not tell which"
        )
    try:
        clip = clip_model.load(name)
    except ValueError as error:
        raise InputError(
            f"{ckpt}: --classes and --explain need the CLIP of the training, found none ({error}); give --clip FILE"
        ) from None
    if (found := clip_model.weights_hash(clip)) != expected:
        raise InputError(f"{name}: is another CLIP than that of {ckpt} (weights_sha256 {found}, expected {expected})")
    return clip


def load_clip(args, config, encoder: dict | None) -> tuple[dict, str | None]:
    """The model's arguments that bring CLIP in where the directions need it, and its hash; it must have made the
    features.
    """
    if config.directions == "direct":
        return {}, None
    import clip_model

    try:
        clip = clip_model.load(args.clip)
    except ValueError as error:
        raise InputError(str(error)) from None
    made_by = encoder and encoder["weights_sha256"]
    if made_by and made_by != clip_model.weights_hash(clip.visual):
        raise InputError(
            f"--clip {args.clip}: its image tower did not make the features, {encoder['encoder']} did; expected "
            "the same CLIP for pictures and prompts, or --directions direct"
        )
    return {"clip": clip, "tokenize": clip_model.tokenize}, clip_model.weights_hash(clip)
