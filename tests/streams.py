"""What stands for the encoder and the model of a stream, also in the processes that tests start."""

import time
from types import SimpleNamespace

import numpy as np
import torch

from videoanomaly.video.encoders import Encoder


class GreyEncoder:
    """Features are the brightness in [0, 1], twice."""

    dim = 2

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.times = seconds, []

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)))).permute(2, 0, 1)

    def encode(self, images):
        time.sleep(self.seconds)
        self.times.append(time.monotonic())
        return images.float().mean(dim=(1, 2, 3))[:, None].expand(-1, 2) / 255


GREY = Encoder(GreyEncoder(), "GreyEncoder", 1, None, 8)


class Brightness:
    """In place of a model: bright rows are anomalous."""

    config = SimpleNamespace(
        num_segments=50, num_frames=5, feature_dim=2, temporal_feature_dim=None, classes=("Fire", "Flood")
    )

    def predict(self, features):
        p_A = np.asarray(features).reshape(len(features), -1).mean(axis=1)
        return p_A, p_A[:, None] * np.array([0.75, 0.25])


class BrightnessModel(Brightness):
    """Also for several streams at once."""

    prototype = torch.zeros(2)

    def score_segments(self, segments):
        p_A = segments.mean(dim=(0, -1)).numpy()
        return p_A, p_A[..., None] * np.array([0.75, 0.25])

    def smoothed(self, curves):
        return curves
