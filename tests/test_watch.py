"""watch.py as a whole, a process with real parts: RTSP cameras, mosquitto, a webhook; what fails, reloads and stops.

The checkpoint calls red pictures "fire". Packages: see .ci/run.
"""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.rtsp_server import free_port, serve
from tests.cameras import require_rtsp
from tests.places import ROOT

SECRET = "s3cret-t0ken-of-16"


def write_red(path: Path, intervals, seconds: float, fps: int, codec: str = "h264", size=(96, 64)) -> Path:
    """Noise, red in some intervals of seconds."""
    rng, encoder = np.random.default_rng(0), {"h264": "libx264", "hevc": "libx265"}[codec]
    options = {"preset": "ultrafast", "tune": "zerolatency"}
    options |= {"x265-params": "log-level=none"} if codec == "hevc" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=fps, options=options)
        stream.width, stream.height, stream.gop_size, stream.pix_fmt = *size, fps, "yuv420p"
        for i in range(round(seconds * fps)):
            picture = rng.integers(70, 110, (size[1], size[0], 3), np.uint8)
            if any(start <= i / fps < end for start, end in intervals):
                picture[:, :, 0] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


class Receiver:
    """A webhook that takes messages, while it is not away."""

    def __init__(self):
        self.messages, self.is_away = [], False

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                if not self.is_away:
                    self.messages.append(body | {"authorization": handler.headers["Authorization"]})
                handler.send_response(503 if self.is_away else 204)
                handler.end_headers()

            def log_message(handler, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://user:{SECRET}@127.0.0.1:{self.server.server_address[1]}/hook"

    def kinds(self, camera: str) -> list[str]:
        return [message["kind"] for message in self.messages if message["camera"] == camera]


class Watcher:
    """A process of watch.py and its lines."""

    def __init__(self, planted, folder: Path, tables: str, **environment: str):
        self.folder, self.port, self.path, self.lines = folder, free_port(), folder / "watch.toml", []
        encoder = f"{planted.root / 'colours.py'}:Colours"
        self.head = f'checkpoint = "{planted.checkpoint}"\nencoder = "{encoder}"\nfolder = "state"\ndevice = "cpu"\n'
        self.head += f"[page]\nport = {self.port}\n[events]\nthreshold = 0.9\nupdate_every = 1.0\npre_roll = 1\n"
        self.environment = os.environ | environment
        self.write(tables)
        self.start()

    def write(self, tables: str) -> None:
        self.path.write_text(self.head + tables)

    def start(self) -> None:
        command = [sys.executable, "watch.py", str(self.path)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment)
        self.reading = threading.Thread(target=self.read, daemon=True)
        self.reading.start()

    def read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def events(self) -> list[dict]:
        if not (self.folder / "state" / "watch.db").exists():
            return []
        with sqlite3.connect(self.folder / "state" / "watch.db") as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM events ORDER BY id")]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Its exit status, and the seconds that it took to end."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        self.reading.join(10)
        return self.process.returncode, time.monotonic() - begun


def wait_for(condition, seconds: float = 60.0):
    """What it gives, once that is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
    return found


@pytest.fixture
def broker(tmp_path):
    """The port of a mosquitto."""
    if not (program := shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")):
        pytest.skip("needs mosquitto; see .ci/run for the packages")
    port, config = free_port(), tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait()


def retained(port: int, topic: str) -> str:
    """What a subscriber who comes now is told; "" if nothing."""
    command = ["mosquitto_sub", "-p", str(port), "-t", topic, "-C", "1", "-W", "2"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_two_cameras_of_different_codecs_give_events_with_pictures_clips_and_messages(tmp_path, planted, broker):
    require_rtsp()
    first = write_red(tmp_path / "a.mp4", [(t, t + 3) for t in range(4, 120, 8)], 120, 15)
    second = write_red(tmp_path / "b.mp4", [(t, t + 3) for t in range(6, 120, 8)], 120, 10, "hevc")
    port, receiver = free_port(), Receiver()
    server = serve(port, {"a": (first, "h264"), "b": (second, "hevc")})
    tables = (
        f'[webhook.alarm]\nurl = {{ env = "HOOK" }}\ntoken = "{SECRET}"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker}\n'
    )
    cameras = {
        n: f'[camera.{n}]\nurl = "rtsp://127.0.0.1:{port}/{n}"\nuser = "u"\npassword = "{SECRET}"\n' for n in "ab"
    }
    watcher = Watcher(planted, tmp_path, tables + cameras["a"], HOOK=receiver.url)
    try:
        wait_for(lambda: receiver.kinds("a").count("end") >= 1)
        assert watcher.get("/healthz")[0] == 200
        watcher.write(tables + cameras["a"] + cameras["b"])
        watcher.process.send_signal(signal.SIGHUP)  # camera a goes on, b comes
        wait_for(lambda: receiver.kinds("b").count("end") >= 1)
        assert watcher.get("/metrics")[1].count('videoanomaly_reconnects_total{camera="a"} 0.0') == 1
        watcher.write(tables + cameras["a"] + cameras["b"] + "threshold = 7\n")
        watcher.process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("not reloaded" in line for line in watcher.lines))
        wait_for(lambda: retained(broker, "videoanomaly/b/state") == "ON" and watcher.events()[-1]["is_open"])
        status, seconds = watcher.stop()
    finally:
        watcher.process.kill()
        server.kill()
        server.wait()
    assert status == 143 and seconds < 5, "".join(watcher.lines)
    events = watcher.events()
    assert not any(event["is_open"] for event in events) and {event["camera"] for event in events} == {"a", "b"}
    assert {event["class"] for event in events} == {"Fire"} or {event["class"] for event in events} == {"fire"}
    assert (
        retained(broker, "videoanomaly/b/state") == "OFF" and retained(broker, "videoanomaly/availability") == "offline"
    )
    for event in events[1:-1]:
        assert event["end"] - event["start"] == pytest.approx(3.0, abs=0.4)
        with av.open(str(tmp_path / "state" / "clips" / event["clip"])) as clip:
            assert clip.duration / 1e6 > 3.5
    text = "".join(watcher.lines)
    assert text.count(": connected to rtsp://127.0.0.1") == 2, text
    assert SECRET not in text and not (tmp_path / "state" / ".lock").exists()
    assert {message["authorization"] for message in receiver.messages} == {f"Bearer {SECRET}"}
    for camera in "ab":
        assert re.fullmatch("(begin (update )*end ?)+", " ".join(receiver.kinds(camera)))


@pytest.mark.slow
def test_nothing_is_lost_or_sent_twice_whatever_fails_and_however_often_it_is_killed(tmp_path, planted):
    require_rtsp()
    if not shutil.which("mosquitto"):
        pytest.skip("needs mosquitto; see .ci/run for the packages")
    for name, intervals in (("Normal", []), ("fire", [(1, 4)])):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_red(tmp_path / "videos" / name / "a.mp4", intervals, 6, 15)
    command = [sys.executable, "-m", "benchmarks.watching", "--ckpt", planted.checkpoint, "--minutes", "0.8"]
    command += ["--encoder", f"{planted.root / 'colours.py'}:Colours", "--videos", str(tmp_path / "videos")]
    command += ["--kills", "2", "--threshold", "0.9", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no event lost, none out of order, none under two ids" in done.stdout
    assert int(re.search(r"(\d+) events stored", done.stdout)[1]) >= 8


@pytest.mark.slow
def test_systemd_is_told(tmp_path, planted):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(60)
        video = write_red(tmp_path / "a.mp4", [(1, 3)], 60, 10)
        watcher = Watcher(
            planted, tmp_path, f'[camera.a]\nurl = "{video}"\n', NOTIFY_SOCKET=address, WATCHDOG_USEC="600000"
        )
        try:
            assert sock.recv(100) == b"READY=1" and sock.recv(100) == b"WATCHDOG=1"
            wait_for(lambda: watcher.events() and not watcher.events()[0]["is_open"])
            watcher.process.send_signal(signal.SIGHUP)
            while not sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
                pass
            while sock.recv(100) != b"READY=1":
                pass
            assert watcher.stop(signal.SIGINT)[0] == 130
            sock.setblocking(False)
            left = []
            while not left or left[-1] != b"STOPPING=1":
                left.append(sock.recv(100))
        finally:
            watcher.process.kill()


def test_the_unit_and_the_image_start_what_is_there():
    unit = (ROOT / "deploy" / "watch.service").read_text()
    image = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(r"ExecStart=\S+python watch\.py \S+\.toml", unit) and "Type=notify" in unit
    for line in re.findall(r"^RUN (.+)$", image, re.M):
        if line.startswith("python -m pip"):
            assert all((ROOT / name).exists() for name in re.findall(r"-r (\S+)", line))
        elif line.startswith("python"):
            done = subprocess.run([sys.executable, *line.split()[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^COPY (.+) \./$", image, re.M)[0].split()) <= {p.name for p in ROOT.iterdir()}
