"""What the tests of predict.py, report.py and their helpers share: a checkpoint whose classes are colours, and its
encoder. And one thread for each process, which is fastest where several tests run at once.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in child processes

import pytest
import torch

ENCODER = '''
import numpy as np
import torch


class Colours:
    """Noise of a picture's 8x8 blocks -> 64 features; red ones lie 8 units along axis 0, blue ones along axis 1."""

    dim = 64

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image.resize((8, 8), 4), np.float32) / 255).permute(2, 0, 1)

    def encode(self, images):
        mean = images.mean(dim=(2, 3), keepdim=True)
        features = ((images - mean) * 10).mean(dim=1).flatten(1)
        red, blue = mean[:, 0, 0, 0] - mean[:, 1, 0, 0], mean[:, 2, 0, 0] - mean[:, 1, 0, 0]
        features[:, 0] += 8 * (red > 0.2)
        features[:, 1] += 8 * (blue > 0.2)
        return features
'''


def set_weights(state: dict[str, torch.Tensor]) -> None:
    """p_A near 1 where a feature lies more than about 5 units along axis 0 or 1, near 0 elsewhere, for each row by
    itself.
    """
    for name, value in state.items():
        if name != "temporal_model.norm.weight":
            value.zero_()
    for name in ("free_directions", "directions"):
        state[name][0, 0] = state[name][1, 1] = 1  # classes lie along the first axes
    state["batch_norm.running_var"].fill_(1)
    state["temporal_model.projection.weight"][0, 0] = state["temporal_model.projection.weight"][1, 1] = 1
    state["temporal_model.body.1.weight"][0, :2] = 1
    state["temporal_model.body.1.bias"][:2] = torch.tensor(
        [-4.0, 1.0]
    )  # channel 0: how far beyond 4; channel 1: always 1
    state["temporal_model.head.weight"][0, :2] = torch.tensor([2.0, -2.0])  # which of the two is larger


class Planted:
    """A checkpoint that calls red pictures "fire" and blue ones "fall", and the encoder file that goes with it."""

    def __init__(self, root: Path, spacing: int):
        from tests.synthetic import run, write_dataset

        dataset = write_dataset(root / "data", frames_per_feature=spacing, encoder="Colours")
        checkpoint = run(dataset, root / "run", "--epochs", "1", "--temporal", "mlp", "--temporal-input", "similarity")
        set_weights(checkpoint["model"])
        torch.save(checkpoint, root / "run" / "last.pt")
        (root / "colours.py").write_text(ENCODER)
        self.root, self.features, self.checkpoint = root, dataset / "features", str(root / "run" / "last.pt")
        self.options = ["--ckpt", self.checkpoint, "--encoder", f"{root / 'colours.py'}:Colours", "--device", "cpu"]


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """No test sees what a folder of work holds, such as runs/demo, or writes there."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"), 1)


@pytest.fixture(scope="session")
def planted_spaced(tmp_path_factory) -> Planted:
    """Trained on every second frame."""
    return Planted(tmp_path_factory.mktemp("spaced"), 2)
