"""CLIP for a script: one-line errors, and the weights that are expected."""

import clip_model
from videoanomaly.runtime.console import InputError

DEFAULT_CLIP = "ViT-B/16"


def load_clip(name: str, *, message: str = "{}", device: str = "cpu") -> clip_model.CLIP:
    """The CLIP of that name or file.

    Args:
        message: Of the error, with {} for what is wrong.
    Raises:
        InputError: If there are no such weights.
    """
    try:
        return clip_model.load(name, device)
    except ValueError as error:
        raise InputError(message.format(error)) from None


def load_prompts_clip(name: str, directions: str, encoder: dict | None) -> tuple[dict, str | None]:
    """A system's arguments that bring CLIP in where the directions need it, and its hash; it made the features.

    Args:
        directions: As in the config; free ones need no CLIP.
        encoder: What meta.json tells of the features' encoder; None where it is not known.
    """
    if directions == "direct":
        return {}, None
    clip = load_clip(name)
    made_by = encoder["weights_sha256"] if encoder else None
    if encoder and made_by and made_by != clip_model.weights_hash(clip.visual):
        raise InputError(
            f"--clip {name}: its image tower did not make the features, {encoder['encoder']} did; expected "
            "the same CLIP for pictures and prompts, or --directions direct"
        )
    return {"clip": clip, "tokenize": clip_model.tokenize}, clip_model.weights_hash(clip)


def load_training_clip(ckpt: str, name: str | None, checkpoint: dict) -> clip_model.CLIP:
    """The CLIP whose text tower the training used: `name`, else as the checkpoint's settings name it."""
    name, expected = name or checkpoint["settings"].get("clip"), checkpoint.get("clip_sha256")
    needs = f"{ckpt}: --classes and --explain need the CLIP of the training, "
    if not (name and expected):
        raise InputError(f"{needs}the checkpoint does not tell which")
    clip = load_clip(name, message=needs + "found none ({}); give --clip FILE")
    if (found := clip_model.weights_hash(clip)) != expected:
        raise InputError(f"{name}: is another CLIP than that of {ckpt} (weights_sha256 {found}, expected {expected})")
    return clip
