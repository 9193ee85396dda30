"""AnomalyCLIP as one of the systems that train.py knows."""

from dataclasses import fields

from torch import Tensor, nn

from anomalyclip import PROMPTS, AnomalyCLIP, AnomalyCLIPConfig
from videoanomaly.data.prototype import normal_moments, normality_prototype
from videoanomaly.data.training_data import TrainingData
from videoanomaly.systems.base import Defaults, Trainable
from videoanomaly.systems.temporal_bodies import other_body


class AnomalyCLIPSystem(Trainable, AnomalyCLIP):
    """AnomalyCLIP with what train.py asks of a system; the model, and its checkpoints, are those of anomalyclip.py."""

    DEFAULTS = Defaults(weight_decay=0.2, optimizer="AdamW", betas=(0.9, 0.98), schedule="cosine", num_frames=16)
    DIRECTIONS = ("finetune", "frozen", "engineered", "ensemble", "direct")
    OPTIONS = frozenset(f.name for f in fields(AnomalyCLIPConfig)) | {
        "lr", "epochs", "clip", "lambdas", "recipe", "temporal_features", "temporal_frames_per_feature"}  # fmt: skip
    EXTRAS = ("normal_moments",)

    @classmethod
    def check(cls, config: AnomalyCLIPConfig) -> None:
        if config.temporal == "mtn" and config.embed_dim % 8:
            raise ValueError(f"embed_dim must be a multiple of 8 for 'mtn', got {config.embed_dim}")
        if config.num_segments < 2 * config.topk:  # top and bottom segments are selected
            raise ValueError(f"--num-segments {config.num_segments}: expected at least {2 * config.topk}, twice --topk")

    @classmethod
    def learn(cls, data: TrainingData, seed: int) -> dict[str, Tensor]:
        """Both prototypes."""
        folders = {"prototype": data.features, "temporal_prototype": data.temporal}
        return {name: normality_prototype(folder, data.lists.train) for name, folder in folders.items() if folder}

    def temporal_body(self) -> nn.Module:
        """Any of Table 10."""
        return other_body(self.config) or super().temporal_body()

    def extras(self, data: TrainingData) -> dict:
        """What new classes need: `normal_moments`, where prompts fit any class."""
        config = self.config
        fit = config.shared_ctx and config.directions != "direct" or config.directions in PROMPTS
        if not fit or config.likelihood != "projection":
            return {}
        return {"normal_moments": normal_moments(data.features, data.lists.train)}
