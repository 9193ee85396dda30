"""Tests of winograd.py: the same numbers as PyTorch's convolutions."""

import copy

import pytest
import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, ConvFeedForward
from videoanomaly import winograd


def gradients(module, x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the input and of every parameter, of a weighted sum of the outputs."""
    x = x.clone().requires_grad_()
    out = module(x)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), (x, *module.parameters()))]


@pytest.mark.parametrize("shape", [(5, 6, 4), (1, 2, 2), (3, 4, 10)])
def test_feed_forward_and_all_its_gradients_equal_the_convolutions_in_float64(shape, monkeypatch):
    monkeypatch.setattr(winograd, "POSITIONS", 50)  # two videos of 6 x 4 at a time, and one left over
    torch.manual_seed(0)
    plain = ConvFeedForward(8)
    fast = copy.deepcopy(plain)
    winograd.accelerate(fast)
    x, weights = torch.randn(*shape, 8), torch.randn(*shape, 8)
    found, expected = gradients(fast, x, weights), gradients(plain.double(), x.double(), weights.double())
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-6 * float(b.abs().max()))


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 3)])
def test_a_grid_of_odd_sides_goes_the_usual_way(shape):
    fast = ConvFeedForward(4)
    x = torch.randn(*shape, 4)
    expected = fast(x)
    winograd.accelerate(fast)
    assert torch.equal(fast(x), expected)


def test_the_input_is_all_that_is_kept_for_the_backward_pass():
    fast = ConvFeedForward(8)
    winograd.accelerate(fast)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        fast(torch.randn(2, 4, 4, 8, requires_grad=True))
    hidden = 2 * 4 * 4 * 32
    assert max(kept) <= 9 * 8 * 32 and hidden not in kept  # the kernels are larger than any activation here


def test_an_accelerated_model_gives_the_scores_of_a_plain_one_and_loads_its_weights():
    config = AnomalyCLIPConfig(
        classes=("a", "b"),
        feature_dim=6,
        num_segments=4,
        num_frames=2,
        topk=1,
        embed_dim=16,
        num_heads=2,
        depth=2,
        directions="direct",
    )
    plain = AnomalyCLIP(config).eval()
    fast = AnomalyCLIP(config)
    winograd.accelerate(fast)
    fast.load_trained_state(plain.trained_state())
    features = torch.randn(37, 6)
    for a, b in zip(fast.eval().predict(features), plain.predict(features)):
        torch.testing.assert_close(torch.from_numpy(a), torch.from_numpy(b), rtol=0, atol=1e-6)
