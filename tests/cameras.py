"""Cameras for tests: videos of grey pictures, and an RTSP server that sends them."""

from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.rtsp_server import what_is_missing


def require_rtsp() -> None:
    """Skips the test where there is no such server."""
    if reason := what_is_missing():
        pytest.skip(f"no GStreamer RTSP server ({reason}); see .ci/run for the packages")


def bright_at(intervals, seconds: float, fps: float) -> np.ndarray:
    """Brightness of each frame, 235 in some intervals of seconds, else 60."""
    times = np.arange(round(seconds * fps)) / fps
    return np.where(sum((times >= a) & (times < b) for a, b in intervals) > 0, 235, 60)


def write_video(path: Path, brightness, fps: int, codec: str = "h264", size=(64, 48), gop: int = 10) -> Path:
    """Grey pictures in which a square moves, so that none is like the one before."""
    encoder = {"h264": "h264", "hevc": "libx265", "mjpeg": "mjpeg"}[codec]
    options = {"x265-params": "log-level=none:bframes=0"} if codec == "hevc" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=fps, options=options)
        stream.width, stream.height, stream.gop_size = *size, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "h264":
            stream.max_b_frames = 0
        for i, value in enumerate(brightness):
            picture = np.full((size[1], size[0], 3), value, np.uint8)
            picture[4:12, (i % 12) * 4 : (i % 12) * 4 + 8] = 128
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
