"""CLIP as it is, without training."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, PromptLearner
from videoanomaly.systems.base import Defaults, SegmentPrediction
from videoanomaly.systems.prompted import PromptedSystem, against_normal, starting_scale


class ClipZeroShot(PromptedSystem):
    """CLIP as it is (Sec. 4.2): softmax of the cosines of a row with "a video from a CCTV camera of a {class}"; no
    training.
    """

    NAME = "clip-zeroshot"
    DEFAULTS = Defaults(1.0, steps=0)
    DIRECTIONS = ("engineered",)
    OPTIONS = PromptedSystem.OPTIONS - {"epochs", "lr"}
    SEES_MEANS = False

    def __init__(
        self,
        config: AnomalyCLIPConfig,
        *,
        clip: nn.Module | None = None,
        tokenize: Callable[[list[str]], Tensor] | None = None,
        prototype: Tensor | None = None,
    ):
        super().__init__(config, clip, tokenize, prototype)
        self.logit_scale = starting_scale(clip)

    def make_prompts(
        self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor]
    ) -> nn.Module:
        return PromptLearner(config, clip, tokenize)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D), each row by itself."""
        logits = (
            self.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ F.normalize(self.class_text(), dim=-1).T
        )
        return SegmentPrediction(against_normal(logits), logits[..., :-1], features.mean(dim=2))
