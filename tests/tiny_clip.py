"""The randomly initialised tiny CLIP of the tests, small enough for the repository, and a config that fits it.

clip_tiny/compact.npz holds its weights in float16, with only those rows of the token embedding that the tests' texts
use: the prompts of clip_tiny/expected.json, and the class names of UCF-Crime, XD-Violence and ShanghaiTech, alone, as
"X X X X X X X X {class}." and as "a video from a CCTV camera of a {class}". All other rows are zero.
"""

from pathlib import Path

import numpy as np
import torch

from anomalyclip import AnomalyCLIPConfig


def tiny_clip_state_dict() -> dict[str, torch.Tensor]:
    """The state dict with OpenAI's names, float16."""
    with np.load(Path(__file__).parent / "reference" / "clip_tiny" / "compact.npz", allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    rows, token_ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids")
    embedding = torch.zeros(49408, rows.shape[1], dtype=rows.dtype)
    embedding[token_ids] = rows
    return {**state, "token_embedding.weight": embedding}


def small_config(**changes) -> AnomalyCLIPConfig:
    """Sizes that all differ, so that swapped axes show: S 7, F 3, C 4, D 64, E 16, K 2."""
    sizes = dict(
        classes=("fire", "fall", "car crash", "riot"),
        feature_dim=64,
        num_segments=7,
        num_frames=3,
        topk=2,
        embed_dim=16,
        num_heads=2,
        num_ctx=5,
    )
    return AnomalyCLIPConfig(**(sizes | changes))
