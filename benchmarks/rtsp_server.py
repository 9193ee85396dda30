"""GStreamer's RTSP server, for runs and tests with cameras: apt packages gir1.2-gst-rtsp-server-1.0, python3-gi,
gstreamer1.0-plugins-good and gstreamer1.0-plugins-bad, and the system's Python.
"""

import itertools
import json
import socket
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videoanomaly.runtime.console import InputError

SIDE = 320  # pixels of the pictures
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


def what_is_missing() -> str:
    """Why there is no such server here; "" if there is one."""
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", RTSP_SERVER], capture_output=True, text=True, timeout=60)
    except OSError as error:
        return f"{SYSTEM_PYTHON}: {error.strerror}"
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def serve(port: int, videos: dict[str, tuple[Path, str]]) -> subprocess.Popen:
    """A server that sends each video, a file and its codec, at rtsp://127.0.0.1:PORT/NAME."""
    launches = {
        name: f"( filesrc location={path} ! qtdemux ! {PARSERS[codec][0]} ! {PARSERS[codec][1]} name=pay0 )"
        for name, (path, codec) in videos.items()
    }
    command = [SYSTEM_PYTHON, "-c", RTSP_SERVER, str(port), json.dumps(launches)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout and server.stdout.readline() == "ready\n"
    return server


def pictures(videos: Path, seed: int) -> Iterator[av.VideoFrame]:
    """Yields those of one video after the other, every second one normal."""
    rng = np.random.default_rng(seed)
    normal = sorted((videos / "Normal").glob("*.mp4"))
    others = sorted(p for p in videos.glob("*/*.mp4") if p.parent.name != "Normal")
    if not normal or not others:
        raise InputError(f"--videos {videos}: expected folders of .mp4 files by class, one of them Normal")
    for pair in itertools.repeat((normal, others)):
        for paths in pair:
            with av.open(str(paths[rng.integers(len(paths))])) as container:
                yield from container.decode(video=0)


def write_part(path: Path, videos: Path, codec: str, fps: int, seconds: float, seed: int) -> None:
    names = {"h264": "libx264", "hevc": "libx265"}
    options = {"preset": "ultrafast"} | ({"x265-params": "log-level=none"} if codec == "hevc" else {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(names[codec], rate=fps, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", 2 * fps, 400_000
        for i, frame in enumerate(itertools.islice(pictures(videos, seed), round(seconds * fps))):
            frame = frame.reformat(SIDE, SIDE, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def repeat(part: Path, path: Path, length: float, seconds: float) -> None:
    """The same packets, of so many seconds, again and again."""
    with av.open(str(path), "w") as container:
        out, offset, first = None, 0, None
        while first is None or offset < seconds * 90_000:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                out = out or container.add_stream_from_template(stream)
                ticks = int(90_000 * stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    first = packet.dts * ticks if first is None else first
                    packet.pts, packet.dts = (stamp * ticks + offset for stamp in (packet.pts, packet.dts))
                    packet.time_base, packet.stream = Fraction(1, 90_000), out
                    container.mux(packet)
                offset += round(length * 90_000)
