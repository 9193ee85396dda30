"""From videos to all that a training reads: features, directions, sizes that fit; and what is told before it."""

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from videoanomaly.data.annotations import VideoLists
from videoanomaly.data.folders import check_kinds, tell
from videoanomaly.runtime.console import as_text, count, reveal, some_of
from videoanomaly.runtime.precision import precision_of
from videoanomaly.runtime.processes import same_for_all, wait_for_all
from videoanomaly.runtime.run_folder import command, given_command, resume_command
from videoanomaly.runtime.torchrun import processes_here, rank_and_world
from videoanomaly.settings import TrainingSettings
from videoanomaly.systems.ours import AnomalyCLIPSystem
from videoanomaly.training.cross_fitting import sources
from videoanomaly.training.sizes import Length, sizes_for, stride_for
from videoanomaly.training.source import Source, look
from videoanomaly.video.decoding import header_length
from videoanomaly.video.extraction import ExtractionOptions, extract_connected

FEW_VIDEOS, FEW_HOURS = 10, 1.0  # of a class; of normal video
NO_TEXT = (
    "{} has no text, so the directions of the classes are learned without it (--directions direct): 6 points of "
    "AUC and 9 of mAUC less on the demo than with CLIP and its text (docs/cameras.md)"
)


def ready_data(
    settings: TrainingSettings, earlier: dict | None, argv: list[str] | None, device: str, *, check: bool
) -> tuple[TrainingSettings, VideoLists | None]:
    """All up to a folder of features, by all processes together; says what is there and what it will take.

    Args:
        earlier: The checkpoint to go on from.
        argv: As `main` got it, for the command line with the chosen sizes.
        check: Only look, encode nothing.
    Returns:
        The settings with features, directions and sizes that fit; the lists, None where features are still missing.
    Raises:
        InputError: If something is missing or does not fit.
    """
    source = same_for_all(partial(look, settings, earlier))
    if settings.folds:
        sources(source.lists.train, settings.root, settings.group_by)  # what is wrong with groups.txt is told here
    lengths = lengths_of(source)
    tell_footage(settings.root, source.lists, lengths)
    stride = stride_of(settings, source, earlier, [*lengths.values()], device)
    ready = with_directions(settings, source)
    if earlier:
        fitting = sizes_of(settings, earlier["settings"])
    else:
        fitting = sizes_that_fit(settings, source, [*lengths.values()], stride)
        chosen = fitting | ({"directions": "direct"} if ready is not settings else {})
        tell_choice(argv, chosen | ({"stride": stride} if source.missing and not settings.stride else {}), len(lengths))
    ready = with_sizes(ready, fitting)
    place = source.features.root
    if place not in (Path(settings.features or ""), Path(settings.root)):
        ready = replace(ready, features=str(place))
    if not source.missing:
        return ready, source.lists
    if check:
        print(f"{count(len(source.missing), 'video')} would be encoded into {as_text(str(place))}")
        return ready, None
    try:
        return ready, encode(settings, source, stride)
    except KeyboardInterrupt:
        print(f"go on with: {resume_command(argv)}")
        raise


def stride_of(
    settings: TrainingSettings, source: Source, earlier: dict | None, lengths: list[Length], device: str
) -> int:
    """Frames from one row of features to the next: of those that are there, as given, as of the run, or as fits."""
    if source.features.meta or not source.missing:
        return source.features.frames_per_feature
    known = settings.stride or (earlier or {}).get("frames_per_feature")
    return known or stride_for(lengths, device != "cpu")


def lengths_of(source: Source) -> dict[str, Length]:
    """The lengths of the training videos: as meta.json or their headers tell, or by their rows."""

    def length(name: str) -> Length:
        if name in missing:
            return Length(*header_length(source.files[name]))
        return Length(source.features.num_frames(name), source.features.frame_rate(name))

    missing, names = set(source.missing), [video.name for video in source.lists.train]
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(length, names)))


def tell_footage(root: str, lists: VideoLists, lengths: dict[str, Length]) -> None:
    """Videos and footage of each class, and where that is little."""
    counts, seconds = Counter(video.label for video in lists.train), defaultdict(float)
    for video in lists.train:
        seconds[video.label] += lengths[video.name].seconds
    kinds = {-1: "Normal"} | dict(enumerate(lists.classes))
    print(f"{as_text(str(root))}: {len(lists.train)} videos for training, {len(lists.test)} for test")
    width = max(len(reveal(kinds[label])) for label in counts)
    for label in sorted(counts):
        print(f"  {reveal(kinds[label]):{width}}  {counts[label]:5} videos  {seconds[label] / 3600:8.2f} h")
    few = [f"{counts[label]} of {reveal(kind)}" for label, kind in kinds.items() if 1 < counts[label] < FEW_VIDEOS]
    if few:
        print(f"warning: {', '.join(few)}: of {FEW_VIDEOS} videos of a class and more less is learned by chance")
    if 0 < (hours := seconds[-1] / 3600) < FEW_HOURS:
        print(
            f"warning: {hours:.2f} h of normal video cannot tell rates below {1 / hours:.1f} false alarms per hour; "
            f"{FEW_HOURS:g} h would do for 1 per hour"
        )


def with_directions(settings: TrainingSettings, source: Source) -> TrainingSettings:
    """Learned directions where the encoder has no text and none were given; one line says so."""
    name = (source.features.meta or {}).get("encoder") or (settings.encoder or "").rpartition(":")[2]
    has_text = not name or name.startswith("clip ")
    choices = settings.system.DIRECTIONS
    own = settings.config.get("directions") or choices[0]
    if has_text or {"directions", "clip"} & settings.given or own == "direct" or "direct" not in choices:
        return settings
    print(NO_TEXT.format(as_text(name)))
    return replace(settings, config=settings.config | {"directions": "direct"})


def sizes_that_fit(settings: TrainingSettings, source: Source, lengths: list[Length], stride: int) -> dict[str, int]:
    """By name, without those that were given; systems of others have their papers'."""
    if settings.model != AnomalyCLIPSystem.NAME:
        return {}
    num_normal = sum(video.label < 0 for video in source.lists.train)
    sizes = sizes_for(lengths, max(num_normal, len(lengths) - num_normal), stride)
    twice = 2 * rank_and_world()[2]  # a batch has a share for each process
    sizes["batch_size"] = -(-sizes["batch_size"] // twice) * twice
    return {name: value for name, value in sizes.items() if name not in settings.given}


def sizes_of(settings: TrainingSettings, earlier: dict) -> dict[str, int]:
    """Those that a run to go on with was begun with, where none are given now."""
    if settings.model != AnomalyCLIPSystem.NAME:
        return {}
    names = {"embed_dim", "depth", "batch_size", "epochs", "num_frames"} - settings.given
    return {name: earlier[name] for name in names if name in earlier}


def with_sizes(settings: TrainingSettings, sizes: dict[str, int]) -> TrainingSettings:
    of_config = {name: value for name, value in sizes.items() if name in settings.config}
    others = {name: value for name, value in sizes.items() if name not in settings.config}
    return replace(settings, config=settings.config | of_config, **others)


def tell_choice(argv: list[str] | None, chosen: dict[str, Any], num_videos: int) -> None:
    """The command line that the chosen sizes amount to."""
    if chosen:
        options = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", value)]
        print(f"sizes for {num_videos} videos: {given_command(argv, *options)}")


def encode(settings: TrainingSettings, source: Source, stride: int) -> VideoLists:
    """Encodes what is missing; the lists without the videos that cannot be read, which one line names."""
    meta, place = source.features.meta or {}, source.features.root
    options = ExtractionOptions(
        videos=Path(settings.root),
        out=place,
        clip=settings.clip,
        encoder=settings.encoder,
        stride=stride,
        crops=meta.get("crops", 1),
        jpeg=meta.get("jpeg"),
        device=settings.device,
        device_preprocess="preprocess" in meta,
        precision=precision_of(meta),
        fps=settings.fps,
        workers=max(1, min(8, (os.cpu_count() or 1) // processes_here())),
    )
    extract_connected(options, source.files, tells_time=True)
    wait_for_all()  # the first process has written meta.json
    broken = [name for name in source.missing if not (place / f"{name}.npy").is_file()]
    if not broken:
        return source.lists
    tell(f"{settings.root}: left out {count(len(broken), 'video')} that cannot be read: {some_of(broken)}")
    lists = source.lists
    train, test = ([v for v in videos if v.name not in broken] for videos in (lists.train, lists.test))
    check_kinds(Path(settings.root), [v.label for v in train], len(test), settings.system.NORMAL_ONLY)
    return VideoLists(lists.classes, train, test)


def predict_command(settings: TrainingSettings, ckpt: Path) -> str:
    """The command line that finds events in a video."""
    brings = ["--encoder", settings.encoder] if settings.encoder else []
    return command("predict.py", "--ckpt", ckpt, *brings, "VIDEO", "--out", ckpt.parent / "report")
