"""What other programs ask of the service: /healthz for whoever restarts it, /metrics for Prometheus."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from videoanomaly.watching.board import LATENCY_BOUNDS, STATES, Board
from videoanomaly.watching.store.event_store import EventStore

PREFIX = "videoanomaly"
COUNTERS = {
    "frames": "Pictures read",
    "rows": "Rows that were due",
    "encoded": "Rows that were encoded",
    "reused": "Rows of still scenes, whose features were used again",
    "dropped": "Rows that the device could not take",
    "reconnects": "Connections made anew",
}
GAUGES = {
    "rows_per_second": "Rows scored a second, over the last minute",
    "wanted_rows_per_second": "Rows a second that the settings ask for",
    "last_frame": "When the last picture came, seconds since 1970; 0: none yet",
}
Gauges = Callable[[], Mapping[str, float]]


class Health:
    """Whether pictures come from every camera that is to be watched now."""

    def __init__(self, board: Board):
        self.board = board
        self.started: dict[str, float] = {}  # when a camera was first seen, or last seen paused

    def look(self, stale_after: float) -> tuple[int, dict[str, Any]]:
        """The HTTP status, and what to tell: the cameras whose last picture is older than so many seconds.

        One that is starting counts from its start, one outside its schedule not at all.
        """
        now, cameras = time.time(), self.board.snapshot()
        since: dict[str, float] = {camera["name"]: camera["since"] for camera in cameras}
        self.started = {name: self.started.get(name, start) for name, start in since.items()}
        stale = {}
        for camera in cameras:
            age = now - self.newest(camera, now)
            if age > stale_after:
                known = round(now - camera["last_frame"], 1) if camera["last_frame"] else None
                stale[camera["name"]] = {"state": camera["state"], "seconds_since_last_frame": known}
        status = "stale" if stale else "ok"
        return (503 if stale else 200), {"status": status, "cameras": len(cameras), "stale": stale}

    def newest(self, camera: Mapping[str, Any], now: float) -> float:
        """When there was last a picture, or none was to be expected."""
        if camera["state"] == "paused":
            self.started[camera["name"]] = now
        start = camera["since"] if camera["state"] == "starting" else 0.0
        return max(camera["last_frame"], start, self.started[camera["name"]])


class WatchCollector(Collector):
    """Reads board and store when it is asked; nothing is counted twice.

    Args:
        gauges: Further numbers by name, such as of a queue.
    """

    def __init__(self, board: Board, store: EventStore, gauges: Gauges):
        self.board, self.store, self.gauges = board, store, gauges

    def collect(self) -> Iterator[Metric]:
        cameras = self.board.snapshot()
        yield from camera_metrics(cameras)
        yield self.latencies()
        yield from outbox_metrics(self.store.backlog(), time.time())
        events = GaugeMetricFamily(f"{PREFIX}_events", "Events that are stored", labels=["kind"])
        for kind, number in self.store.counts().items():
            events.add_metric([kind], number)
        yield events
        for name, value in self.gauges().items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", name.replace("_", " "), value=value)

    def latencies(self) -> Metric:
        """From a picture to its scores."""
        family = HistogramMetricFamily(f"{PREFIX}_latency_seconds", "From a picture to its scores", labels=["camera"])
        with self.board.lock:
            found = {
                name: (counts.copy(), self.board.latency_sums[name]) for name, counts in self.board.latencies.items()
            }
        for name, (counts, total) in sorted(found.items()):
            bounds = [*map(floatToGoString, LATENCY_BOUNDS), "+Inf"]
            family.add_metric([name], list(zip(bounds, np.cumsum(counts).astype(float).tolist())), total)
        return family


def camera_metrics(cameras: list[dict[str, Any]]) -> Iterator[Metric]:
    """Counts, rates and states."""
    for key, text in COUNTERS.items():
        family = CounterMetricFamily(f"{PREFIX}_{key}", text, labels=["camera"])
        for camera in cameras:
            family.add_metric([camera["name"]], camera[key])
        yield family
    for key, text in GAUGES.items():
        family = GaugeMetricFamily(f"{PREFIX}_{key}", text, labels=["camera"])
        for camera in cameras:
            family.add_metric([camera["name"]], camera[key])
        yield family
    family = GaugeMetricFamily(f"{PREFIX}_state", "1 for the state that a camera is in", labels=["camera", "state"])
    for camera in cameras:
        for state in STATES:
            family.add_metric([camera["name"], state], float(camera["state"] == state))
    yield family


def outbox_metrics(backlog: Mapping[str, Mapping[str, Any]], now: float) -> Iterator[Metric]:
    """Messages by where they go."""
    waiting = GaugeMetricFamily(f"{PREFIX}_outbox_waiting", "Messages not yet delivered", labels=["sink"])
    oldest = GaugeMetricFamily(f"{PREFIX}_outbox_oldest_seconds", "Age of the oldest of them", labels=["sink"])
    given_up = CounterMetricFamily(f"{PREFIX}_outbox_given_up", "Messages given up", labels=["sink"])
    delivered = CounterMetricFamily(f"{PREFIX}_outbox_delivered", "Messages delivered", labels=["sink"])
    for sink, found in sorted(backlog.items()):
        waiting.add_metric([sink], found["waiting"])
        oldest.add_metric([sink], max(now - found["oldest"], 0.0) if found["oldest"] else 0.0)
        given_up.add_metric([sink], found["given_up"])
        delivered.add_metric([sink], found["delivered"])
    yield from (waiting, oldest, given_up, delivered)


def make_registry(board: Board, store: EventStore, gauges: Gauges) -> CollectorRegistry:
    """All of it, and the memory and time of the process; apart from what other libraries register."""
    registry = CollectorRegistry()
    registry.register(WatchCollector(board, store, gauges))
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics in the form that is asked for, and its media type."""
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
