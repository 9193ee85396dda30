"""Cameras for tests: videos of grey pictures, and GStreamer's RTSP server that sends them."""

import json
import socket
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's GStreamer packages are for it
PARSERS = {
    "h264": ("h264parse config-interval=-1", "rtph264pay"),
    "hevc": ("h265parse config-interval=-1", "rtph265pay"),
}
RTSP_SERVER = """
import json, sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
for element in ("qtdemux", "h264parse", "rtph264pay", "h265parse", "rtph265pay"):
    assert Gst.ElementFactory.find(element), element
if len(sys.argv) > 1:
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
    for name, launch in json.loads(sys.argv[2]).items():
        factory = GstRtspServer.RTSPMediaFactory(shared=True)
        factory.set_launch(launch)
        server.get_mount_points().add_factory("/" + name, factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def require_rtsp() -> None:
    """Skips the test where there is no such server."""
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", RTSP_SERVER], capture_output=True, text=True, timeout=60)
        reason = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    except OSError as error:
        reason = f"{SYSTEM_PYTHON}: {error.strerror}"
    if reason:
        pytest.skip(f"no GStreamer RTSP server ({reason}); see .ci/run for the packages")


def serve(port: int, videos: dict[str, tuple[Path, str]]) -> subprocess.Popen:
    """A server that sends each video, a file and its codec, at rtsp://127.0.0.1:PORT/NAME."""
    launches = {
        name: f"( filesrc location={path} ! qtdemux ! {PARSERS[codec][0]} ! {PARSERS[codec][1]} name=pay0 )"
        for name, (path, codec) in videos.items()
    }
    command = [SYSTEM_PYTHON, "-c", RTSP_SERVER, str(port), json.dumps(launches)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout.readline() == "ready\n"
    return server


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
