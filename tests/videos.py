"""Made videos, and what other programs read in them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videoanomaly.video.decoding import VideoFile, to_image


def picture(t, width, height):
    """RGB colours that change over the picture and with time, with coarse noise in the middle."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width + 7 * t, y * 255 // height + 5 * t, (x + y) * 3 + 11 * t], -1) % 256
    inner = image[height // 4 : height // 2, width // 4 : width // 2]
    inner[:] = np.random.default_rng(t).integers(0, 256, inner.shape)
    return image.astype(np.uint8)


def write_video(
    path,
    num_frames=12,
    codec="libx264",
    pixels="yuv420p",
    size=(96, 64),
    rotation=None,
    variable_rate=False,
    color_range=None,
    colorspace=None,
    mux_options=None,
    seed=0,
):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    time_base = Fraction(1, 1000) if variable_rate else Fraction(1, 25)
    with av.open(str(path), "w", options=mux_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = stream.time_base = time_base
        stream.codec_context.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        if colorspace:
            stream.codec_context.colorspace = colorspace
        if color_range:
            stream.codec_context.color_range = color_range
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for t in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(t + seed, width, height), "rgb24")
            frame = frame.reformat(format=pixels, dst_color_range=color_range)
            frame.pts, frame.time_base = (40 * t + 3 * t * t % 31 if variable_rate else t), time_base
            if colorspace:
                frame.colorspace = colorspace
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def our_frames(path):
    reformatter = av.video.reformatter.VideoReformatter()
    with VideoFile(path) as video:
        return [np.asarray(to_image(frame, reformatter)) for frame in video.decode()]


def opencv_frames(path):
    cv2 = pytest.importorskip("cv2", reason="the reference decoder, opencv-python-headless, is not installed")
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1][..., ::-1])
    return frames


def assert_same_frames(path, num_frames):
    ours, theirs = our_frames(path), opencv_frames(path)
    assert len(ours) == len(theirs) == num_frames
    for our, their in zip(ours, theirs):
        assert our.shape == their.shape
        assert np.abs(our.astype(int) - their).max() <= 1


CUSTOM_ENCODER = """
import numpy as np
import torch

class MeanColour:
    dim = 3

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1)

    def encode(self, batch):
        return batch.mean(dim=(2, 3))

class Placed(MeanColour):
    def __init__(self, device):
        self.device, self.net = device, torch.nn.Linear(3, 3, device=device)
        torch.nn.init.eye_(self.net.weight)

class Lying(MeanColour):
    dim = 4
"""
RED, BLUE = (200, 60, 60), (60, 60, 200)


def write_clip(
    path: Path, num_frames: int = 100, coloured=((50, 75, RED),), times=None, codec: str = "libx264", rate: int = 25
) -> Path:
    """A video of grey noise, some frames [start, end) of which have a colour; `times`: of showing, in seconds."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for i in range(num_frames):
            base = next((colour for start, end, colour in coloured if start <= i < end), (110, 110, 110))
            blocks = np.clip(np.array(base) + rng.normal(0, 26, (8, 8, 1)), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(blocks.repeat(8, 0).repeat(8, 1), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (i / rate if times is None else times[i])), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_camera(path: Path, num_frames: int, coloured=(), gop: int = 25, still: bool = False, rate: int = 25) -> Path:
    """As a camera writes it: a key frame every `gop` frames. What moves is noise, in a still scene nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 26, (8, 8, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"sc_threshold": "0", "threads": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
        for i in range(num_frames):
            base = next((colour for start, end, colour in coloured if start <= i < end), (110, 110, 110))
            noise = noise if still else rng.normal(0, 26, (8, 8, 1))
            blocks = np.clip(np.array(base) + noise, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(blocks.repeat(8, 0).repeat(8, 1), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
