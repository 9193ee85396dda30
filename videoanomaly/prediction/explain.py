"""What lies behind the names of a video's frames: words near the learned contexts, and the segments that drove each
class.

Shapes: C classes, new ones (open_set.py) among them, D feature size, N rows of a video, W width of the text tower.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import clip_model
from anomalyclip import AnomalyCLIP, Rows
from videoanomaly.data.prototype import CHUNK_ROWS
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction.events import clock
from videoanomaly.runtime.console import as_text

NUM_WORDS, NUM_SEGMENTS = 5, 3  # shown per context vector, per class and video


def vocabulary() -> list[str]:
    """What the token ids stand for, without the two special ones; a token that does not end a word ends in "-"."""
    byte_ids, merges = clip_model.merge_table()
    parts = [b""] * 512
    for byte, i in byte_ids.items():
        parts[i], parts[i + 256] = bytes([byte]), bytes([byte, 0])
    for first, second in merges:  # in the order of their ids
        parts.append(parts[first] + parts[second])
    return [
        p[:-1].decode(errors="replace") if len(p) > 1 and not p[-1] else f"{p.decode(errors='replace')}-" for p in parts
    ]


def nearest_words(ctx: Tensor, embedding: Tensor, classes: Sequence[str]) -> dict[str, list]:
    """The words nearest to each context vector, by Euclidean distance to the token embeddings, as CoOp shows them.

    Args:
        ctx: Shared contexts (num_ctx, W), or one set for each class, (C + 1, num_ctx, W).
        embedding: Of the tokens, (vocabulary, W).
        classes: C names.
    Returns:
        By class, or for "all classes": of each context vector the nearest {"word", "distance"}, nearest first.
    """
    words = vocabulary()
    sets = {"all classes": ctx} if ctx.ndim == 2 else dict(zip(classes, ctx))
    result = {}
    for name, vectors in sets.items():
        distances = torch.cdist(
            vectors.float(), embedding.detach()[: len(words)].float(), compute_mode="donot_use_mm_for_euclid_dist"
        )  # which cancels for near ones
        near = distances.topk(NUM_WORDS, largest=False)
        result[name] = [
            [{"word": words[i], "distance": distance} for i, distance in zip(*found)]
            for found in zip(near.indices.tolist(), near.values.tolist())
        ]
    return result


@torch.inference_mode()
def likelihoods(model: AnomalyCLIP, features: Rows) -> np.ndarray:
    """The Selector's likelihood of all classes row by row, (N, C), of features (N, D), or mean over (N, crops, D)."""
    select_new: Any = getattr(model, "select_new", None)  # of a model with new classes, see open_set.py
    parts = []
    for start in range(0, len(features), CHUNK_ROWS):
        rows = np.arange(start, min(start + CHUNK_ROWS, len(features)))
        x = model.recentre(model.read_rows(features, rows[None, None]), model.prototype)[:, 0]  # (crops, 1, rows, D)
        likelihood = [model.select(x, model.directions), *([select_new(x)] if select_new else [])]
        parts.append(torch.cat(likelihood, dim=-1).mean(0)[0].cpu().numpy())
    return np.concatenate(parts)


def driving_segments(scores: FrameScores, classes: Sequence[str], length: int) -> dict[str, list]:
    """The segments with the highest mean p_class of each class, highest first, with that mean and what made it.

    Args:
        scores: With likelihood.
        classes: C names.
        length: Frames of a segment; the last one of a video may be shorter.
    """
    assert scores.likelihood is not None, "an explanation needs the Selector's likelihood"
    starts = np.arange(0, len(scores.p_A), length)
    ends = np.minimum(starts + length, len(scores.p_A))
    p_A, p_class, likelihood = (
        np.add.reduceat(x, starts, dtype=np.float64).T / (ends - starts)
        for x in (scores.p_A, scores.p_class, scores.likelihood)
    )  # (segments,), (C, segments) twice
    end_times = np.append(scores.times, scores.duration)[ends]
    return {
        name: [
            {
                "start": float(scores.times[starts[s]]),
                "end": float(end_times[s]),
                "start_frame": int(starts[s]),
                "end_frame": int(ends[s]),
                "likelihood": float(likelihood[c, s]),
                "p_class": float(p_class[c, s]),
                "p_A": float(p_A[s]),
            }
            for s in np.argsort(-p_class[c], kind="stable")[:NUM_SEGMENTS]
        ]
        for c, name in enumerate(classes)
    }


def words_text(words: dict[str, list]) -> str:
    """What `nearest_words` found, for the screen."""
    lines = [] if words else ["no learned contexts: these prompts or directions have none"]
    for name, vectors in words.items():
        lines.append(
            f"learned contexts of {as_text(name)}: nearest words (Euclidean distance to their token embeddings)"
        )
        for i, found in enumerate(vectors, 1):
            lines.append(f"  {i}: " + ", ".join(f"{near['word']} {near['distance']:.3f}" for near in found))
    return "\n".join(lines)


def segments_text(segments: dict[str, list]) -> str:
    """What `driving_segments` found, for the screen."""
    lines = ["segments that drove the score of each class (means over the segment)"]
    for name, found in segments.items():
        lines.append(f"  {as_text(name)}")
        lines += [
            f"    {clock(s['start'])} - {clock(s['end'])}  likelihood {s['likelihood']:7.2f}  "
            f"p_class {s['p_class']:.4f}  p_A {s['p_A']:.4f}"
            for s in found
        ]
    return "\n".join(lines)
