"""Self-supervised sparse representation (S3R)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.data.prototype import checked_sum
from videoanomaly.data.training_data import TrainingData
from videoanomaly.runtime.processes import same_for_all
from videoanomaly.systems.base import SegmentPrediction, score_head
from videoanomaly.systems.binary import BinarySystem
from videoanomaly.systems.rtfm import RTFM
from videoanomaly.systems.temporal_bodies import MTN


class S3RPrediction(NamedTuple):
    """As SegmentPrediction, and the logits of the reconstructions by normality, (B,)."""

    anomaly_logits: Tensor
    class_logits: Tensor
    embedding: Tensor
    macro_logits: Tensor


class S3R(RTFM):
    """Self-supervised sparse representation (Wu et al., ECCV 2022; louisYen/S3R).

    Args:
        dictionary: Atoms of normality, (n, D), see `learn`; those of a checkpoint replace them.
    """

    NAME = "s3r"
    MULTIPLE = 16

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None, dictionary: Tensor | None = None):
        BinarySystem.__init__(self, config, config.feature_dim, prototype)
        D = config.feature_dim
        self.register_buffer("dictionary", torch.zeros(1, D) if dictionary is None else dictionary)
        self.to_q, self.to_k, self.to_v = nn.Linear(D, D // 4), nn.Linear(D, D // 4), nn.Linear(D, D)
        self.video_mtn, self.macro_mtn = (
            MTN(D, self.WIDTH, norm=lambda width: nn.GroupNorm(8, width)) for _ in range(2)
        )
        self.gate = nn.Sequential(nn.Linear(D, D // 16), nn.ReLU(), nn.Linear(D // 16, D), nn.Sigmoid())
        self.head = score_head(D, D // 4, D // 16, 1, dropout=0.7)
        self.macro_head = score_head(D, D // 4, D // 16, 1, dropout=0.7)

    @classmethod
    def learn(cls, data: TrainingData, seed: int) -> dict[str, Tensor]:
        """The prototype, and atoms for the mean features of normal training videos (`Dataset.s3r_atoms` as many).

        As published, the means are transposed: sklearn's dictionary is one of channels over the videos, and an atom
        here holds for each of the D channels its share of one of its entries, two of which are not zero (orthogonal
        matching pursuit).
        """
        return super().learn(data, seed) | same_for_all(lambda: {"dictionary": cls.learn_dictionary(data, seed)})

    @staticmethod
    def learn_dictionary(data: TrainingData, seed: int) -> Tensor:
        """See `learn`, (n, D)."""
        from sklearn.decomposition import MiniBatchDictionaryLearning

        sums = (checked_sum(data.features, video.name) for video in data.lists.train if video.label < 0)
        means = np.stack([total / n for total, n in sums])
        scale = max(means.std(), 1e-12)
        channels = means.T / scale  # (D, V); the weight of the fit's lasso is 1, whatever length features have
        num_atoms = max(int(data.dataset.s3r_atoms * len(means)), 1)
        passes = max(100 // -(-len(channels) // 32), 1)  # whole ones, of up to 100 mini-batches together
        learner = MiniBatchDictionaryLearning(
            num_atoms,
            max_iter=passes,
            batch_size=32,
            random_state=seed % 2**32,
            tol=0,
            max_no_improvement=None,  # pyright: ignore[reportArgumentType]  (documented; the stub forgets it)
            transform_algorithm="omp",
            transform_n_nonzero_coefs=min(2, num_atoms),
        )
        codes = learner.fit(channels).transform(channels)  # (D, n)
        return torch.from_numpy(scale * codes.T).float().contiguous()

    def fitting(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        found = state.get("dictionary")  # of a file that anybody may have written
        if (
            isinstance(found, Tensor)
            and found.ndim == 2
            and found.shape[1] == self.config.feature_dim
            and (0 < found.numel() * found.element_size() <= found.untyped_storage().nbytes())
        ):
            self.dictionary = self.dictionary.new_zeros(found.shape)
        return super().fitting(state)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Segments (B, S, D) out of atoms of normality."""
        return (self.to_q(x) @ self.to_k(self.dictionary).T).softmax(dim=-1) @ self.to_v(self.dictionary)

    def forward(self, features: Tensor) -> S3RPrediction:
        """Segments (B, S, F, D)."""
        x = features.mean(dim=2, keepdim=True)  # (B, S, 1, D)
        video, macro = (
            F.dropout(mtn(y)[:, :, 0], 0.7, self.training)
            for mtn, y in ((self.video_mtn, x), (self.macro_mtn, self.reconstruct(x)))
        )  # (B, S, D)
        weight = self.gate(video.mean(dim=1) - macro.mean(dim=1)).unsqueeze(1)  # (B, 1, D)
        video, macro = video * weight, (macro * (1 - weight)).mean(dim=1)  # (B, S, D), (B, D)
        frames = self.predict_segments(video, self.head(video).squeeze(-1))
        return S3RPrediction(**frames._asdict(), macro_logits=self.macro_head(macro).squeeze(-1).float())

    def binary_losses(self, prediction: S3RPrediction) -> dict[str, Tensor]:
        common = SegmentPrediction(prediction.anomaly_logits, prediction.class_logits, prediction.embedding)
        return super().binary_losses(common) | {"macro": F.softplus(prediction.macro_logits).mean()}  # to 0
