"""All that a training reads: lists and features, looked at before any work."""

from typing import NamedTuple

from videoanomaly.data.annotations import VideoLists, note_rare_classes
from videoanomaly.data.datasets import DATASETS, Dataset
from videoanomaly.data.features import FeatureFolder, check_features
from videoanomaly.data.lists import load_lists
from videoanomaly.runtime.console import InputError, note
from videoanomaly.runtime.torchrun import is_main


class TrainingData(NamedTuple):
    """Of one data set."""

    dataset: Dataset
    lists: VideoLists
    features: FeatureFolder
    temporal: FeatureFolder | None  # the Temporal model's own features of the same frames, if it has any

    def to_plain(self) -> dict:
        """What a checkpoint tells of it: plain values."""
        return {
            "lists": self.lists.to_plain(),
            "encoder": self.features.encoder,
            "frames_per_feature": self.features.frames_per_feature,
            "temporal_encoder": self.temporal and self.temporal.encoder,
        }

    @property
    def num_normal(self) -> int:
        return sum(video.label < 0 for video in self.lists.train)

    @property
    def num_abnormal(self) -> int:
        return len(self.lists.train) - self.num_normal


def open_training_data(
    dataset: str,
    root: str,
    *,
    features: str | None = None,
    temporal_features: str | None = None,
    frames_per_feature: int | None = None,
    temporal_frames_per_feature: int | None = None,
    crops: int = 1,
    classes_csv: str | None = None,
    normal_only: bool = False,
    lists: VideoLists | None = None,
) -> TrainingData:
    """Reads the lists and looks at the feature file of every video in them, training and test.

    Args:
        dataset: A key of DATASETS.
        root: Folder of the lists, and of the features where `features` does not name another.
        temporal_features: Folder of the Temporal model's own features.
        frames_per_feature, temporal_frames_per_feature, crops: See `FeatureFolder`.
        classes_csv: See `load_lists`.
        normal_only: See `of_kind`.
        lists: Instead of those below `root`.
    Raises:
        InputError: If something is missing or does not fit.
    """
    lists = of_kind(lists or load_lists(dataset, root, classes_csv), root, normal_only)
    folder = FeatureFolder(features or root, frames_per_feature=frames_per_feature, crops=crops)
    temporal = None
    if temporal_features:
        temporal = FeatureFolder(temporal_features, frames_per_feature=temporal_frames_per_feature, crops=crops)
    check_features(folder, lists.train + lists.test, temporal)
    note_rare_classes(root, lists)
    return TrainingData(DATASETS[dataset], lists, folder, temporal)


def of_kind(lists: VideoLists, root: str, normal_only: bool) -> VideoLists:
    """Lists with normal and abnormal training videos, or with normal ones alone, where the others are left out."""
    num_abnormal = sum(video.label >= 0 for video in lists.train)
    if not (normal_only or num_abnormal):
        raise InputError(
            f"{root}: found 0 anomalous and {len(lists.train)} normal training videos, expected some of both, or "
            "--normal-only"
        )
    if normal_only and num_abnormal and is_main():
        note(f"note: {root}: --normal-only leaves out {num_abnormal} abnormal training videos")
    return lists.normal_only() if normal_only else lists
