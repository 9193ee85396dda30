"""Cameras of watch.py: pictures that are the same scene, clips cut from packets, shares of the device, events."""

import gc
import io
import itertools
import queue
import time
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from tests import children
from tests.cameras import bright_at, write_video
from tests.streams import GREY, BrightnessModel, GreyEncoder
from videoanomaly.event_rule import EventSettings
from videoanomaly.live.streams import QUEUE_FRAMES, Sample, Source, find_source
from videoanomaly.live.watcher import predict_together
from videoanomaly.video import luma
from videoanomaly.video.encoders import Encoder
from videoanomaly.watching import clips, still
from videoanomaly.watching.board import STRIP_STEP, Board, CameraStatus, Strip
from videoanomaly.watching.camera import Camera, Look
from videoanomaly.watching.camera_events import MOST_POINTS, CameraEvents, Curve
from videoanomaly.watching.clips import PacketRing, Recorder
from videoanomaly.watching.engine import Engine, fair_shares
from videoanomaly.watching.journal import Journal
from videoanomaly.watching.still import Mask, Stillness
from videoanomaly.watching.store.database import StoreError
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import CameraSettings

SETTINGS = EventSettings(0.7, 0.8)


def picture(values, size=(64, 48)) -> av.VideoFrame:
    """A frame of one level, or of an array (H, W)."""
    grey = np.broadcast_to(np.asarray(values, np.uint8), size[::-1])
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(grey)[:, :, None].repeat(3, 2), format="rgb24")


def make_camera(board=None, source=None, recorder=None, reuse_still=False, encoder=GREY, **settings) -> Camera:
    board = board or Board()
    given = CameraSettings("door", "0", **settings)
    board.add(CameraStatus("door", "door"))
    source = source or Source("door", {}, False, False)
    how = {"encoder": encoder, "board": board, "recorder": recorder, "wake": lambda: None, "reuse_still": reuse_still}
    camera = Camera(given, source, None, 1, **how)
    camera.rate, camera.began = 10.0, time.monotonic()
    return camera


def offer(camera: Camera, row: int, frame: av.VideoFrame) -> None:
    camera.offer(Sample(row, time.monotonic(), frame))


# ---------------------------------------------------------------- scenes


def noise(seed: int, level: float = 100, size=(640, 360)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(level + rng.normal(0, 6, size[::-1]), 0, 255)


def test_noise_is_the_same_scene_and_somebody_who_walks_is_not():
    reformatter, seen = av.video.reformatter.VideoReformatter(), Stillness(60)
    seen.encoded = luma.luma_blocks(picture(noise(0), (640, 360)), reformatter)
    assert seen.is_still(luma.luma_blocks(picture(noise(1), (640, 360)), reformatter))
    person = noise(2)
    person[200:240, 300:316] = 40  # of 16 x 40 pixels
    assert not seen.is_still(luma.luma_blocks(picture(person, (640, 360)), reformatter))


def test_slow_changes_add_up_since_the_picture_that_was_encoded():
    camera = make_camera(reuse_still=True)
    for row in range(9):
        offer(camera, row, picture(100 + row))  # a level more each time
    assert [look.inputs is not None for look in camera.looks] == [
        i % 4 == 0 for i in range(9)
    ]  # more than STILL, 3 levels
    assert (camera.num_encoded, camera.num_reused) == (3, 6)


def test_a_picture_that_stays_is_frozen_and_one_without_light_is_black():
    seen, blocks = Stillness(60), np.full((still.ROWS, still.COLUMNS), 90, np.int16)
    seen.forget(0.0)
    assert [seen.see(blocks, t) for t in (0.0, 59.9, 60.0)] == ["connected", "connected", "frozen"]
    assert seen.see(blocks + 1, 61.0) == "connected"
    dark = [seen.see(np.full_like(blocks, 16 + i % 2), 62.0 + i) for i in range(12)]
    assert dark == ["connected"] * 9 + ["black"] * 3
    one_lamp = np.full_like(blocks, 16)
    one_lamp[3, 3] = 200
    assert seen.see(one_lamp, 75.0) == "connected"


def test_what_a_mask_hides_is_grey_and_changes_nothing():
    mask = Mask([(0, 0), (0.5, 0), (0.5, 1), (0, 1)])  # the left half is looked at
    shown = np.asarray(mask.apply(Image.new("RGB", (100, 50), "white")))
    assert (shown[:, :48] == 255).all() and (shown[:, 52:] == still.GREY).all()
    assert (np.asarray(mask.apply(Image.new("RGB", (20, 10), "white")))[:, 12:] == still.GREY).all()
    seen, blocks = Stillness(60, mask), np.full((still.ROWS, still.COLUMNS), 90, np.int16)
    seen.encoded, right, left = blocks, blocks.copy(), blocks.copy()
    right[:, -5:] = 200
    left[:, :5] = 200
    assert seen.is_still(right) and not seen.is_still(left)


def test_the_encoder_sees_the_mask():
    camera = make_camera(mask=((0, 0), (0.5, 0), (0.5, 1), (0, 1)))
    offer(camera, 0, picture(255))
    (inputs,) = camera.take().inputs
    assert inputs[:, :, :3].min() > 250 and inputs[:, :, 5:].max() < 135


# ---------------------------------------------------------------- which rows are encoded


def rows_of(camera: Camera, number: int, level=lambda i: 16 + 37 * (i % 6)) -> list[int]:
    """The rows that are taken of so many pictures."""
    for i in range(number):
        try:
            offer(camera, i, picture(level(i)))
        except queue.Full:  # as the reader expects it
            pass
    return [look.row for look in iter(camera.take, None)]


def test_rows_come_at_the_rate_that_was_asked_for_and_none_counts_as_dropped():
    camera = make_camera(rows_per_second=2.0)
    found = rows_of(camera, 60)  # 6 s at 10 rows/s
    assert set(np.diff(found)) == {5} and camera.counts()["dropped"] == 0
    assert camera.counts()["wanted_rows_per_second"] == 2.0


def test_a_slow_device_gets_rows_at_even_distances():
    camera = make_camera()
    camera.spacing = 0.4
    found = rows_of(camera, 40)
    assert set(np.diff(found)) <= {3, 4, 5} and 9 <= len(found) <= 11  # a row is due at tenths, give or take a rounding
    assert camera.counts()["dropped"] == 40 - len(found)


def test_a_moment_of_slowness_does_not_blind_a_camera_for_long():
    camera = make_camera()
    camera.spacing = 500.0  # the device has taken a minute for a batch
    assert rows_of(camera, 3) == [0]
    camera.spacing = 0.0
    assert rows_of(camera, 6) == [0, 1, 2, 3, 4, 5]


def test_a_queue_that_is_full_drops_and_catching_up_begins_with_a_scene_of_its_own():
    camera = make_camera(reuse_still=True)
    for i in range(QUEUE_FRAMES):
        offer(camera, i, picture(16 + 40 * (i // 4)))  # every fourth is another scene
    with pytest.raises(queue.Full):
        offer(camera, QUEUE_FRAMES, picture(0))
    assert camera.num_left_out == 1
    camera.catch_up(3)
    assert [(look.row, look.inputs is not None) for look in camera.looks] == [
        (12, True), (13, False), (14, False), (15, False)
    ]  # fmt: skip
    assert (camera.num_encoded, camera.num_reused, camera.num_left_out) == (1, 3, 13)


@pytest.fixture
def hours(monkeypatch):
    """A schedule of an hour a day, and what sets the local time."""
    now = [datetime(2026, 3, 2, 12)]
    monkeypatch.setattr("videoanomaly.watching.camera.datetime", SimpleNamespace(now=lambda: now[0]))
    return "13:00-14:00", lambda hour, minute=0: now.__setitem__(0, datetime(2026, 3, 2, hour, minute))


def state(camera: Camera) -> tuple[str, str]:
    (found,) = camera.board.snapshot()
    return found["state"], found["detail"]


def test_outside_its_hours_a_camera_is_paused_whatever_it_does(hours):
    camera = make_camera(schedule=(hours[0],))
    offer(camera, 0, picture(100))
    assert state(camera) == ("paused", "") and not camera.looks
    camera.away("Connection refused", 1.0)
    assert state(camera) == ("paused", "Connection refused")
    hours[1](13)
    camera.away("Connection refused", 1.0)
    assert state(camera) == ("away", "Connection refused")
    offer(camera, 1, picture(100))
    assert state(camera) == ("connected", "") and len(camera.looks) == 1
    hours[1](14)
    offer(camera, 2, picture(100))
    assert state(camera) == ("paused", "") and len(camera.looks) == 1


def test_what_a_camera_showed_before_its_hours_does_not_make_it_frozen_or_black(hours):
    camera = make_camera(schedule=(hours[0],))
    hours[1](13)
    camera.offer(Sample(0, 100.0, picture(0)))
    hours[1](14)
    camera.offer(Sample(1, 110.0, picture(0)))
    hours[1](13, 59)
    camera.offer(Sample(2, 1e5, picture(0)))
    assert state(camera)[0] == "connected"


def test_a_camera_that_is_to_stop_says_no_more(tmp_path):
    camera = make_camera(source=find_source(str(write_video(tmp_path / "a.mp4", [100] * 5, 10))))
    camera.board.set("door", state="connected")  # by the thread that took its place
    camera.stopping.set()
    camera.read()
    camera.away("Connection refused", 1.0)
    camera.run()
    assert state(camera) == ("connected", "") and camera.board.snapshot()[0]["width"] == 0


def test_that_the_pictures_have_another_size_is_told_until_the_next_connection(tmp_path):
    camera = make_camera()
    for row, size in enumerate([(64, 48), (64, 48), (32, 24), (32, 24)]):
        offer(camera, row, picture(100 + row, size))
    assert state(camera) == ("connected", "32 x 24 pixels, before 64 x 48")
    assert (camera.board.snapshot()[0]["width"], len(camera.looks)) == (32, 4)
    with av.open(str(write_video(tmp_path / "a.mp4", [100], 10))) as container:
        camera.connected(container, container.streams.video[0])
    offer(camera, 4, picture(100, (32, 24)))
    assert state(camera) == ("connected", "")


def test_pictures_for_snapshots_are_reduced():
    camera = make_camera()
    offer(camera, 0, picture(100, (1920, 1080)))
    offer(camera, 1, picture(100, (640, 360)))
    assert [(look.picture.width, look.picture.height) for look in camera.looks] == [(960, 540), (640, 360)]


def test_of_two_streams_the_smaller_one_is_looked_at_and_the_larger_one_recorded(tmp_path):
    path, encoder = tmp_path / "two.mp4", Encoder(GreyEncoder(), "GreyEncoder", 1, None, 100)
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((320, 240), (160, 120), (64, 48)):  # the last one is smaller than the encoder's input
            stream = container.add_stream("h264", rate=10)
            stream.width, stream.height = width, height
            streams.append(stream)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 640, 480, "yuvj420p", Disposition.attached_pic
        container.mux(cover.encode(picture(50, (640, 480))))
        for i, stream in itertools.product(range(5), streams):
            container.mux(stream.encode(picture(16 + 40 * i, (stream.width, stream.height))))
        for stream in [*streams, cover]:
            container.mux(stream.encode())
    camera = make_camera(encoder=encoder)
    with av.open(str(path)) as container:
        assert camera.choose(container).width == 160 and camera.recorded(container).width == 320


# ---------------------------------------------------------------- fair shares


def test_each_gets_the_same_but_nobody_more_than_it_wants():
    assert fair_shares([1, 10, 10], 11) == [1, 5, 5]
    assert fair_shares([4, 2, 3], 100) == [4, 2, 3]
    assert fair_shares([], 5) == []
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted, capacity = rng.uniform(0, 5, 7), rng.uniform(0, 30)
        shares = np.array(fair_shares(list(wanted), capacity))
        assert np.isclose(shares.sum(), min(capacity, wanted.sum())) and (shares <= wanted + 1e-9).all()
        limited = shares[shares < wanted - 1e-9]
        assert not len(limited) or np.allclose(limited, shares.max())  # whoever lacks something has as much as any


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_several_streams_at_once_have_the_scores_of_each_alone(smoothing):
    sizes = {"feature_dim": 6, "num_segments": 4, "num_frames": 5, "embed_dim": 8, "directions": "direct"}
    config = AnomalyCLIPConfig(classes=("A", "B", "C"), smoothing=smoothing, **sizes)
    model, rng = AnomalyCLIP(config).eval(), np.random.default_rng(0)
    streams = [rng.normal(size=(n, 2, 6)).astype(np.float32) for n in (20, 7, 1)]
    for rows, (p_A, p_class) in zip(streams, predict_together(model, streams)):
        alone = model.predict(rows)
        np.testing.assert_allclose(p_A, alone[0], rtol=1e-4, atol=1e-6)  # other sizes of batches, other kernels
        np.testing.assert_allclose(p_class, alone[1], rtol=1e-4, atol=1e-6)


def look_at(camera: Camera, row: int, value: float | None) -> Look:
    """A row of that brightness in [0, 1]; None: of the scene before."""
    inputs = None if value is None else [torch.full((3, 8, 8), 255 * value)]
    return Look(row, camera.moment(row), inputs, picture(0 if value is None else 255 * value))


def make_engine(tmp_path, names=("a", "b"), batch=8, store=None, **events):
    """An engine and its cameras, which nobody reads."""
    board = Board()
    engine, store = Engine(BrightnessModel(), GREY, batch, board), store or EventStore(tmp_path)
    for name in names:
        camera = make_camera(board, classes=events.get("classes", ()))
        camera.name = name
        board.add(CameraStatus(name, name))
        told = {"rule": "given", "model": "hash", "store": store, "shown": events.get("shown", []), "update_every": 0.0}
        engine.add(camera, CameraEvents(camera, ("Fire", "Flood"), SETTINGS, **told, say=events.get("say", print)))
    return engine, store


def test_a_batch_takes_from_all_cameras_in_turn(tmp_path):
    engine, _ = make_engine(tmp_path, "abc", batch=6)
    for name, number in (("a", 9), ("b", 1), ("c", 3)):
        engine.seats[name].camera.looks.extend(look_at(engine.seats[name].camera, i, 0.1) for i in range(number))
    taken = [(seat.camera.name, look.row) for seat, look in engine.take()]
    assert taken == [("a", 0), ("b", 0), ("c", 0), ("a", 1)]  # the first batch is small
    engine.done, engine.busy = 100.0, 10.0  # ten rows a second: five in half a second
    assert [seat.camera.name for seat, _ in engine.take()] == ["c", "a", "c", "a", "a"]
    engine.busy = 0.1
    assert len(engine.take()) == 4  # all that is left, of the six that a batch would hold


def test_what_the_device_can_take_is_known_also_after_hours_without_a_row_to_encode(tmp_path):
    engine, _ = make_engine(tmp_path, "a")
    camera, engine.done, engine.busy = engine.seats["a"].camera, 100.0, 1.0
    engine.last["a"] = np.zeros((1, 2), np.float32)
    for second in range(10_000):  # nothing comes, or nothing moves
        camera.looks.extend([look_at(camera, second, None)] if second % 100 == 0 else [])
        engine.shared_at = -1e9
        engine.step()
    assert engine.done / engine.busy == pytest.approx(100)
    camera.num_encoded += 3
    engine.share(time.monotonic() + 1)
    assert camera.spacing == 0.0


def test_what_the_device_can_take_follows_when_it_slows_down(tmp_path):
    engine, _ = make_engine(tmp_path, "a")
    engine.done, engine.busy = 1e4, 100.0
    for _ in range(40):
        engine.share(engine.shared_at + 1)
        engine.done, engine.busy = engine.done + 5, engine.busy + 1
    assert engine.done / engine.busy == pytest.approx(5, rel=0.2)


def test_a_still_row_has_the_features_of_its_own_camera(tmp_path):
    engine, _ = make_engine(tmp_path)
    for name, value in (("a", 0.9), ("b", 0.2)):
        camera = engine.seats[name].camera
        camera.looks.extend([look_at(camera, 0, value), look_at(camera, 1, None), look_at(camera, 2, 0.5)])
    rows = list(engine.encode(engine.take()))
    np.testing.assert_allclose([row[0, 0] for row in rows], [0.9, 0.2, 0.9, 0.2, 0.5, 0.5], atol=0.001)  # float16


def test_rows_of_a_batch_may_lie_further_apart_than_the_model_sees(tmp_path):
    engine, store = make_engine(tmp_path, "ab")
    engine.done, engine.busy = 1e4, 1.0
    for camera in (seat.camera for seat in engine.seats.values()):  # 361 rows, of which the model sees 250
        camera.looks.extend(look_at(camera, row, 0.9 if 90 <= row < 360 else 0.1) for row in range(0, 361, 90))
        camera.looks.extend(look_at(camera, row, 0.1) for row in range(361, 391))
    while engine.step():
        pass
    assert {(event["camera"], event["is_open"]) for event in store.events()} == {("a", False), ("b", False)}
    for event in store.events():
        assert event["end"] - event["start"] == pytest.approx(27.0, abs=0.3)  # what is missing is as the row before


def feed(engine: Engine, name: str, values, first: int = 0) -> None:
    camera = engine.seats[name].camera
    for row, value in enumerate(values, first):
        camera.looks.append(look_at(camera, row, value))
        engine.step()


def test_an_event_is_stored_with_its_peak_curve_and_snapshot(tmp_path):
    engine, store = make_engine(tmp_path)
    values = [0.1] * 20 + [0.6] * 5 + [0.8] * 10 + [0.95] + [0.8] * 9 + [0.1] * 30
    feed(engine, "a", values)
    feed(engine, "b", [0.1] * 60)
    (event,) = store.events()
    event = store.event(event["id"])
    wall = engine.seats["a"].events.wall
    assert (event["camera"], event["class"], event["is_open"], event["reason"]) == ("a", "Fire", False, "ended")
    assert event["start"] == pytest.approx(wall(20), abs=0.01)
    assert event["end"] == pytest.approx(wall(45), abs=0.01)
    assert event["peak"] == pytest.approx(0.95, abs=0.001)
    assert event["peak_time"] == pytest.approx(wall(35), abs=0.01)
    assert event["model"] == "hash" and event["threshold"] == 0.7
    before = round((event["start"] - event["curve_start"]) * event["curve_rate"])
    np.testing.assert_allclose(event["curve"][before : before + 25], values[20:45], atol=0.001)
    with Image.open(io.BytesIO(store.snapshot(event["id"]))) as image:
        assert image.format == "JPEG" and np.asarray(image).mean() == pytest.approx(0.95 * 255, abs=3)
    assert [found["p_class"] for found in event["classes"]] == pytest.approx([0.75 * 0.8, 0.25 * 0.8], abs=0.05)


def test_only_the_classes_that_were_asked_for_are_reported(tmp_path):
    engine, store = make_engine(tmp_path, classes=("Flood",))
    feed(engine, "a", [0.1] * 10 + [0.9] * 20 + [0.1] * 30)
    assert not store.events()
    engine, store = make_engine(tmp_path, classes=("Fire", "Flood"))
    feed(engine, "a", [0.1] * 10 + [0.9] * 20 + [0.1] * 30)
    assert len(store.events()) == 1


def test_a_camera_from_which_nothing_comes_has_its_event_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("videoanomaly.watching.engine.GAP", 0.2)
    engine, store = make_engine(tmp_path, "a")
    feed(engine, "a", [0.1] * 10 + [0.9] * 20)
    assert store.events()[0]["is_open"]
    while store.events()[0]["is_open"]:
        engine.step()
        time.sleep(0.01)
    assert engine.board.snapshot()[0]["event"] is None


def test_that_pictures_come_too_slowly_is_said_with_the_camera(tmp_path, capsys):
    said = []
    engine, _ = make_engine(tmp_path, "a", say=said.append)
    for row in range(0, 1000, 200):  # every 20 s
        feed(engine, "a", [0.1], first=row)
    assert [text.partition(",")[0] for text in said] == ["a: a picture every 20.0 s: each is scored alone"]
    assert not capsys.readouterr().err


class FullDisk(EventStore):
    """Cannot write for a while."""

    is_full = False

    def begin(self, *given):
        if self.is_full:
            raise StoreError("watch.db: cannot be written (database or disk is full)")
        return super().begin(*given)

    def end(self, *given):
        if self.is_full:
            raise StoreError("watch.db: cannot be written (database or disk is full)")
        return super().end(*given)


def test_a_full_disk_is_said_and_what_could_not_be_stored_is_stored_later(tmp_path):
    said, store = [], FullDisk(tmp_path)
    engine, _ = make_engine(tmp_path, "a", store=store, say=said.append)
    store.is_full = True
    feed(engine, "a", [0.1] * 10 + [0.9] * 20)
    assert said and not store.events()
    store.is_full = False
    feed(engine, "a", [0.9] * 10, first=30)
    assert store.events()[0]["is_open"]
    store.is_full = True
    feed(engine, "a", [0.1] * 20, first=40)
    assert store.events()[0]["is_open"] and engine.board.snapshot()[0]["event"] is None
    store.is_full = False
    engine.seats["a"].events.pay()
    assert not store.events()[0]["is_open"] and "disk is full" in said[0]


def test_events_that_end_while_the_disk_is_full_are_stored_later_once_and_in_order(tmp_path):
    store = FullDisk(tmp_path)
    engine, _ = make_engine(tmp_path, "a", store=store, say=lambda text: None)
    store.is_full = True
    feed(engine, "a", ([0.1] * 20 + [0.9] * 20) * 2 + [0.1] * 20)
    feed(engine, "a", [0.9] * 10, first=100)
    assert not store.events() and len(engine.seats["a"].events.owed) == 2
    store.is_full, store.end = False, lambda *given: FullDisk.end(SimpleNamespace(is_full=True), *given)
    with pytest.raises(StoreError):
        engine.seats["a"].events.pay()
    assert len(store.events()) == 1  # its end is still owed
    del store.end
    feed(engine, "a", [0.9] * 10, first=110)
    wall = engine.seats["a"].events.wall
    found = [(event["is_open"], pytest.approx(event["start"], abs=0.1)) for event in reversed(store.events())]
    assert found == [(False, wall(20)), (False, wall(60)), (True, wall(100))]
    assert store.events()[-1]["end"] == pytest.approx(wall(40), abs=0.11) and store.events()[-1]["clip_note"]


def test_times_of_an_event_do_not_jump_when_the_systems_clock_is_set(tmp_path, monkeypatch):
    engine, store = make_engine(tmp_path, "a")
    real = time.time
    feed(engine, "a", [0.1] * 20 + [0.9] * 20)
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    feed(engine, "a", [0.95] * 10 + [0.1] * 30, first=40)
    feed(engine, "a", [0.9] * 20 + [0.1] * 30, first=80)
    later, first = store.events()
    first = store.event(first["id"])
    assert first["end"] - first["start"] == pytest.approx(3.0, abs=0.05)
    assert first["start"] < first["peak_time"] < first["end"] and 1.9 <= first["start"] - first["curve_start"] <= 5
    assert first["start"] - later["start"] == pytest.approx(3600 - 6, abs=0.1)


def test_a_long_event_has_a_curve_of_bounded_size():
    curve, rng = Curve(100), np.random.default_rng(0)
    values = rng.uniform(size=10_000)
    for row, value in enumerate(values, 100):
        curve.add(row, value)
    assert len(curve.values) <= MOST_POINTS and curve.step == 16
    expected = np.append(values, [0] * (-len(values) % 16)).reshape(-1, 16).max(axis=1)
    np.testing.assert_allclose(curve.values, expected[: len(curve.values)], rtol=1e-6)  # float32 once they are paired


# ---------------------------------------------------------------- clips


def packets_of(path: Path) -> tuple[av.container.InputContainer, list[av.Packet]]:
    container = av.open(str(path))
    return container, [packet for packet in container.demux(video=0) if packet.size]


def test_a_ring_begins_with_a_key_frame_and_keeps_what_was_asked_for(tmp_path):
    container, packets = packets_of(write_video(tmp_path / "a.mp4", [100] * 100, 10, gop=10))
    ring = PacketRing(3.0)
    for i, packet in enumerate(packets):
        ring.push(packet, i / 10)
        assert ring.kept[0].packet.is_keyframe and ring.size == sum(kept.packet.size for kept in ring.kept)
        assert i < 30 or 3.0 <= i / 10 - ring.kept[0].arrival < 4.0 + 1e-6
    assert [round(kept.arrival, 1) for kept in ring.since(8.55)][:2] == [8.0, 8.1]
    for most in (2000, 500):  # several key frames and what depends on them, not even one
        ring = PacketRing(100.0, most=most)
        for i, packet in enumerate(packets):
            ring.push(packet, i / 10)
            assert ring.size <= most and (not ring.kept or ring.kept[0].packet.is_keyframe)
    container.close()


def record(path: Path, folder: Path, event: tuple[float, float], *, longest=60.0, pre=1.0, post=1.0, restamp=False):
    """Plays a file into a recorder, its arrivals being its times; what was told of the event's clip."""
    told = []
    recorder = Recorder(
        folder, "door", pre_roll=pre, post_roll=post, longest=longest, done=lambda *news: told.append(news)
    )
    container, packets = packets_of(path)
    recorder.opened(container.streams.video[0], restamp)
    clock = SimpleNamespace(monotonic=lambda: now)
    original, clips.time = clips.time, clock
    try:
        for packet in packets:
            now = 1000 + float(packet.pts * packet.time_base)
            if not told and not recorder.running and now >= 1000 + event[0] + 0.5:
                recorder.begin("id", 1000 + event[0])  # told half a second late
            if now >= 1000 + event[1]:
                recorder.end("id", 1000 + event[1])
            recorder.packet(packet)
        recorder.close()
    finally:
        clips.time = original
    container.close()
    return told


def levels(path: Path) -> list[tuple[float, int]]:
    with av.open(str(path)) as container:
        return [(frame.time, int(frame.to_ndarray(format="gray")[20:].mean())) for frame in container.decode(video=0)]


@pytest.mark.parametrize("codec, suffix", [("h264", "mp4"), ("hevc", "mp4"), ("mjpeg", "avi"), ("h264", "ts")])
def test_a_clip_is_what_the_camera_sent_from_before_the_event_to_behind_it(tmp_path, codec, suffix):
    path = write_video(tmp_path / f"a.{suffix}", bright_at([(4, 6)], 12, 10), 10, codec)
    ((event, name, size, why),) = record(path, tmp_path / "clips", (4, 6), restamp=codec == "mjpeg")
    found = levels(tmp_path / "clips" / name)
    bright = [time for time, level in found if level > 150]
    assert (event, why) == ("id", "") and size == (tmp_path / "clips" / name).stat().st_size
    assert bright[-1] - bright[0] == pytest.approx(1.9, abs=0.02)  # all 20 pictures of the event
    assert 1.0 - 0.05 <= bright[0] <= 2.05 and 0.85 <= found[-1][0] - bright[-1] <= 1.15
    assert not list((tmp_path / "clips").rglob(".*"))
    with av.open(str(tmp_path / "clips" / name)) as clip:
        assert codec != "hevc" or clip.streams.video[0].codec_context.codec_tag == "hvc1"  # for Apple's players


def test_a_clip_ends_at_its_longest_length_and_where_the_camera_goes(tmp_path):
    path = write_video(tmp_path / "a.mp4", [100] * 120, 10)
    ((_, name, *_),) = record(path, tmp_path / "long", (2, 30), longest=5.0)
    assert 5.8 <= levels(tmp_path / "long" / name)[-1][0] <= 7.1  # and the seconds before the event
    ((_, name, *_),) = record(path, tmp_path / "gone", (8, 30))
    assert 3.9 <= levels(tmp_path / "gone" / name)[-1][0] <= 5.1  # the file ends 4 s behind the event's start


def test_time_stamps_that_fall_or_jump_do_not_end_a_clip(tmp_path):
    container, packets = packets_of(write_video(tmp_path / "a.mp4", [100] * 60, 10))
    clip = clips.Clip(tmp_path, "b.mp4", container.streams.video[0], False)
    for i, packet in enumerate(packets):
        packet.time_base = Fraction(1, 1000)
        packet.pts = packet.dts = 100 * i + (-100_000 if 20 <= i < 40 else 900_000_000 if i >= 40 else 0)
        clip.write(clips.Kept(packet, i / 10))
    clip.finish()
    times = [time for time, _ in levels(tmp_path / "b.mp4")]
    np.testing.assert_allclose(times, np.arange(60) / 10, atol=0.01)
    container.close()


def test_a_clip_of_pictures_without_time_stamps_is_as_long_as_they_took_to_come(tmp_path):
    container, packets = packets_of(write_video(tmp_path / "a.avi", [100] * 30, 10, "mjpeg"))
    clip, arrivals = clips.Clip(tmp_path, "b.mp4", container.streams.video[0], True), np.arange(30) / 47
    for packet, arrival in zip(packets, arrivals):
        clip.write(clips.Kept(packet, 5000 + arrival))
    clip.finish()
    np.testing.assert_allclose([time for time, _ in levels(tmp_path / "b.mp4")], arrivals[: len(packets)], atol=0.001)
    container.close()


def test_there_is_a_reason_where_there_is_no_clip(tmp_path):
    told = []
    recorder = Recorder(tmp_path, "door", pre_roll=1, post_roll=1, longest=9, done=lambda *news: told.append(news))
    recorder.begin("first", 0.0)
    container, packets = packets_of(write_video(tmp_path / "a.mp4", [100] * 20, 10))
    recorder.opened(container.streams.video[0], False)
    (tmp_path / "door").write_text("no folder")
    recorder.begin("second", time.monotonic())
    assert told[0] == ("first", None, 0, "the camera was away")
    assert told[1][:3] == ("second", None, 0) and told[1][3]
    container.close()


# ---------------------------------------------------------------- reading


def run_until(engine: Engine, done, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it takes too long"
        engine.waiting.clear()
        if not engine.step():
            engine.waiting.wait(0.05)


def test_a_file_gives_an_event_with_a_clip_in_the_time_it_takes(tmp_path):
    path = write_video(tmp_path / "a.mp4", bright_at([(1, 2.5)], 3.5, 10), 10)
    store, board = EventStore(tmp_path / "w"), Board()
    engine = Engine(BrightnessModel(), GREY, 8, board)
    recorder = Recorder(store.clips, "door", pre_roll=1, post_roll=1, longest=60, done=store.set_clip)
    camera = make_camera(board, find_source(str(path)), recorder)
    camera.rate, camera.began = 0.0, None
    told = {"rule": "given", "model": "hash", "store": store, "shown": [], "update_every": 1.0, "say": print}
    engine.add(camera, CameraEvents(camera, ("Fire", "Flood"), SETTINGS, **told))
    camera.start()
    run_until(engine, lambda: camera.ended.is_set() and not camera.looks)
    engine.remove("door")
    (event,) = store.events()
    assert event["end"] - event["start"] == pytest.approx(1.5, abs=0.11) and event["clip"] and not event["clip_note"]
    assert board.snapshot()[0]["state"] == "away" and board.snapshot()[0]["detail"] == "ended"
    assert camera.counts()["frames"] == 35 and camera.counts()["encoded"] + camera.counts()["dropped"] == 35


class Late(Recorder):
    """An event begins at the last moment."""

    def close(self):
        self.begin("late", time.monotonic())
        super().close()


@pytest.mark.parametrize("is_stopped", [False, True])
def test_an_event_that_begins_while_the_camera_goes_has_a_clip(tmp_path, is_stopped):
    told, path = [], write_video(tmp_path / "a.mp4", [100] * 10, 20)
    recorder = Late(tmp_path, "door", pre_roll=1, post_roll=1, longest=9, done=lambda *news: told.append(news))
    camera = make_camera(source=find_source(str(path)), recorder=recorder)
    if is_stopped:
        camera.offer = lambda sample: camera.stopping.set()
    camera.read()
    ((event, name, size, why),) = told
    assert (event, name, why) == ("late", "door/late.mp4", "") and size


def test_a_source_that_fails_is_a_state_and_shows_no_password(tmp_path):
    camera = make_camera(source=find_source("rtsp://admin:s3cret@127.0.0.1:9/x"))
    camera.rate, camera.began = 0.0, None
    camera.start()
    until = time.monotonic() + 20
    while camera.board.snapshot()[0]["state"] != "away" and time.monotonic() < until:
        time.sleep(0.02)
    (status,) = camera.board.snapshot()
    assert status["state"] == "away" and status["detail"] and "s3cret" not in repr(status)
    camera.stopping.set()
    camera.join(5)


# ---------------------------------------------------------------- board and log


def test_the_strip_holds_the_highest_score_of_each_ten_seconds_of_an_hour():
    strip = Strip()
    for seconds, p_A in ((0, 0.2), (5, 0.9), (12, 0.3), (45, 0.5)):
        strip.add(p_A, 1e6 + seconds)
    assert strip.read(1e6 + 45)[-5:] == [0.9, 0.3, None, None, 0.5]
    assert strip.read(1e6 + 65)[-3:] == [0.5, None, None]
    strip.add(0.1, 1e6 + 3600 + 40)
    assert strip.read(1e6 + 3640)[-1] == 0.1 and 0.9 not in strip.read(1e6 + 3640)
    assert len(strip.read(1e6 + 3640)) == 3600 // STRIP_STEP


def test_the_log_says_each_camera_once_then_what_changed_in_one_line(capsys):
    journal, board = Journal(every=0.0), Board()
    for name in ("a", "b"):
        board.add(CameraStatus(name, f"rtsp://{name}"))
        board.set(name, state="connected", width=64, height=48, codec="h264")
    journal.look(board.snapshot())
    journal.look(board.snapshot())
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["a: connected to rtsp://a", "b: connected to rtsp://b"]
    board.set("a", state="away", detail="Connection refused")
    board.set("b", dropped=30, rows_per_second=3.0, wanted_rows_per_second=5.0)
    journal.say("webhook: away")
    journal.say("webhook: away")
    journal.look(board.snapshot())
    journal.look(board.snapshot())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("webhook: away (2 times); a away (Connection refused); b: 30 rows dropped in 1 s")
    assert line.endswith("3.0 of 5.0 rows/s")


def test_the_log_waits_a_minute_but_for_what_each_camera_does_first(capsys):
    journal, board = Journal(), Board()
    board.add(CameraStatus("a", "rtsp://a"))
    journal.look(board.snapshot())
    assert not capsys.readouterr().err
    board.set("a", state="away", detail="Connection refused")
    journal.look(board.snapshot())
    assert capsys.readouterr().err == "a away (Connection refused)\n"
    board.set("a", state="connected", width=64, height=48, codec="h264", detail="")
    journal.look(board.snapshot())
    assert capsys.readouterr().err.startswith("a: connected to rtsp://a, 64 x 48 h264")
    for detail in ("Connection refused", "nothing came for 10 s"):
        board.add(CameraStatus("a", "rtsp://a"))  # begun anew
        journal.look(board.snapshot())
        board.set("a", state="away", detail=detail)
        journal.look(board.snapshot())
    assert not capsys.readouterr().err
    journal.said_at -= 61
    journal.look(board.snapshot())
    assert capsys.readouterr().err == "a away (Connection refused)\n"
    board.set("a", state="connected", detail="")
    journal.look(board.snapshot())
    board.set("a", detail="32 x 24 pixels, before 64 x 48")
    journal.look(board.snapshot())
    journal.flush()
    assert capsys.readouterr().err == "a connected; a connected (32 x 24 pixels, before 64 x 48)\n"
    journal.forget("a")
    journal.look(board.snapshot())
    assert capsys.readouterr().err.startswith("a: connected to rtsp://a")


@pytest.mark.slow
def test_memory_of_cameras_stays_the_same_over_many_rows_and_events(tmp_path):
    engine, store = make_engine(tmp_path, "a")
    statm, before = Path("/proc/self/statm"), 0
    if not statm.exists():
        pytest.skip("memory is read from /proc")
    for turn in range(60):
        feed(engine, "a", ([0.1] * 40 + [0.9] * 60) * 10, first=1000 * turn)
        store.prune(days=1e-9, gigabytes=1)
        if turn == 19:
            gc.collect()
            before = int(statm.read_text().split()[1])
    gc.collect()
    assert int(statm.read_text().split()[1]) - before < 1200  # pages of 4 KiB: under 5 MiB over 400 events


def test_a_simulation_of_many_cameras_shares_the_encoder():
    command = ["-m", "benchmarks.many_cameras", "--cameras", "6", "--speed", "60", "--seconds", "3"]
    command += ["--warm-up", "3"]
    done = children.run(*command)
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout.partition("ratio ")[2].split()[0])
    assert ratio > 0.8
