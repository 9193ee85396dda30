"""An archive in two passes: a look at key frames of every video, then a full one where they stand out most.

    OUT/.looks/NAME.npz     what was seen of each video in the first pass, kept for the next run

R rows are what a full pass would encode.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from videoanomaly.archives.budget import choose, priorities
from videoanomaly.archives.looking import How, Look, first_look, second_look
from videoanomaly.archives.looks import Seen, compact, fill, gap_values, gaps_of, merge, restore, save, wanted
from videoanomaly.prediction.predictor import encoder_of
from videoanomaly.prediction.recogniser import LoadedCheckpoint, PredictionOptions
from videoanomaly.prediction.work import RowsOfVideo, Work, find_work, finish
from videoanomaly.runtime.console import as_text, note
from videoanomaly.runtime.processes import gather, gather_living, same_for_all
from videoanomaly.runtime.torchrun import is_main
from videoanomaly.video.decoding import why_skipped
from videoanomaly.video.encoders import Encoder
from videoanomaly.video.encoding import encode_videos
from videoanomaly.video.extraction import own_share
from videoanomaly.video.frame_clock import Damage
from videoanomaly.video.picture_folder import picture_rate

LOOKS = ".looks"  # hidden, so that no run takes it for videos
Reader = Callable[[Path], Iterator[Tensor | Look]]


class Triage:
    """A run of it.

    Args:
        budget: Share of R to encode, both passes together.
    """

    def __init__(self, budget: float, options: PredictionOptions, recogniser: LoadedCheckpoint, work: Work):
        self.budget, self.options, self.recogniser, self.work = budget, options, recogniser, work
        self.spacing = recogniser.spacing
        self.stride = options.stride or self.spacing
        self.of_look = {n: {**s["scores"], "budget": budget} for n, s in work.settings.items()}
        self.failed: dict[str, str] = {}

    @cached_property
    def encoder(self) -> Encoder:
        """Read when the first frame is to be encoded."""
        return encoder_of(self.options, self.recogniser)

    @cached_property
    def how(self) -> How:
        """How the encoder wants its inputs."""
        rate = picture_rate(self.work.videos.values(), self.options.fps)
        pinned = self.options.device.startswith("cuda")
        return How(self.encoder.inputs, self.stride, self.options.batch, pinned, rate, self.budget)

    def file(self, name: str) -> Path:
        return (self.options.out or Path()) / LOOKS / f"{name}.npz"

    def restore(self, name: str) -> Seen | None:
        return restore(self.file(name), self.of_look[name])

    def encode(
        self, videos: dict[str, Path], read: Reader, title: str
    ) -> Iterator[tuple[str, tuple[np.ndarray, Look] | Exception]]:
        """Yields what `encode_videos` does."""
        encoder, workers = self.encoder, self.options.workers
        with tqdm(desc=title, unit="frame", disable=None if is_main() else True) as bar:
            yield from encode_videos(videos, encoder.model, encoder.description, read, workers, encoder.crops, bar)

    def look(self) -> None:
        """The first pass, of videos that no earlier run has looked at; each one's file is written when it is done."""
        videos, force = self.work.videos, self.options.force
        todo = own_share({name: path for name, path in videos.items() if force or self.restore(name) is None})
        if not todo:
            return
        for name, found in self.encode(todo, lambda path: first_look(path, self.how), "first look"):
            if isinstance(found, Exception):
                self.failed[name] = why_skipped(found)
                tqdm.write(as_text(f"skipped {videos[name]}: {self.failed[name]}"), file=sys.stderr)
                continue
            seen = compact(*found)
            if seen.look.why_whole:
                note(f"{videos[name]}: decoded wholly, since {seen.look.why_whole}")
            p_A, _ = self.recogniser.model.predict(fill(seen, self.stride, self.spacing))
            save(self.file(name), seen._replace(values=gap_values(p_A, seen.look, self.spacing)), self.of_look[name])

    def plan(self) -> dict[str, list[list[int]]]:
        """Which stretches of each video the second pass fills: frames [first, behind), ascending."""
        gaps, used, num_rows = {}, 0, 0
        for name in self.work.videos:
            seen = self.restore(name)
            assert seen, f"the first look at {name} is there"
            gaps[name] = gaps_of(seen, self.stride)
            used += len(seen.features)
            num_rows += math.ceil(len(seen.look.reading.times) / self.stride)
        standing = {n: g._replace(values=priorities(g.values, self.recogniser.threshold)) for n, g in gaps.items()}
        chosen = choose(standing, self.budget * num_rows - used if self.budget < 1 else math.inf)
        filled = sum(int(gaps[name].costs[chosen[name]].sum()) for name in gaps)
        if num_rows:
            print(
                f"triage: {num_rows:,} frames to encode in a full pass; {used / num_rows:.1%} looked at first, "
                f"{filled / num_rows:.1%} where they stand out most",
                flush=True,
            )
        return {name: stretches(gaps[name].ends[chosen[name] | (gaps[name].costs == 0)]) for name in gaps}

    def rows_of(self, todo: dict[str, Path]) -> Iterator[tuple[str, RowsOfVideo]]:
        """Yields each video's rows after the second pass."""
        seen, new = {}, {}
        for name in todo:
            known = self.restore(name)
            assert known, f"the first look at {name} is there"
            frames = self.frames(name, known)
            if len(frames):
                new[todo[name]] = (known.look, frames)
                seen[name] = known
            else:
                yield name, (fill(known, self.stride, self.spacing), known.look.reading)

        def read(path: Path) -> Iterator[Tensor | Look]:
            return second_look(path, self.how, *new[path])

        for name, found in self.encode({name: todo[name] for name in seen}, read, "second look") if seen else ():
            if isinstance(found, Exception):
                yield name, found
                continue
            features, look = found
            reading = look.reading._replace(damage=[*look.reading.damage, *lost(new[todo[name]][1], look, self.stride)])
            merged = merge(seen.pop(name), features, look)
            yield name, (fill(merged, self.stride, self.spacing), reading)

    def frames(self, name: str, seen: Seen) -> np.ndarray:
        """Those that the second pass looks at."""
        places = np.array(self.work.settings[name]["scores"]["triage"]["frames"], int).reshape(-1, 2)
        inside = np.searchsorted(places[:, 0], seen.look.frames, side="right") - 1
        chosen = (inside >= 0) & (seen.look.frames < places[np.maximum(inside, 0), 1]) if len(places) else inside > 0
        return wanted(seen.look, chosen, self.stride)


def stretches(ends: np.ndarray) -> list[list[int]]:
    """Gaps [first, behind), ascending, (G, 2), with those that touch as one."""
    if not len(ends):
        return []
    apart = ends[1:, 0] > ends[:-1, 1]
    firsts, behinds = ends[np.append(True, apart), 0], ends[np.append(apart, True), 1]
    return np.stack([firsts, behinds], axis=1).tolist()


def lost(frames: np.ndarray, look: Look, stride: int) -> list[Damage]:
    """Places of frames that were wanted and could not be decoded."""
    gone, times = np.setdiff1d(frames, look.frames), look.reading.times
    if not len(gone):
        return []
    runs = np.split(gone, np.flatnonzero(np.diff(gone) > stride) + 1)
    ends = np.append(times[1:], times[-1] + 1 / look.reading.fps)
    return [Damage(float(times[run[0]]), float(ends[run[-1]]), "cannot be decoded") for run in runs]


def triage_videos(sources: list[Path], budget: float, options: PredictionOptions, recogniser: LoadedCheckpoint) -> int:
    """The exit status: 1 if a video gave no results, else 0. Of several processes each does a share of the videos."""
    work = same_for_all(lambda: find_work(sources, options, recogniser))
    run = Triage(budget, options, recogniser, work)
    run.look()
    parts = gather_living(run.failed)
    if parts is None:
        raise OSError("a process ended before its work was done; the same command does the rest")
    failed = {name: why for part in parts for name, why in part.items()}
    run.work = work = work.without(failed)
    plan = gather(run.plan() if is_main() else {})[0]
    for name, places in plan.items():
        work.settings[name]["scores"]["triage"] = {"budget": budget, "frames": places}
    return finish(work, run.rows_of, options, recogniser, failed)
