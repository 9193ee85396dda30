"""The binary systems that AnomalyCLIP is compared with: segments are anomalous or normal, classes come from a linear head.

Each class cites its paper and the public repository whose settings it has. All take AnomalyCLIP's batches, with F rows out of
each of a video's S blocks, where the papers average a block, and give probabilities for whole videos in its way
(`VideoModel.predict`): a pass sees S segments of F rows that span the video, as in training, where the papers' own tests take
all snippets of a video in one row; crops are averaged over. Systems see the mean of a segment's rows, and a segment's score
counts for its rows. A video with fewer than S * F rows repeats from its start, where UR-DMU's and VadCLIP's code pads or
resamples. The class head is that of arXiv:2310.02835, Sec. 4.2, fitted when the binary model is done; p_{A,c} = p_A * its
softmax.

Shapes: as in anomalyclip.py, here with E the width of the features that a system scores, A = B / 2 abnormal videos of a batch.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import MTN, AnomalyCLIPConfig, AxisAttention, VideoModel, gather_segments, inference_rows


class System(VideoModel):
    """Config, prototype and weighted losses.

    The prototype takes no part; `evaluate.py --rules` measures distances to it.
    """

    NAME: str
    DIRECTIONS = ("direct",)  # choices of the config's `directions`, the default first
    OPTIONS = ("num_segments", "num_frames", "directions")  # config fields that have an effect
    LAMBDAS: dict[str, float] = {}  # weights of losses other than 1
    MULTIPLE = 1  # of which the feature size must be one
    SEES_MEANS = True  # of a segment's rows alone: in training it can have (B, S, 1, D)

    def __init__(self, config: AnomalyCLIPConfig, prototype: Tensor | None = None):
        super().__init__()
        self.check(config)
        self.config = config
        prototype = torch.zeros(config.feature_dim) if prototype is None else prototype.float().clone()
        self.register_buffer("prototype", prototype)

    @classmethod
    def check(cls, config: AnomalyCLIPConfig) -> None:
        """Raises ValueError if there is no such model."""
        if config.directions not in cls.DIRECTIONS:
            raise ValueError(f"directions of {cls.NAME} must be one of {', '.join(cls.DIRECTIONS)}, got {config.directions!r}")
        if config.feature_dim % cls.MULTIPLE:
            raise ValueError(f"feature_dim must be a multiple of {cls.MULTIPLE} for {cls.NAME}, got {config.feature_dim}")

    @staticmethod
    def learn(lists, features, dataset: str, seed: int) -> dict[str, Tensor]:
        """Further arguments of the constructor: what the training videos teach without a gradient."""
        return {}

    def parameter_groups(self) -> list[dict]:
        """For the optimiser; "scale" multiplies the learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "scale": 1}]

    def finish_directions(self) -> None:
        """Computes what inference needs of prompts; nothing without them."""

    def finish(self, videos, features) -> None:
        """What is left to learn from the training videos after the last epoch; here nothing."""

    def with_total(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return losses | {"total": sum(self.LAMBDAS.get(name, 1) * loss for name, loss in losses.items())}


def per_frame(x: Tensor, num_frames: int) -> Tensor:
    """(B, S, ...) -> (B, S, F, ...), in float32."""
    return x.float().unsqueeze(2).expand(*x.shape[:2], num_frames, *x.shape[2:])


def bag_targets(x: Tensor) -> Tensor:
    """1 for the abnormal half of (B, ...), 0 for the normal one, (B,)."""
    return (torch.arange(len(x), device=x.device) < len(x) // 2).float()


def closeness(num_segments: int, device, *, normalise: bool) -> Tensor:
    """exp(-|i - j| / e), (S, S); normalised, rows add up to 1."""
    at = torch.arange(num_segments, device=device, dtype=torch.float32)
    exponent = -(at[:, None] - at).abs() / math.e
    return exponent.softmax(dim=1) if normalise else exponent.exp()


def score_head(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU and dropout in between."""
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


# ---- binary systems ----


class SegmentPrediction(NamedTuple):
    anomaly_logits: Tensor  # (B, S, F), equal for the frames of a segment
    class_logits: Tensor  # (B, S, F, C), likewise
    embedding: Tensor  # what the score is made of, (B, S, E)


class BinarySystem(System):
    """A system that tells anomalous from normal segments, with the class head of Sec. 4.2 (see `finish`)."""

    OPTIONS = (*System.OPTIONS, "topk")
    PASSES = 8  # over a video, at most, whose selected segments the class head learns from

    def __init__(self, config: AnomalyCLIPConfig, embed_dim: int, prototype: Tensor | None):
        super().__init__(config, prototype)
        self.class_head = nn.Linear(embed_dim, len(config.classes)).requires_grad_(False)
        nn.init.zeros_(self.class_head.weight)  # until `finish` all classes are alike
        nn.init.zeros_(self.class_head.bias)

    def predict_segments(self, embedding: Tensor, logits: Tensor) -> SegmentPrediction:
        """Of features (B, S, E) and their anomaly logits (B, S)."""
        num_frames = self.config.num_frames
        return SegmentPrediction(per_frame(logits, num_frames), per_frame(self.class_head(embedding), num_frames),
                                 embedding.float())

    def losses(self, prediction: SegmentPrediction, labels: Tensor) -> dict[str, Tensor]:
        """As AnomalyCLIP.losses; "total" is weighted with LAMBDAS. Of the labels, only where they stand plays a part."""
        return self.with_total(self.binary_losses(prediction))

    def rank(self, prediction: SegmentPrediction) -> Tensor:
        """Segments with the highest scores, (B, K)."""
        return prediction.anomaly_logits[..., 0].topk(self.config.topk, dim=1).indices

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        raise NotImplementedError

    def finish(self, videos, features) -> None:
        """The class head, on the binary model as it is now: cross-entropy of the segments it selects in abnormal videos.

        A pass over a video is a bag of S segments as in the training; K are selected in each, all videos weigh the same.
        """
        self.eval()
        abnormal = [video for video in videos if video.label >= 0]
        selected = [self.selected(features.open(video.name)) for video in abnormal]  # (k, E) each
        counts = torch.tensor([len(x) for x in selected])
        labels = torch.tensor([video.label for video in abnormal]).repeat_interleave(counts)
        weights = (1 / counts / len(abnormal)).repeat_interleave(counts)
        x = torch.cat(selected)
        fit_linear(self.class_head, x, labels.to(x.device), weights.to(x.device))

    @torch.no_grad()
    def selected(self, rows) -> Tensor:
        """What the class head sees of the segments selected in evenly spaced passes over rows (N, crops, D), (k, E)."""
        passes = next(inference_rows(len(rows), self.config.num_segments, self.config.num_frames, len(rows)))  # (J, S, F)
        seen, found = [], []
        hook = self.class_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for j in np.unique(np.linspace(0, len(passes) - 1, self.PASSES).round().astype(int)):
            prediction = self(self.read_rows(rows, passes[j:j + 1] % len(rows)).flatten(0, 1))  # of (crops, S, F, D)
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


class Sultani(BinarySystem):
    """MIL ranking (Sultani et al., arXiv:1801.04264; WaqasSultani/AnomalyDetectionCVPR2018).

    The class head sees the normalised features, and selects K segments where the ranking loss takes one. Weight decay is twice
    the published L2, which has no factor of a half, and takes in the biases, which that leaves out.
    """

    NAME = "sultani"
    LAMBDAS = {"sparse": 8e-5, "smooth": 8e-5}

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        super().__init__(config, config.feature_dim, prototype)
        self.head = nn.Sequential(nn.Linear(config.feature_dim, 512), nn.ReLU(), nn.Dropout(0.6), nn.Linear(512, 32),
                                  nn.Dropout(0.6), nn.Linear(32, 1))
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = F.normalize(features.mean(dim=2), dim=-1)  # (B, S, D)
        return self.predict_segments(x, self.head(x).squeeze(-1))

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        abnormal, normal = prediction.anomaly_logits[..., 0].sigmoid().chunk(2)  # (A, S) each
        hinge = F.relu(1 - abnormal.amax(dim=1)[:, None] + normal.amax(dim=1))  # (A, A), each abnormal video with each normal
        return {"rank": hinge.sum(dim=0).mean(), "sparse": abnormal.sum(), "smooth": abnormal.diff(dim=1).square().sum()}


def magnitude_topk(embedding: Tensor, k: int, training: bool) -> Tensor:
    """Segments with the longest features, (B, K); training hides 70 % of them from the choice, as RTFM's dropout does."""
    magnitude = embedding.detach().norm(dim=-1)  # (B, S)
    shown = F.dropout(torch.ones_like(magnitude), 0.7, training)
    return (magnitude * shown).topk(k, dim=1).indices


def top_score_loss(logits: Tensor, top: Tensor) -> Tensor:
    """Cross-entropy of the mean score of each video's top segments (B, K) of logits (B, S)."""
    score = logits.sigmoid().gather(1, top).mean(dim=1)  # (B,); a mean of scores, hence no logits
    return F.binary_cross_entropy(score, bag_targets(score))


def sparse_and_smooth(logits: Tensor) -> dict[str, Tensor]:
    """Length of the scores (A, S) of all abnormal videos, and their squared steps, summed within videos."""
    scores = logits.sigmoid()
    return {"sparse": scores.norm(), "smooth": scores.diff(dim=1).square().sum()}


class RTFM(BinarySystem):
    """Robust temporal feature magnitudes (Tian et al., arXiv:2101.10030; tianyu0207/RTFM).

    Each crop is ranked by its own magnitudes, where the published code ranks by their mean over crops: a crop is drawn for each
    training sample.
    """

    NAME = "rtfm"
    LAMBDAS = {"magnitude": 1e-4, "sparse": 8e-3, "smooth": 8e-4}
    MARGIN, WIDTH = 100, 512

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        super().__init__(config, config.feature_dim, prototype)
        self.mtn = MTN(config.feature_dim, self.WIDTH)
        self.head = score_head(config.feature_dim, 512, 128, 1, dropout=0.7)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = F.dropout(self.mtn(features)[:, :, 0], 0.7, self.training)  # (B, S, D)
        return self.predict_segments(x, self.head(x).squeeze(-1))

    def rank(self, prediction: SegmentPrediction) -> Tensor:
        return magnitude_topk(prediction.embedding, self.config.topk, self.training)

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        logits, top = prediction.anomaly_logits[..., 0], self.rank(prediction)
        abnormal, normal = gather_segments(prediction.embedding, top).mean(dim=1).norm(dim=-1).chunk(2)  # (A,) each
        magnitude = ((self.MARGIN - abnormal).abs() + normal).square().mean()
        return {"top": top_score_loss(logits, top), "magnitude": magnitude} | sparse_and_smooth(logits.chunk(2)[0])


class SSRL(RTFM):
    """First stage of scale-aware spatio-temporal relations (Li et al., ECCV 2022; nutuniv/SSRL): RTFM on these features.

    The later stages add features of patches, which no feature file here holds: without them it is RTFM under another name.
    """

    NAME = "ssrl"


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
            MTN(D, self.WIDTH, norm=lambda width: nn.GroupNorm(8, width)) for _ in range(2))
        self.gate = nn.Sequential(nn.Linear(D, D // 16), nn.ReLU(), nn.Linear(D // 16, D), nn.Sigmoid())
        self.head = score_head(D, D // 4, D // 16, 1, dropout=0.7)
        self.macro_head = score_head(D, D // 4, D // 16, 1, dropout=0.7)

    @staticmethod
    def learn(lists, features, dataset: str, seed: int) -> dict[str, Tensor]:
        """Atoms for the mean features of normal training videos: half as many, in ShanghaiTech nine tenths.

        As published, the means are transposed: sklearn's dictionary is one of channels over the videos, and an atom here holds
        for each of the D channels its share of one of its entries, two of which are not zero (orthogonal matching pursuit).
        """
        from sklearn.decomposition import MiniBatchDictionaryLearning

        from videoanomaly.data.prototype import checked_sum

        means = np.stack([total / n for total, n in (checked_sum(features, v.name) for v in lists.train if v.label < 0)])
        scale = max(means.std(), 1e-12)
        channels = means.T / scale  # (D, V); the weight of the fit's lasso is 1, whatever length features have
        num_atoms = max(int({"shanghaitech": 0.9}.get(dataset, 0.5) * len(means)), 1)
        passes = max(100 // -(-len(channels) // 32), 1)  # whole ones, of up to 100 mini-batches together
        learner = MiniBatchDictionaryLearning(num_atoms, max_iter=passes, batch_size=32, random_state=seed % 2**32, tol=0,
                                              max_no_improvement=None, transform_algorithm="omp",
                                              transform_n_nonzero_coefs=min(2, num_atoms))
        codes = learner.fit(channels).transform(channels)  # (D, n)
        return {"dictionary": torch.from_numpy(scale * codes.T).float().contiguous()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        found = state.get("dictionary")  # of a file that anybody may have written
        if isinstance(found, Tensor) and found.ndim == 2 and found.shape[1] == self.config.feature_dim and (
                0 < found.numel() * found.element_size() <= found.untyped_storage().nbytes()):
            self.dictionary = self.dictionary.new_zeros(found.shape)
        super().load_trained_state(state)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Segments (B, S, D) out of atoms of normality."""
        return (self.to_q(x) @ self.to_k(self.dictionary).T).softmax(dim=-1) @ self.to_v(self.dictionary)

    def forward(self, features: Tensor) -> S3RPrediction:
        """Segments (B, S, F, D)."""
        x = features.mean(dim=2, keepdim=True)  # (B, S, 1, D)
        video, macro = (F.dropout(mtn(y)[:, :, 0], 0.7, self.training)
                        for mtn, y in ((self.video_mtn, x), (self.macro_mtn, self.reconstruct(x))))  # (B, S, D)
        weight = self.gate(video.mean(dim=1) - macro.mean(dim=1)).unsqueeze(1)  # (B, 1, D)
        video, macro = video * weight, (macro * (1 - weight)).mean(dim=1)  # (B, S, D), (B, D)
        frames = self.predict_segments(video, self.head(video).squeeze(-1))
        return S3RPrediction(**frames._asdict(), macro_logits=self.macro_head(macro).squeeze(-1).float())

    def binary_losses(self, prediction: S3RPrediction) -> dict[str, Tensor]:
        return super().binary_losses(prediction) | {"macro": F.softplus(prediction.macro_logits).mean()}  # to 0


class Focus(nn.Module):
    """Convolution over time with one kernel a head, of 64 channels each (MGFN's self-attentional convolution)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.to_v, self.to_out = nn.BatchNorm1d(dim), nn.Conv1d(dim, dim, 1, bias=False), nn.Conv1d(dim, dim, 1)
        self.num_heads = dim // 64
        self.over_time = nn.Conv1d(self.num_heads, self.num_heads, 5, padding=2, groups=self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        v = self.to_v(self.norm(x)).unflatten(1, (self.num_heads, 64)).transpose(1, 2)  # (B, 64, heads, S)
        v = self.over_time(v.flatten(0, 1)).unflatten(0, (-1, 64)).transpose(1, 2).flatten(1, 2)
        return self.to_out(v)  # (B, dim, S)


class MGFNBlock(nn.Module):
    """Convolution, attention (glance) or convolution by heads (focus), feed-forward, each with a residual, on (B, dim, S)."""

    def __init__(self, dim: int, *, glance: bool):
        super().__init__()
        self.conv, self.glance = nn.Conv1d(dim, dim, 3, padding=1), glance
        self.attention = AxisAttention(dim, num_heads=dim // 64, head_dim=64) if glance else Focus(dim)
        self.feed_forward = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(x)
        if self.glance:
            x = x + self.attention(x.transpose(1, 2).unsqueeze(1)).squeeze(1).transpose(1, 2)
        else:
            x = x + self.attention(x)
        return x + self.feed_forward(x.transpose(1, 2)).transpose(1, 2)


class ChannelLayerNorm(nn.LayerNorm):
    """Over the channels of (B, dim, S)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class MGFN(RTFM):
    """Magnitude-contrastive glance-and-focus network (Chen et al., arXiv:2211.15098; carolchenyx/MGFN.).

    Magnitudes are Euclidean, of the features in front of the last LayerNorm, which would make them all alike; sparsity is the
    abnormal videos'. The released code has L1 norms in the contrast and the normal videos' sparsity.
    """

    NAME = "mgfn"
    LAMBDAS = {"contrast": 1e-3, "sparse": 8e-3, "smooth": 8e-4}
    MARGIN = 200
    WIDTHS, DEPTHS = (64, 128, 1024), (3, 3, 2)  # of glance, focus, focus; widths are multiples of 64

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        BinarySystem.__init__(self, config, self.WIDTHS[-1], prototype)
        self.to_tokens = nn.Conv1d(config.feature_dim, self.WIDTHS[0], 3, padding=1)
        self.magnitude_to_tokens = nn.Conv1d(1, self.WIDTHS[0], 3, padding=1)
        layers = []
        for i, (width, depth) in enumerate(zip(self.WIDTHS, self.DEPTHS)):
            if i > 0:
                layers += [ChannelLayerNorm(self.WIDTHS[i - 1]), nn.Conv1d(self.WIDTHS[i - 1], width, 1)]
            layers += [MGFNBlock(width, glance=i == 0) for _ in range(depth)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(self.WIDTHS[-1]), nn.Linear(self.WIDTHS[-1], 1))

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = features.mean(dim=2).transpose(1, 2)  # (B, D, S)
        x = self.to_tokens(x) + 0.1 * self.magnitude_to_tokens(x.norm(dim=1, keepdim=True))  # (B, 64, S)
        x = self.body(x).transpose(1, 2)  # (B, S, E)
        return self.predict_segments(x, self.head(x).squeeze(-1))

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        logits, top = prediction.anomaly_logits[..., 0], self.rank(prediction)
        abnormal, normal = gather_segments(prediction.embedding, top).norm(dim=-1).chunk(2)  # (A, K) each
        apart = F.relu(self.MARGIN - F.pairwise_distance(abnormal, normal)).square().mean()
        contrast = 1e-3 * apart + pull_together(abnormal) + pull_together(normal)
        return {"top": top_score_loss(logits, top), "contrast": contrast} | sparse_and_smooth(logits.chunk(2)[0])


def pull_together(magnitudes: Tensor) -> Tensor:
    """Mean squared distance between the halves of (A, K); 0 for a single video, and an odd one is left out."""
    half = len(magnitudes) // 2
    return (magnitudes[:half] - magnitudes[half:2 * half]).square().sum() / max(half, 1)


class GlobalLocalLayer(nn.Module):
    """Transformer layer whose values are also averaged over near segments (UR-DMU's GL-MHSA)."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, dropout: float):
        super().__init__()
        inner, self.num_heads = num_heads * head_dim, num_heads
        self.norm, self.to_qkvt = nn.LayerNorm(dim), nn.Linear(dim, 4 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(2 * inner, dim), nn.Dropout(dropout))
        self.feed_forward = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout),
                                          nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, t = self.to_qkvt(self.norm(x)).chunk(4, dim=-1)  # (B, S, inner)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, S, head_dim)
        far = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        near = closeness(x.shape[1], x.device, normalise=True).to(t.dtype) @ t
        x = x + self.to_out(torch.cat([far, near], dim=-1))
        return x + self.feed_forward(x)


class Memory(nn.Module):
    """Slots that segments are compared with: how well (B, S, dim) fits the best of them, (B, S), and what is read out of them."""

    def __init__(self, num_slots: int, dim: int):
        super().__init__()
        self.slots = nn.Parameter(torch.empty(num_slots, dim).uniform_(-dim ** -0.5, dim ** -0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (x @ self.slots.T / x.shape[-1] ** 0.5).sigmoid()  # (B, S, slots)
        return weights.topk(len(self.slots) // 16 + 1, dim=-1).values.mean(dim=-1), weights @ self.slots


class URDMUPrediction(NamedTuple):
    """As SegmentPrediction, and what the two memories say."""

    anomaly_logits: Tensor
    class_logits: Tensor
    embedding: Tensor  # before the memories, (B, S, E)
    abnormal_fit: Tensor  # with the abnormal memory, (B, S)
    normal_fit: Tensor
    abnormal_mean: Tensor  # encoded read-out of the abnormal memory, (B, S, E)
    normal_mean: Tensor  # the same of the normal one
    normal_log_var: Tensor
    normal_latent: Tensor  # normal_mean, in normal videos of the training with noise


class URDMU(BinarySystem):
    """Uncertainty-regulated dual memory units (Zhou et al., arXiv:2302.05160; henrryzh1/UR-DMU).

    Latents and their lengths are means over a video's selected segments; S // 16 + 1 are selected, K by the class head.
    """

    NAME = "ur-dmu"
    LAMBDAS = {"memory": 0.1, "triplet": 0.1, "kl": 1e-3, "distance": 1e-4}
    DIM, MARGIN = 512, 100

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        super().__init__(config, 2 * self.DIM, prototype)
        self.embed = nn.Sequential(nn.Conv1d(config.feature_dim, self.DIM, 3, padding=1), nn.ReLU())
        self.layers = nn.Sequential(*(GlobalLocalLayer(self.DIM, num_heads=4, head_dim=128, dropout=0.5) for _ in range(2)))
        self.abnormal_memory, self.normal_memory = Memory(60, self.DIM), Memory(60, self.DIM)
        self.to_mean, self.to_log_var = nn.Linear(self.DIM, self.DIM), nn.Linear(self.DIM, self.DIM)
        self.head = score_head(2 * self.DIM, 128, 1)

    def forward(self, features: Tensor) -> URDMUPrediction:
        """Segments (B, S, F, D); of a batch in training, the second half is normal."""
        x = self.layers(self.embed(features.mean(dim=2).transpose(1, 2)).transpose(1, 2))  # (B, S, E)
        abnormal_fit, abnormal_read_out = self.abnormal_memory(x)
        normal_fit, normal_read_out = self.normal_memory(x)
        abnormal_mean, mean = self.to_mean(abnormal_read_out), self.to_mean(normal_read_out)
        latent, log_var = mean, self.to_log_var(normal_read_out)
        if self.training:
            is_normal = 1 - bag_targets(x).view(-1, 1, 1)
            latent = mean + is_normal * torch.randn_like(mean) * (log_var / 2).exp()
        joined = torch.cat([x, abnormal_mean + latent], dim=-1)  # (B, S, 2E)
        frames = self.predict_segments(joined, self.head(joined).squeeze(-1))
        others = (x, abnormal_fit, normal_fit, abnormal_mean, mean, log_var, latent)
        return URDMUPrediction(*frames[:2], *(y.float() for y in others))

    def binary_losses(self, prediction: URDMUPrediction) -> dict[str, Tensor]:
        logits, k = prediction.anomaly_logits[..., 0], self.config.num_segments // 16 + 1
        halves = {name: value.chunk(2) for name, value in prediction._asdict().items()}
        by_abnormal = halves["abnormal_fit"][0].topk(k, dim=1).indices  # (A, k) segments of the abnormal videos
        by_normal = halves["normal_fit"][0].topk(k, dim=1).indices
        of_normal = halves["normal_fit"][1].topk(k, dim=1).indices  # of the normal videos

        def mean_of(name: str, half: int, segment_idx: Tensor) -> Tensor:
            return gather_segments(halves[name][half], segment_idx).mean(dim=1)  # (A, E)

        points = [F.normalize(mean_of("embedding", half, idx), dim=-1)
                  for half, idx in ((1, of_normal), (0, by_normal), (0, by_abnormal))]
        abnormal_length = mean_of("abnormal_mean", 0, by_abnormal).norm(dim=-1)  # (A,)
        normal_length = mean_of("normal_latent", 1, of_normal).norm(dim=-1)
        mean, log_var = halves["normal_mean"][1], halves["normal_log_var"][1]  # (A, S, E)
        return {"top": top_score_loss(logits, logits.topk(k, dim=1).indices), "memory": self.memory_loss(halves, k),
                "triplet": F.triplet_margin_loss(*points),
                "kl": (mean ** 2 + log_var.exp() - 1 - log_var).sum(dim=-1).mean() / 2,
                "distance": F.relu(self.MARGIN - abnormal_length + normal_length).mean()}

    @staticmethod
    def memory_loss(halves: dict[str, tuple[Tensor, Tensor]], k: int) -> Tensor:
        """Each memory fits its kind: k segments of an abnormal video, all of a normal one."""
        (abnormal, normal), (normal_in_abnormal, normal_in_normal) = halves["abnormal_fit"], halves["normal_fit"]
        best, unlike = (fit.topk(k, dim=1).values.mean(dim=1) for fit in (abnormal, 1 - normal_in_abnormal))
        fits = (best, unlike, normal_in_normal, 1 - normal)  # all should be 1
        return sum(F.binary_cross_entropy(fit, torch.ones_like(fit)) for fit in fits)
