"""The settings of a training: what was given, else the system's own, else the data set's, else the config's."""

from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.clip_weights import DEFAULT_CLIP
from videoanomaly.data.annotations import VideoLists
from videoanomaly.data.datasets import Dataset
from videoanomaly.data.training_data import TrainingData, open_training_data
from videoanomaly.runtime.console import InputError
from videoanomaly.systems.base import Trainable
from videoanomaly.systems.catalogue import SYSTEMS
from videoanomaly.systems.checks import check_config

SMALL_STEPS = 500  # of any system but ours on small data sets; on the demo their losses settle by then
SNIPPET = 16  # frames of a segment in the papers
SHAPE = ("classes", "feature_dim", "temporal_feature_dim")  # config fields that come from the data
CONFIG_FIELDS: dict[str, Field] = {f.name: f for f in fields(AnomalyCLIPConfig) if f.name not in SHAPE}
OPTIONAL = {
    *CONFIG_FIELDS,
    "lambdas",
    "temporal_features",
    "temporal_frames_per_feature",
    "clip",
    "epochs",
    "lr",
    "recipe",
}
RECIPES = ("paper", "beyond")
BEYOND = {  # config fields that --recipe beyond changes where nothing is given, see docs/recipe.md
    "with text": {"smoothing": 0.5, "lambda_top_normal": 0.3, "temporal_input": "relative"},
    "without": {"smoothing": 0.5, "class_head": True},
}


@dataclass(frozen=True)
class TrainingSettings:
    """All of a training, as checkpoints hold it; None where nothing was given and the data or the config decide."""

    dataset: str
    model: str
    root: str
    out: str
    features: str | None
    temporal_features: str | None
    frames_per_feature: int | None
    temporal_frames_per_feature: int | None
    crops: int
    classes_csv: str | None
    clip: str
    encoder: str | None  # FILE.py:CLASS that encodes videos without features
    stride: int | None  # frames from one encoded frame to the next
    fps: float | None  # frames/s of folders of pictures that are encoded
    lr: float
    epochs: int | None
    batch_size: int
    seed: int
    amp: bool
    compile: bool
    resume: bool
    evaluate: bool
    device: str | None
    workers: int
    folds: int  # of cross-fitting, 0 without
    group_by: str | None  # see cross_fitting.sources
    lambdas: list[str]
    config: dict[str, Any]  # config fields by name
    tensorboard: str | None = None
    recipe: str | None = None  # other than the paper's
    given: frozenset[str] = frozenset()  # names of all that the command line gave

    @property
    def system(self) -> type[Trainable]:
        return SYSTEMS[self.model]

    def asdict(self) -> dict[str, Any]:
        """Flat, as in checkpoints: the config's fields beside the others."""
        plain = asdict(self)
        del plain["given"]
        return plain | plain.pop("config")

    def open_data(self, lists: VideoLists | None = None) -> TrainingData:
        """See `open_training_data`."""
        return open_training_data(
            self.dataset,
            self.root,
            features=self.features,
            temporal_features=self.temporal_features,
            frames_per_feature=self.frames_per_feature,
            temporal_frames_per_feature=self.temporal_frames_per_feature,
            crops=self.crops,
            classes_csv=self.classes_csv,
            normal_only=self.system.NORMAL_ONLY,
            lists=lists,
        )

    def for_data(self, data: TrainingData) -> "TrainingSettings":
        """With what follows from the data where nothing was given: rows of a segment, epochs that take the steps."""
        own, config, epochs = self.system.DEFAULTS, dict(self.config), self.epochs
        if config["num_frames"] is None and own.num_frames is None:
            config["num_frames"] = max(SNIPPET // data.features.frames_per_feature, 1)
        if epochs is None:
            steps = SMALL_STEPS if data.dataset.is_small and own.steps != 0 else own.steps or 0
            longest = max(data.num_abnormal, data.num_normal)
            epochs = -(-steps // -(-longest // (self.batch_size // 2)))  # as BalancedBatches
        return replace(self, config=config, epochs=epochs)


def resolve(dataset: Dataset, system: type[Trainable], given: dict[str, Any]) -> TrainingSettings:
    """The settings of a run.

    Args:
        given: Values by name, flat; None (of lambdas an empty list) where nothing was given.
    Raises:
        InputError: If something is given that the system has no use for.
    """
    unused = OPTIONAL - system.OPTIONS
    for name in sorted(unused):
        if given.get(name) not in (None, []):
            option = f"--{name.replace('_', '-')}"
            model = "--normal-only" if system.NORMAL_ONLY else f"--model {system.NAME}"
            raise InputError(f"{option}: found with {model}, which has no use for it")
    if given.get("directions") not in (None, *system.DIRECTIONS):
        expected = " or ".join(system.DIRECTIONS)
        raise InputError(f"--directions {given['directions']}: expected {expected} with --model {system.NAME}")
    own = {name: value for name, value in dataset.settings.items() if name not in unused} | system.settings(dataset)
    own = {"batch_size": 64, "evaluate": False, "folds": 0} | own
    recipe = None if given.get("recipe") == "paper" else given.get("recipe")
    if recipe:
        own |= {"directions": "ensemble"} | dataset.beyond
    values = given | {name: value for name, value in own.items() if given.get(name) is None}
    values["recipe"] = recipe
    values["out"] = values["out"] or f"runs/{dataset.name}"
    own_clip = str(Path(values["root"], "clip.pt")) if dataset.is_made else DEFAULT_CLIP
    values["clip"] = values["clip"] or own_clip
    config = {name: values.pop(name) for name in CONFIG_FIELDS if name in values}  # weights of losses are in lambdas
    names = frozenset(name for name, value in given.items() if value not in (None, []))
    return TrainingSettings(config=config, given=names, **values)


def make_config(
    settings: TrainingSettings, classes: tuple[str, ...], feature_dim: int, temporal_feature_dim: int | None
) -> AnomalyCLIPConfig:
    """The config of the data's sizes and the settings.

    Raises:
        InputError: If there is no such model.
    """
    given = {name: value for name, value in settings.config.items() if value is not None}
    if settings.recipe:
        changed = BEYOND["without" if given["directions"] == "direct" else "with text"]
        given |= {name: value for name, value in changed.items() if name not in settings.given}
    given |= dict(weight_of_loss(text) for text in settings.lambdas)
    try:
        config = AnomalyCLIPConfig(
            classes=classes, feature_dim=feature_dim, temporal_feature_dim=temporal_feature_dim, **given
        )
        settings.system.check(check_config(config))
    except ValueError as error:
        raise InputError(str(error)) from None
    return config


def weight_of_loss(text: str) -> tuple[str, float]:
    """Config field and value of a LOSS=WEIGHT."""
    name, _, value = text.partition("=")
    if f"lambda_{name}" not in CONFIG_FIELDS:
        known = sorted(n.removeprefix("lambda_") for n in CONFIG_FIELDS if n.startswith("lambda_"))
        raise InputError(f"--lambdas {text}: found loss {name!r}, expected one of {', '.join(known)}")
    try:
        return f"lambda_{name}", float(value)
    except ValueError:
        raise InputError(f"--lambdas {text}: found weight {value!r}, expected a number") from None
