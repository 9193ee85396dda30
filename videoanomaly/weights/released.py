"""Reads the checkpoints that the paper's authors publish, without running anything from them.

A Lightning `.ckpt` pickles tensors among objects of its own libraries. Tensors and plain containers are read; every
other class becomes an inert object: nothing is imported, nothing is called. The file holds CLIP's text tower as well,
so that the directions need no other weights. The normality prototype lies beside it in `ncentroid.pt`; without that
file it is computed.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import clip_model
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from videoanomaly.data.annotations import VideoLists
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.features import FeatureFolder
from videoanomaly.data.lists import load_lists
from videoanomaly.data.prototype import normality_prototype
from videoanomaly.runtime.console import InputError
from videoanomaly.systems.checks import check_tensors
from videoanomaly.weights.reading import read_torch

NUM_HEADS = 8  # of the published models; the weights do not tell
NAMES = (  # theirs -> ours, replaced in this order
    (r"^text_encoder\.text_projection", "prompt_learner.text_projection"),
    (r"^selector_model\.logit_scale", "logit_scale"),
    (r"^selector_model\.bn_layer\.", "batch_norm."),
    (r"classifier\.layer_norm\.", "norm."),
    (r"classifier\.linear\.", "head."),
    (r"axial_attn\.pos_emb\.param_0", "body.pos_segments"),
    (r"axial_attn\.pos_emb\.param_1", "body.pos_frames"),
    (r"net\.fn\.norm\.", "norm."),
    (r"net\.fn\.fn\.", ""),
    (r"net\.0\.g$", "norm.weight"),
    (r"net\.0\.b$", "norm.bias"),
    (r"net\.1\.", "conv_1."),
    (r"net\.3\.", "conv_2."),
)
BLOCKS = {(0, "f"): "attn_segments", (0, "g"): "attn_frames", (1, "f"): "ff_1", (1, "g"): "ff_2"}
CLIP_NAMES = (
    ("image_encoder.", "visual."),
    ("text_encoder.", ""),
    ("token_embedding.", "token_embedding."),
    ("selector_model.logit_scale", "logit_scale"),
)
OURS = ("prompt_learner.ctx", "prompt_learner.text_projection", "logit_scale", "batch_norm.", "temporal_model.")


class _Inert:
    """Stands for an object of a class that is not read: takes what a pickle gives it and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def _ignore(self, *args: Any) -> None:
        pass

    __setstate__ = append = extend = add = __setitem__ = _ignore


class _CheckpointUnpickler(clip_model.TensorUnpickler):
    """Tensors and OrderedDict; an inert stand-in for whatever else the file names."""

    def find_class(self, module: str, name: str) -> Any:
        known = clip_model.ARCHIVE_GLOBALS.get(f"{module}.{name}")
        return type("_Inert", (_Inert,), {}) if known is None else known  # a class that no other name shares


def read_state(path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of a Lightning checkpoint's network, without the prefix `net.`, and its epoch.

    Raises:
        InputError: If the file is no such checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _CheckpointUnpickler(archive).load()
        state = {
            name.removeprefix("net."): value
            for name, value in content["state_dict"].items()
            if isinstance(value, Tensor)
        }
        ctx, epoch = state["prompt_learner.ctx"], int(content["epoch"])
        clip_model.check_claims(state, path)
        assert ctx.ndim in (2, 3), f"contexts of shape {tuple(ctx.shape)}"
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{path}: found {type(error).__name__} ({reason}), expected a checkpoint of the authors' code"
        ) from error
    return state, epoch


def convert_state(state: dict[str, Tensor], normal_id: int) -> dict[str, Tensor]:
    """Our names and shapes for their parameters and buffers (or gradients of them); CLIP's frozen tensors are left out.

    `normal_id` is the place of Normal among their classes.
    """
    converted = {}
    for name, value in state.items():
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        if match := re.search(r"axial_attn\.layers\.blocks\.(\d+)\.([fg])\.", name):
            block = int(match[1])
            name = name.replace(match[0], f"body.layers.{block // 2}.{BLOCKS[block % 2, match[2]]}.")
        if name.startswith(OURS):
            converted[name] = convert_tensor(name, value, normal_id)
    return converted


def convert_tensor(name: str, value: Tensor, normal_id: int) -> Tensor:
    """The tensor of our name in our shape."""
    if name.endswith(("pos_segments", "pos_frames")) and value.ndim == 4:
        return value[0].permute(1, 2, 0)  # (1, E, S, 1) -> (S, 1, E)
    if re.search(r"ff_\d\.norm", name):
        return value.flatten()
    if name == "prompt_learner.ctx" and value.ndim == 3:  # our Normal comes last
        return torch.cat([value[:normal_id], value[normal_id + 1 :], value[normal_id : normal_id + 1]])
    return value


def clip_of(state: dict[str, Tensor]) -> clip_model.CLIP:
    """The CLIP inside a checkpoint."""
    weights = {
        name.replace(theirs, ours, 1): value
        for name, value in state.items()
        for theirs, ours in CLIP_NAMES
        if name.startswith(theirs)
    }
    return clip_model.build(weights, {})


def config_of(state: dict[str, Tensor], classes: Sequence[str]) -> AnomalyCLIPConfig:
    """The settings that the shapes of the tensors tell."""
    ctx, projection = state["prompt_learner.ctx"], state["temporal_model.projection.weight"]
    embed_dim, input_dim = projection.shape
    feature_dim = state["text_encoder.text_projection"].shape[1]
    num_blocks = len(
        {name.split(".")[4] for name in state if name.startswith("temporal_model.axial_attn.layers.blocks.")}
    )
    return AnomalyCLIPConfig(
        classes=tuple(classes),
        feature_dim=feature_dim,
        num_ctx=ctx.shape[-2],
        shared_ctx=ctx.ndim == 2,
        embed_dim=embed_dim,
        depth=num_blocks // 2,
        num_heads=NUM_HEADS,
        variant="released",
        temporal_input="features" if input_dim == feature_dim else "both",
        num_segments=state["temporal_model.axial_attn.pos_emb.param_0"].shape[2],
        num_frames=state["temporal_model.axial_attn.pos_emb.param_1"].shape[3],
    )


def read_prototype(path: Path, feature_dim: int) -> Tensor:
    """The normality prototype, (D,) float32; an InputError if the file holds another thing."""
    try:
        prototype = read_torch(path, f"a tensor of {feature_dim} numbers")
    except ValueError as error:
        raise InputError(str(error)) from None
    if not (isinstance(prototype, Tensor) and prototype.shape == (feature_dim,) and prototype.isfinite().all()):
        found = f"shape {tuple(prototype.shape)}" if isinstance(prototype, Tensor) else type(prototype).__name__
        raise InputError(f"{path}: found {found}, expected a tensor of {feature_dim} finite numbers")
    return prototype.float()


def load(path: str, dataset: str, root: str, features_root: str | None) -> dict[str, Any]:
    """A checkpoint of the authors as one of this project's (the dict that evaluate.py reads).

    Args:
        path: The `.ckpt`; `ncentroid.pt` may lie beside it.
        dataset: shanghaitech, ucfcrime or xdviolence.
        root: Folder of the lists.
        features_root: Folder of the features, `root` by default.
    Raises:
        InputError: If a file is missing or not what it should be.
    """
    file, lists = Path(path), load_lists(dataset, root)
    state, epoch = read_state(file)
    try:
        config = config_of(state, lists.classes)
        centroid = file.parent / "ncentroid.pt"
        prototype = (
            read_prototype(centroid, config.feature_dim)
            if centroid.exists()
            else normality_prototype(FeatureFolder(features_root or root), [v for v in lists.train if v.label < 0])
        )
        model = AnomalyCLIP(config, clip=clip_of(state), tokenize=clip_model.tokenize, prototype=prototype)
        converted = convert_state(state, [name.lower() for name in DATASETS[dataset].classes].index("normal"))
        state = model.trained_state() | converted
        check_tensors(model.fitting(state))
        model.load_trained_state(state)
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: found {error}, expected the authors' model for {dataset}") from error
    settings = {
        "dataset": dataset,
        "root": root,
        "features": features_root,
        "temporal_features": None,
        "frames_per_feature": None,
        "temporal_frames_per_feature": None,
        "crops": 1,
    }
    return model.eval().checkpoint() | {
        "lists": VideoLists.to_plain(lists),
        "settings": settings,
        "encoder": None,
        "temporal_encoder": None,
        "epoch": epoch + 1,
    }
