"""When a frame is shown, and that pictures show the frame they name: each frame holds its own number."""

import io
import json
import queue
import re
from base64 import b64decode
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

import predict
from videoanomaly.frame_scores import FrameScores
from videoanomaly.live import streams
from videoanomaly.prediction import annotated_video
from videoanomaly.video import key_frames
from videoanomaly.video.decoding import VideoFile, mean_rate, to_image
from videoanomaly.video.frame_clock import FrameClock, LiveClock

N, RATE = 100, 25


def numbered(i: int) -> np.ndarray:
    """Frame i: noise, red from 50 to 74, and at its bottom the bits of i as blocks."""
    blocks = np.random.default_rng(i).normal(110, 26, (8, 8, 1)) + ((90, -50, -50) if 50 <= i < 75 else (0, 0, 0))
    blocks[7] = np.array([255 * (i >> k & 1) for k in range(8)])[:, None]
    return np.clip(blocks, 0, 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)


def number_in(image: Image.Image) -> int:
    """Read back from a picture of any size, whose upper square it is."""
    side = image.width
    grey = image.convert("L")
    return sum((grey.getpixel((int((k + 0.5) * side / 8), int(15 / 16 * side))) > 127) << k for k in range(8))


def write(path, codec="libx264", times=None, options=None, mux=None, rotation=None, frames=range(N)):
    """Those frames, at their times or RATE a second; ten seconds' worth of GOPs in four."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, RATE) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        stream.codec_context.options = {"g": "25", "bf": "2", "b": "2M"} | (options or {})
        if rotation:
            stream.set_display_rotation(rotation)
        for k, i in enumerate(frames):
            image = np.rot90(numbered(i), -(rotation or 0) // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            frame.pts, frame.time_base = (k if times is None else round(1000 * times[k])), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


VARIABLE = np.cumsum(np.where(np.arange(N) % 40 < 20, 0.04, 0.1)) - 0.04
KINDS = {  # what write() is given besides the path
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.mov": {},
    "h264.ts": {},
    "h264.m2ts": {},
    "h264.flv": {},
    "open_gop.ts": {"options": {"x264-params": "open-gop=1:keyint=25:bframes=3:b-adapt=0"}},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=25:bframes=3:b-adapt=0"}},
    "long_gop.ts": {"options": {"g": "100", "sc_threshold": "0"}},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg2.vob": {"codec": "mpeg2video", "options": {"g": "60"}},  # the muxer writes some stamps a frame off
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "60"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.avi": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "variable.mp4": {"times": VARIABLE},
    "variable.mkv": {"times": VARIABLE},
    "late.mkv": {"times": 1000 + np.arange(N) / RATE},
    "edit_list.mp4": {"times": np.arange(N) / RATE - 0.5},  # 12 frames are before the start
    "edit_list.mov": {"times": np.arange(N) / RATE - 0.5},
    "elementary.h264": {},
    "h264.mxf": {"codec": "mpeg2video", "options": {"bf": "0"}},
    "wmv2.wmv": {"codec": "wmv2", "options": {"bf": "0"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1"}},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1"}},
    "rotated.mp4": {"rotation": 90},
    "fragmented.mp4": {"mux": {"movflags": "frag_keyframe+empty_moov"}},
    "hours.ts": {"mux": {"output_ts_offset": "90000"}},
}


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4", "mov", "flv", "ts", "webm"])
def test_titles_in_other_code_pages_do_no_harm(suffix, tmp_path):
    mark, path = b"QQQQQQQQ", tmp_path / f"v.{suffix}"
    for title in (
        "监控录像".encode("gbk"),
        "Entrée n°".encode("latin-1")[:8],
        "カメラ二".encode("shift-jis"),
        b"\xff\xfe\x00\xd8\x00\xdc\x80\x81",
    ):
        with av.open(str(path), "w") as container:
            container.metadata["title" if suffix != "ts" else "service_name"] = mark.decode()
            stream = container.add_stream(
                "libvpx" if suffix == "webm" else "flv" if suffix == "flv" else "mpeg4", rate=RATE
            )
            stream.width = stream.height = 64
            stream.pix_fmt, stream.metadata["title"], stream.metadata["handler_name"] = (
                "yuv420p",
                mark.decode(),
                mark.decode(),
            )
            container.mux([*stream.encode(av.VideoFrame.from_ndarray(numbered(7))), *stream.encode()])
        data = path.read_bytes()
        assert mark in data
        path.write_bytes(data.replace(mark, title))
        with VideoFile(path) as file:
            assert [time for time, _ in file.frames()] == [0]
        reader = streams.Reader(streams.find_source(str(path)), RATE, 1)
        reader.read()
        assert reader.num_frames == 1


def place(root, name):
    """Where the video of a kind lies: one name for each, also without the suffix."""
    return root / f"{name.replace('.', '-')}.{name.split('.')[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the videos of each kind, see `video`."""
    return tmp_path_factory.mktemp("numbered")


def video(folder, name):
    """A video of a kind, made when it is first asked for."""
    path = place(folder, name)
    return path if path.exists() else write(path, **KINDS[name])


def expected(name):
    """Numbers of the frames that are shown, and when."""
    times = KINDS.get(name, {}).get("times", np.arange(N) / RATE)
    numbers = np.arange(N)[times >= 0]
    return numbers, times[numbers] - times[numbers[0]]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_has_the_time_at_which_a_player_shows_it(folder, name):
    with VideoFile(video(folder, name)) as file:
        found = [(number_in(to_image(frame, VideoReformatter())), time) for time, frame in file.frames()]
    (numbers, times), (expected_numbers, expected_times) = zip(*found), expected(name)
    assert numbers == tuple(expected_numbers) and not file.damage and not file.clock.jumps
    assert np.allclose(times, expected_times, atol=0.05 if name == "mpeg2.vob" else 2e-3)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_that_is_sought_is_the_one_that_was_asked_for(folder, name, monkeypatch):
    monkeypatch.setattr(key_frames, "SEEK_GAP", 0.3)
    with VideoFile(video(folder, name)) as file:
        times = np.array([time for time, _ in file.frames()])
        times = times if file.may_seek else None
    places, numbers = [1, 24, 25, 27, 49, 50, 52, 76, 85, 86], expected(name)[0]
    found = [(i, number_in(image)) for i, image in key_frames.read_frames(place(folder, name), places, times)]
    assert found == [(i, numbers[i]) for i in places]


# ---------------------------------------------------------------- time stamps that do not go on

STEPS = [i / RATE for i in range(8)]


@pytest.mark.parametrize(
    "stamps, times, jumps",
    [
        (STEPS, STEPS, []),
        ([stamp - 3e-7 for stamp in STEPS], STEPS, []),
        ([None] * 8, STEPS, []),
        ([0.0] * 8, [0, *STEPS[:7]], []),
        (STEPS[:4] + [stamp + 86400 for stamp in STEPS[4:]], STEPS, [4]),
        (STEPS[:7] + STEPS[:1], STEPS, [7]),
        ([86400 + stamp for stamp in STEPS[:4]] + STEPS[4:], STEPS, [0, 4]),
        ([s + gap for s, gap in zip(STEPS, (0, 0, 5e3, 5e3, 0, 0, 9e4, 9e4))], STEPS, [2, 4, 6]),
        ([6.0 * i for i in range(8)], [6.0 * i for i in range(8)], []),
        ([90.0 * i for i in range(8)], [0, 0.04, 0.08, *(0.08 + 90 * i for i in range(1, 6))], [1, 2]),
        ([0.0, None, None, 0.12, None, 0.2, 0.24, None], STEPS, []),
        ([0.0, 0.04, 0.12, 0.08, 0.16, 0.24, 0.2, 0.28], [0, 0.04, 0.12, 0.12, 0.16, 0.24, 0.24, 0.28], []),
    ],
)
def test_time_goes_on_whatever_the_stamps_do(stamps, times, jumps):
    clock = FrameClock(RATE, 30.0, 0.0)
    assert [clock(stamp) for stamp in stamps] == pytest.approx(times, abs=1e-6)
    assert [jump.frame for jump in clock.jumps] == jumps and clock.num_jumps == len(jumps)


def test_a_long_stretch_of_any_stamps_never_falls_and_keeps_the_rate():
    rng = np.random.default_rng(0)
    for longest_pause in (10.0, 3600.0):
        clock, stamp, times = FrameClock(None, longest_pause), 0.0, []
        for i in range(5000):
            stamp = stamp + 0.04 if i % 125 else rng.choice([-1, 1]) * 10 ** rng.uniform(-1, 9)
            times.append(clock(None if rng.random() < 0.01 else stamp))
        steps = np.diff(times)
        assert (steps >= 0).all() and times[0] == 0 and mean_rate(np.array(times), None) == pytest.approx(25, rel=0.02)


def test_a_pause_counts_neither_for_the_rate_nor_for_an_event():
    times = np.append(np.arange(50), np.arange(50) + 30000) / RATE
    assert mean_rate(times, None) == RATE
    scores = FrameScores(np.ones(100), np.ones((100, 1)), times, float(RATE))
    assert scores.ends[48:51] == pytest.approx([49 / RATE, 49 / RATE + 5, 30001 / RATE])


def test_a_streams_time_is_that_of_its_stamps_as_long_as_they_go_with_the_clock():
    clock = LiveClock()
    assert [clock(*pair) for pair in ((None, 1.0), (50.0, 2.0), (50.5, 2.6))] == [1.0, 2.0, 2.5]
    assert clock(9000.0, 3.0) == 3.0 and clock(9001.0, 4.2) == 4.0  # forward
    assert [clock(8997.0, 4.3), clock(8997.5, 4.7)] == pytest.approx([4.3, 4.8]) and clock.num_jumps == 2  # 4 s back


def joined(path, parts):
    """Recordings put behind each other as bytes, each of which starts at 0."""
    how = {"codec": "mpeg2video"} if path.suffix == ".mpg" else {"mux": {"mpegts_flags": "initial_discontinuity"}}
    pieces = [write(path.with_name(f"{i}{path.suffix}"), frames=part, **how) for i, part in enumerate(parts)]
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    for piece in pieces:
        piece.unlink()


JUMPS = {
    "plain.mp4": write,
    "joined.ts": lambda path: joined(path, (range(60), range(60, N))),
    "joined.mpg": lambda path: joined(path, (range(60), range(60, N))),
    "often.ts": lambda path: joined(path, [range(i, i + 20) for i in range(0, N, 20)]),
    "day.mkv": lambda path: write(path, times=np.arange(N) / RATE + 86400 * (np.arange(N) >= 60)),
    "hours.mp4": lambda path: write(path, times=np.arange(N) / RATE + 5 * 3600 * (np.arange(N) >= 60)),
}


SEEN = ["h264.mp4", "h264.ts", "mpeg2.mpg", "open_gop.ts", "variable.mkv", "edit_list.mp4", "rotated.mp4"]
RARELY_SEEN = ["h264.mkv", "h264.mov", "h264.m2ts", "h264.flv", "h264.avi", "vp9.webm"]


@pytest.fixture
def predicted(planted, tmp_path, folder, monkeypatch, name):
    """Results, with an annotated copy, of a video of a kind or of one whose time stamps jump."""
    monkeypatch.setattr(annotated_video, "MIN_WIDTH", 64)  # else it is doubled and doubled again
    path = JUMPS[name](place(tmp_path, name)) or place(tmp_path, name) if name in JUMPS else video(folder, name)
    options = [*planted.options, str(path), "--out", str(tmp_path / "out"), "--threshold", "0.5", "--annotate"]
    assert predict.main(options) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("name", [*SEEN, *JUMPS, *(pytest.param(name, marks=pytest.mark.slow) for name in RARELY_SEEN)])
def test_events_pictures_and_annotated_copies_show_the_frames_they_name(predicted, name):
    out = predicted
    numbers, times = expected(name)
    (event,) = json.loads((out / "events.json").read_text())["events"]
    assert [numbers[event["start_frame"]], numbers[event["end_frame"]]] == [50, 75]
    assert [event["start"], event["end"]] == pytest.approx(
        [times[event["start_frame"]], times[event["end_frame"]]], abs=2e-3
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'"time": ([0-9.e-]+), "src": "data:image/jpeg;base64,([^"]+)', page)
    assert len(pictures) >= 10
    for time, data in pictures:
        i = numbers.tolist().index(number_in(Image.open(io.BytesIO(b64decode(data)))))
        assert times[i] == pytest.approx(float(time), abs=2e-3)
    with VideoFile(out / "annotated.mp4") as file:
        shown = [(number_in(to_image(frame, VideoReformatter())), time) for time, frame in file.frames()]
    assert [number for number, _ in shown] == numbers.tolist()
    assert np.allclose([time for _, time in shown], times, atol=2e-3)

    if name in JUMPS:
        assert_jumps_are_told_in_the_file_and_on_the_page(out, name)


def assert_jumps_are_told_in_the_file_and_on_the_page(out, name):
    result = json.loads((out / "events.json").read_text())
    page = (out / "report.html").read_text(encoding="utf-8")
    expected_jumps = {"plain.mp4": [], "often.ts": [20, 40, 60, 80]}.get(name, [60])
    assert [jump["frame"] for jump in result["jumps"]] == expected_jumps
    assert result["duration"] == pytest.approx(4, abs=0.05) and result["fps"] == pytest.approx(25, rel=0.01)
    assert bool(result["notes"]) == bool(expected_jumps)
    for note in result["notes"]:
        assert note.startswith("time stamps jump") and note in page


class Clock:
    """A clock that only waiting moves on, as module `time` and as an event that nobody sets."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    time = monotonic

    def wait(self, seconds):
        self.now += seconds

    def is_set(self):
        return False


LIVE = {  # a video, and when its pictures are shown
    "joined.ts": (JUMPS["joined.ts"], np.arange(N) / RATE),
    "often.ts": (JUMPS["often.ts"], np.arange(N) / RATE),
    "day.mkv": (JUMPS["day.mkv"], np.arange(N) / RATE),
    "slow.mkv": (lambda path: write(path, times=6.0 * np.arange(N), options={"bf": "0"}), 6.0 * np.arange(N)),
    "variable.mkv": (lambda path: write(path, times=VARIABLE), VARIABLE),
    "elementary.h264": (write, np.arange(N) / RATE),
}


@pytest.mark.parametrize("name", LIVE)
def test_every_picture_of_a_file_that_is_watched_comes_at_its_time(name, tmp_path, monkeypatch):
    make, times = LIVE[name]
    make(tmp_path / name)
    clock = Clock()
    monkeypatch.setattr(streams, "time", clock)
    reader = streams.Reader(streams.find_source(str(tmp_path / name)), RATE, 1)
    reader.stopping, reader.samples = clock, queue.Queue()
    reader.read()
    samples = [reader.samples.get() for _ in range(reader.samples.qsize())]
    numbers = [number_in(to_image(sample.frame, VideoReformatter())) for sample in samples]
    assert numbers == list(range(N)) and reader.num_frames == N and reader.num_dropped == 0
    assert [sample.arrival - 100 for sample in samples] == pytest.approx(times, abs=2e-3)
    assert reader.num_jumps == {"joined.ts": 1, "often.ts": 4, "day.mkv": 1}.get(name, 0)
