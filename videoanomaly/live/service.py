"""Anomaly events of a camera or stream as they happen: `python predict.py --ckpt CKPT --live SOURCE`.

A thread reads the stream and picks frames, rows, at the spacing in time that the model was trained with. The main
thread encodes them into a ring of the last S * F rows and runs the model on it after every F new ones (before the ring
is full it is repeated, as AnomalyCLIP.predict does with short videos); the newest rows' scores count. Their events are
those of event_rule.cut_events, each written as JSON lines on standard output when it begins, goes on and ends.

Latency from a frame to its line: up to F rows that wait for each other, and the time that encoder and model take. An
event begins once it is as long as EventSettings.min_length, and ends once it can no longer be joined by another
(EventSettings.merge_gap).

Rows that are missing (the encoder was too slow, the camera is slower than the training videos were, the stream broke
for a moment) show what the last one did, so that time runs as in training. A longer break ends the open event and
empties the ring. Memory does not grow: ring, queue and statistics have fixed sizes.

Shapes: S segments of F rows, T = S * F rows in the ring, D feature size, C anomaly classes, n new rows.
"""

import json
import queue
import time
from collections.abc import Callable, Sequence

import av
import av.logging
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from videoanomaly.event_rule import Event, EventSettings, highest_classes
from videoanomaly.live.streams import Reader, find_source
from videoanomaly.live.watcher import GAP, Model, Watch
from videoanomaly.live.webhook import Webhook
from videoanomaly.runtime.console import InputError, iso, note
from videoanomaly.runtime.signals import stop_signals
from videoanomaly.video.decoding import to_image
from videoanomaly.video.encoders import input_size
from videoanomaly.video.encoding import to_float16
from videoanomaly.video.preprocessing import ImageEncoder, prepare

REPORT = 60.0  # seconds between two notes on dropped frames


class Teller:
    """Writes events as JSON lines to standard output and to the webhook.

    Args:
        reader: Knows the source's name, its rate and when it began.
        classes: C names.
        webhook: Where each event is posted to, if anywhere.
        first: What the line of a beginning event has besides.
    """

    def __init__(self, reader: Reader, classes: Sequence[str], webhook: Webhook | None, first: dict):
        self.reader, self.classes, self.webhook, self.first = reader, classes, webhook, first

    def __call__(self, kind: str, number: int, event: Event, latency: float) -> None:
        """See `Watch`."""
        best, *others = (
            found | {"p_class": round(found["p_class"], 4)} for found in highest_classes(event.p_class, self.classes)
        )
        (start, end), zero = (row / self.reader.rate for row in (event.start, event.end)), self.reader.start_time
        record = {
            "event": kind,
            "number": number,
            "source": self.reader.source.name,
            "time": iso(time.time()),
            "start": round(start, 3),
            "end": round(end, 3),
            "start_time": iso(zero + start),
            "end_time": iso(zero + end),
            **best,
            "confidence": round(event.p_A, 4),
            "others": others,
            "latency": round(latency, 3),
            **(self.first if kind == "begin" else {}),
        }
        print(json.dumps(record), flush=True)
        if self.webhook:
            self.webhook.post(record)


def drop_report(reader: Reader, rows: int, dropped: int, seconds: float) -> str:
    """A line on the last seconds, in which there were so many rows, and so many of them were dropped."""
    return (
        f"{reader.source.name}: the encoder is too slow: {dropped} of {rows} rows dropped in the last {seconds:.0f} s, "
        f"evenly ({(rows - dropped) / seconds:.1f} of {rows / seconds:.1f} rows/s encoded)"
    )


def summary(reader: Reader, watch: Watch | None, seconds: float) -> str:
    """A line on the whole stream."""
    text = (
        f"{reader.source.name}: {reader.num_frames} frames, {reader.num_rows} rows in {seconds:.0f} s, "
        f"{reader.num_dropped} rows dropped, {reader.num_breaks} breaks, {watch.num_events if watch else 0} events"
    )
    if reader.num_jumps:
        text += f", {reader.num_jumps} jumps of the time stamps"
    if watch and watch.latencies:
        text += "; latency median {:.2f} s, 95 % {:.2f} s".format(*np.percentile(watch.latencies, (50, 95)))
    return text


def follow(
    reader: Reader, encode: Callable[[av.VideoFrame], np.ndarray], make_watch: Callable[[], Watch], signals: list[int]
) -> Watch | None:
    """Encodes what the reader gives until the stream ends or a signal comes; the open event is ended.

    Args:
        reader: Started.
        encode: A frame -> its row, (crops, D).
        make_watch: Called with the first row, when the rate is known.
        signals: Those that came, see `stop_signals`.
    """
    watch, last, busy = None, time.monotonic(), reader.seconds_per_row
    reported, rows, dropped = last, 0, 0
    while not signals:
        try:
            sample = reader.samples.get(timeout=0.2)
        except queue.Empty:
            if watch and time.monotonic() - last > GAP:
                watch.finish()
            continue
        if sample is None:
            break
        last = time.monotonic()
        watch = watch or make_watch()
        watch.add(encode(sample.frame), sample.row, sample.arrival)
        busy += 0.05 * (time.monotonic() - last - busy)  # of encoder and model, mean over about 20 rows
        reader.seconds_per_row = busy
        if last - reported > REPORT:
            if reader.num_dropped > dropped:
                note(drop_report(reader, reader.num_rows - rows, reader.num_dropped - dropped, last - reported))
            reported, rows, dropped = last, reader.num_rows, reader.num_dropped
    if watch:
        watch.finish()
    return watch


def warm_up(model: Model, encoder: ImageEncoder) -> float:
    """Seconds that encoder and model take for a row, all buffers being there: the first rows need not wait for them."""
    config = model.config
    rows, seconds = np.zeros((config.num_segments * config.num_frames, config.feature_dim), np.float32), 0.0
    for _ in range(2):
        begun = time.monotonic()
        input_size(encoder, "--live")
        encoded = time.monotonic()
        model.predict(rows)
        seconds = (encoded - begun) + (time.monotonic() - encoded) / config.num_frames
    return seconds


def check_model(model: Model, encoder: ImageEncoder) -> None:
    """Refuses, by an InputError, what does not fit together."""
    if model.config.temporal_feature_dim is not None:
        raise InputError("--live: the checkpoint needs features of two encoders, expected one that needs one")
    if encoder.dim != model.config.feature_dim:
        raise InputError(
            f"--live: the encoder's features have {encoder.dim} values, expected {model.config.feature_dim} as "
            "the checkpoint was trained with"
        )


def run(
    source: str,
    model: Model,
    encoder: ImageEncoder,
    *,
    settings: EventSettings,
    threshold_rule: str,
    stride: int = 1,
    crops: int = 1,
    jpeg: int | None = None,
    n_px: int,
    fps: float | None = None,
    webhook: str | None = None,
) -> int:
    """Watches a stream until it ends (a file, standard input) or a signal comes; JSON lines on standard output.

    Args:
        source: Camera index ("0"), rtsp:// or any other URL that PyAV opens, a file, or "-" for standard input.
        model: AnomalyCLIP with its directions, on the device where it is to run.
        encoder: As encoders.load_encoder gives it.
        settings: When events begin and end; the rule is that of event_rule.cut_events.
        threshold_rule: Where its threshold comes from, for the reader.
        stride, crops, jpeg: As the features were made that the model was trained with.
        n_px: Side of the encoder's input, pixels (encoders.input_size).
        fps: Frames per second of the training videos, so that rows are fps / stride a second; None: the source's own
            rate.
        webhook: http(s) URL that each event is posted to as well.
    Returns:
        Exit status: 0 at the end of the stream, 128 and the number of the signal that stopped it, if one did.
    Raises:
        InputError: If the source or the webhook is none that can be opened.
    """
    check_model(model, encoder)
    found, hook = find_source(source), Webhook(webhook) if webhook else None
    note(f"{found.name}: events begin at p_A {settings.threshold:.4g} ({threshold_rule})")
    first = {"threshold": settings.threshold, "threshold_rule": threshold_rule}
    av.logging.set_level(None)  # FFmpeg's lines hold addresses
    reader, reformatter = Reader(found, fps and fps / stride, stride), VideoReformatter()
    reader.seconds_per_row = warm_up(model, encoder)

    def encode(frame: av.VideoFrame) -> np.ndarray:
        images = prepare(to_image(frame, reformatter), encoder.preprocess, crops, jpeg, n_px)
        return to_float16(encoder.encode(torch.stack(images)), "--live")  # (crops, D), rounded as feature files are

    def make_watch() -> Watch:
        tell = Teller(reader, model.config.classes, hook, first)
        return Watch(model, rate=reader.rate, settings=settings, num_crops=crops, tell=tell)

    with stop_signals() as signals:
        begun = time.monotonic()
        reader.start()
        try:
            watch = follow(reader, encode, make_watch, signals)
        finally:
            reader.stopping.set()
            if hook:
                hook.close()
        if reader.error and not signals:
            raise reader.error
        note(summary(reader, watch, time.monotonic() - begun))
        reader.join(1)
    return 128 + signals[0] if signals else 0
