"""Texts -> features in the space of a folder's rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

import clip_model
from videoanomaly.clip_weights import load_clip
from videoanomaly.runtime.console import InputError

LONGEST_SHOWN = 60  # letters of a text in a message


def text_features(texts: Sequence[str], clip: str, encoder: dict | None, device: str) -> Tensor:
    """CLIP's features of some texts.

    Args:
        clip: Weights, a name or a file.
        encoder: What meta.json tells of the features; None where it is not known, which then nobody can check.
    Returns:
        (Q, D) float32, on the CPU.
    Raises:
        InputError: If these weights did not make the features, or a text is too long.
    """
    if encoder and not encoder["encoder"].startswith("clip "):
        raise InputError(f"--features: were made by {encoder['encoder']:.80}, expected CLIP's, which has texts")
    model = load_clip(clip, message="--clip {}", device=device)
    made_by = encoder["weights_sha256"] if encoder else None
    if made_by and made_by != (found := clip_model.weights_hash(model.visual)):
        raise InputError(
            f"--clip {clip}: did not make the features (weights_sha256 {found}, expected {made_by}), expected "
            f"{encoder['encoder'] if encoder else 'those that did'}"
        )
    with torch.inference_mode():
        return model.encode_text(torch.cat([tokens(text) for text in texts]).to(device)).float().cpu()


def tokens(text: str) -> Tensor:
    try:
        return clip_model.tokenize([text])
    except (ValueError, RuntimeError):  # OpenAI's own error of a text that is too long
        raise InputError(f"{text:.{LONGEST_SHOWN}}: is too long for CLIP, expected at most 75 tokens") from None
