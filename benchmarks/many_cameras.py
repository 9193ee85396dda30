"""How watch.py shares a device among many cameras: python -m benchmarks.many_cameras --cameras 100 --speed 400

Cameras are simulated: threads that give pictures at a rate of their own; the encoder takes as long as it is told to, or
is ViT-B/16 with random weights (--vit float32, --vit bfloat16). All between is real: sampling, batches, shares, model,
events, database. Prints rows a second of each camera, lowest and highest, latency, memory and threads.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from benchmarks.inputs import VIT_B16, random_clip
from videoanomaly.event_rule import EventSettings
from videoanomaly.live.streams import Source
from videoanomaly.runtime.console import Parser, run_script
from videoanomaly.video.encoders import ClipEncoder, Encoder
from videoanomaly.watching.board import Board, CameraStatus
from videoanomaly.watching.camera import Camera
from videoanomaly.watching.camera_events import CameraEvents
from videoanomaly.watching.engine import Engine
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import CameraSettings

SIDE, WIDTH, HEIGHT = 8, 320, 180


class StubEncoder:
    """Features are a picture's pixels; a batch takes as long as its pictures at `speed` a second."""

    dim, device = 3 * SIDE * SIDE, "cpu"

    def __init__(self, speed: float):
        self.speed = speed

    def preprocess(self, image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((SIDE, SIDE)), np.float32) / 255).permute(2, 0, 1)

    def encode(self, images: Tensor) -> Tensor:
        time.sleep(len(images) / self.speed)
        return images.flatten(1)


class VitEncoder(ClipEncoder):
    """ViT-B/16 with random weights, in float32 or under autocast."""

    def __init__(self, precision: str):
        super().__init__(random_clip(VIT_B16), "cpu")
        self.precision = getattr(torch, precision)

    def encode(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            return super().encode(images).float()


class SimulatedCamera(Camera):
    """Gives pictures of noise at a rate, each of them `stay` times."""

    def __init__(self, fps: float, stay: int, *given, **named):
        super().__init__(*given, **named)
        self.fps, self.stay, rng = fps, stay, np.random.default_rng(0)
        noise = rng.integers(0, 255, (8, HEIGHT, WIDTH, 3), np.uint8)
        self.pictures = [
            av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p") for picture in noise
        ]

    def read(self) -> None:
        self.rate = self.rate or self.fps / self.stride
        self.show("connected")
        begun = time.monotonic()
        while not self.stopping.is_set():
            self.num_frames += 1
            stamp = self.num_frames / self.fps
            self.stopping.wait(max(begun + stamp - time.monotonic(), 0))
            picture = self.pictures[self.num_frames // self.stay % len(self.pictures)]
            self.sample(picture, stamp, 0.5 / self.fps)


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--cameras", type=int, default=100)
    add("--fps", type=float, default=15.0, help="pictures a second of each camera")
    add("--slow", type=int, default=0, help="so many of the cameras give a tenth of it")
    add("--stride", type=int, default=1, help="frames for each row")
    add("--stay", type=int, default=1, help="so many pictures in a row are the same, and share features")
    add("--vit", choices=("float32", "bfloat16"), help="encode with ViT-B/16")
    add("--speed", type=float, default=400.0, help="pictures that the encoder takes a second")
    add("--warm-up", type=float, default=10.0, help="seconds before it is measured")
    add("--seconds", type=float, default=30.0, help="measured")
    return parser.parse_args(argv)


def make_model(dim: int) -> AnomalyCLIP:
    config = AnomalyCLIPConfig(
        feature_dim=dim,
        classes=("Fire", "Flood"),
        num_segments=4,
        num_frames=5,
        embed_dim=32,
        depth=1,
        directions="direct",
    )
    return AnomalyCLIP(config).eval()


def resident() -> float:
    """Megabytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def main(argv=None) -> None:
    args = parse_args(argv)
    torch.set_grad_enabled(False)
    board = Board()
    encoder = Encoder(VitEncoder(args.vit) if args.vit else StubEncoder(args.speed), "stub", 1, None, SIDE)
    engine = Engine(make_model(encoder.model.dim), encoder, 32, board)
    rates = [args.fps / (10 if i < args.slow else 1) for i in range(args.cameras)]
    with tempfile.TemporaryDirectory() as folder:
        store, before, at_start = EventStore(Path(folder)), resident(), threading.active_count()
        for i, fps in enumerate(rates):
            add_camera(engine, store, board, encoder, f"camera{i:03d}", fps, args.stay, args.stride)
        print(
            f"{args.cameras} cameras, {sum(rates) / args.stride:.0f} rows/s wanted, encoder "
            + (args.vit or f"{args.speed:.0f} pictures/s")
        )
        work(engine, args.warm_up)
        cameras = [seat.camera for seat in engine.seats.values()]
        counts, begun, cpu, seen = (
            [c.num_encoded + c.num_reused for c in cameras],
            time.monotonic(),
            time.process_time(),
            resident(),
        )
        work(engine, args.seconds)
        passed = time.monotonic() - begun
        found = [(c.num_encoded + c.num_reused - n) / passed for c, n in zip(cameras, counts)]
        latencies = np.concatenate([list(seat.watches[0].latencies)[-1000:] for seat in engine.seats.values()])
        report(found, args.slow, latencies)
        print(f"memory: {(resident() - before) / args.cameras:.2f} MB a camera, growth {resident() - seen:.1f} MB")
        print(f"threads: {threading.active_count() - at_start}; CPU {(time.process_time() - cpu) / passed:.2f} cores")
        for camera in cameras:
            camera.stopping.set()
        for camera in cameras:
            camera.join()


def add_camera(
    engine: Engine, store: EventStore, board: Board, encoder: Encoder, name: str, fps: float, stay: int, stride: int
) -> None:
    how = {"encoder": encoder, "reuse_still": stay > 1, "board": board, "recorder": None, "wake": engine.waiting.set}
    camera = SimulatedCamera(
        fps, stay, CameraSettings(name, "stub"), Source(name, {}, False, False), None, stride, **how
    )
    board.add(CameraStatus(name, name))
    told = {"rule": "given", "model": "stub", "store": store, "shown": [], "update_every": 5.0, "say": print}
    engine.add(camera, CameraEvents(camera, ("Fire", "Flood"), EventSettings(0.99), **told))
    camera.start()


def work(engine: Engine, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        engine.waiting.clear()
        if not engine.step():
            engine.waiting.wait(0.1)


def report(rates: list[float], slow: int, latencies: np.ndarray) -> None:
    for name, part in (("slow", rates[:slow]), ("cameras", rates[slow:])):
        if part:
            print(f"{name}: {min(part):.2f} to {max(part):.2f} rows/s each, ratio {min(part) / max(part):.3f}")
    median, high = np.percentile(latencies, (50, 95))
    print(f"together {sum(rates):.0f} rows/s; latency median {median:.2f} s, 95 % {high:.2f} s")


if __name__ == "__main__":
    run_script(main)
