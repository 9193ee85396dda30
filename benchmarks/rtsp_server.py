"""GStreamer's RTSP server, for runs and tests with cameras: apt packages gir1.2-gst-rtsp-server-1.0, python3-gi,
gstreamer1.0-plugins-good and gstreamer1.0-plugins-bad, and the system's Python.
"""

import json
import socket
import subprocess
from pathlib import Path

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
