"""What a config holds, and what a checkpoint claims, looked at before anything is built of it: anybody may have written
it.
"""

import math
import unicodedata
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from anomalyclip import AnomalyCLIPConfig, VideoModel

LONGEST_NAME = 1000  # characters of a class; more is no name
KINDS: dict[Any, tuple[type, str]] = {  # of config fields: what their values are, and what that is called
    int: (Integral, "a whole number"),
    int | None: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    bool: (bool, "True or False"),
}


def is_name(name: object) -> bool:
    """Whether it is text that a terminal, a table and a picture can show: no control characters, no lone surrogates."""
    odd = {"Cc", "Cs", "Zl", "Zp"}  # control, surrogate, line and paragraph separator
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        return False
    return not any(unicodedata.category(letter) in odd for letter in name)


def is_number(value: Any, kind: type) -> bool:
    """Whether it is finite and of that kind; True and False are no numbers but their own kind."""
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool) and math.isfinite(value)


def check_config(config: AnomalyCLIPConfig) -> AnomalyCLIPConfig:
    """The config; a ValueError if a class has a name that cannot be shown, or a number is none or not finite."""
    for name in config.classes:
        if not is_name(name):
            raise ValueError(f"classes must be names of plain text, up to {LONGEST_NAME} characters, got {name!a:.60}")
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type in KINDS and not (value is None and f.type == int | None):
            kind, what = KINDS[f.type]
            if not is_number(value, kind):
                raise ValueError(f"{f.name} must be {what}, got {value!r:.60}")
    return config


def check_claims(system: type[VideoModel], checkpoint: dict[str, Any]) -> None:
    """A ValueError if the checkpoint's config and tensors are none of the system's, or do not go together.

    Shapes are compared without memory for them: what a hostile config claims is never built.
    """
    state = checkpoint["model"]
    if not (isinstance(state, dict) and all(isinstance(k, str) for k in state)):
        raise ValueError("the checkpoint's model is no dict of tensors")
    try:
        config = check_config(AnomalyCLIPConfig(**checkpoint["config"]))
        if config.depth > len(state):  # each layer has a tensor at least
            raise ValueError(f"state does not fit the model: found {len(state)} tensors, {config.depth} layers")
        with torch.device("meta"):
            taken = system(config).fitting(state)
    except (TypeError, RuntimeError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"the checkpoint's config is not one of this version: {reason}") from None
    check_tensors(taken)


def check_tensors(state: dict[str, Tensor]) -> None:
    """A ValueError if tensors claim more memory than they have, or hold what is no finite number."""
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in state.values()}
    if sum(v.nbytes for v in state.values()) > sum(storages.values()):
        raise ValueError("state does not fit the model: its tensors claim more bytes than there are")
    if odd := next((k for k, v in state.items() if not v.isfinite().all()), None):
        raise ValueError(f"state does not fit the model: {odd} holds values that are infinite or not a number")
