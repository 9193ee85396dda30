"""Live mode: its event rule against cut_events, its ring against slices, streams from sockets and a real RTSP
server.

The RTSP test needs GStreamer's server: see benchmarks/rtsp_server.py.
"""

import contextlib
import gc
import io
import json
import os
import queue
import signal
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from benchmarks.rtsp_server import free_port, serve
from tests import children
from tests.cameras import require_rtsp
from tests.streams import Brightness, GreyEncoder
from videoanomaly import event_rule
from videoanomaly.event_rule import EventSettings, cut_events
from videoanomaly.live import service, streams, watcher as watcher_, webhook
from videoanomaly.runtime.console import InputError

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis (requirements-dev.txt)")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

FPS = 20
SCRIPT = """
import json, sys
from tests.streams import Brightness, GreyEncoder
from videoanomaly.event_rule import EventSettings
from videoanomaly.live import service, streams, watcher
from videoanomaly.runtime.console import run_script
options = json.loads(sys.argv[2])
watcher.GAP = service.GAP = options.pop("gap", 10)
streams.TIMEOUT, streams.BACK_OFF = options.pop("timeout", 5), (0.5, 1)
options |= {"settings": EventSettings(0.5), "threshold_rule": "given as --threshold", "n_px": 8}
run_script(lambda: service.run(sys.argv[1], Brightness(), GreyEncoder(), **options))
"""


def bright_at(intervals, seconds: float) -> np.ndarray:
    """Brightness of each frame, 255 in some intervals of seconds, else 16."""
    times = np.arange(round(seconds * FPS)) / FPS
    return np.where(sum((times >= a) & (times < b) for a, b in intervals) > 0, 255, 16)


def write_video(file, brightness, format="mp4") -> None:
    with av.open(str(file) if isinstance(file, Path) else file, "w", format=format) as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.gop_size, stream.max_b_frames = 64, 48, 10, 0
        for value in brightness:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds, bright from 1.0 to 2.5."""
    path = tmp_path_factory.mktemp("live") / "video.mp4"
    write_video(path, bright_at([(1, 2.5)], 4))
    return path


def watch_here(source, capfd, encoder=None, **options):
    """Runs `live.run` in this process; status, events, lines of stderr."""
    options |= {"settings": EventSettings(0.5), "threshold_rule": "given as --threshold", "n_px": 8}
    status = service.run(str(source), Brightness(), encoder or GreyEncoder(), **options)
    out, err = capfd.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err.splitlines()


class Watcher:
    """A process that watches a source; its lines arrive with `wait_for`."""

    def __init__(self, source, stdin=None, **options):
        self.lines = []
        self.process = children.Child("-c", SCRIPT, str(source), json.dumps(options), stdin=stdin)
        self.threads = [
            threading.Thread(target=self.read, args=(file,), daemon=True)
            for file in (self.process.stdout, self.process.stderr)
        ]
        for thread in self.threads:
            thread.start()

    def read(self, file):
        self.lines.extend(iter(file.readline, ""))

    def wait_for(self, text, count=1, seconds=40):
        until = time.monotonic() + seconds
        while sum(text in line for line in list(self.lines)) < count:
            assert time.monotonic() < until and self.process.poll() is None, f"no {text} in {self.lines}"
            time.sleep(0.02)

    def stop(self, number=signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        status = self.process.wait(30)
        for thread in self.threads:
            thread.join(5)
        return status

    def events(self):
        return [json.loads(line) for line in self.lines if line.startswith("{")]


def kinds(events) -> list[str]:
    return [event["event"] for event in events if event["event"] != "update"]


# ---------------------------------------------------------------- events


def stream_events(p_A, rate, *settings):
    """News of EventRule, (row, kind, event), of which p_class are p_A and 1 - p_A."""
    rule, news = event_rule.EventRule(rate, EventSettings(*settings), 2), []
    for row, p in enumerate(p_A):
        found = rule.add(row, p, np.array([p, 1 - p]))
        news += [(row, *found)] if found else []
    found = rule.finish()
    return news + ([(len(p_A), *found)] if found else [])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.26, 0.5, 0.51, 0.9]), st.integers(1, 9)), min_size=1, max_size=40),
    st.sampled_from([1.0, 3.0, 4.5]),
    st.sampled_from([0.5, 0.52]),
    st.one_of(
        st.just((0.5, 1.0, 1.0)),  # the defaults, which cut_events has without being told
        st.tuples(st.sampled_from([0.01, 0.3, 0.5, 1.0]), st.sampled_from([0, 0.5, 3]), st.sampled_from([0, 0.7, 4])),
    ),
)
def test_events_of_a_stream_are_those_of_cut_events(pieces, rate, high, others):
    p_A, low_share = np.concatenate([np.full(length, p) for p, length in pieces]), others[0]
    given = {"low": low_share * high, "merge_gap": others[1], "min_length": others[2]}
    expected = cut_events(p_A, rate, high=high, **(given if others != (0.5, 1.0, 1.0) else {}))
    ends = [event for _, kind, event in stream_events(p_A, rate, high, *others) if kind == "end"]
    assert [[e.start, e.end] for e in ends] == expected.intervals.tolist()
    np.testing.assert_allclose([e.p_A for e in ends], expected.scores)
    for e in ends:
        np.testing.assert_allclose(e.p_class, [p_A[e.start : e.end].mean(), 1 - p_A[e.start : e.end].mean()])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.9]), st.integers(1, 9)), min_size=1, max_size=20))
def test_an_event_is_told_at_the_first_row_that_makes_it_one_and_ended_when_nothing_can_join_it(pieces):
    p_A, rate = np.concatenate([np.full(length, p) for p, length in pieces]), 3.0
    for row, kind, event in stream_events(p_A, rate, 0.5):
        if kind == "begin":
            assert len(cut_events(p_A[: row + 1], rate).intervals) == len(cut_events(p_A[:row], rate).intervals) + 1
        elif row < len(
            p_A
        ):  # a peak from the next row on would be one of its own; one row earlier it would have joined
            assert cut_events(np.append(p_A[: row + 1], [0.9] * 9), rate).intervals[-2].tolist() == [
                event.start,
                event.end,
            ]
            assert cut_events(np.append(p_A[:row], [0.9] * 9), rate).intervals[-1][0] == event.start


# ---------------------------------------------------------------- rows


def test_ring_holds_the_newest_rows_in_order():
    ring, rows = watcher_.RowRing(6, (2, 3)), np.random.default_rng(0).random((20, 2, 3)).astype(np.float32)
    assert ring.newest().shape == (0, 2, 3)
    for count, row in enumerate(rows, 1):
        ring.push(row)
        np.testing.assert_array_equal(ring.newest(), rows[max(count - 6, 0) : count])


def small_model(num_frames=5) -> AnomalyCLIP:
    torch.manual_seed(0)
    config = AnomalyCLIPConfig(
        classes=("a", "b", "c"),
        feature_dim=6,
        num_segments=4,
        num_frames=num_frames,
        topk=1,
        embed_dim=8,
        num_heads=2,
        directions="direct",
    )
    model = AnomalyCLIP(config).eval()
    with torch.no_grad():
        model.temporal_model.head.weight.mul_(20)  # scores from 0 to 1, as of a trained one
    return model


def make_watch(model, told, threshold=0.5, num_crops=1):
    rule = EventSettings(threshold)
    return watcher_.Watch(model, rate=5.0, settings=rule, num_crops=num_crops, tell=lambda *news: told.append(news))


@pytest.mark.parametrize("num_crops", [1, 2])
def test_a_stream_gives_the_events_of_the_scores_that_the_same_windows_have_offline(num_crops):
    rng, model = np.random.default_rng(1), small_model()
    features = rng.normal(size=(213, num_crops, 6)).astype(np.float32) + 3 * np.sin(np.arange(213) / 9)[:, None, None]
    parts = [model.predict(features[max(end - 20, 0) : end]) for end in range(5, 211, 5)]
    last = model.predict(features[193:213])
    p_A = np.concatenate([p[-5:] for p, _ in parts] + [last[0][-3:]])
    p_class = np.concatenate([p[-5:] for _, p in parts] + [last[1][-3:]])
    threshold, told = float(np.quantile(p_A, 0.7)), []
    watch = make_watch(model, told, threshold, num_crops=num_crops)
    for row, x in enumerate(features):
        watch.add(x, 40 + row, 0.0)
    watch.finish()
    expected = cut_events(p_A, 5.0, high=threshold)
    ends = [event for kind, _, event, _ in told if kind == "end"]
    assert len(ends) > 2 and [[e.start - 40, e.end - 40] for e in ends] == expected.intervals.tolist()
    np.testing.assert_allclose([e.p_A for e in ends], expected.scores, rtol=1e-5)
    np.testing.assert_allclose(ends[0].p_class, p_class[slice(*expected.intervals[0])].mean(0), rtol=1e-4)
    assert [n for kind, n, *_ in told if kind == "begin"] == list(range(1, len(ends) + 1))


def grey(value):
    return np.full((1, 2), value, np.float32)


def test_missing_rows_repeat_the_last_one_and_a_longer_gap_ends_the_event(monkeypatch):
    monkeypatch.setattr(watcher_, "GAP", 2.0)
    told = []
    watch = make_watch(Brightness(), told)
    for row in (0, 1, 2, 10):  # rows 3 to 9 are missing: less than 2 s of 5 rows
        watch.add(grey(0.9 if row < 10 else 0.1), row, 0.0)
    assert watch.ring.newest()[:, 0, 0].tolist() == pytest.approx([0.9] * 10 + [0.1])
    watch.add(grey(0.8), 22, 0.0)  # 11 missing
    assert [(kind, n, e.start, e.end) for kind, n, e, _ in told] == [("begin", 1, 0, 5), ("end", 1, 0, 10)]
    assert watch.ring.newest()[:, 0, 0].tolist() == pytest.approx([0.8])


def test_a_source_that_is_too_slow_for_the_model_is_told_once(capsys):
    watch = make_watch(Brightness(), [])
    for row in range(0, 3000, 300):  # a picture a minute
        watch.add(grey(0.9), row, 0.0)
    assert capsys.readouterr().err.startswith(
        "a picture every 60.0 s: each is scored alone, as this model sees events in"
    )
    for row in range(3000, 3010):
        watch.add(grey(0.9), row, 0.0)
    assert not capsys.readouterr().err


def test_an_open_event_is_updated_by_each_run_of_the_model_while_it_goes_on():
    told = []
    watch = make_watch(Brightness(), told)
    for row in range(40):
        watch.add(grey(0.9 if 5 <= row < 23 else 0.1), row, time.monotonic() - 7)
    assert [(kind, e.start, e.end) for kind, _, e, _ in told] == [
        ("begin", 5, 10),
        ("update", 5, 15),
        ("update", 5, 20),
        ("update", 5, 23),
        ("end", 5, 23),
    ]
    assert all(7 <= latency < 17 for *_, latency in told)


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_the_same_over_100000_frames():
    told, rng = [], np.random.default_rng(2)
    watch = make_watch(small_model(num_frames=50), told, threshold=0.6)
    pool = rng.normal(size=(1000, 1, 6)).astype(np.float32)
    for row in range(100_000):
        watch.add(pool[rng.integers(1000)] * (row // 200 % 3), row, time.monotonic())
        if row == 10_000:
            gc.collect()
            before = resident()
        told.clear()
    gc.collect()
    assert watch.num_events > 20 and resident() - before < 5 * 2**20


# ---------------------------------------------------------------- reading


def make_reader(rate=None, stride=1, **changes):
    reader = streams.Reader(streams.Source("test", {}, False, False), rate, stride)
    for name, value in changes.items():
        setattr(reader, name, value)
    return reader


@pytest.mark.parametrize("seconds_per_row, gaps", [(0.03, {1}), (0.1, {2, 3}), (0.26, {6, 7})])
def test_too_slow_an_encoder_gets_frames_at_even_distances(seconds_per_row, gaps):
    reader, rows = make_reader(rate=25.0, seconds_per_row=seconds_per_row), []
    for k in range(115):
        reader.sample(None, k / 25, 0.02)
        rows += [] if reader.samples.empty() else [reader.samples.get().row]
    assert set(np.diff(rows)) <= gaps and reader.num_dropped == 115 - len(rows)
    assert len(rows) == pytest.approx(4.6 / max(seconds_per_row * 1.05, 0.04), abs=1.5)


def test_rows_are_every_nth_frame_though_time_stamps_tremble():
    rng, reader, rows = np.random.default_rng(0), make_reader(rate=10.0), []
    for k in range(60):
        reader.sample(k, 100 + k / 20 + rng.uniform(-0.02, 0.02) * (k > 0), 0.025)
        rows += [] if reader.samples.empty() else [reader.samples.get()]
    assert [sample.frame for sample in rows] == list(range(0, 60, 2)) and [s.row for s in rows] == list(range(30))


def test_frames_that_wait_are_few_when_nobody_takes_them():
    reader = make_reader(rate=100.0)
    for k in range(200):
        reader.sample(None, k / 100, 0.005)
    assert reader.samples.qsize() == streams.QUEUE_FRAMES and reader.num_dropped == 200 - streams.QUEUE_FRAMES


def test_frames_that_waited_somewhere_move_the_start_of_the_stream_back():
    reader = make_reader(rate=20.0)
    for k in range(41):  # two seconds at once, as when FFmpeg has looked at a stream before it gives the first frame
        reader.sample(None, 7 + k / 20, 0.025)
    assert time.time() - reader.start_time == pytest.approx(2, abs=0.5) and reader.row == 40


def test_a_file_in_real_time_gives_the_events_of_its_frames(video, capfd):
    begun = time.monotonic()
    status, events, err = watch_here(video, capfd, stride=2)
    assert status == 0 and time.monotonic() - begun > 3.8
    assert kinds(events) == ["begin", "end"] and "0 rows dropped" in err[-1] and "80 frames, 40 rows" in err[-1]
    end = events[-1]
    assert (end["start"], end["end"]) == (1.0, 2.5) and (end["class"], end["p_class"]) == ("Fire", 0.75)
    assert end["others"] == [{"class": "Flood", "p_class": 0.25}] and end["confidence"] == pytest.approx(1, abs=0.01)
    assert err[0] == f"{video}: events begin at p_A 0.5 (given as --threshold)"
    assert [event["event"] for event in events if event.get("threshold_rule") == "given as --threshold"] == ["begin"]
    assert end["source"] == str(video) and end["start_time"].endswith("+00:00")
    assert all(0 <= event["latency"] for event in events)


def test_rows_come_at_the_spacing_of_the_training_videos(tmp_path, capfd):
    write_video(tmp_path / "short.mp4", bright_at([(0, 0.5)], 1))
    *_, err = watch_here(tmp_path / "short.mp4", capfd, stride=2, fps=10.0)
    assert "20 frames, 5 rows" in err[-1]


def test_a_slow_encoder_drops_frames_evenly_and_says_so(video, capfd, monkeypatch):
    monkeypatch.setattr(service, "REPORT", 1.0)
    encoder = GreyEncoder(0.15)  # three times the distance of two frames
    _, events, err = watch_here(video, capfd, encoder)
    assert any("too slow" in line and "evenly" in line for line in err) and kinds(events) == ["begin", "end"]
    assert (events[-1]["start"], events[-1]["end"]) == pytest.approx((1.0, 2.5), abs=0.4)
    assert 10 < len(encoder.times) < 40  # 80 frames; two to warm up


def test_standard_input_takes_a_piped_container(tmp_path):
    path = tmp_path / "video.ts"
    write_video(path, bright_at([(0.5, 2)], 3), "mpegts")
    with open(path, "rb") as file:
        watcher = Watcher("-", stdin=file)
        assert watcher.finish() == 0
    assert kinds(watcher.events()) == ["begin", "end"] and watcher.events()[0]["source"] == "standard input"


@pytest.mark.parametrize(
    "number, status", [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_the_open_event_and_the_program(tmp_path, number, status):
    path = tmp_path / "long.mp4"
    write_video(path, bright_at([(0.5, 60)], 60))
    watcher = Watcher(path)
    watcher.wait_for('"update"')
    assert watcher.stop(number) == status
    assert kinds(watcher.events()) == ["begin", "end"] and watcher.events()[-1]["end"] > watcher.events()[0]["end"]
    assert "Traceback" not in "".join(watcher.lines)


class StreamServer:
    """MPEG-TS over TCP in real time, anew for each that connects; silent after `silent_after` seconds."""

    def __init__(self, brightness, silent_after=None):
        file = io.BytesIO()
        write_video(file, brightness, "mpegts")
        self.data, self.seconds, self.silent_after = file.getvalue(), len(brightness) / FPS, silent_after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.num_connections = self.listener.getsockname()[1], 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.num_connections += 1
            with connection:
                try:
                    self.send(connection)
                except OSError:
                    pass

    def send(self, connection):
        begun, step = time.monotonic(), 188 * 7
        for start in range(0, len(self.data), step):
            due = start / len(self.data) * self.seconds
            if self.silent_after is not None and due > self.silent_after:
                connection.recv(1)  # until the other side gives up
                return
            time.sleep(max(due - (time.monotonic() - begun), 0))
            connection.sendall(self.data[start : start + step])


@pytest.mark.slow
def test_a_stream_that_ends_is_opened_again_and_its_open_event_goes_on():
    server = StreamServer(bright_at([(0.5, 9)], 3))
    watcher = Watcher(f"tcp://127.0.0.1:{server.port}?password=s3cret")
    watcher.wait_for("connected")
    watcher.wait_for('"update"', 14)
    assert watcher.stop() == 143 and server.num_connections >= 2 and "trying again" not in watcher.lines[-2]
    assert kinds(watcher.events()) == ["begin", "end"] and watcher.events()[-1]["end"] > 3.5
    assert any("ended; trying again in" in line for line in watcher.lines)
    assert "s3cret" not in "".join(watcher.lines)


def serve_pieces(*pieces) -> tuple[str, list]:
    """The address of a server that gives each that connects the next of some pieces, and those who came."""
    listener, came = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    came.append(1)
                    connection.sendall(pieces[len(came) % len(pieces)])

    threading.Thread(target=serve, daemon=True).start()
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}", came


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors and memory are read from /proc")
def test_descriptors_threads_and_memory_stay_the_same_over_200_reconnects(monkeypatch):
    file = io.BytesIO()
    write_video(file, np.full(10, 16), "mpegts")
    whole = file.getvalue()
    address, came = serve_pieces(whole, b"", whole[: len(whole) // 2], b"no video" * 99, whole[1000:])
    monkeypatch.setattr(streams, "BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(streams, "note", lambda text: None)
    av.logging.set_level(None)
    reader = streams.Reader(streams.find_source(address), 1000.0, 1)
    reader.start()
    found = []
    for count in (40, 240):
        while len(came) < count:
            with contextlib.suppress(queue.Empty):
                assert reader.samples.get(timeout=0.01), reader.error
        gc.collect()
        found.append((resident(), len(os.listdir("/proc/self/fd")), threading.active_count()))
    reader.stopping.set()
    reader.join(5)
    (before, files, threads), (after, files_after, threads_after) = found
    assert reader.num_breaks > 80 and not reader.is_alive() and reader.samples.qsize() <= streams.QUEUE_FRAMES
    assert abs(files_after - files) <= 2 and threads_after == threads  # a connection may be open just then
    assert after - before < 8 * 2**20


@pytest.mark.slow
def test_a_stream_that_falls_silent_counts_as_broken_and_a_long_gap_ends_the_event():
    server = StreamServer(bright_at([(0.5, 9)], 4), silent_after=3)
    watcher = Watcher(f"tcp://127.0.0.1:{server.port}", timeout=1.5, gap=1.0)
    watcher.wait_for("nothing came for 2 s; trying again in")
    watcher.wait_for('"end"')
    watcher.wait_for('"begin"', 2)
    assert watcher.stop() == 143 and kinds(watcher.events()) == ["begin", "end"] * 2
    assert [event["number"] for event in watcher.events() if event["event"] == "begin"] == [1, 2]


@pytest.mark.slow
def test_attempts_to_connect_come_at_growing_distances_and_show_no_password():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    watcher = Watcher(f"rtsp://admin:s3cret@127.0.0.1:{port}/live?token=t0ken")
    watcher.wait_for("trying again in", 4)
    assert watcher.stop() == 143
    tries = [line.strip() for line in watcher.lines if "trying" in line]
    assert tries[0].startswith(f"rtsp://127.0.0.1:{port}/live: ") and len(set(tries)) == 2  # after 0.5 s, then 1 s
    assert not {"s3cret", "admin", "t0ken"} & {
        word for word in ("s3cret", "admin", "t0ken") if word in "".join(watcher.lines)
    }


@pytest.mark.slow
def test_an_rtsp_server_that_restarts_in_the_middle(tmp_path):
    require_rtsp()
    write_video(tmp_path / "long.mp4", bright_at([(1.0, 60)], 60))
    port, videos = free_port(), {"live": (tmp_path / "long.mp4", "h264")}
    server = serve(port, videos)
    try:
        watcher = Watcher(f"rtsp://admin:s3cret@127.0.0.1:{port}/live", gap=1.0)
        watcher.wait_for('"update"')
        server.kill()
        server.wait()
        watcher.wait_for("trying again in")
        watcher.wait_for('"end"')
        server = serve(port, videos)
        watcher.wait_for(": connected")
        watcher.wait_for('"begin"', 2)
        assert watcher.stop(signal.SIGINT) == 130
    finally:
        server.kill()
        server.wait()
    assert kinds(watcher.events()) == ["begin", "end"] * 2 and "s3cret" not in "".join(watcher.lines)
    first, second = [event for event in watcher.events() if event["event"] == "end"]
    assert second["start"] > first["end"] and second["source"] == f"rtsp://127.0.0.1:{port}/live"


@pytest.mark.parametrize(
    "source, message",
    [
        ("none.mp4", "--live none.mp4: no such file"),
        ("99", "no camera /dev/video99|not read by number"),
        (__file__, "expected a video"),
        ("rist://u:s3cret@h:1/x", "rist://h:1/x: Protocol not found"),
    ],
)
def test_sources_that_cannot_be_are_refused(source, message, capfd):
    with pytest.raises(InputError, match=message) as caught:
        watch_here(source, capfd)
    assert "s3cret" not in str(caught.value)


def test_models_and_webhooks_that_do_not_fit_are_refused(video, capfd):
    encoder = GreyEncoder()
    encoder.dim = 3
    with pytest.raises(InputError, match="3 values, expected 2"):
        watch_here(video, capfd, encoder)
    with pytest.raises(InputError, match="--webhook: .*expected SCHEME") as caught:
        watch_here(video, capfd, webhook="ftp://user:s3cret@host/")
    assert "s3cret" not in str(caught.value)


# ---------------------------------------------------------------- webhook


class Receiver:
    """An HTTP server that answers with the given statuses, the last one for ever; a str is a 307 to there."""

    def __init__(self, *answers, seconds=0.0):
        self.bodies, self.headers, answers = [], [], list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                self.headers.append(dict(handler.headers))
                self.bodies.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
                time.sleep(seconds)
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                handler.send_response(answer if isinstance(answer, int) else 307)
                if not isinstance(answer, int) or answer == 302:
                    handler.send_header("Location", answer if isinstance(answer, str) else "/elsewhere")
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(handler, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def quick(monkeypatch):
    """Short waits; local addresses without a proxy."""
    monkeypatch.setattr(webhook, "DELAYS", (0.05, 0.05))
    monkeypatch.setattr(webhook, "TIMEOUT", 1.0)
    monkeypatch.setattr(webhook, "CLOSING", 1.0)
    monkeypatch.setenv("no_proxy", "*")


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_each_event_is_posted_in_order(quick, tmp_path, capfd):
    receiver = Receiver(200)
    write_video(tmp_path / "short.mp4", bright_at([(0.2, 1.7)], 2))
    _, events, _ = watch_here(tmp_path / "short.mp4", capfd, webhook=receiver.url)
    assert kinds(events) == ["begin", "end"] and receiver.bodies == events
    assert receiver.headers[0]["Content-Type"] == "application/json"


def test_a_receiver_that_fails_is_tried_again_and_one_that_refuses_is_not(quick, capfd):
    failing, refusing = Receiver(503, 429, 200), Receiver(404)
    for receiver in (failing, refusing):
        hook = webhook.Webhook(receiver.url)
        hook.post({"n": 1})
        wait_until(lambda: len(receiver.bodies) == (3 if receiver is failing else 1))
        hook.close()
    assert failing.bodies == [{"n": 1}] * 3 and len(refusing.bodies) == 1
    assert capfd.readouterr().err.splitlines() == ["webhook: events not delivered (HTTP status 404): 1 so far"]


def test_a_receiver_that_is_absent_is_given_up_without_naming_its_address(quick, capfd):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    hook = webhook.Webhook(f"http://user:s3cret@127.0.0.1:{port}/T0KEN")
    hook.post({})
    wait_until(lambda: hook.num_failed)
    hook.close()
    assert capfd.readouterr().err == "webhook: events not delivered (Connection refused): 1 so far\n"


def test_a_slow_receiver_never_makes_the_stream_wait_and_the_oldest_events_go(quick, capfd):
    receiver = Receiver(200, seconds=0.4)
    hook, begun = webhook.Webhook(receiver.url), time.monotonic()
    for n in range(webhook.MAX_WAITING + 50):
        hook.post({"n": n})
    assert len(receiver.bodies) <= 1  # nothing waited for the first answer
    assert len(hook.waiting) == webhook.MAX_WAITING and hook.num_dropped in (49, 50)
    assert hook.waiting[-1] == {"n": webhook.MAX_WAITING + 49}
    hook.close()
    assert time.monotonic() - begun < 15 and not hook.waiting[0] == {"n": 0}
    err = capfd.readouterr().err
    assert (
        "too slow, oldest events dropped: 1 so far" in err
        and "dropped: 2 so far" not in err
        and "were not delivered" in err
    )


def test_a_receiver_that_never_answers_is_left_after_a_while(quick, capfd):
    receiver = Receiver(200, seconds=8)
    hook = webhook.Webhook(receiver.url)
    hook.post({"n": 1})
    wait_until(lambda: len(receiver.bodies) == 2)
    hook.close()
    assert "not delivered" in capfd.readouterr().err


def test_redirects_post_again_without_the_password_at_most_three_times(quick, capfd):
    target = Receiver(200)
    first = Receiver(target.url)
    hook = webhook.Webhook(first.url.replace("//", "//user:s3cret@"))
    hook.post({"n": 1})
    wait_until(lambda: target.bodies)
    hook.close()
    assert target.bodies == [{"n": 1}] and "Authorization" not in target.headers[0]
    assert first.headers[0]["Authorization"] == "Basic dXNlcjpzM2NyZXQ="
    for answer, count in (("/again", 4), (302, 1), ("file:///etc/passwd", 1), ("ftp://127.0.0.1/x", 1)):
        receiver = Receiver(answer)
        hook = webhook.Webhook(receiver.url)
        hook.post({})
        wait_until(lambda: hook.num_failed)
        hook.close()
        assert len(receiver.bodies) <= count


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize(
    "old, new, followed",
    [
        ("http://h/x", "http://h/y", True),
        ("http://h/x", "http://H:8080/y", True),
        ("http://h/x", "https://h/y", True),
        ("https://h/x", "https://h/y", True),
        ("https://h/x", "http://h/x", False),
        ("http://h/x", "http://other/x", False),
        ("https://h/x", "https://h.other/x", False),
        ("https://h/x", "https://h@other/x", False),
        ("https://h/x", "https://other#@h/x", False),
        ("https://h/x", "ftp://h/x", False),
    ],
)
def test_redirects_stay_on_the_host_and_encrypted(old, new, followed, status):
    request = urllib.request.Request(old, b"{}", method="POST")
    found = webhook.NearRedirects().redirect_request(request, io.BytesIO(), status, "", None, new)
    assert (found and (found.full_url, found.get_method(), found.data)) == ((new, "POST", b"{}") if followed else None)


def test_a_redirect_to_another_host_delivers_nothing_and_is_noted(quick, capfd):
    target = Receiver(200)
    first = Receiver(target.url.replace("127.0.0.1", "localhost"))
    hook = webhook.Webhook(first.url)
    hook.post({"n": 1})
    wait_until(lambda: hook.num_failed)
    hook.close()
    assert not target.bodies and len(first.bodies) == 1
    told = "webhook: events not delivered (HTTP status 307, a redirect that is not followed): 1 so far\n"
    assert capfd.readouterr().err == told


def trickle(answer, repeated=b"", wait=0.0) -> str:
    """The address of a server that sends the first part of an answer at once, and then the rest without end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(answer)
                while repeated:
                    connection.sendall(repeated)
                    time.sleep(wait)
                connection.recv(10**6)
                connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/"


@pytest.mark.parametrize(
    "answer",
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        (b"", b"H", 0.05),
        (b"HTTP/1.1 200 OK\r\n", b"X", 0.05),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05),
        (b"HTTP/1.1 307 Go\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.05),
        (b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n", b"x", 0.05),
        (b"",),
    ],
)
def test_an_attempt_ends_in_time_whatever_comes_and_however_slowly(quick, monkeypatch, answer):
    monkeypatch.setattr(webhook, "TIMEOUT", 0.25)
    url, ended = trickle(*answer), []

    def attempt(url):
        try:
            webhook.Webhook(url).send(b"{}")
        except Exception as error:
            ended.append(error)

    for given in (url, url.replace("//", "//user:password@")):
        thread = threading.Thread(target=attempt, args=(given,), daemon=True)
        thread.start()
        thread.join(2)
        assert not thread.is_alive()
    assert len(ended) == 2


def test_a_proxy_that_trickles_is_left_in_time(quick, monkeypatch):
    monkeypatch.setattr(webhook, "TIMEOUT", 0.25)
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("https_proxy", trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05))
    begun = time.monotonic()
    with pytest.raises(OSError):
        webhook.Webhook("https://host.invalid/").send(b"{}")
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "url", ["host/x", "ftp://host/x", "http://", "http://host:port/", "http://a b/", "http://[::1/", "file:///x"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(InputError, match="--webhook") as caught:
        webhook.Webhook(url)
    assert "host" not in str(caught.value).replace("a host", "") and "//x" not in str(caught.value)
