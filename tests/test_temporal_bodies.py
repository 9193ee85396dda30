"""Tests of systems/temporal_bodies.py: what each body lets reach a frame, gradients, checkpoints."""

import numpy as np
import pytest
import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from tests.tiny_clip import small_config
from videoanomaly.systems import catalogue
from videoanomaly.systems.ours import AnomalyCLIPSystem

OTHERS = ("short", "long", "mtn")


def small_model(temporal: str) -> AnomalyCLIPSystem:
    torch.manual_seed(0)
    return AnomalyCLIPSystem(small_config(directions="direct", temporal=temporal), prototype=torch.randn(64))


def random_batch() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 7, 3, 64)


def assert_near(actual, expected, atol):
    assert float((actual - expected).detach().abs().max()) <= atol


@pytest.mark.parametrize("temporal", ["long", "mtn"])
def test_long_transformer_and_mtn_give_all_frames_of_a_segment_one_score(temporal):
    features = random_batch()
    other = features.clone()
    other[:, -1] += 1.0  # only the last segment differs
    model = small_model(temporal).eval()
    z = model(features).anomaly_logits
    # a kernel may add up rows at its tiles' edges in another order: 16 terms of a sum near 1, 2^-24 each, are 1e-6
    assert_near(z, z[:, :, :1].expand_as(z), atol=1e-6)
    assert (model(other).anomaly_logits[:, 3] - z[:, 3]).abs().min() > 1e-3


def test_short_transformer_stays_in_its_segment():
    features = random_batch()
    other = features.clone()
    other[:, -1] += 1.0  # only the last segment differs
    model = small_model("short").eval()
    z, z_other = model(features).anomaly_logits, model(other).anomaly_logits
    assert_near(z_other[:, :-1], z[:, :-1], atol=1e-6)
    assert (z_other[:, -1] - z[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("temporal", OTHERS)
def test_every_trainable_parameter_gets_a_gradient(temporal):
    model = small_model(temporal)
    model.losses(model(random_batch()), torch.tensor([2, 0, 3]))["total"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name != "logit_scale"), name  # that one is of likelihood="cosine"
        if p.grad is not None and "non_local" not in name:  # the zero-initialised branch starts without any inside
            assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("temporal", OTHERS)
def test_a_checkpoint_predicts_the_same_and_the_model_alone_says_where_its_body_is(temporal):
    model, video = small_model(temporal), np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    checkpoint = model.checkpoint()
    loaded = catalogue.from_dict(checkpoint).eval()
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(model.predict(video), loaded.predict(video)))
    with pytest.raises(ValueError, match="AnomalyCLIPSystem in videoanomaly/systems/ours.py has the others"):
        AnomalyCLIP.from_dict(checkpoint)


def test_a_width_that_mtn_cannot_divide_is_named():
    config = AnomalyCLIPConfig(classes=("fire",), temporal="mtn", embed_dim=12, num_heads=2)
    with pytest.raises(ValueError, match="embed_dim must be a multiple of 8 for 'mtn', got 12"):
        AnomalyCLIPSystem.check(config)
