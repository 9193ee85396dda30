"""The file of settings of watch.py: what it may hold, what is refused and how, and hours."""

import re
import tomllib
from dataclasses import fields
from datetime import datetime

import pytest

from tests import children
from tests.places import ROOT
from videoanomaly.runtime.console import InputError
from videoanomaly.watching import watch_settings
from videoanomaly.watching.schedule import is_open, read_schedule
from videoanomaly.watching.watch_settings import read_settings

LEAST = 'checkpoint = "last.pt"\nfolder = "watch"\n[camera.door]\nurl = "rtsp://10.0.0.5/s"\n'
SECRET = "s3cret-t0ken-long"


def read(tmp_path, text: str):
    path = tmp_path / "watch.toml"
    path.write_text(text)
    return read_settings(path)


def test_a_camera_and_a_checkpoint_are_enough_and_paths_are_those_of_the_files_folder(tmp_path):
    settings = read(tmp_path, LEAST)
    assert (settings.checkpoint, settings.folder) == (str(tmp_path / "last.pt"), str(tmp_path / "watch"))
    assert [(camera.name, camera.address) for camera in settings.cameras] == [("door", "rtsp://10.0.0.5/s")]
    assert settings.page.host == "127.0.0.1" and settings.mqtt is None and not settings.webhooks


def test_files_are_looked_for_in_the_files_folder(tmp_path):
    for name in ("door.mp4", "clip.pt"):
        (tmp_path / name).touch()
    text = LEAST.replace("[", 'clip = "clip.pt"\nencoder = "encoder.py:Encoder"\n[', 1) + '[mqtt]\nhost = "h"\n'
    settings = read(tmp_path, text.replace("rtsp://10.0.0.5/s", "door.mp4") + 'ca_file = "ca.pem"\n')
    assert settings.cameras[0].address == str(tmp_path / "door.mp4")
    assert (settings.clip, settings.encoder) == (str(tmp_path / "clip.pt"), str(tmp_path / "encoder.py:Encoder"))
    assert settings.mqtt.ca_file == str(tmp_path / "ca.pem")
    assert read(tmp_path, text.replace("clip.pt", "ViT-B/16")).clip == "ViT-B/16"


def test_secrets_come_from_the_environment_or_a_file_and_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR", "p@ss/word")
    (tmp_path / "token").write_text(f"{SECRET}\nmore\n")
    text = LEAST + 'user = "admin"\npassword = { env = "DOOR" }\n[page]\nhost = "0.0.0.0"\ntoken = { file = "token" }\n'
    settings = read(tmp_path, text)
    assert settings.cameras[0].address == "rtsp://admin:p%40ss%2Fword@10.0.0.5/s"
    assert settings.page.token == SECRET
    assert not {word for word in ("p@ss", "p%40ss", SECRET, "10.0.0.5") if word in repr(settings)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("checkpoint = ?", "watch.toml: is no TOML (at line 1"),
        ('checkpoint = "a"\n[camera.x]\nurl = "0"\n', "watch.toml: folder is missing"),
        ('checkpoint = "a"\nfolder = "b"\n', "found no camera, expected at least one table [camera.NAME]"),
        (LEAST + "colour = 1\n", "[camera.door]: found the key colour, expected one of url, user,"),
        (LEAST + "threshold = 2\n", "[camera.door]: threshold 2.0: expected a number above 0, at most 1"),
        (LEAST + 'threshold = "high"\n', "[camera.door]: threshold: found a text, expected a float"),
        (LEAST + "threshold = 0.5\nfalse_alarms_per_hour = 1\n", "both choose the threshold: expected one"),
        (LEAST + "rows_per_second = 0\n", "rows_per_second: found 0, expected at least 0.01, at most 1000"),
        (LEAST + "frozen_after = nan\n", "frozen_after: found nan, expected at least 1"),
        (LEAST + "recording = 1\n", "recording: found a int, expected true or false"),
        (LEAST + "mask = [[0, 0], [1, 1]]\n", "mask: expected at least three points"),
        (LEAST + "mask = [[0, 0], [2, 1], [1, 1]]\n", "mask: expected at least three points [x, y] in [0, 1]"),
        (LEAST + 'schedule = ["at night"]\n', "schedule: found 'at night', expected such as \"mon-fri 18:00-06:00\""),
        (LEAST + 'schedule = ["25:00-26:00"]\n', "schedule: found '25:00-26:00'"),
        (LEAST + 'password = { env = "NOT_THERE" }\n', "password: the environment has no variable NOT_THERE"),
        (LEAST + 'password = { file = "none" }\n', "none cannot be read (No such file or directory)"),
        (LEAST + 'password = { vault = "x" }\n', 'password: expected a text, { env = "NAME" } or { file = "PATH" }'),
        (LEAST.replace("door", '"front door"'), "[camera.front door]: expected a name of up to 40 letters"),
        (LEAST.replace("door", '"../door"'), "[camera.../door]: expected a name of up to 40 letters"),
        (LEAST.replace("rtsp://", f"rtsp://a:{SECRET}#@"), "[camera.door]: url: found an address with an @ behind"),
        (LEAST + '[page]\nhost = "0.0.0.0"\n', "[page]: 0.0.0.0 can be reached by others, expected a token"),
        (LEAST + '[page]\ntoken = "short"\n', "[page]: token: found 5 characters, expected at least 16"),
        (LEAST + "[page]\nport = 70000\n", "[page]: port: found 70000, expected at least 0, at most 65535"),
        (LEAST + f'[webhook.a]\nurl = "ftp://{SECRET}@h/"\n', "[webhook.a]: url: found an address that does not begin"),
        (LEAST + '[mqtt]\nhost = "h"\nbase = "a/#"\n', "[mqtt]: base: expected levels of a topic"),
        (LEAST + "[mqtt]\nport = 1\n", "[mqtt]: host is missing"),
        (LEAST + "[events]\nmin_length = -1\n", "[events]: min_length -1.0: expected seconds, at least 0"),
        ("camera = 3\n" + LEAST.partition("[")[0], "[camera]: found a int, expected a table"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_without_secrets(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


def test_the_example_is_right_and_shows_every_key_with_its_default(tmp_path, monkeypatch):
    text = (ROOT / "watch.example.toml").read_text()
    monkeypatch.setenv("ENTRANCE_PASSWORD", "x")
    settings = read(tmp_path, text)
    kinds = {name: kind for name, (_, kind) in watch_settings.NAMED.items()} | watch_settings.TABLES
    sections = re.split(r"^(?:# )?\[(\w+)(?:\.\w+)?\]", text, flags=re.M)
    parts = {"": sections[0], **dict(zip(sections[1::2], sections[2::2]))}
    for name, kind in {"": type(settings), **kinds}.items():
        for field in fields(kind):
            if field.name not in ("name", "path", "cameras", "webhooks", *watch_settings.TABLES):
                assert re.search(rf"\b{field.name}\b", parts[name]), (name, field.name)
    bare = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M)  # all that is commented out stands for itself
    bare = re.sub(r"^# (\[)", r"\1", bare, flags=re.M).replace("false_alarms_per_hour = 0.5", "")
    everything = tomllib.loads(bare)
    assert everything["events"]["pre_roll"] == settings.events.pre_roll
    for table in ("events", "retention", "page", "messages"):
        for key, value in everything[table].items():
            if key not in ("token", "page_url"):
                assert getattr(getattr(settings, table), key) == value, key


def test_check_accepts_a_file_that_is_right_and_refuses_others(tmp_path, planted):
    path = tmp_path / "watch.toml"
    encoder = f"{planted.root / 'colours.py'}:Colours"
    path.write_text(
        f'checkpoint = "{planted.checkpoint}"\nencoder = "{encoder}"\nfolder = "w"\n[camera.a]\nurl = "rtsp://h/x"\n'
    )
    done = children.run("watch.py", "--check", path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"watch\.toml: 1 camera, .*: anomalyclip, 2 classes", done.stdout)
    assert not (tmp_path / "w").exists()
    path.write_text(path.read_text().replace("Colours", "Shapes"))
    done = children.run("watch.py", "--check", path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "Shapes" in done.stderr


@pytest.mark.parametrize(
    "line, inside, outside",
    [
        ("08:00-20:00", ["2026-03-02 08:00", "2026-03-07 19:59"], ["2026-03-02 20:00", "2026-03-02 07:59"]),
        ("mon-fri 18:00-06:00", ["2026-03-06 18:00", "2026-03-07 05:59"], ["2026-03-07 18:00", "2026-03-02 05:00"]),
        ("sat-sun 00:00-24:00", ["2026-03-07 00:00", "2026-03-08 23:59"], ["2026-03-09 00:00"]),
        ("fri-mon 22:00-23:00", ["2026-03-06 22:30", "2026-03-09 22:30"], ["2026-03-10 22:30"]),
        ("Tue 9:30-10:00", ["2026-03-03 09:30"], ["2026-03-04 09:30"]),
    ],
)
def test_hours(line, inside, outside):
    hours = read_schedule("", [line])
    assert all(is_open(hours, datetime.fromisoformat(moment)) for moment in inside)
    assert not any(is_open(hours, datetime.fromisoformat(moment)) for moment in outside)


def test_without_hours_a_camera_is_always_looked_at():
    assert is_open((), datetime(2026, 3, 1))
