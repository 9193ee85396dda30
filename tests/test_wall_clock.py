"""Tests of wall_clock.py: names of recorders, what files tell of themselves, zones."""

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import av
import numpy as np
import pytest

import predict
from tests.videos import RED, write_clip
from videoanomaly.runtime.console import InputError
from videoanomaly.video import wall_clock
from videoanomaly.video.wall_clock import APPLE, CREATED

NOON = datetime(2024, 5, 1, 12)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    "path, expected",
    [
        ("ch01_20240501120000.mp4", NOON),  # Hikvision
        ("192.168.1.64_01_20240501120000123_MOTION.mp4", NOON.replace(microsecond=123000)),
        ("10.0.0.1_8000_1_20240501120000_20240501120500_1714.mp4", NOON),
        ("2024-05-01_12.00.00-12.05.00[M][0@0][0].dav", NOON),  # Dahua
        ("NVR_ch1_main_20240501120000_20240501120500.dav", NOON),
        ("/mnt/2024-05-01/001/dav/12/12.00.00-12.05.00[M][0@0][0].dav", NOON),
        ("20240501_120000_6F4B_ACCC8E123456.mkv", NOON),  # Axis
        ("axis-ACCC8E012345_20240501_120000.mkv", NOON),
        ("Garage_00_20240501120000.mp4", NOON),  # Reolink
        ("RecM01_DST20240501_120000_120500_6D28808_1D3F8B7.mp4", NOON),
        ("FCECDA1F1532_0_rotating_1714564800000.ubv", NOON.replace(tzinfo=UTC)),  # UniFi
        ("G4 Pro - 2024-05-01 - 12-00-00.mp4", NOON),
        ("/media/frigate/recordings/2024-05-01/12/door/03.20.mp4", NOON.replace(minute=3, second=20, tzinfo=UTC)),
        ("door-1714564800.123456-abc12d.mp4", NOON.replace(tzinfo=UTC)),
        ("door_20240501_120000-20240501_120500_abc12d.mp4", NOON),
        ("/var/cache/zoneminder/events/1/24/05/01/12/00/00/event.mp4", NOON),
        ("cam.20240501_120000.mp4", NOON),  # Blue Iris
        ("cam-20240501-120000-1714564800.mp4", NOON),  # Synology
        ("01-20240501120000.avi", NOON),  # Motion
        ("2024Y05M01D12H/00M00S_1714564800.mp4", NOON.replace(tzinfo=UTC)),  # Xiaomi
        ("VID_20240501_120000.mp4", NOON),  # Android
        ("PXL_20240501_120000123.mp4", NOON.replace(microsecond=123000, tzinfo=UTC)),
        ("IMG_20240501_120000.MOV", NOON),
        ("2024_0501_120000_0001F.MP4", NOON),  # dash cams
        ("NO20240501-120000-000001F.MP4", NOON),
        ("2024-05-01_12-00-00-front.mp4", NOON),
        ("DJI_20240501120000_0001_D.MP4", NOON),
        ("2024-05-01 12-00-00.mkv", NOON),  # OBS
        ("Screen Recording 2024-05-01 at 12.00.00.mov", NOON),
        ("2024-05-01T12-00-00Z.mp4", NOON.replace(tzinfo=UTC)),
        ("20240501T120000+0200.ts", NOON.replace(tzinfo=timezone(timedelta(hours=2)))),
        (
            "2024-05-01T12:00:00.500-03:30.h264",
            NOON.replace(microsecond=500000, tzinfo=timezone(-timedelta(hours=3.5))),
        ),
        ("1714564800.mp4", NOON.replace(tzinfo=UTC)),
        ("1714564800123.264", NOON.replace(microsecond=123000, tzinfo=UTC)),
        ("20240501_cam_2024-05-01_12-00-00.mp4", NOON),  # one date, twice
    ],
)
def test_names_of_recorders_tell_when_they_began(path, expected):
    assert wall_clock.name_time(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "video.mp4",
        "hiv00001.mp4",
        "2024-05-01.mp4",  # a date alone
        "VID-20240501-WA0001.mp4",
        "12.00.00-12.05.00[M][0@0][0].dav",  # a time alone
        "2024-05-01_12-00.mp4",  # without seconds
        "202405011200.mp4",  # twelve digits
        "240501120000.mp4",
        "240501_120000_001_FH.MP4",  # which part is the year?
        "01052024_120000.mp4",
        "G4 Bullet 5-1-2024, 12.00.00 PM.mp4",
        "Screen Recording 2024-05-01 at 11.00.00 PM.mov",  # a clock of twelve hours
        "20241301_120000.mp4",  # no such month, day, hour
        "20240230_120000.mp4",
        "20240501_250000.mp4",
        "20240501T120000+9900.mp4",
        "20240501_120000_20240230_120000.mp4",
        "2024050112000012.mp4",  # other numbers of digits
        "20240501_1200001.mp4",
        "120240501120000.mp4",
        "20240501_120000_copy_20240601_120000.mp4",  # two that differ
        "20240501_120000_20240601_120000.mp4",
        "20240501_120500-20240501_120000.mp4",
        "backup_20240601_cam_20240501_120000.mp4",
        "20240501_120000-0400.mp4",  # a zone, or a number?
        "20000101_000000.mp4",  # clocks that were never set
        "19700101000000.mp4",
        "20990501_120000.mp4",  # still to come
        "4915712345.mp4",  # numbers
        "0000000000.mp4",
        "cam-1714564800.mp4",
        "1080p_1714564800_x.mp4",
        "/archive/20240501_120000/video.mp4",  # folders of whatever meaning
        "/24/05/01/12/00/video.mp4",
        "/2024-05-01/12/door/03.61.mp4",
    ],
)
def test_names_that_leave_a_doubt_tell_nothing(path):
    assert wall_clock.name_time(path) is None


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    "name, tags, changed, expected",
    [
        ("IMG_1.MOV", {APPLE: "2024-05-01T14:00:00+0200"}, "2026-01-01T00:00Z", "2024-05-01T14:00:00.000+02:00"),
        ("20240501_140000.MOV", {APPLE: "2024-05-01T14:00:03+0200"}, "2026-01-01T00Z", "2024-05-01T14:00:03.000+02:00"),
        ("20240503_140720.MOV", {APPLE: "2024-05-01T14:00:00+0200"}, "2026-01-01T00:00Z", None),  # they differ
        ("v.mp4", {CREATED: "2024-05-01T12:00:00.000000Z"}, "2024-05-01T12:01:41Z", "2024-05-01T12:00:00.000+00:00"),
        ("v.mp4", {CREATED: "2024-05-01T12:00:00.000000Z"}, "2024-05-01T12:00:00Z", None),  # written at the end
        ("v.mp4", {CREATED: "2024-05-01T12:00:00.000000Z"}, "2024-05-01T10:01:40Z", None),  # local time
        ("v.mp4", {CREATED: "2024-05-01T12:00:00.000000Z"}, "2024-05-01T12:00:20Z", None),  # cut later
        ("v.mp4", {CREATED: "1904-01-01T00:00:00.000000Z"}, "1904-01-01T00:01:40Z", None),
        ("v.mp4", {CREATED: "1970-01-01T00:00:00.000000Z"}, "1970-01-01T00:01:40Z", None),
        ("v.mp4", {CREATED: "2024-05-01T12:00:00"}, "2024-05-01T12:01:40Z", None),  # no zone
        ("v.mp4", {CREATED: "0"}, "2024-05-01T12:01:40Z", None),
        ("v.mp4", {}, "2024-05-01T12:01:40Z", None),
    ],
)  # fmt: skip
def test_what_a_file_tells_of_itself_counts_where_it_cannot_mean_anything_else(name, tags, changed, expected):
    start = wall_clock.find_start(f"/in/{name}", tags, 100.0, stamp(changed))
    assert (start and start.iso()) == expected
    if CREATED in tags:  # a video of seconds
        assert wall_clock.find_start("/v.mp4", tags, 1.0, stamp("2024-05-01T12:00:01Z")) is None


def test_a_name_without_a_zone_is_of_the_one_given_or_of_this_machine(monkeypatch):
    find = lambda name, zone=None: wall_clock.find_start(name, {}, 1.0, 0.0, zone)  # noqa: E731
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        start = find("VID_20240501_120000.mp4")
        assert (start.iso(), start.told_by) == ("2024-05-01T12:00:00.000-04:00", "file name, in this machine's zone")
        assert find("VID_20241103_013000.mp4") is None  # twice that night
        assert find("VID_20240310_023000.mp4") is None  # not at all
    finally:
        monkeypatch.undo()
        time.tzset()
    start = find("VID_20240501_120000.mp4", BERLIN)
    assert (start.iso(0.25), start.told_by) == (
        "2024-05-01T12:00:00.250+02:00",
        "file name, in the zone of --time-zone",
    )
    assert find("VID_20241027_023000.mp4", BERLIN) is None and find("VID_20240331_023000.mp4", BERLIN) is None
    assert find("PXL_20241027_003000000.mp4", BERLIN).iso(3600) == "2024-10-27T02:30:00.000+01:00"  # the clocks changed
    assert find("VID_20241027_013000.mp4", BERLIN).iso(7200) == "2024-10-27T02:30:00.000+01:00"


@pytest.mark.parametrize("zone", ["Mars/Base", "", "Europe", "../etc", "+2", "+25:00"])
def test_zones_that_are_none_are_told(zone):
    with pytest.raises(InputError, match="expected a zone such as Europe/Berlin"):
        wall_clock.read_zone(zone)


@pytest.mark.parametrize(
    "text",
    ["2024-05-01", "12:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59", "yesterday", "2024-13-01T00:00:00", ""],
)
def test_starts_that_are_none_are_told(text):
    with pytest.raises(InputError, match="expected a time such as"):
        wall_clock.read_start(text, None)


def test_a_start_that_its_zone_has_twice_is_told():
    with pytest.raises(InputError, match="the clocks change; expected a zone with it"):
        wall_clock.read_start("2024-10-27T02:30:00", BERLIN)
    assert wall_clock.read_start("2024-10-27T02:30:00+01:00", BERLIN).iso() == "2024-10-27T02:30:00.000+01:00"
    assert (
        wall_clock.read_start("2024-05-01 12:00:00", wall_clock.read_zone("+05:30"))
        .iso()
        .endswith("12:00:00.000+05:30")
    )


# ---- in results


def test_events_carry_the_time_of_day_where_something_tells_it(planted, tmp_path):
    video = write_clip(tmp_path / "cam.20240501_120000.mp4", 100, [(50, 90, RED)])
    command = [*planted.options, str(video), "--out", str(tmp_path / "out"), "--time-zone"]
    for options, start, told in (
        (["Europe/Berlin"], "2024-05-01T12:00:00.000+02:00", "file name, in the zone of --time-zone"),
        (["UTC", "--start-time", "2023-01-02T03:04:05+01:00"], "2023-01-02T02:04:05.000+00:00", "--start-time"),
    ):
        predict.main([*command, *options])
        result = json.loads((tmp_path / "out" / "events.json").read_text())
        assert (result["start_wall"], result["start_wall_from"]) == (start, told)
        (event,) = result["events"]
        for key in ("start", "end"):
            later = datetime.fromisoformat(event[f"{key}_wall"]) - datetime.fromisoformat(start)
            assert later.total_seconds() == pytest.approx(event[key], abs=6e-4)
    header, row = (tmp_path / "out" / "events.csv").read_text().splitlines()
    assert header.endswith(",start_wall_iso8601,end_wall_iso8601") and row.endswith(event["end_wall"])


def test_events_of_a_video_that_nothing_tells_of_have_no_time_of_day(planted, tmp_path):
    video = tmp_path / "v.mov"
    write_clip(tmp_path / "w.mov", 100, [(50, 90, RED)])
    command = [*planted.options, str(video), "--out", str(tmp_path / "out")]
    for tags, expected in (({}, None), ({APPLE: "2024-05-01T14:00:00+0200"}, "2024-05-01T14:00:00.000+02:00")):
        with (
            av.open(str(tmp_path / "w.mov")) as source,
            av.open(str(video), "w", options={"movflags": "use_metadata_tags"}) as copy,
        ):
            copy.metadata.update(tags)
            stream = copy.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    copy.mux(packet)
        predict.main(command)
        result = json.loads((tmp_path / "out" / "events.json").read_text())
        assert result["start_wall"] == expected and bool(result["start_wall_from"]) == bool(expected)
        assert bool(result["events"][0]["start_wall"]) == bool(expected)


def test_a_start_time_is_of_one_video(planted, tmp_path):
    for name in "ab":
        write_clip(tmp_path / "in" / f"{name}.mp4", 5)
    with pytest.raises(InputError, match="--start-time tells of one video, found 2"):
        predict.main(
            [*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--start-time", "2024-05-01T12:00"]
        )
    np.save(tmp_path / "20240501_120000.npy", np.load(next(planted.features.glob("*.npy"))))
    features = ["--features", str(tmp_path / "20240501_120000.npy"), "--fps", "25", "--time-zone", "+02:00"]
    predict.main([*planted.options, *features, "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "events.json").read_text())["start_wall"] == "2024-05-01T12:00:00.000+02:00"
