"""A checkpoint in Python: videos or frames in, events out; predict.py works with the same object.

    from videoanomaly import Recogniser

    recogniser = Recogniser.load("runs/mine/last.pt")
    result = recogniser("video.mp4")
    result.events

Shapes: N frames of a video, C anomaly classes.
"""

import html
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from PIL import Image
from torch import Tensor

from videoanomaly.data.annotations import class_names
from videoanomaly.event_rule import EVENT_OPTIONS, LOW_SHARE, MERGE_GAP, MIN_LENGTH, check_event_options
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction import recogniser, report, report_index
from videoanomaly.prediction.events import find_events
from videoanomaly.prediction.predictor import encoded, encoder_of
from videoanomaly.prediction.recogniser import PredictionOptions
from videoanomaly.prediction.work import score_rows
from videoanomaly.runtime.addresses import refuse_addresses
from videoanomaly.runtime.console import InputError, as_text, count
from videoanomaly.runtime.precision import AUTO, check_precision
from videoanomaly.runtime.processes import check_device
from videoanomaly.video.decoding import mean_rate, why_skipped
from videoanomaly.video.encoders import Encoder
from videoanomaly.video.encoding import interpolate, join_batches, stack_inputs, to_float16
from videoanomaly.video.frame_clock import clock

Frames = np.ndarray | Image.Image | Iterable["Frames"]  # arrays are uint8, (..., H, W, 3), RGB
POINTS = 600  # of the curve in a notebook
MOST_ROWS = 100  # of its table

# as in events.json; seconds, half-open frames, and what `others` holds: the next two {"class", "p_class"}
Event = TypedDict(
    "Event",
    {
        "start": float,
        "end": float,
        "start_frame": int,
        "end_frame": int,
        "start_time": str,
        "end_time": str,
        "class": str,
        "p_class": float,
        "confidence": float,
        "others": list[dict],
    },
)


@dataclass(frozen=True)
class Result:
    """What a checkpoint says of a video.

    Attributes:
        name: Of the video.
        classes: C names.
        threshold: Events begin at p_A >= threshold.
        events: In the order of time, as in events.json.
        notes: Lines on what is not as it should be, such as damage.
    """

    name: str
    classes: tuple[str, ...]
    threshold: float
    events: list[Event]
    notes: list[str]
    scores: FrameScores = field(repr=False)

    @property
    def p_A(self) -> np.ndarray:
        """Probability that a frame shows an anomaly, (N,)."""
        return self.scores.p_A

    @property
    def p_class(self) -> np.ndarray:
        """Probability that it shows one of each class, (N, C)."""
        return self.scores.p_class

    @property
    def times(self) -> np.ndarray:
        """When each frame is shown, (N,) seconds."""
        return self.scores.times

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return self.scores.fps

    def _repr_html_(self) -> str:
        """The timeline and the table of events, as notebooks show them."""
        shown = {"events": self.events[:MOST_ROWS], "highest_p_A": float(self.p_A.max())}
        hidden = len(self.events) - MOST_ROWS
        lines = [
            f"<p><b>{html.escape(as_text(self.name))}</b> {clock(self.scores.duration)}, "
            f"{count(len(self.events), 'event')}; events begin at p_A {self.threshold:.2f}</p>",
            self.timeline(),
            report.event_table(shown),
            *([f"<p>and {count(hidden, 'event')} more</p>"] if hidden > 0 else []),
            *(f"<p>{html.escape(as_text(line))}</p>" for line in self.notes),
        ]
        return f"<div>{''.join(lines)}</div>"

    def timeline(self) -> str:
        """The curve of p_A above its events, as SVG in a notebook's own colours."""
        high, total = report_index.peaks(self.p_A, POINTS), self.scores.duration - self.times[0]
        points = " ".join(f"{POINTS * (i + 0.5) / len(high):.1f},{100 - 98 * p:.1f}" for i, p in enumerate(high))
        line = f'x1="0" x2="{POINTS}" y1="{100 - 98 * self.threshold:.1f}" y2="{100 - 98 * self.threshold:.1f}"'
        marks = "".join(
            f'<rect x="{POINTS * (event["start"] - self.times[0]) / total:.1f}" y="103" height="9" '
            f'width="{max(POINTS * (event["end"] - event["start"]) / total, 1):.1f}" fill="#D55E00"><title>'
            f"{event['start_time']} {html.escape(as_text(event['class']))} {event['confidence']:.2f}</title></rect>"
            for event in self.events
        )
        return (
            f'<svg viewBox="0 0 {POINTS} 114" width="100%" role="img" aria-label="p_A over time">'
            f'<line {line} stroke="currentColor" stroke-dasharray="4 4" opacity="0.5"/>'
            f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="1.5"/>{marks}</svg>'
        )


class Recogniser:
    """A checkpoint made ready for new videos; `load` makes one. The encoder is read once, before the first video.

    Args:
        options: As predict.py has them.
    Raises:
        InputError: A ValueError of one line, if the checkpoint or an option is none that can be used.
    """

    def __init__(self, options: PredictionOptions):
        self.options, self.loaded = options, recogniser.load(options)
        spacing = self.loaded.spacing
        if options.stride and options.stride < spacing:
            expected = f"at least {spacing}, the spacing that {options.ckpt} was trained with"
            raise InputError(f"--stride {options.stride}: expected {expected}")

    @classmethod
    def load(
        cls,
        ckpt: str | os.PathLike[str],
        *,
        device: str | None = None,
        threshold: float | None = None,
        false_alarms_per_hour: float | None = None,
        hysteresis: float = LOW_SHARE,
        merge_gap: float = MERGE_GAP,
        min_length: float = MIN_LENGTH,
        stride: int | None = None,
        classes: str | Sequence[str] = (),
        clip: str | None = None,
        encoder: str | None = None,
        batch: int = 32,
        precision: str = AUTO,
    ) -> "Recogniser":
        """The recogniser of a checkpoint; all but `ckpt` is as predict.py's options of these names.

        Args:
            ckpt: File that train.py wrote.
            device: cpu, cuda, cuda:1; by default cuda if there is one.
            threshold: Events begin at this p_A, in (0, 1]; by default the checkpoint's.
            false_alarms_per_hour: Instead of it: what held-out normal videos of the training may have raised at most.
            hysteresis: Share of the threshold: an event lasts while p_A is at least that.
            merge_gap: Seconds; events at most so far apart are one.
            min_length: Seconds; shorter events are dropped.
            stride: Every which frame is encoded; by default as in training.
            classes: Names of classes that were never trained, without commas.
            clip: CLIP weights, a name or a file, where the checkpoint does not find its own.
            encoder: FILE.py:CLASS instead of CLIP; this runs the code in the file.
            batch: Pictures given to the encoder at once.
            precision: float32, bfloat16, float16; auto: bfloat16 where the machine is fast in it, else float32.
        Raises:
            InputError: A ValueError of one line.
        """
        given = {"ckpt": os.fspath(ckpt), "clip": clip, "encoder": encoder}
        refuse_addresses(given)
        events: dict[str, Any] = dict(
            zip(EVENT_OPTIONS, (threshold, false_alarms_per_hour, hysteresis, merge_gap, min_length))
        )
        check_event_options(**events)
        for name, value in (("--stride", stride), ("--batch", batch)):
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: expected at least 1")
        names = class_names(classes if isinstance(classes, str) else ", ".join(classes)) if classes else None
        how: dict[str, Any] = {"device": check_device(device), "precision": check_precision("--precision", precision)}
        return cls(PredictionOptions(classes=names, stride=stride, batch=batch, **how, **given, **events))

    def __repr__(self) -> str:
        facts = f"{self.loaded.model.NAME}, {len(self.classes)} classes, threshold {self.threshold:.4g}"
        return f"Recogniser({as_text(self.options.ckpt)}: {facts}, {self.options.device}, {self.loaded.precision})"

    @property
    def classes(self) -> tuple[str, ...]:
        """C names, of the new ones last."""
        return self.loaded.model.config.classes

    @property
    def threshold(self) -> float:
        """Events begin at p_A >= threshold."""
        return self.loaded.threshold

    @cached_property
    def encoder(self) -> Encoder:
        """What makes features of pictures as those of the training were made."""
        return encoder_of(self.options, self.loaded)

    def __call__(self, video: str | os.PathLike[str], *, fps: float | None = None) -> Result:
        """Events and scores of a video.

        Args:
            video: A file, or a folder of pictures, which come `fps` a second (25 if it is not given).
        Raises:
            InputError: A ValueError of one line, if it cannot be read.
        """
        refuse_addresses({"video": os.fspath(video)})
        options = replace(self.options, fps=check_rate(fps))
        ((name, found),) = encoded({Path(video).stem: Path(video)}, options, self.loaded, self.encoder)
        if isinstance(found, Exception):
            raise InputError(f"{video}: {why_skipped(found)}") from found
        rows, read = found
        return self.result(name, rows, read.times, read.fps, read.notes())

    def from_frames(
        self, frames: Frames, *, fps: float | None = None, times: Sequence[float] | None = None, name: str = "frames"
    ) -> Result:
        """Events and scores of frames that another decoder made, all in the order of time.

        Args:
            frames: uint8 RGB arrays (N, H, W, 3) or (H, W, 3), PIL images, or lists and iterators of these, as deep as
                you like: of a long video an iterator of batches, of which one is held at a time.
            fps: Frames per second, where `times` are not given.
            times: When each frame is shown, (N,) seconds, ascending. They are looked at behind the last frame: a list
                that the decoder fills meanwhile will do.
            name: Of the video.
        Raises:
            InputError: A ValueError of one line, if these are no frames, or nothing tells their times.
        """
        encoder, stride, rate = self.encoder, self.options.stride or self.loaded.spacing, check_rate(fps)
        if rate is None and times is None:
            raise InputError(f"{name}: nothing tells when its frames are shown, expected fps= or times=")
        num_frames = 0

        def chosen() -> Iterator[list[Tensor]]:
            nonlocal num_frames
            for frame in each_frame(frames, name):
                num_frames += 1
                if (num_frames - 1) % stride == 0:
                    yield encoder.inputs(as_image(frame))

        batches = stack_inputs(chosen(), self.options.batch, self.options.device.startswith("cuda"))
        rows = [to_float16(encoder.model.encode(batch), encoder.description) for batch in batches]
        if not rows:
            raise InputError(f"{name}: found no frames, expected some")
        shown = np.arange(num_frames) / (rate or 1) if times is None else np.array(times, float)
        if shown.shape != (num_frames,) or not np.isfinite(shown).all() or (np.diff(shown) < 0).any():
            raise InputError(
                f"{name}: found times of shape {shown.shape}, expected {num_frames}, one a frame, ascending"
            )
        return self.result(name, join_batches(rows, encoder.crops), shown, rate or mean_rate(shown, None), [])

    def result(self, name: str, rows: np.ndarray, times: np.ndarray, fps: float, notes: list[str]) -> Result:
        """Of the rows of every stride-th frame, (rows, D) or (rows, crops, D)."""
        spacing = self.loaded.spacing
        rows = interpolate(rows, self.options.stride or spacing, spacing, len(times))
        scores = score_rows(self.options, self.loaded, rows, name=name, times=times, fps=fps)
        events = cast(list[Event], find_events(scores, self.classes, *self.loaded.event_settings))
        return Result(name, self.classes, self.threshold, events, notes, scores)


def check_rate(fps: float | None) -> float | None:
    if fps is not None and not 0 < fps < np.inf:
        raise InputError(f"fps {fps}: expected a positive number")
    return fps


def each_frame(frames: Frames, name: str) -> Iterator[np.ndarray | Image.Image]:
    """Frames one by one, arrays (H, W, 3)."""
    if isinstance(frames, np.ndarray) and frames.ndim <= 3:
        if frames.dtype != np.uint8 or frames.ndim < 3 or frames.shape[2] != 3 or not frames.size:
            found = f"an array {frames.shape} of {frames.dtype}"
            raise InputError(f"{name}: found {found}, expected uint8 (N, H, W, 3), RGB")
        yield frames
    elif isinstance(frames, Image.Image):
        yield frames
    elif isinstance(frames, (str, bytes)) or not isinstance(frames, Iterable):
        raise InputError(f"{name}: found a {type(frames).__name__}, expected uint8 arrays (N, H, W, 3) or PIL images")
    else:
        for inner in frames:
            yield from each_frame(inner, name)


def as_image(frame: np.ndarray | Image.Image) -> Image.Image:
    return Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame.convert("RGB")
