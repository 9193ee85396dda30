"""Tests of systems/checks.py: what a config may hold, and what a checkpoint may claim."""

import resource

import pytest
import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from tests.tiny_clip import small_config
from videoanomaly.systems import catalogue
from videoanomaly.systems.checks import check_config


def small_checkpoint(**changes) -> dict:
    return AnomalyCLIP(small_config(directions="direct", **changes)).checkpoint()


BAD_CONFIGS = [
    {"depth": 10**6},
    {"depth": "a"},
    {"feature_dim": 10**9},
    {"feature_dim": 2**62},
    {"feature_dim": 64.5},
    {"num_frames": 10**9},
    {"num_segments": 10**9},
    {"num_heads": True},
    {"embed_dim": 8 * 10**5},
    {"num_ctx": [8]},
    {"temporal_feature_dim": 10**9},
    {"mask_ratio": "0.7"},
    {"lambda_smooth": float("nan")},
    {"lambda_sparse": None},
    {"shared_ctx": "no"},
    {"temporal": 3},
    {"unknown": 1},
    None,
    [],
]


@pytest.mark.parametrize("changes", BAD_CONFIGS, ids=str)
def test_a_config_that_claims_what_the_state_does_not_hold_is_refused_in_one_line(changes):
    checkpoint = small_checkpoint()
    checkpoint["config"] = {**checkpoint["config"], **changes} if isinstance(changes, dict) else changes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        catalogue.from_dict(checkpoint)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "name", [3, None, ["fire"], "", "fire\x1b[2J", "fi\nre", "\x9b1m", "\u2028", "\ud800", "f" * 10**6]
)
def test_a_class_that_is_no_name_is_refused_in_one_line(name):
    checkpoint = small_checkpoint()
    checkpoint["config"]["classes"][0] = name
    with pytest.raises(ValueError, match="classes must be names of plain text|config is not one") as caught:
        catalogue.from_dict(checkpoint)
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_names_of_classes_may_be_those_of_any_script():
    names = ("事故", "می\u200cدود", "झगड़ा", "Schlägerei", "$\\foo$", "=cmd", "🔥")
    assert check_config(AnomalyCLIPConfig(classes=names)).classes == names


BAD_STATES = {
    "infinite": lambda x: torch.full_like(x, float("inf")),
    "not a number": lambda x: torch.full_like(x, float("nan")),
    "whole numbers": lambda x: x.int(),
    "complex": lambda x: x.to(torch.complex64),
    "one number for all": lambda x: torch.ones(1).expand(x.shape),
    "no tensor": lambda x: x.tolist(),
    "another shape": lambda x: x[:-1],
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_state_that_is_none_of_the_model_is_refused(kind):
    checkpoint, name = small_checkpoint(), "temporal_model.projection.weight"
    checkpoint["model"][name] = BAD_STATES[kind](checkpoint["model"][name])
    with pytest.raises(ValueError, match="state does not fit the model"):
        catalogue.from_dict(checkpoint)
    for state in (None, [], {1: torch.ones(1)}):
        with pytest.raises(ValueError, match="no dict of tensors"):
            catalogue.from_dict(checkpoint | {"model": state})
