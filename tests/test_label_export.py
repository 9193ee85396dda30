"""Marked events become folders of clips that train.py learns from: this closes the loop."""

import shutil

import pytest
import torch

import train
from tests.synthetic import SMALL
from tests.videos import BLUE, RED, write_clip
from tests.watched import add_clip, add_event
from videoanomaly.data.folders import folder_lists
from videoanomaly.runtime.console import InputError
from videoanomaly.training.source import find_class_videos
from videoanomaly.watching import label_export
from videoanomaly.watching.label_export import as_label, export_labels
from videoanomaly.watching.store.event_store import EventStore


@pytest.fixture
def store(tmp_path):
    return EventStore(tmp_path / "watch")


def marked(store, mark, label=None, name="fire", content=b"x", **more) -> str:
    """An event that somebody marked, with a clip."""
    id = add_event(store, name=name, **more)
    store.set_mark(id, mark, label)
    if content:
        add_clip(store, id, content)
    return id


def files(out) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def labels(out) -> dict[str, str]:
    """Folders of clips by the id of their event."""
    return {path.stem.rpartition("_")[2]: path.parent.name for path in out.glob("*/*")}


def test_clips_lie_in_the_folder_of_what_they_show(store, tmp_path):
    expected = {
        marked(store, "right", name="fire"): "fire",
        marked(store, "right", name="Road accident"): "Road_accident",
        marked(store, "wrong"): "Normal",
        marked(store, "wrong", "Normal"): "Normal",
        marked(store, "wrong", "fall"): "fall",
    }
    marked(store, None)
    told = []
    done = export_labels(store, tmp_path / "out", told.append)
    assert labels(tmp_path / "out") == expected
    id = next(iter(expected))
    assert files(tmp_path / "out")[f"fire/door_20010909T014640Z_{id}.mp4"] == b"x"
    assert (done.written, done.there, done.removed, done.without_clip) == (5, 0, 0, {})
    assert told == [
        f"{tmp_path}/out: 5 clips written, 0 were there; now 2 of Normal, 1 of Road_accident, 1 of fall, 1 of fire"
    ]


def test_it_can_be_repeated_and_follows_marks_that_change(store, tmp_path):
    out = tmp_path / "out"
    ids = [marked(store, "right", content=bytes([i]) * (i + 1), start=1e9 + i) for i in range(4)]
    export_labels(store, out, print)
    before, times = files(out), {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    done = export_labels(store, out, print)
    assert files(out) == before and (done.written, done.there) == (0, 4)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == times
    store.set_mark(ids[0], "wrong", None)
    store.set_mark(ids[1], None, None)
    (out / "fire" / "own.mp4").write_bytes(b"mine")
    done = export_labels(store, out, print)
    assert labels(out) == {ids[0]: "Normal", ids[2]: "fire", ids[3]: "fire", "own": "fire"}
    assert (done.written, done.there, done.removed) == (1, 2, 2)
    store.prune(0.0001, 1)  # the events go, what was learned from stays
    assert not store.events()
    export_labels(store, out, print)
    assert labels(out) == {ids[0]: "Normal", ids[2]: "fire", ids[3]: "fire", "own": "fire"}


def test_what_has_no_clip_is_told(store, tmp_path):
    without, gone = marked(store, "right", content=b""), marked(store, "wrong")
    odd = marked(store, "right", name="test")
    noted = marked(store, "right", content=b"")
    store.set_clip(noted, None, 0, "the disk was full")
    going_on = add_event(store, is_open=True)
    store.set_mark(going_on, "right", None)
    (store.clips / f"{gone}.mp4").unlink()
    told = []
    done = export_labels(store, tmp_path / "out", told.append)
    assert done.without_clip == {
        without: "it has no clip",
        gone: "it has no clip",
        odd: "test cannot be the name of a folder",
        noted: "the disk was full",
        going_on: "the event goes on",
    }
    assert told[0].endswith("0 clips written, 0 were there; now none") and not (tmp_path / "out").exists()
    assert sorted(told[1:]) == [f"event {id}: left out, {why}" for id, why in sorted(done.without_clip.items())]


@pytest.mark.parametrize(
    "text, label",
    [
        ("fire", "fire"),
        (" Road  accident ", "Road_accident"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("打架", "打架"),
        ("a-b_1", "a-b_1"),
    ]
    + [
        (bad, None)
        for bad in (
            "",
            " ",
            "..",
            ".a",
            "a/b",
            "a\\b",
            "a:b",
            "_a",
            "-a",
            "Train",
            "testing",
            "a\0",
            "x" * 61,
            "a\u202eb",
        )
    ],
)
def test_a_label_is_a_folder_of_its_class_or_refused(tmp_path, text, label):
    assert as_label(text) == label
    if label:
        lists = folder_lists(tmp_path, [f"{label}/a", "Normal/b"])
        assert lists.classes == (label,) or list(lists.classes) == [label]


def test_a_copy_that_breaks_off_leaves_nothing_half_written(store, tmp_path, monkeypatch):
    id = marked(store, "right", content=b"0123456789")
    real = shutil.copyfileobj

    def broken(source, target):
        target.write(source.read(4))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(label_export.shutil, "copyfileobj", broken)
    with pytest.raises(OSError, match="No space left"):
        export_labels(store, tmp_path / "out", print)
    assert not files(tmp_path / "out")
    monkeypatch.setattr(label_export.shutil, "copyfileobj", real)
    export_labels(store, tmp_path / "out", print)
    assert labels(tmp_path / "out") == {id: "fire"}


def test_folders_that_cannot_be_written_to_are_refused(store, tmp_path):
    marked(store, "right")
    for out in (store.clips, store.clips / "x", store.clips.parent, tmp_path):
        with pytest.raises(InputError, match="found the folder of the recordings, expected another"):
            export_labels(store, out, print)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out .*file: cannot be written"):
        export_labels(store, tmp_path / "file", print)
    outside = tmp_path / "secret.mp4"
    outside.write_bytes(b"secret")
    (store.clips / "link.mp4").symlink_to(outside)
    store.set_clip(marked(store, "right"), "link.mp4", 6)
    with pytest.raises(InputError, match="link.mp4: is a link to .*secret.mp4"):
        export_labels(store, tmp_path / "out", print)


def test_what_was_exported_is_learned_from(store, tmp_path, planted):
    for i, (colour, mark, label) in enumerate(
        [
            (RED, "right", None),
            (RED, "right", None),
            (BLUE, "wrong", "fall"),
            (None, "wrong", None),
            (None, "wrong", "Normal"),
        ]
    ):
        id = add_event(store, start=1e9 + i, name="fire")
        clip = write_clip(store.clips / f"{id}.mp4", 24 + i, ((5, 15, colour),) if colour else ())
        store.set_clip(id, clip.name, clip.stat().st_size)
        store.set_mark(id, mark, label)
    out = tmp_path / "videos"
    export_labels(store, out, print)
    assert len(find_class_videos(out, tmp_path / "run")) == 5
    options = [*SMALL, "--num-frames", "2", "--epochs", "1", "--batch-size", "4"]
    data = ["--dataset", "custom", "--root", str(out), "--out", str(tmp_path / "run"), *planted.options[2:4]]
    train.main([*data, *options])
    lists = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["lists"]
    assert lists["classes"] == ["fall", "fire"]
    assert sorted(name.split("/")[0] for name, *_ in lists["train"]) == ["Normal", "Normal", "fall", "fire", "fire"]


def test_two_exports_into_one_folder_do_not_mix(store, tmp_path, monkeypatch):
    marked(store, "right")
    monkeypatch.setattr("fcntl.lockf", lambda *_: (_ for _ in ()).throw(BlockingIOError()))
    with pytest.raises(InputError, match="found another run at work in this folder"):
        export_labels(store, tmp_path / "out", print)
