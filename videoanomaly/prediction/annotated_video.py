"""A copy of a video with its scores drawn in: the curve with a playhead, the likeliest classes, and the event that is
on.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageDraw, ImageFont

from videoanomaly import fonts
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction.report_index import peaks
from videoanomaly.runtime.files import write_atomically
from videoanomaly.video.decoding import open_video, to_image
from videoanomaly.video.frame_clock import clock

MIN_WIDTH = 480  # pixels; smaller pictures are doubled until then, so that the text can be read
BACK, GRID, INK, SOFT, HEAD, SHADE = "#14181c", "#39424b", "#e7e9eb", "#9aa4ae", "#ff7186", "#54321c"
ALARM = "#f0a35e"
LONGEST_NAME = 24  # letters, of a name that PIL cannot write
TIME_BASE = Fraction(1, 90000)


def is_plain(text: str) -> bool:
    """Whether PIL's own font, which is small, has all letters."""
    return text.isascii() and text.isprintable()


class Panel:
    """The strip below the picture, `width` pixels wide; what stays the same in all frames is drawn once."""

    def __init__(self, width: int, scores: FrameScores, events: list[dict], classes: Sequence[str], threshold: float):
        self.scores, self.events, self.classes, self.width = scores, events, classes, width
        self.line = max(width // 34, 13)  # height of a line of text, pixels
        self.size = self.line * 0.82
        self.font = ImageFont.load_default(self.size)
        assert isinstance(self.font, ImageFont.FreeTypeFont), "it has a size"
        self.ascent = self.font.getmetrics()[0]
        self.names = {name: name if is_plain(name) else fonts.drawable(name, LONGEST_NAME) for name in classes}
        self.is_plain = all(map(is_plain, self.names.values()))
        self.height = self.line * 6 // 2 * 2
        self.top, self.bottom = int(self.line * 1.6), self.height - self.line // 2
        self.background = self.draw_background(threshold)

    def x(self, time: float) -> float:
        """Of a time in seconds, pixels."""
        return self.width * time / self.scores.duration

    def y(self, p: float) -> float:
        """Of a probability, pixels."""
        return self.bottom - (self.bottom - self.top) * p

    def draw_background(self, threshold: float) -> Image.Image:
        """Events shaded, the threshold dashed, the curve of p_A."""
        image = Image.new("RGB", (self.width, self.height), BACK)
        pen = ImageDraw.Draw(image)
        for event in self.events:
            left = self.x(event["start"])
            pen.rectangle((left, self.top, max(self.x(event["end"]), left + 2), self.bottom), SHADE)
        pen.line((0, self.y(0), self.width, self.y(0)), GRID)
        for x in range(0, self.width, 8):
            pen.line((x, self.y(threshold), x + 4, self.y(threshold)), SOFT)
        high = peaks(self.scores.p_A, self.width)
        at = np.linspace(0, self.width, len(high), endpoint=False)
        pen.line([(x, self.y(p)) for x, p in zip(at, high)], INK, 2, joint="curve")
        return image

    def draw(self, frame: int) -> Image.Image:
        """The panel for one frame: the likeliest classes above the curve, the playhead in it."""
        image, time = self.background.copy(), self.scores.times[frame]
        pen, p_class = ImageDraw.Draw(image), self.scores.p_class[frame]
        x = self.x(time)
        pen.line((x, self.top, x, self.bottom), HEAD, 2)
        likeliest = "   ".join(
            f"{self.names[self.classes[int(c)]]} {p_class[c]:.2f}" for c in np.argsort(-p_class, kind="stable")[:3]
        )
        text = f"{clock(time)[:-2]}   p_A {self.scores.p_A[frame]:.2f}   {likeliest}"
        self.write(pen, (self.line // 2, self.line * 0.35), text, SOFT if self.event_at(frame) is None else INK)
        return image

    def event_at(self, frame: int) -> dict | None:
        """The event that a frame belongs to, if any."""
        return next((event for event in self.events if event["start_frame"] <= frame < event["end_frame"]), None)

    def label(self, pen: ImageDraw.ImageDraw, frame: int) -> None:
        """The name of the event that is on, in the upper left corner of the picture."""
        event = self.event_at(frame)
        if event:
            text, at = f"{self.names[event['class']]} {event['confidence']:.2f}", (self.line // 2, self.line // 2)
            self.write(pen, at, text, ALARM, pad=self.line // 4)

    def write(
        self, pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, pad: int | None = None
    ) -> None:
        """Writes a line from its upper left corner on, with `pad` on a dark ground that reaches so far beyond it."""
        left, top, right, bottom = pen.textbbox(at, text, self.font)
        mask, corner = None, (0, 0)
        if not self.is_plain:
            mask, above = fonts.draw(text, self.size)
            corner = int(at[0]), int(at[1] + self.ascent - above)
            left, top, right, bottom = *corner, corner[0] + mask.width, corner[1] + mask.height
        if pad is not None:
            pen.rectangle((left - pad, top - pad, right + pad, bottom + pad), BACK)
        if mask:
            pen.bitmap(corner, mask, colour)
        else:
            pen.text(at, text, colour, self.font)


def output_size(image: Image.Image) -> tuple[int, int]:
    """Even sides, as 4:2:0 needs, and no less than MIN_WIDTH."""
    factor = 1
    while image.width * factor < MIN_WIDTH:
        factor *= 2
    return max(image.width * factor // 2 * 2, 2), max(image.height * factor // 2 * 2, 2)


def compose(image: Image.Image, panel: Panel, size: tuple[int, int], frame: int) -> Image.Image:
    """The picture in this size (width, height), and the panel of the frame below it."""
    picture = image if image.size == size else image.resize(size)
    whole = Image.new("RGB", (size[0], size[1] + panel.height))
    whole.paste(picture)
    panel.label(ImageDraw.Draw(whole), frame)
    whole.paste(panel.draw(frame), (0, size[1]))
    return whole


def encode(target: BinaryIO, video: Path, scores: FrameScores, make_panel: Callable[[int], Panel]) -> None:
    """Writes the copy as MP4 into a binary file; each frame keeps the time at which it is shown.

    `make_panel` is called with the width of the picture. An av.FFmpegError or InputError tells a damaged video.
    """
    with open_video(video) as source, av.open(target, "w", format="mp4") as copy:
        reformatter, last = VideoReformatter(), -1
        stream = None
        for i, frame in zip(range(len(scores.times)), source.decode()):
            image = to_image(frame, reformatter)
            if stream is None:
                size = output_size(image)
                panel = make_panel(size[0])
                rate = Fraction(scores.fps).limit_denominator(1001)
                stream = copy.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
                stream.width, stream.height, stream.pix_fmt = size[0], size[1] + panel.height, "yuv420p"
                stream.codec_context.time_base = TIME_BASE
            drawn = av.VideoFrame.from_image(compose(image, panel, size, i))
            last = max(round(scores.times[i] / TIME_BASE), last + 1)  # two frames of one time: MP4 has none
            drawn.pts, drawn.time_base = last, TIME_BASE
            copy.mux(stream.encode(drawn))
        assert stream is not None, "a video with scores has frames"
        copy.mux(stream.encode())


def write_video(
    path: Path, video: Path, scores: FrameScores, events: list[dict], classes: tuple[str, ...], threshold: float
) -> None:
    """annotated.mp4: H.264, without sound."""

    def make_panel(width: int) -> Panel:
        return Panel(width, scores, events, classes, threshold)

    write_atomically(path, lambda file: encode(file, video, scores, make_panel))
