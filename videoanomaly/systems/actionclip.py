"""ActionCLIP: a temporal head on frozen features, beside templates of prompts."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, randn
from clip_model import Transformer
from videoanomaly.systems.base import Defaults, SegmentPrediction, per_frame
from videoanomaly.systems.prompted import PromptedSystem, against_normal, starting_scale, text_side

# As many as ActionCLIP's, of which the first three are; the others are of our making
TEMPLATES = (
    "a photo of action {}",
    "Human action of {}",
    "{}, a video of action",
    "{}",
    "an action: {}",
    "a video of {}",
    "a recording of {}",
    "footage of {}",
    "somebody seen in {}",
    "people in a scene of {}",
    "the event is {}",
    "this is {}",
    "a person in the act of {}",
    "what happens here is {}",
    "a short clip of {}",
    "an example of {}",
)


class TemplatePrompts(nn.Module):
    """TEMPLATES with the class names through the frozen tower, once; only the projection may learn. Gives (16, C + 1,
    D).
    """

    encoded: Tensor

    def __init__(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor]):
        super().__init__()
        tower: Any = clip  # with OpenAI's names of parameters
        tokens = tokenize([template.format(name) for template in TEMPLATES for name in config.classes])
        text: Any = text_side(clip)
        text.text_projection = nn.Parameter(torch.eye(len(tower.text_projection)), requires_grad=False)
        with torch.no_grad():
            encoded = text.encode_text(tokens.to(text.token_embedding.weight.device))
        self.register_buffer("encoded", encoded.unflatten(0, (len(TEMPLATES), -1)), persistent=False)  # (16, C + 1, W)
        self.text_projection = nn.Parameter(
            tower.text_projection.detach().float().clone(), config.directions == "finetune"
        )

    def forward(self) -> Tensor:
        return self.encoded @ self.text_projection


class ActionCLIP(PromptedSystem):
    """Temporal head on frozen features, each segment with its video's label (arXiv:2109.08472; sallymmx/ActionCLIP).

    Its position embedding has one row for each row of a segment. A segment's class probabilities are those of its rows.
    CLIP's temperature stays as it is. Features go in as they are: the temporal head starts with steps of a size that
    those of length 1 would drown in.
    """

    NAME = "actionclip"
    DEFAULTS = Defaults(5e-6, 0.2, epochs=50, num_frames=8, optimizer="AdamW", schedule="cosine")
    MULTIPLE = 8  # heads
    SEES_MEANS = False
    DIRECTIONS = ("finetune", "frozen", "direct")

    def __init__(
        self,
        config: AnomalyCLIPConfig,
        *,
        clip: nn.Module | None = None,
        tokenize: Callable[[list[str]], Tensor] | None = None,
        prototype: Tensor | None = None,
    ):
        super().__init__(config, clip, tokenize, prototype)
        self.logit_scale = starting_scale(clip).requires_grad_(False)
        self.positions = nn.Parameter(randn(config.num_frames, config.feature_dim, scale=0.02))
        self.temporal = Transformer(width=config.feature_dim, layers=6, heads=8, causal=False, quick_gelu=True)

    def make_prompts(
        self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor]
    ) -> nn.Module:
        return TemplatePrompts(config, clip, tokenize)

    def parameter_groups(self) -> list[dict]:
        """The temporal head, and vectors that stand in for texts, learn ten times as fast as the text projection."""
        groups = {1: [], 10: []}
        for name, p in self.named_parameters():
            if p.requires_grad:
                groups[1 if name.startswith("prompt_learner") else 10].append(p)
        return [{"params": params, "scale": scale} for scale, params in groups.items() if params]

    def text_features(self) -> Tensor:
        """Normalised, (P, C + 1, D)."""
        return F.normalize(super().text_features(), dim=-1)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = features.flatten(0, 1)  # (B * S, F, D)
        x = (x + self.temporal(x + self.positions)).mean(dim=1).unflatten(0, features.shape[:2]).float()  # (B, S, D)
        logits = self.logit_scale.exp() * F.normalize(x, dim=-1) @ F.normalize(self.class_text(), dim=-1).T
        logits = per_frame(logits, features.shape[2])  # (B, S, F, C + 1)
        return SegmentPrediction(against_normal(logits), logits[..., :-1], x)

    def losses(self, prediction: SegmentPrediction, labels: Tensor) -> dict[str, Tensor]:
        """Each segment of the batch beside a random text of each segment's class, both ways; targets favour equal
        classes.
        """
        video = F.normalize(prediction.embedding.flatten(0, 1), dim=-1)  # (n, D), n = B * S
        label = torch.cat([labels, torch.full_like(labels, len(self.config.classes))])
        label = label.repeat_interleave(prediction.embedding.shape[1])  # (n,)
        prompts = self.text_features()  # (P, C + 1, D)
        text = prompts[torch.randint(len(prompts), label.shape, device=label.device), label]  # (n, D)
        logits = self.logit_scale.exp() * video @ text.T  # (n, n)
        target = (10.0 * (label[:, None] == label)).softmax(dim=1)
        both = [F.kl_div(x.log_softmax(dim=1), target, reduction="batchmean") for x in (logits, logits.T)]
        return self.with_total({"contrast": (both[0] + both[1]) / 2})
