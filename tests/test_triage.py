"""Tests of predict.py --triage and videoanomaly/archives/ on small videos whose anomalies are colours."""

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import predict
from tests.videos import BLUE, RED, picture, write_camera, write_clip
from videoanomaly.archives import budget, looking, looks, packets, triage
from videoanomaly.archives.budget import Gaps
from videoanomaly.runtime.console import InputError
from videoanomaly.video import encoding
from videoanomaly.video.decoding import VideoFile


def read_events(folder: Path) -> dict:
    return json.loads((folder / "events.json").read_text())


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of frames in the batches that were encoded."""
    sizes, original = [], encoding.to_float16
    monkeypatch.setattr(encoding, "to_float16", lambda x, name: sizes.append(len(x)) or original(x, name))
    return sizes


# ---- the budget


def test_a_budget_is_a_share_of_the_frames_or_seconds_of_an_hour():
    assert budget.read_budget(None, None) == 0.05 == budget.read_budget(" 5% ", None) == budget.read_budget(None, 180)
    for text in ("5", "0%", "101%", "nan%", "x%", ""):
        with pytest.raises(InputError, match=f"--budget {text}: expected a percentage"):
            budget.read_budget(text, None)
    with pytest.raises(InputError, match="--seconds-per-hour 0: expected a number above 0, at most 3600"):
        budget.read_budget(None, 0)
    with pytest.raises(InputError, match="expected one of them"):
        budget.read_budget("5%", 180)


def test_options_that_do_not_go_together_are_told(planted, tmp_path):
    video = str(write_clip(tmp_path / "v.mp4", 5))
    for words, message in (
        ([video, "--budget", "5%"], "go with --triage"),
        ([video, "--triage", video], "found videos and triage to work on"),
        (["--triage", video, "--budget", "5"], "--budget 5: expected a percentage"),
    ):
        with pytest.raises(InputError, match=message):
            predict.main([*planted.options, "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def slowly_chosen(gaps: dict[str, Gaps], num_rows: float) -> dict[str, list[bool]]:
    """The same, one gap at a time."""
    places = [(-value, name, i) for name in gaps for i, value in enumerate(gaps[name].values)]
    chosen = {name: [False] * len(gaps[name].values) for name in gaps}
    for _, name, i in sorted(places):
        cost = gaps[name].costs[i]
        if 0 < cost <= num_rows:
            chosen[name][i], num_rows = True, num_rows - cost
    return chosen


@pytest.mark.parametrize("num_rows", [-3, 0, 1, 7.5, 20, 55, 1000])
def test_gaps_that_stand_out_most_are_filled_first_over_all_videos(num_rows):
    rng = np.random.default_rng(3)
    gaps = {}
    for name, size in (("b", 7), ("a", 12), ("c", 0), ("d", 1)):
        values = rng.integers(0, 4, size) / 4  # with ties
        gaps[name] = Gaps(np.zeros((size, 2), int), rng.integers(0, 9, size), values)
    found = {name: chosen.tolist() for name, chosen in budget.choose(gaps, num_rows).items()}
    assert found == slowly_chosen(gaps, num_rows)
    assert budget.choose({}, num_rows) == {}


def test_what_nearly_reaches_the_threshold_comes_before_what_has_reached_it():
    values = np.array([0.95, 0.05, 0.45, 0.6, 0.2])
    order = np.argsort(-budget.priorities(values, 0.5))
    assert order.tolist() == [2, 4, 0, 3, 1]


# ---- packets


def write_coded(path: Path, codec: str, options: dict, num_frames: int = 60, gop: int = 12) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        for t in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(t, 96, 64), "rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = t, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


CODED = {
    "b-frames.mp4": ("libx264", {"bf": "3"}),
    "open.mkv": ("libx264", {"bf": "3", "x264-params": "open-gop=1:scenecut=0:bframes=3:b-adapt=0"}),
    "plain.ts": ("libx264", {"bf": "2"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:open-gop=1:bframes=3"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "all-intra.mov": ("mjpeg", {}),
}


@pytest.mark.parametrize("name", CODED)
def test_chosen_frames_are_those_of_a_decoder_that_reads_all(tmp_path, name):
    """Whatever depends on whatever: pixels and numbers are the same, and only what is needed is decoded."""
    path = write_coded(tmp_path / name, *CODED[name])
    found = packets.Packets()
    with VideoFile(path) as file:
        frames = [(time, frame.to_ndarray()) for time, frame in file.frames()]
    with VideoFile(path) as file:
        for packet in file.packets():
            if packet.size:
                found.add(packet)
        times = found.times(file, 1.0)
    if found.doubt:  # MPEG program streams lack time stamps: those are decoded wholly
        assert name == "mpeg2.mpg"
        return
    assert np.allclose(times, [time for time, _ in frames], atol=1e-9)
    how = looking.How(lambda image: [], 1, 1, False, 25.0, 0.05)
    reading = encoding.Reading(times, 25.0, [], [], True)
    stamps, keys = np.array(found.stamps), np.array(found.keys) > 0
    look = looking.Look(reading, np.array([0]), np.array([0]), stamps, keys, "")
    for wanted in ([0], [11, 12, 13], [59], [5, 30, 31, 55], list(range(60))):
        seen = dict(looking.numbered(path, how, look, np.array(wanted)))
        assert seen.keys() >= set(wanted)
        for number in wanted:
            assert (seen[number].to_ndarray() == frames[number][1]).all(), (wanted, number)
    if keys.sum() > 1:
        assert len(dict(looking.numbered(path, how, look, np.array([59])))) < 30


def test_key_frames_are_looked_at_as_far_apart_as_asked_for(planted, tmp_path):
    path = write_camera(tmp_path / "v.mp4", 1000, gop=50)  # every 2 s
    how = looking.How(lambda image: [planted_input(image)], 1, 8, False, 25.0, 1 / 0.85 / 75)  # every 3 s
    *batches, look = looking.first_look(path, how)
    assert look.frames.tolist() == [0, 100, 150, 250, 300, 400, 450, 550, 600, 700, 750, 850, 900]
    assert sum(map(len, batches)) == len(look.frames) == len(set(look.rows.tolist())) and not look.why_whole
    assert np.allclose(look.reading.times, np.arange(1000) / 25)


def planted_input(image):
    import torch

    return torch.from_numpy(np.asarray(image.resize((8, 8), 4), np.float32) / 255).permute(2, 0, 1)


# ---- rows


def test_rows_between_are_the_nearest_ones_and_linear_where_a_full_pass_interpolates():
    reading = encoding.Reading(np.arange(20) / 25, 25.0, [], [], True)
    look = looking.Look(reading, np.array([0, 2, 4, 13]), np.array([0, 1, 2, 0]), np.zeros(0), np.zeros(0), "")
    seen = looks.Seen(look, np.array([[0.0], [4.0], [8.0]], np.float16), np.zeros(0))
    assert looks.fill(seen, 2, 1)[:, 0].tolist() == [0, 2, 4, 6, *[8] * 5, *[0] * 11]
    assert looks.fill(seen, 2, 3)[:, 0].tolist() == [0, 6, 8, 0, 0, 0, 0]
    assert looks.missing(look, 2).tolist() == [6, 8, 10, 12, 14, 16, 18]
    gaps = looks.gaps_of(seen, 2)
    assert gaps.ends.tolist() == [[0, 2], [2, 4], [4, 13], [13, 20]] and gaps.costs.tolist() == [0, 0, 4, 3]
    assert looks.wanted(look, np.array([True, True, False, True]), 2).tolist() == [14, 16, 18]
    p_A = np.arange(10) / 10  # every second frame
    assert looks.gap_values(p_A, look, 2) == pytest.approx([0.1, 0.2, 0.6, 0.9])


def test_a_second_look_takes_its_place_among_the_first(tmp_path):
    reading = encoding.Reading(np.arange(9) / 25, 25.0, [], [], True)
    first = looking.Look(reading, np.array([0, 6]), np.array([0, 1]), np.zeros(0), np.zeros(0), "")
    new = first._replace(frames=np.array([1, 2, 7]), rows=np.array([-1, 0, 0]))
    seen = looks.Seen(first, np.array([[1.0], [2.0]], np.float16), np.array([0.5, 0.25], np.float32))
    merged = looks.merge(seen, np.array([[3.0]], np.float16), new)
    assert merged.look.frames.tolist() == [0, 1, 2, 6, 7] and merged.features[merged.look.rows, 0].tolist() == [
        1,
        1,
        3,
        2,
        3,
    ]
    looks.save(tmp_path / "x.npz", seen, {"a": 1})
    back = looks.restore(tmp_path / "x.npz", {"a": 1})
    assert back and back.look.frames.tolist() == [0, 6] and back.values.tolist() == [0.5, 0.25]
    assert looks.restore(tmp_path / "x.npz", {"a": 2}) is None
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-20])
    assert looks.restore(tmp_path / "x.npz", {"a": 1}) is None


# ---- whole runs


def test_a_budget_of_all_gives_what_a_full_pass_gives(planted_spaced, tmp_path, encoded):
    for name, gop in (("a", 25), ("b", 10)):  # key frames off the grid of rows, too
        write_camera(tmp_path / "in" / f"{name}.mp4", 200, [(50, 90, RED), (130, 170, BLUE)], gop)
    options = [*planted_spaced.options, "--threshold", "0.5"]
    assert predict.main([*options, str(tmp_path / "in"), "--out", str(tmp_path / "full")]) == 0
    encoded.clear()
    assert (
        predict.main([*options, "--triage", str(tmp_path / "in"), "--out", str(tmp_path / "t"), "--budget", "100%"])
        == 0
    )
    assert 200 <= sum(encoded) <= 208
    for name in "ab":
        full, found = (read_events(tmp_path / out / name) for out in ("full", "t"))
        assert found["coverage"] == {"share": 1.0, "times": [[0.0, 8.0]]} and full["coverage"] is None
        for one, other in zip(full["events"], found["events"], strict=True):
            assert {k: v for k, v in one.items() if k not in ("confidence", "p_class", "others")} == {
                k: v for k, v in other.items() if k not in ("confidence", "p_class", "others")
            }
            # float32 sums of at most 64 terms, added up in another order where a batch is another: 64 * 2^-24
            assert one["confidence"] == pytest.approx(other["confidence"], abs=4e-6)


def test_a_triage_stays_in_its_budget_and_tells_what_it_looked_at(planted, tmp_path, encoded, capsys):
    for name in "abc":
        event = [(490, 560, RED)] if name == "b" else []
        write_camera(tmp_path / "in" / f"{name}.mp4", 1000, event)
    command = [*planted.options, "--threshold", "0.5", "--triage", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert predict.main([*command, "--budget", "8%"]) == 0
    assert sum(encoded) <= 240 and sum(encoded) > 200
    results = {name: read_events(tmp_path / "out" / name) for name in "abc"}
    assert [len(results[name]["events"]) for name in "abc"] == [0, 1, 0]
    (event,), covered = results["b"]["events"], results["b"]["coverage"]
    assert event["class"] == "fire" and event["start_frame"] < 560 and event["end_frame"] > 490
    assert 0.04 < covered["share"] < 0.3 and any(start <= event["start"] <= end for start, end in covered["times"])
    assert covered["share"] == pytest.approx(sum(end - start for start, end in covered["times"]) / 40)
    told = f"{covered['share']:.1%} of it was looked at fully"
    assert told in (tmp_path / "out" / "b" / "report.html").read_text()
    index = (tmp_path / "out" / "index.html").read_text()
    assert f"{covered['share']:.1%} looked at fully" in index and "of 0.03 h looked at fully" in index
    assert re.search(r"triage: 3,000 frames to encode in a full pass; 2\.\d% looked at first", capsys.readouterr().out)


def test_still_scenes_are_not_encoded_twice(planted, tmp_path, encoded):
    write_camera(tmp_path / "v.mp4", 1000, still=True)
    command = [*planted.options, "--triage", str(tmp_path / "v.mp4"), "--out", str(tmp_path / "out"), "--budget", "50%"]
    assert predict.main(command) == 0
    assert sum(encoded) <= 20  # the first frame, and one for each stretch of the second pass
    assert read_events(tmp_path / "out")["coverage"]["share"] > 0.45


def test_a_run_goes_on_where_it_was_killed(planted, tmp_path, encoded, monkeypatch):
    for name in "abc":
        write_camera(tmp_path / "in" / f"{name}.mp4", 500, [(240, 290, RED)] if name == "b" else [])
    command = [*planted.options, "--triage", str(tmp_path / "in"), "--budget", "8%", "--workers", "1", "--out"]
    assert predict.main([*command, str(tmp_path / "one")]) == 0
    total, original = sum(encoded), triage.merge
    encoded.clear()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(triage, "merge", killed)
    with pytest.raises(KeyboardInterrupt):
        predict.main([*command, str(tmp_path / "two")])
    encoded.clear()
    monkeypatch.setattr(triage, "merge", original)
    assert predict.main([*command, str(tmp_path / "two")]) == 0
    assert 0 < sum(encoded) < total - 15  # the first look, of 5 frames each, is there
    for name in "abc":
        one, two = (read_events(tmp_path / out / name) for out in ("one", "two"))
        assert one["events"] == two["events"] and one["coverage"] == two["coverage"]
    encoded.clear()
    assert predict.main([*command, str(tmp_path / "two")]) == 0
    assert not encoded


def test_a_new_video_moves_the_budget_and_the_others_are_done_as_if_it_had_been_there(planted, tmp_path):
    command = [*planted.options, "--triage", str(tmp_path / "in"), "--budget", "6%", "--out"]
    write_camera(tmp_path / "in" / "a.mp4", 500)
    predict.main([*command, str(tmp_path / "grown")])
    write_camera(tmp_path / "in" / "b.mp4", 500, [(240, 290, RED)])
    for out in ("grown", "fresh"):
        predict.main([*command, str(tmp_path / out)])
    for name in "ab":
        grown, fresh = (read_events(tmp_path / out / name) for out in ("grown", "fresh"))
        assert grown["coverage"] == fresh["coverage"] and grown["events"] == fresh["events"]


# ---- videos that are not as cameras write them


def odd_video(kind: str, folder: Path) -> Path:
    event = [(300, 350, RED)]
    if kind == "few key frames":
        return write_camera(folder / "v.mp4", 600, event, gop=10000)
    if kind == "all intra":
        return write_camera(folder / "v.mp4", 600, event, gop=1)
    if kind == "avi":
        return write_camera(folder / "v.avi", 600, event)
    if kind == "pictures":
        import PIL.Image

        (folder / "v").mkdir(parents=True)
        for i in range(600):
            red = (200, 60, 60) if 300 <= i < 350 else (110, 110, 110)
            PIL.Image.new("RGB", (32, 32), red).save(folder / "v" / f"{i:03d}.png")
        return folder / "v"
    path = write_camera(folder / "v.mp4", 600, event)
    data = bytearray(path.read_bytes())
    if kind == "a hole":
        middle = len(data) // 5
        data[middle : middle + 3000] = bytes(3000)
        path.write_bytes(data)
    if kind == "jumping":
        return write_clip(folder / "v.mkv", 600, event, times=[i / 25 + 5000 * (i > 200) for i in range(600)])
    return path


@pytest.mark.parametrize(
    "kind, told",
    [
        ("few key frames", "its key frames are up to 24 s apart"),
        ("all intra", ""),
        ("avi", "its time stamps jump|frames share|no time stamps"),
        ("pictures", "it is a folder of pictures"),
        ("a hole", ""),
        ("jumping", "its time stamps jump"),
    ],
)
def test_odd_videos_are_right_or_told_in_one_line(planted, tmp_path, encoded, capsys, kind, told):
    path = odd_video(kind, tmp_path / "in")
    command = [*planted.options, "--triage", str(path), "--out", str(tmp_path / "out"), "--threshold", "0.5"]
    assert predict.main([*command, "--budget", "12%"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "decoded wholly" in line]
    assert len(lines) == bool(told) or kind == "a hole"
    assert not told or re.search(f"decoded wholly, since ({told})", lines[0])
    result = read_events(tmp_path / "out")
    assert sum(encoded) <= 72
    (event,) = result["events"]
    assert event["class"] == "fire" and event["start_frame"] < 350 and event["end_frame"] > 300


def test_a_file_that_is_no_video_costs_itself_alone(planted, tmp_path, capsys):
    write_camera(tmp_path / "in" / "a.mp4", 100)
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video " * 1000)
    command = [*planted.options, "--triage", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert predict.main(command) == 1
    printed = capsys.readouterr()
    assert printed.err.count("skipped ") == 1 and "1 of 2 videos done, 0 were there, 1 skipped" in printed.out
    assert "b" in (tmp_path / "out" / "index.html").read_text()
