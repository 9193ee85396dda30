"""The systems with prompts that AnomalyCLIP is compared with: zero-shot CLIP, ActionCLIP and VadCLIP.

Their probabilities for whole videos come in AnomalyCLIP's way, see binary.py. Without CLIP, with features that no text
goes with, ActionCLIP and VadCLIP have free vectors in the place of the texts (`directions="direct"`).

Shapes: as in anomalyclip.py, here with P prompts of a class, n segments of a batch.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, randn
from videoanomaly.systems.base import System

NORMAL = "normal"  # the name of the class that AnomalyCLIP does without, in prompts; last of C + 1


def against_normal(logits: Tensor) -> Tensor:
    """Log-odds of the C classes together against Normal, (...,), of logits (..., C + 1): their sigmoid is 1 -
    p(normal).
    """
    return logits[..., :-1].logsumexp(dim=-1) - logits[..., -1]


class PromptedSystem(System):
    """A system whose classes and Normal are texts, P prompts of each; with `directions="direct"`, free vectors."""

    OPTIONS = System.OPTIONS | {"clip"}

    def __init__(
        self,
        config: AnomalyCLIPConfig,
        clip: nn.Module | None,
        tokenize: Callable[[list[str]], Tensor] | None,
        prototype: Tensor | None,
    ):
        super().__init__(config, prototype)
        C, D = len(config.classes), config.feature_dim
        self.register_buffer("directions", torch.zeros(C + 1, D))  # finished texts, for inference
        self.free_text = nn.Parameter(randn(1, C + 1, D, scale=0.02)) if config.directions == "direct" else None
        self.prompt_learner: nn.Module | None = None
        if clip is not None and self.free_text is None:
            if (width := text_width(clip)) != D:
                raise ValueError(
                    f"CLIP's text features have {width} values, the video features {D}; use features of the same CLIP"
                )
            names = tuple(name.replace("_", " ") for name in config.classes)
            if NORMAL in (name.lower() for name in names):
                raise ValueError(f"classes must not be called {NORMAL!r}, which is what is no anomaly, got {names}")
            self.prompt_learner = self.make_prompts(
                replace(config, classes=(*names, NORMAL)), clip, cast(Callable, tokenize)
            )

    def make_prompts(
        self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor]
    ) -> nn.Module:
        """Of a config whose last class is Normal."""
        raise NotImplementedError

    def text_features(self) -> Tensor:
        """As CLIP makes them, (P, C + 1, D); free vectors have length 1."""
        if self.free_text is None and self.prompt_learner is None:
            raise ValueError(f"{self.NAME} needs CLIP to be trained: pass clip and tokenize")
        text = self.prompt_learner() if self.prompt_learner else F.normalize(cast(Tensor, self.free_text), dim=-1)
        return text.reshape(-1, *self.directions.shape)

    @torch.no_grad()
    def finish_directions(self) -> None:
        if self.free_text is not None or self.prompt_learner is not None:
            self.directions.copy_(self.text_features().mean(dim=0))

    def class_text(self) -> Tensor:
        """Mean over the prompts, (C + 1, D)."""
        return self.text_features().mean(dim=0) if self.training else self.directions


def text_width(clip: nn.Module) -> int:
    """Size of CLIP's text features, D."""
    projection = cast(Tensor, clip.text_projection)
    return projection.shape[1]


def text_side(clip: nn.Module) -> nn.Module:
    """A frozen copy of this project's CLIP without its image tower, so that the one that came in stays as it was."""
    text = copy.copy(clip)
    text._modules = {name: module for name, module in clip._modules.items() if name != "visual"}
    return copy.deepcopy(text).float().requires_grad_(False)


def starting_scale(clip: nn.Module | None) -> nn.Parameter:
    """CLIP's temperature, as a logarithm; without one, that with which its training began."""
    if clip is None:
        return nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    return nn.Parameter(cast(Tensor, clip.logit_scale).detach().float().clone())
