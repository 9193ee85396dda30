"""Which files are videos: those of a folder and its subfolders, and folders of numbered pictures among them."""

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from videoanomaly.data.annotations import VIDEO_SUFFIXES
from videoanomaly.runtime.console import InputError, as_text, note, some_of
from videoanomaly.runtime.torchrun import is_main
from videoanomaly.video.picture_folder import is_picture_folder, numbered_pictures

# of desktops, storage boxes and file systems, in small letters; what begins with a dot is left out anyway
WASTE = {
    *("#recycle", "$recycle.bin", "@eadir", "@recycle", "__macosx", "lost+found", "recycler"),
    "system volume information",
}
OURS = {  # files that lie beside videos: lists of a data set, results, features, the demo's own
    *("classes.txt", "temporal_annotations.txt", "test.txt", "train.txt"),
    *("annotated.mp4", "events.csv", "events.json", "events.vtt", "explain.json", "explain.txt", "index.html"),
    *("event_pictures.jpg", "key_frame.jpg", "report.html", "scores.npz", "timeline.png"),
    *("clip.pt", "meta.json", "world.json"),
}
BESIDE_COPIES = ("events.json", "scores.npz")  # the last and the first of the files beside an annotated.mp4


class Search:
    """All that a folder and its subfolders hold.

    Attributes:
        videos: Video files and picture folders; also subfolders that cannot be read, since opening them tells why.
        left_out: Names of all else but our own and hidden files, by kind.
    """

    def __init__(self, source: Path, out: Path | None):
        self.source = source
        self.videos: list[Path] = []
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)
        self.seen = {identity(path) for path in source.resolve().parents}
        if out:
            self.seen.add(identity(out))
        for folder, names in self.walk():
            self.sort(folder, [name for name in names if not name.startswith(".")])
        if source in self.videos and len(self.videos) > 1:
            self.choose()
        self.videos.sort()

    def walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Yields (folder, names of its files), each folder once: one that is linked, too, comes under its own name."""
        tops = [self.source]
        for top in tops:
            if top != self.source and identity(top) in self.seen:
                self.left_out["link{s} to folders that are looked at anyway"].append(top.name)
                continue
            for folder, subfolders, names in os.walk(top, onerror=self.unreadable):
                self.seen.add(identity(folder))
                paths = [Path(folder, name) for name in sorted(subfolders) if not self.is_waste(name)]
                tops += filter(os.path.islink, paths)
                subfolders[:] = [p.name for p in paths if not os.path.islink(p) and identity(p) not in self.seen]
                yield Path(folder), names

    def unreadable(self, error: OSError) -> None:
        if Path(error.filename) == self.source:
            raise InputError(f"{self.source}: cannot be read ({error.strerror}), expected a folder of videos")
        self.videos.append(Path(error.filename))

    def is_waste(self, name: str) -> bool:
        if is_waste := name.startswith(".") or name.lower() in WASTE:
            self.left_out["hidden folder{s} or waste bin{s}"].append(name)
        return is_waste

    def sort(self, folder: Path, names: list[str]) -> None:
        """Into videos and what is left out: the files of a folder."""
        found = [folder / name for name in names if is_video_name(name) and self.is_video(folder / name)]
        others = {name for name in names if not is_video_name(name)} - OURS
        if not found and is_picture_folder(folder):
            found = [folder]
            others -= {path.name for path in numbered_pictures(folder)}
        self.videos += found
        for name in others:
            if is_dangling(folder / name):
                self.left_out["link{s} to nothing"].append(name)
            elif not name.endswith(".npy"):
                self.left_out["file{s} of other types"].append(Path(name).suffix.lower() or name)

    def is_video(self, path: Path) -> bool:
        """Whether to open a file that is named like a video; if not, that is noted."""
        if is_dangling(path):
            self.left_out["link{s} to nothing"].append(path.name)
        elif is_special(path):
            self.left_out["pipe{s}, socket{s} or device{s}"].append(path.name)
        elif path.name == "annotated.mp4" and any((path.parent / name).is_file() for name in BESIDE_COPIES):
            self.left_out["file{s} of earlier results"].append(f"{path.parent.name}/{path.name}")
        else:
            return True
        return False

    def choose(self) -> None:
        """A folder of pictures that was given is the video, unless there are video files below it."""
        others = [path for path in self.videos if path != self.source]
        if any(is_video_name(path.name) and not path.is_dir() for path in others):
            self.left_out["file{s} of other types"] += [p.suffix.lower() for p in numbered_pictures(self.source)]
            self.videos = others
        else:
            self.left_out["folder{s} in a folder of pictures"] = [path.name for path in others]
            self.videos = [self.source]

    def told(self) -> str:
        """What is left out, in one line, such as `2 files of other types (.txt)`."""
        parts = []
        for kind, names in self.left_out.items():
            parts.append(f"{len(names)} {kind.format(s='s' * (len(names) > 1))} ({some_of(names)})")
        return ", ".join(parts)


def identity(path: str | Path) -> tuple[int, int] | str:
    """Equal for all ways to a file or folder."""
    try:
        found = os.stat(path)
    except OSError:
        return str(path)
    return found.st_dev, found.st_ino


def is_dangling(path: Path) -> bool:
    """Whether it is a link to nothing, or to itself."""
    try:
        path.stat()
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink()
    return False


def is_special(path: Path) -> bool:
    """Whether it is no plain file; not where that cannot be told, since opening it tells why."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def is_video_name(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def name_of(path: Path, source: Path) -> str:
    """The name of a video below a source, with "/". Only known suffixes are cut off, for names may hold dots."""
    name = Path(Path(os.path.abspath(path)).name) if path == source else path.relative_to(source)
    return (name.with_suffix("") if is_video_name(name.name) else name).as_posix()


def check_source(source: Path) -> None:
    """Refuses what is neither file nor folder; its name does not matter."""
    expected = "expected a video or a folder of videos"
    try:
        mode = source.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{source}: found nothing there, {expected}") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}), {expected}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{source}: found a pipe, socket or device, {expected}")


def find_videos(source: Path, out: Path | None = None, needed: bool = True) -> dict[str, Path]:
    """Every video in a folder and its subfolders, or the one that is given, by its path without suffix, with "/".

    One line tells what is left out. A subfolder that cannot be read counts as a video that cannot.

    Args:
        source: A folder, or a file of whatever name.
        out: A folder of results; what lies below it is ours, unless the source does, too.
        needed: Whether it is an error to find none.
    Raises:
        InputError: If there is none, or two have one name.
    """
    check_source(source)
    if source.is_file():
        return {name_of(source, source): source}
    search = Search(source, out)
    told, videos = search.told(), {}
    for path in search.videos:
        name = name_of(path, source)
        if name in videos:
            raise InputError(f"{videos[name]} and {path} would both give {name}.npy: rename one of them")
        videos[name] = path
    if needed and not videos:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        found = f"found no video, only {told}" if told else "found no video"
        raise InputError(
            f"{source}: {found}; expected files with {suffixes} or folders of pictures 000.jpg 001.jpg ..."
        )
    if told and is_main():
        note(f"left out of {as_text(str(source))}: {told}")
    return videos


def find_all_videos(sources: list[Path], out: Path) -> dict[str, Path]:
    """Videos of all sources, as `find_videos` gives them.

    Raises:
        InputError: As `find_videos`, also if two sources have videos of one name.
    """
    videos = {}
    for source in sources:
        is_out = identity(source) == identity(out)  # `folder/* --out folder/results` names the results, too
        needed = not is_out or source is sources[-1] and not videos
        for name, path in find_videos(source, out, needed).items():
            if name in videos:
                raise InputError(
                    f"{videos[name]} and {path} would both give {name}: rename one of them, or run them apart"
                )
            videos[name] = path
    return videos


def size_and_time(video: Path) -> dict[str, int]:
    """Bytes and time of the last change of a video, or of all pictures of a folder, by which a new one is noticed."""
    try:
        found = [path.stat() for path in (numbered_pictures(video) if video.is_dir() else [video])]
    except OSError:  # it is gone; opening it tells so
        found = []
    return {"size": sum(f.st_size for f in found), "mtime_ns": max((f.st_mtime_ns for f in found), default=0)}
