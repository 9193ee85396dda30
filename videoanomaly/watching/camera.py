"""A camera: the thread that reads it, decides which pictures are looked at, and makes the encoder's inputs of them.

Rows are due at the rate that the model was trained with. Of those, pictures are left out where the file of settings
asks for fewer, where nothing differs from the picture before (its features are used again), outside the camera's hours,
and where the device cannot take them all (`spacing`, set from outside; these alone count as dropped).
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from datetime import datetime
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from videoanomaly.live.streams import NO_TIMESTAMPS, QUEUE_FRAMES, Reader, Sample, Source
from videoanomaly.runtime.console import InputError
from videoanomaly.video.decoding import picture_stream, to_image
from videoanomaly.video.encoders import Encoder
from videoanomaly.video.luma import luma_blocks
from videoanomaly.watching.board import Board
from videoanomaly.watching.clips import Recorder
from videoanomaly.watching.schedule import is_open, read_schedule
from videoanomaly.watching.still import Mask, Stillness
from videoanomaly.watching.watch_settings import CameraSettings

LONGEST_SIDE = 960  # pixels, of the pictures kept for snapshots


class Look(NamedTuple):
    """A row of a camera."""

    row: int
    moment: float  # of its picture, time.monotonic()
    inputs: list[Tensor] | None  # of the encoder, one for each crop; None: its scene is that of the row before
    picture: av.VideoFrame  # for a snapshot, reduced


def moving(container: InputContainer) -> list[av.VideoStream]:
    """Streams whose size is known, without a file's cover."""
    known = [s for s in container.streams.video if s.codec_context is not None and s.width]
    return [s for s in known if not s.disposition & Disposition.attached_pic]


def pixels(stream: av.VideoStream) -> int:
    return stream.width * stream.height


class Camera(Reader):
    """Reads a camera; what is to be encoded is taken with `take`.

    Args:
        settings: Of the camera.
        source: From `find_source`.
        rate, stride: See `Reader`.
        encoder: Whose inputs are made.
        reuse_still: Whether still scenes share features.
        board: Where its state is shown.
        recorder: Of its clips, if there are to be any.
        wake: Called when there is something to take.
    """

    def __init__(
        self,
        settings: CameraSettings,
        source: Source,
        rate: float | None,
        stride: int,
        *,
        encoder: Encoder,
        reuse_still: bool,
        board: Board,
        recorder: Recorder | None,
        wake: Callable[[], object],
    ):
        super().__init__(source, rate, stride)
        self.name = settings.name
        self.settings, self.encoder, self.board, self.recorder = settings, encoder, board, recorder
        self.wake, self.reuse_still = wake, reuse_still
        self.looks: deque[Look] = deque()
        self.mask = Mask(settings.mask) if settings.mask else None
        self.still = Stillness(settings.frozen_after, self.mask)
        self.schedule = read_schedule(settings.name, settings.schedule)
        self.small, self.large, self.tiny = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self.spacing = 0.0  # seconds between two encoded rows that the device can take
        self.next_wanted = self.next_free = 0.0  # seconds of the stream
        self.encoded_at = -math.inf  # the same, of the newest row that is encoded
        self.num_encoded = self.num_reused = self.num_left_out = self.num_reconnects = 0
        self.was_open = True
        self.last_frame = 0.0  # seconds since 1970
        self.size: tuple[int, int] | None = None  # of the newest picture
        self.detail = ""  # of the connection
        self.ended = threading.Event()

    def show(self, state: str, detail: str = "", **more: object) -> None:
        """The state on the board, which is another thread's once this one is to stop; outside its hours paused."""
        if not self.stopping.is_set():
            self.board.set(self.name, state=state if self.is_open() else "paused", detail=detail, **more)

    def is_open(self) -> bool:
        """Whether it is to be looked at now."""
        return is_open(self.schedule, datetime.now())

    # -- what Reader calls --

    def run(self) -> None:
        super().run()
        error, failed = self.error, "failed" if self.error else "ended"
        self.show("away", str(error).rpartition(": ")[2] if isinstance(error, InputError) else failed)
        self.ended.set()
        self.wake()

    def away(self, reason: str, delay: float) -> None:
        self.is_away = True
        self.show("away", reason)

    def choose(self, container: InputContainer) -> av.VideoStream:
        """Of several streams the smallest that the encoder's input does not exceed."""
        known = moving(container)
        fits = [s for s in known if min(s.width, s.height) >= self.encoder.n_px] or known
        return min(fits, key=pixels) if len(known) > 1 else picture_stream(container)

    def connected(self, container: InputContainer, stream: av.VideoStream) -> None:
        self.num_reconnects += bool(self.num_frames)
        self.detail, self.is_away = "", False
        self.show("connected", width=stream.width, height=stream.height, codec=stream.codec_context.name)
        self.still.forget(time.monotonic())

    def recorded(self, container: InputContainer) -> av.VideoStream:
        """The stream of the clips: the largest."""
        return max(moving(container) or [self.choose(container)], key=pixels)

    def packets(self, container: InputContainer, stream: av.VideoStream) -> Generator[av.Packet, None, None]:
        if not self.recorder:
            yield from super().packets(container, stream)
            return
        recorded = self.recorded(container)
        self.recorder.opened(recorded, not self.source.ends and bool(container.format.flags & NO_TIMESTAMPS))
        try:
            for packet in container.demux(*{stream.index: stream, recorded.index: recorded}.values()):
                if packet.stream.index == recorded.index:
                    self.recorder.packet(packet)
                if packet.stream.index == stream.index:
                    yield packet
        finally:  # clips are begun with the stream's own parameters, which go with the container
            self.recorder.close()

    def sample(self, frame: av.VideoFrame, stamp: float | None, early: float) -> None:
        self.last_frame = time.time()
        super().sample(frame, stamp, early)

    def offer(self, sample: Sample) -> None:
        seconds = sample.row / self.rate
        if not self.is_open():
            self.was_open = False
            return self.show("paused")
        if not self.was_open:
            self.was_open = True
            self.still.forget(sample.arrival)
        if seconds < self.next_wanted:
            return
        blocks = luma_blocks(sample.frame, self.tiny)
        self.show_seen(self.still.see(blocks, sample.arrival), (sample.frame.width, sample.frame.height))
        is_still = self.reuse_still and self.still.is_still(blocks)
        soonest = min(self.next_free, self.encoded_at + self.spacing)  # the device may have become faster
        if len(self.looks) >= QUEUE_FRAMES or not is_still and seconds < soonest:
            self.num_left_out += 1
            raise queue.Full
        self.looks.append(self.look(sample, is_still))
        if wanted := self.settings.rows_per_second:
            self.next_wanted = max(self.next_wanted, seconds - 1 / self.rate) + 1 / wanted
        if not is_still:
            self.still.encoded, self.encoded_at = blocks, seconds
            self.next_free = max(self.next_free, seconds - 1 / self.rate) + self.spacing
        self.num_encoded, self.num_reused = self.num_encoded + (not is_still), self.num_reused + is_still
        self.wake()

    def show_seen(self, state: str, size: tuple[int, int]) -> None:
        """The state by the newest picture; that its size is another is told as long as the connection lasts."""
        before, self.size = self.size, size
        if before not in (None, size):
            self.detail = f"{size[0]} x {size[1]} pixels, before {before[0]} x {before[1]}"
        self.show(state, self.detail if state == "connected" else "", width=size[0], height=size[1])

    def look(self, sample: Sample, is_still: bool) -> Look:
        """The row's inputs, and what is kept of its picture."""
        inputs = None if is_still else self.inputs(sample.frame)
        moment = min(sample.arrival, self.moment(sample.row))
        return Look(sample.row, moment, inputs, self.reduced(sample.frame))

    def inputs(self, frame: av.VideoFrame) -> list[Tensor]:
        image = to_image(frame, self.small)
        return self.encoder.inputs(self.mask.apply(image) if self.mask else image)

    def reduced(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame, of at most LONGEST_SIDE pixels a side, as it stands in memory where it is small enough."""
        share = LONGEST_SIDE / max(frame.width, frame.height)
        if share >= 1:
            return frame
        width, height = (max(round(side * share / 2) * 2, 2) for side in (frame.width, frame.height))
        return self.large.reformat(frame, width, height, "yuv420p", interpolation=Interpolation.AREA, threads=1)

    # -- for others --

    def moment(self, row: int) -> float:
        """When a row's picture was taken, time.monotonic()."""
        return (self.began or 0.0) + row / self.rate

    def take(self) -> Look | None:
        """The oldest row that waits."""
        return self.looks.popleft() if self.looks else None

    def catch_up(self, most: int) -> None:
        """Leaves out the oldest rows that wait; the first that stays has a scene of its own."""
        while len(self.looks) > most:
            later = list(self.looks)[1:]
            behind = next((i for i, look in enumerate(later, 1) if look.inputs is not None), None)
            if behind is None:
                return
            for _ in range(behind):
                self.looks.popleft()
            self.num_left_out += behind
            self.num_encoded -= 1
            self.num_reused -= behind - 1

    def counts(self) -> dict[str, float]:
        """For the board."""
        return {
            "frames": self.num_frames,
            "rows": self.num_encoded + self.num_reused + self.num_left_out,
            "encoded": self.num_encoded,
            "reused": self.num_reused,
            "dropped": self.num_left_out,
            "reconnects": self.num_reconnects,
            "last_frame": self.last_frame,
            "wanted_rows_per_second": min(self.rate, self.settings.rows_per_second or self.rate),
        }
