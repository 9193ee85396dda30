"""Results of many videos: what an earlier run left, what is to be done by how many processes, and the index of all."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from anomalyclip import AnomalyCLIP, Rows
from videoanomaly.frame_scores import FrameScores, score_frames
from videoanomaly.prediction import explain
from videoanomaly.prediction.recogniser import LoadedCheckpoint, PredictionOptions
from videoanomaly.prediction.results import (
    check_owner,
    kept_scores,
    read_result,
    result_settings,
    summary,
    write_index,
    write_results,
)
from videoanomaly.runtime.console import InputError, as_text
from videoanomaly.runtime.processes import gather_living
from videoanomaly.runtime.torchrun import is_main
from videoanomaly.video.decoding import why_skipped
from videoanomaly.video.encoding import Reading
from videoanomaly.video.extraction import own_share
from videoanomaly.video.finding import find_all_videos

RowsOfVideo = tuple[np.ndarray, Reading] | Exception  # features and what else was read, or why there are none
RowsOf = Callable[[dict[str, Path]], Iterator[tuple[str, RowsOfVideo]]]  # videos -> features, a row for each spacing


class Work(NamedTuple):
    """Videos by name, where the results of each go, and what they depend on."""

    videos: dict[str, Path]
    folders: dict[str, Path]
    settings: dict[str, dict]
    is_alone: bool  # one video that was named itself: there is no index

    def without(self, names: Iterable[str]) -> "Work":
        """The others."""
        left = {name: path for name, path in self.videos.items() if name not in names}
        return self._replace(videos=left)


class Done(NamedTuple):
    """What a process did."""

    results: dict[str, dict]
    failed: dict[str, str]
    num_frames: int
    num_again: int  # cut anew from their scores


def check_start_time(options: PredictionOptions, number: int) -> None:
    if options.start_time and number > 1:
        raise InputError(f"--start-time tells of one video, found {number}")


def find_work(sources: list[Path], options: PredictionOptions, recogniser: LoadedCheckpoint) -> Work:
    """All videos of the sources; what is wrong with them shows here."""
    out = options.out or Path()
    videos = find_all_videos(sources, out)
    check_start_time(options, len(videos))
    alone = sources == [*videos.values()]  # not a folder of videos
    folders = {name: out if alone else out / name for name in videos}
    settings = {name: result_settings(options, recogniser, path) for name, path in videos.items()}
    if not options.force:
        for name, path in videos.items():
            check_owner(folders[name], path, settings[name])
    return Work(videos, folders, settings, alone)


def finish(
    work: Work,
    rows_of: RowsOf,
    options: PredictionOptions,
    recogniser: LoadedCheckpoint,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Results of all videos that have none yet, and the index; the exit status.

    Args:
        rows_of: Yields each video's features, one row for every spacing-th frame.
        failed: Why videos that are no part of the work gave nothing.
    """
    videos, folders, settings = work.videos, work.folders, work.settings
    finished = {} if options.force else {name: read_result(folder) for name, folder in folders.items()}
    there = {name: r for name in videos if (r := finished.get(name)) and r["settings"] == settings[name]}
    todo = {name: path for name, path in videos.items() if name not in there}
    start = time.monotonic()
    done = write_all(work, own_share(todo), rows_of, options, recogniser)
    parts = gather_living(done._replace(results={}))
    if not is_main():
        return end_of(parts, int(bool(done.failed or failed)))
    known = [done] if parts is None else parts
    num_videos = len(videos) + len(failed)
    failed = dict(failed) | {name: why for part in known for name, why in part.failed.items()}
    of_others = {name: read_result(folders[name]) for name in todo if name not in done.results | failed}
    results = there | done.results | {name: result for name, result in of_others.items() if result}
    results = {name: results[name] for name in videos if results.get(name, {}).get("settings") == settings[name]}
    if not work.is_alone:
        write_index(options.out or Path(), results, failed)
    counts = num_videos, len(there), len(results) - len(there), len(failed)
    tell_all(options, *counts, known, time.monotonic() - start)
    return end_of(parts, int(bool(failed)))


def end_of(parts: list | None, status: int) -> int:
    """The exit status, where no process died.

    Raises:
        OSError, SystemExit: If one did; the first process tells it.
    """
    if parts is not None:
        return status
    if is_main():
        raise OSError(
            "a process ended before its work was done; what is finished stays, the same command does the rest"
        )
    raise SystemExit(1)


def tell_all(
    options: PredictionOptions,
    num_videos: int,
    num_there: int,
    num_done: int,
    num_failed: int,
    parts: list[Done],
    seconds: float,
) -> None:
    """One line on all that was done."""
    num_frames, num_again = sum(part.num_frames for part in parts), sum(part.num_again for part in parts)
    again = f"{num_again} cut anew from their scores; " * bool(num_again)
    print(
        f"{as_text(str(options.out or Path()))}: {num_done} of {num_videos} videos done, "
        f"{num_there} were there, {num_failed} skipped; {again}"
        f"{num_frames} frames, {num_frames / seconds:.1f} frames/s"
    )


def write_all(
    work: Work, todo: dict[str, Path], rows_of: RowsOf, options: PredictionOptions, recogniser: LoadedCheckpoint
) -> Done:
    """Results of some videos, each written when its last frame is done."""
    results, failed, num_frames, num_again = {}, {}, 0, 0
    for name, found in scored(todo, work.folders, work.settings, rows_of, options, recogniser):
        path, folder = work.videos[name], work.folders[name]
        try:
            if isinstance(found, Exception):
                raise found
            scores, read = found
            if again := isinstance(scores, FrameScores):
                num_again += 1
            else:
                for line in read.notes():
                    tqdm.write(as_text(f"{path}: {line}"), file=sys.stderr)
                scores = score_rows(options, recogniser, scores, name=name, times=read.times, fps=read.fps)
                num_frames += len(read.times)
            results[name] = write_results(
                folder, name, path, scores, recogniser, options, work.settings[name], read, again
            )
        except Exception as error:  # whatever a video brings about costs that video alone
            if fails_for_all(error):
                raise
            failed[name] = why_skipped(error)
            tqdm.write(as_text(f"skipped {path}: {failed[name]}"), file=sys.stderr)
            continue
        tqdm.write(summary(folder, results[name]))
    return Done(results, failed, num_frames, num_again)


def scored(
    videos: dict[str, Path],
    folders: dict[str, Path],
    settings: dict[str, dict],
    rows_of: RowsOf,
    options: PredictionOptions,
    recogniser: LoadedCheckpoint,
) -> Iterator[tuple[str, tuple[FrameScores | np.ndarray, Reading] | Exception]]:
    """Yields what `rows_of` does, but first the videos that an earlier run scored, with these scores for rows."""
    todo = dict(videos)
    for name in videos:
        if not options.force and (kept := kept_scores(folders[name], settings[name], recogniser)):
            del todo[name]
            yield name, kept
    if todo:
        yield from rows_of(todo)


def score_rows(
    options: PredictionOptions,
    recogniser: LoadedCheckpoint,
    rows: Rows,
    *others: object,
    name: str,
    times: np.ndarray,
    fps: float,
) -> FrameScores:
    """Scores of a video's rows by frame, with the Selector's likelihood where an explanation is asked for."""
    spacing, num_frames = recogniser.spacing, len(times)
    p_A, p_class = score_frames(
        recogniser.model.predict, rows, *others, num_frames=num_frames, spacing=spacing, name=name
    )
    of_frames, model = None, recogniser.model
    assert p_class is not None, "a model knows classes"
    if options.explain and isinstance(model, AnomalyCLIP):
        of_frames = explain.likelihoods(model, rows)[np.arange(num_frames) // spacing]
    return FrameScores(p_A, p_class, times, fps, of_frames)


def fails_for_all(error: Exception) -> bool:
    """Whether the next video would fail, too: the disk is full, or not to be written to."""
    return isinstance(error, OSError) and getattr(error.__cause__ or error, "errno", None) in (ENOSPC, EDQUOT, EROFS)
