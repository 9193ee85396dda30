"""The binary systems that AnomalyCLIP is compared with: segments are anomalous or normal, classes come from a linear
head.

Each class cites its paper and the public repository whose settings it has. All take AnomalyCLIP's batches, with F rows
out of each of a video's S blocks, where the papers average a block, and give probabilities for whole videos in its way
(`VideoModel.predict`): a pass sees S segments of F rows that span the video, as in training, where the papers' own
tests take all snippets of a video in one row; crops are averaged over. Systems see the mean of a segment's rows, and a
segment's score counts for its rows. A video with fewer than S * F rows repeats from its start, where UR-DMU's and
VadCLIP's code pads or resamples. The class head is that of arXiv:2310.02835, Sec. 4.2, fitted when the binary model is
done; p_{A,c} = p_A * its softmax.

Shapes: as in anomalyclip.py, here with E the width of the features that a system scores, A = B / 2 abnormal videos of a
batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, Rows, gather_segments, inference_rows
from videoanomaly.data.training_data import TrainingData
from videoanomaly.systems.base import SegmentPrediction, System, per_frame


class BinarySystem(System):
    """A system that tells anomalous from normal segments, with the class head of Sec. 4.2 (see `finish`)."""

    OPTIONS = System.OPTIONS | {"topk"}
    FITS_HEAD = True
    PASSES = 8  # over a video, at most, whose selected segments the class head learns from

    def __init__(self, config: AnomalyCLIPConfig, embed_dim: int, prototype: Tensor | None):
        super().__init__(config, prototype)
        self.class_head = nn.Linear(embed_dim, len(config.classes)).requires_grad_(False)
        nn.init.zeros_(self.class_head.weight)  # until `finish` all classes are alike
        nn.init.zeros_(self.class_head.bias)

    def predict_segments(self, embedding: Tensor, logits: Tensor) -> SegmentPrediction:
        """Of features (B, S, E) and their anomaly logits (B, S)."""
        num_frames = self.config.num_frames
        return SegmentPrediction(
            per_frame(logits, num_frames), per_frame(self.class_head(embedding), num_frames), embedding.float()
        )

    def losses(self, prediction: SegmentPrediction, labels: Tensor) -> dict[str, Tensor]:
        """As AnomalyCLIP.losses; "total" is weighted with LAMBDAS. Of labels, only where they stand plays a part."""
        return self.with_total(self.binary_losses(prediction))

    def rank(self, prediction: SegmentPrediction) -> Tensor:
        """Segments with the highest scores, (B, K)."""
        return prediction.anomaly_logits[..., 0].topk(self.config.topk, dim=1).indices

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        raise NotImplementedError

    def finish(self, data: TrainingData) -> None:
        """The class head, on the binary model as it is now: cross-entropy of the segments it selects in abnormal
        videos.

        A pass over a video is a bag of S segments as in the training; K are selected in each, all videos weigh the
        same.
        """
        self.eval()
        abnormal = [video for video in data.lists.train if video.label >= 0]
        selected = [self.selected(data.features.open(video.name)) for video in abnormal]  # (k, E) each
        counts = torch.tensor([len(x) for x in selected])
        labels = torch.tensor([video.label for video in abnormal]).repeat_interleave(counts)
        weights = (1 / counts / len(abnormal)).repeat_interleave(counts)
        x = torch.cat(selected)
        fit_linear(self.class_head, x, labels.to(x.device), weights.to(x.device))

    @torch.no_grad()
    def selected(self, rows: Rows) -> Tensor:
        """What the class head sees of the segments selected in evenly spaced passes over rows (N, crops, D), (k, E)."""
        passes = next(
            inference_rows(len(rows), self.config.num_segments, self.config.num_frames, len(rows))
        )  # (J, S, F)
        seen, found = [], []
        hook = self.class_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for j in np.unique(np.linspace(0, len(passes) - 1, self.PASSES).round().astype(int)):
            prediction = self(self.read_rows(rows, passes[j : j + 1] % len(rows)).flatten(0, 1))  # of (crops, S, F, D)
            found.append(gather_segments(seen.pop(), self.rank(prediction)).flatten(0, 1).float())
        hook.remove()
        return torch.cat(found)


def fit_linear(layer: nn.Linear, x: Tensor, labels: Tensor, weights: Tensor, decay: float = 1e-2) -> None:
    """Multinomial logistic regression of samples x (n, E), weighted, to its minimum, put into the layer in place.

    It works on standardised features, so that it does not matter how long a system makes them.
    """
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = std.clamp_min(0.1 * std.square().mean().sqrt()).clamp_min(1e-8)  # what hardly varied here may do so elsewhere
    x = (x - mean) / std
    weight, bias = (torch.zeros_like(p, requires_grad=True) for p in (layer.weight, layer.bias))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = weights @ F.cross_entropy(F.linear(x, weight, bias), labels, reduction="none")
        total = fit + decay / 2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        layer.weight.copy_(weight / std)
        layer.bias.copy_(bias - layer.weight @ mean)


def sparse_and_smooth(logits: Tensor) -> dict[str, Tensor]:
    """Length of the scores (A, S) of all abnormal videos, and their squared steps, summed within videos."""
    scores = logits.sigmoid()
    return {"sparse": scores.norm(), "smooth": scores.diff(dim=1).square().sum()}
