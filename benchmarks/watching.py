"""A long run of watch.py with real parts that fail: python -m benchmarks.watching --ckpt last.pt --videos demo-data

Four RTSP cameras (H.264 at 30 and 8 pictures/s, H.265), mosquitto and a webhook. In the run, a camera is away twice,
the broker and the webhook once, and watch.py is killed and started again. Printed: what was read, latency, memory, and
whether each event that the database holds was delivered to both receivers, in order, and under one id.
"""

import argparse
import getpass
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt

from benchmarks.rtsp_server import free_port, repeat, serve, what_is_missing, write_part
from videoanomaly.runtime.console import InputError, Parser, run_script

CAMERAS = {"hall": ("h264", 30), "yard": ("hevc", 15), "gate": ("h264", 30), "shop": ("h264", 8)}  # codec, pictures/s
PART = 180  # seconds of pictures that are encoded; they are repeated
# what happens when, minutes of a run of twenty
PLAN = (
    (3.0, "camera", 10 / 60), (5.0, "camera", 2.0), (7.5, "broker", 3.0), (9.0, "webhook", 5.0), (15.0, "kill", 0.0),
)  # fmt: skip
WAITING = "videoanomaly_outbox_waiting"  # of /metrics
GRACE = 150.0  # seconds at most between the end of the run and SIGTERM, in which messages arrive


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--ckpt", required=True, help="of the demo, or of another model that fits --videos")
    add("--clip", help="weights of its CLIP")
    add("--encoder", help="FILE.py:CLASS instead, as predict.py has it")
    add("--videos", type=Path, required=True, help="folders of videos by class, those of Normal between the others")
    add("--minutes", type=float, default=20.0, help="of the run; the outages are as long as it is to 20")
    add("--kills", type=int, default=0, help="further kills at random moments")
    add("--threshold", type=float, default=0.5)
    add("--out", type=Path, default=Path("runs/watching"), help="folder of all that the run makes")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- cameras


class Server:
    """A process that can be away."""

    def __init__(self, start: Callable[[], subprocess.Popen]):
        self.start, self.process = start, start()

    def away(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self.process = self.start()

    def stop(self) -> None:
        """In good order: what a broker that is killed has confirmed and not yet passed on is lost with it."""
        self.process.terminate()
        self.process.wait()


# ---------------------------------------------------------------- receivers


class Received:
    """Messages in the order in which they came: (time, message)."""

    def __init__(self):
        self.messages: list[tuple[float, dict]] = []
        self.is_away = False

    def add(self, body: bytes) -> None:
        self.messages.append((time.time(), json.loads(body)))

    def by_event(self) -> dict[str, list[tuple[float, dict]]]:
        """Of each key the first that came."""
        found, known = defaultdict(list), set()
        for moment, message in self.messages:
            if message["key"] not in known:
                known.add(message["key"])
                found[message["id"]].append((moment, message))
        return found


def start_webhook(received: Received) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not received.is_away:
                received.add(body)
            self.send_response(503 if received.is_away else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def start_broker(folder: Path, port: int) -> subprocess.Popen:
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        f"user {getpass.getuser()}\n"  # else root's broker becomes another user, who cannot keep its state there
    )
    process = subprocess.Popen(["mosquitto", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    return process


def subscribe(port: int, received: Received, states: list[tuple[float, str, str]]) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="benchmark", clean_session=False)

    def on_message(client, data, message) -> None:
        if message.topic.endswith("/events"):
            received.add(message.payload)
        else:
            states.append((time.time(), message.topic, message.payload.decode()))

    client.on_message = on_message
    client.on_connect = lambda client, *_: client.subscribe([("w/+/events", 1), ("w/+/state", 1)])
    client.reconnect_delay_set(1, 2)
    client.connect_async("127.0.0.1", port)
    client.loop_start()
    return client


# ---------------------------------------------------------------- the service


class Service:
    """watch.py and what is seen of it from outside."""

    def __init__(self, settings: Path, log: Path, port: int):
        self.command = [sys.executable, "watch.py", str(settings)]
        self.log, self.port = log, port
        self.memory: list[tuple[float, float]] = []  # time and MB in memory, of this process
        self.totals: dict[str, float] = defaultdict(float)  # of processes that ended
        self.start()

    def start(self) -> None:
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, stderr=log)
        self.counters: dict[str, float] = {}
        self.memory.clear()

    def look(self) -> None:
        """Takes down memory and counters."""
        with suppress(OSError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            self.memory.append((time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                lines = [line for line in answer.read().decode().splitlines() if line[:1] != "#"]
            self.counters = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def wait_for_messages(self) -> None:
        """Until none waits any more."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            time.sleep(1)
            self.look()
            waiting = [value for name, value in self.counters.items() if name.startswith(WAITING)]
            if waiting and not any(waiting):
                return

    def end(self, number: int) -> float:
        """Ends it by a signal; seconds that it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait()
        for name, value in self.counters.items():
            self.totals[name] += value
        return time.monotonic() - begun


def settings_text(general: dict[str, str], threshold: float, ports: dict[str, int], hook: int) -> str:
    lines = [f'{key} = "{value}"' for key, value in general.items()]
    lines += ["[page]", f"port = {ports['page']}", "[events]", f"threshold = {threshold}"]
    lines += ["[webhook.alarm]", f'url = "http://127.0.0.1:{hook}/"']
    lines += ["[mqtt]", 'host = "127.0.0.1"', f"port = {ports['broker']}", 'base = "w"']
    for name in CAMERAS:
        lines += [f"[camera.{name}]", f'url = "rtsp://127.0.0.1:{ports[name]}/{name}"']
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the run


def make_cameras(folder: Path, videos: Path, seconds: float) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    length = min(PART, seconds // 4)
    for i, (name, (codec, fps)) in enumerate(CAMERAS.items()):
        part, path = folder / f"{name}-part.mp4", folder / f"{name}.mp4"
        write_part(part, videos, codec, fps, length, i)
        repeat(part, path, length, seconds)
    return {name: folder / f"{name}.mp4" for name in CAMERAS}


def make_plan(minutes: float, kills: int) -> list[tuple[float, str, float]]:
    """PLAN in seconds, for a run of so many minutes, and further kills."""
    plan = [(3 * minutes * at, what, 3 * minutes * length) for at, what, length in PLAN]
    moments = np.random.default_rng().uniform(0.05, 0.95, kills) * 60 * minutes
    return sorted(plan + [(float(at), "kill", 0.0) for at in moments])


def run_plan(
    plan: list[tuple[float, str, float]],
    seconds: float,
    service: Service,
    servers: dict[str, Server],
    webhook: Received,
) -> None:
    """Lets things fail as planned, and looks at the service every five seconds."""
    begun, threads = time.monotonic(), []
    while (now := time.monotonic() - begun) < seconds:
        while plan and plan[0][0] <= now:
            _, what, length = plan.pop(0)
            print(f"{now:.0f} s: {what}{f' away for {length:.0f} s' if length else ''}", flush=True)
            if what == "kill":
                service.end(signal.SIGKILL)
                service.start()
                continue
            work = (lambda length: away(webhook, length)) if what == "webhook" else servers[what].away
            threads.append(threading.Thread(target=work, args=(length,), daemon=True))
            threads[-1].start()
        service.look()
        time.sleep(min(5.0, max(plan[0][0] - now, 0.1) if plan else 5.0))
    for thread in threads:
        thread.join()


def away(received: Received, seconds: float) -> None:
    received.is_away = True
    time.sleep(seconds)
    received.is_away = False


def stored(folder: Path) -> tuple[list[sqlite3.Row], set[tuple[str, str]]]:
    """All events, and (sink, key) of the messages that wait still."""
    connection = sqlite3.connect(folder / "watch.db")
    connection.row_factory = sqlite3.Row
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    waiting = {(row["sink"], json.loads(row["body"])["key"]) for row in connection.execute("SELECT * FROM messages")}
    return connection.execute("SELECT * FROM events ORDER BY id").fetchall(), waiting


def check_delivery(
    name: str, received: Received, events: Sequence[sqlite3.Row], waiting: set[tuple[str, str]]
) -> list[str]:
    """What is not as it should be: messages that are lost, out of order, or of events that are not stored."""
    found, wrong = received.by_event(), []
    for event in events:
        numbers = [message["number"] for _, message in found.get(event["id"], [])]
        left = [n for n in range(1, event["message_count"] + 1) if (name, f"{event['id']}:{n}") in waiting]
        numbers += [n for n in left if n not in numbers]  # SIGTERM came before them
        if numbers != list(range(1, event["message_count"] + 1)):
            wrong.append(f"{name}: event {event['id']} has messages {numbers} of {event['message_count']}")
    wrong += [f"{name}: event {id} is not stored" for id in found.keys() - {event["id"] for event in events}]
    starts: dict[tuple, set[str]] = defaultdict(set)
    for _, message in received.messages:
        starts[message["camera"], message["start"]].add(message["id"])
    return wrong + [f"{name}: an event under the ids {ids}" for ids in starts.values() if len(ids) > 1]


def latencies(received: Received) -> np.ndarray:
    """Seconds from the newest picture that the first message of an event knows of to its arrival."""
    return np.array([
        moment - datetime.fromisoformat(message["seen_until"]).timestamp()
        for messages in received.by_event().values() for moment, message in messages[:1]
    ])  # fmt: skip


def report(service: Service, folder: Path, receivers: dict[str, Received], stop: float) -> int:
    """Prints the table; 1 if something is wrong."""
    events, waiting = stored(folder)
    for name in CAMERAS:
        label = f'camera="{name}"'
        numbers = {
            key: service.totals.get(f"videoanomaly_{key}_total{{{label}}}", 0)
            for key in ("frames", "rows", "encoded", "dropped", "reconnects")
        }
        of = [event for event in events if event["camera"] == name]
        clips = sum(event["clip"] is not None for event in of)
        print(
            f"{name}: "
            + ", ".join(f"{n:.0f} {key}" for key, n in numbers.items())
            + f", {len(of)} events, {clips} clips"
        )
    begun = service.memory[0][0]
    warm = [mb for moment, mb in service.memory if moment - begun > 60] or [mb for _, mb in service.memory]
    print(f"memory after a minute {warm[0]:.0f} MiB, at the end {warm[-1]:.0f} MiB, highest {max(warm):.0f} MiB")
    wrong = [text for name, received in receivers.items() for text in check_delivery(name, received, events, waiting)]
    for name, received in receivers.items():
        seconds = latencies(received)
        median, high = np.percentile(seconds, (50, 95)) if len(seconds) else (np.nan, np.nan)
        prompt = seconds[seconds < 10]
        print(
            f"{name}: {len(received.messages)} messages, {len(received.by_event())} events; to the first message "
            f"median {median:.2f} s, 95 % {high:.2f} s; outside outages ({len(prompt)}) {np.median(prompt):.2f} s"
        )
    print(f"{len(events)} events stored, {sum(event['is_open'] for event in events)} open; SIGTERM took {stop:.1f} s")
    print("\n".join(wrong) or "no event lost, none out of order, none under two ids")
    return bool(wrong)


def main(argv=None) -> int:
    args = parse_args(argv)
    if reason := what_is_missing():
        raise InputError(f"no GStreamer RTSP server ({reason})")
    ports = {name: free_port() for name in ("page", "broker", *CAMERAS)}
    files = make_cameras(args.out / "cameras", args.videos, 60 * args.minutes + 120)
    alarm, mosquitto, states = Received(), Received(), []
    hook = start_webhook(alarm).server_address[1]
    servers = {
        name: Server(lambda name=name: serve(ports[name], {name: (files[name], CAMERAS[name][0])})) for name in CAMERAS
    }
    servers["broker"] = Server(lambda: start_broker(args.out, ports["broker"]))
    servers["camera"] = servers[next(iter(CAMERAS))]
    client = subscribe(ports["broker"], mosquitto, states)
    general = {"checkpoint": str(Path(args.ckpt).resolve()), "folder": str((args.out / "state").resolve())}
    general |= {"clip": str(Path(args.clip).resolve())} if args.clip else {}
    general |= {"encoder": str(Path(args.encoder).resolve())} if args.encoder else {}
    (args.out / "watch.toml").write_text(settings_text(general, args.threshold, ports, hook))
    service = Service(args.out / "watch.toml", args.out / "log.txt", ports["page"])
    try:
        run_plan(make_plan(args.minutes, args.kills), 60 * args.minutes, service, servers, alarm)
        service.wait_for_messages()
        stop = service.end(signal.SIGTERM)
        return report(service, args.out / "state", {"webhook.alarm": alarm, "mqtt": mosquitto}, stop)
    finally:
        client.loop_stop()
        service.process.kill()
        for server in servers.values():
            server.stop()


if __name__ == "__main__":
    run_script(main)
