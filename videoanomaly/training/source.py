"""What there is to train on: folders of videos or lists of them, and which videos have features."""

import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

import clip_model
from videoanomaly.data.annotations import VideoLists
from videoanomaly.data.features import FeatureFolder, NoFeatures
from videoanomaly.data.folders import SPLITS, folder_lists, has_lists, place_of, tell
from videoanomaly.data.lists import load_lists
from videoanomaly.data.training_data import of_kind
from videoanomaly.runtime.console import InputError, count, reveal, some_of
from videoanomaly.settings import TrainingSettings
from videoanomaly.video.extraction import is_done
from videoanomaly.video.finding import WASTE, find_videos

OURS = ("features", "runs")  # folders that lie beside those of the classes
RESULTS = ("events.json", "index.html", "last.pt", "metrics.json", "scores.npz")  # a folder that holds one is no class


class Source(NamedTuple):
    """What there is to train on, before any work."""

    lists: VideoLists
    features: FeatureFolder  # what is there of them
    missing: list[str]  # names of the videos without features
    files: dict[str, Path]  # videos to encode if need be, by name


def look(settings: TrainingSettings, earlier: dict | None) -> Source:
    """The videos, their classes, and which of them have features.

    Args:
        earlier: The checkpoint to go on from.
    """
    root, out, only_normal = Path(settings.root), Path(settings.out), settings.system.NORMAL_ONLY
    if not root.is_dir():
        raise InputError(f"{root}: is no folder, expected one with the videos of each class in a folder, or with lists")
    by_lists, found = has_lists(root) or settings.classes_csv is not None, {}
    if by_lists:
        lists = load_lists(settings.dataset, root, settings.classes_csv)
    else:
        found = find_class_videos(root, out)
        lists = folder_lists(root, found, normal_only=only_normal)
        lists = lists_of_run(out, lists, earlier, only_normal) if earlier else lists
    if settings.evaluate and not lists.test:
        raise InputError(
            f"--evaluate: found no test videos in {root}, expected some in a folder test/CLASS, or in test.txt, and "
            "their anomalous frames in temporal_annotations.txt (docs/videos.md)"
        )
    if only_normal:
        lists = of_kind(lists, settings.root, only_normal)
    names = [video.name for video in lists.train + lists.test]
    features, missing = find_features(settings, names, found, by_lists)
    found = listed_videos(root, out, missing) if by_lists and missing else found
    for name in missing:
        if name not in found:
            features.open(name)  # raises what tells where it was looked for
    check_options(settings, features, missing)
    return Source(lists, features, missing, {name: found[name] for name in names if name in found})


def find_class_videos(root: Path, out: Path) -> dict[str, Path]:
    """The videos in folders of classes, by name; lines on folders of results and empty ones."""
    results, found = set(), {}
    for name, path in find_videos(root, out, needed=False).items():
        folder = place_of(name).path
        if folder.lower() in OURS or any((root / folder / file).is_file() for file in RESULTS):
            results.add(folder)
        else:
            found[name] = path
    if results:
        tell(f"{root}: left out folders of results: {some_of(results)}")
    used = {place_of(name).path for name in found}
    if empty := [folder for folder in class_folders(root) if folder not in used | results]:
        tell(f"{root}: found no video in {some_of(empty)}")
    if not found:
        raise InputError(
            f"{root}: found no video in a folder, expected Normal/a.mp4, Fighting/b.mp4, ..., or train.txt"
        )
    return found


def class_folders(root: Path) -> list[str]:
    """Folders below the root, or below its train/ and test/, that are named like one of a class."""
    names = []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name.startswith(".") or entry.name.lower() in WASTE.union(OURS):
            continue
        is_split = entry.name.lower() in SPLITS
        names += [f"{entry.name}/{name}" for name in class_folders(Path(entry.path))] if is_split else [entry.name]
    return names


def lists_of_run(out: Path, found: VideoLists, earlier: dict, only_normal: bool) -> VideoLists:
    """The lists that a run to go on with was begun on; one line on videos that were added since then.

    Raises:
        InputError: If a video has another class now.
    """
    lists = VideoLists.from_plain(earlier["lists"])
    trained = {v.name: v.label for v in lists.train + lists.test}
    kinds = {v.name: found.classes[v.label] if v.label >= 0 else "Normal" for v in found.train + found.test}
    for name, label in trained.items():
        before = lists.classes[label] if label >= 0 else "Normal"
        if kinds.get(name, before) != before and not only_normal:
            raise InputError(f"{name}: found in a folder of {kinds[name]}, expected {before} as in {out}/last.pt")
    if added := [name for name in kinds if name not in trained]:
        tell(
            f"{out}: goes on without {count(len(added), 'video')} that it was not begun with: {some_of(added)}; "
            "another --out trains with them, and --features with this run's encodes them alone"
        )
    return lists


def find_features(
    settings: TrainingSettings, names: list[str], found: dict[str, Path], by_lists: bool
) -> tuple[FeatureFolder, list[str]]:
    """Where the features are, or will be, and the videos that lack them: the folder that was given, else one below ROOT
    that has them, else OUT/features.

    Raises:
        InputError: If some lie in a folder that extract_features.py did not make, which cannot be gone on with.
    """
    own = str(Path(settings.out, "features"))
    places = [settings.features] if settings.features else [settings.root, own]
    if not by_lists and not settings.features and not FeatureFolder(settings.root).meta:
        places = [own]  # ROOT may hold other runs' features under the same names
    folders = [
        FeatureFolder(place, frames_per_feature=settings.frames_per_feature, crops=settings.crops) for place in places
    ]
    lacking = [[name for name in names if not has_features(folder, name, found.get(name))] for folder in folders]
    best = min(range(len(folders)), key=lambda i: (len(lacking[i]) > 0, folders[i].meta is None))
    if not lacking[best]:
        return with_meta(folders[best], names[0]), []
    if made := next((folder for folder in folders[best].folders if (folder / "meta.json").is_file()), None):
        return FeatureFolder(made), lacking[best]  # the others go there, too
    for folder, missing in zip(folders, lacking):
        if len(missing) < len(names):
            folder.open(missing[0])  # raises what tells where it was looked for
    return folders[-1], lacking[-1]


def with_meta(folder: FeatureFolder, name: str) -> FeatureFolder:
    """The folder with a meta.json that holds the features of a video, where they were found deeper in another."""
    path = folder.paths(name)[0]
    inside = [] if folder.meta else [place for place in path.parents if place.is_relative_to(folder.root)]
    made = next((place for place in inside if (place / "meta.json").is_file()), None)
    return FeatureFolder(made, crops=folder.crops) if made else folder


def has_features(folder: FeatureFolder, name: str, video: Path | None) -> bool:
    """Whether a video has its features; of a file that is given, features of this very file."""
    try:
        folder.paths(name)
    except NoFeatures:
        return False
    return not (video and folder.meta) or is_done(folder.meta, name, video)


def listed_videos(root: Path, out: Path, names: list[str]) -> dict[str, Path]:
    """The files of some listed videos, as far as they are there; either way of writing an accent will do."""
    spelt = {unicodedata.normalize("NFC", name): path for name, path in find_videos(root, out, needed=False).items()}
    return {name: spelt[key] for name in names if (key := unicodedata.normalize("NFC", name)) in spelt}


def check_options(settings: TrainingSettings, features: FeatureFolder, missing: list[str]) -> None:
    """Refuses options that do not fit what is there, before any work."""
    given, meta = settings.given, features.meta
    if settings.encoder and "clip" in given:
        raise InputError(f"--clip {settings.clip}: found with --encoder {settings.encoder}, expected one of them")
    unread = {"crops", "frames_per_feature"} if missing else set() if meta else {"encoder", "stride", "fps"}
    for name in sorted(unread):
        if (value := getattr(settings, name)) is not None and (name, value) != ("crops", 1):
            found = f"{count(len(missing), 'video')} to encode" if missing else f"all features in {features.root}"
            raise InputError(f"--{name.replace('_', '-')} {value}: found {found}, expected no such option")
    if not meta:
        return
    of_encoder = settings.encoder and settings.encoder.rpartition(":")[2]
    for name, asked, value in (("stride", settings.stride, settings.stride), ("encoder", settings.encoder, of_encoder)):
        if value not in (None, meta[name]):
            raise InputError(
                f"--{name} {asked}: found features with {name} {meta[name]} in {features.root}, expected the same, or "
                "another --features"
            )
    known = meta["encoder"].removeprefix("clip ") in clip_model.available_models()
    if missing and not (known or settings.encoder or "clip" in given):
        option = "--clip FILE" if meta["encoder"].startswith("clip ") else "--encoder FILE.py:CLASS"
        raise InputError(
            f"{features.root}: found features of {meta['encoder']}, but none of {count(len(missing), 'video')} such as "
            f"{reveal(missing[0])}, expected {option} that encodes them, or another --features"
        )
