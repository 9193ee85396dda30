"""Bad and hostile input, row by row: the scripts end with one line before any work, and nothing in a file runs.

Rows that are tested elsewhere: lists (test_annotations.py), feature files and meta.json (test_data.py), CLIP weights
(test_clip_model.py), checkpoints (test_anomalyclip.py, test_train.py), most kinds of videos (test_extract_features.py).
"""

import errno
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import extract_features
import train
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, Prediction, inference_rows, select_segments
from tests import children, fuzz
from tests.places import ROOT
from tests.synthetic import SMALL, write_dataset
from tests.videos import CUSTOM_ENCODER, assert_same_frames, our_frames, write_video
from videoanomaly.data import annotations, prototype
from videoanomaly.data.annotations import Video, frame_labels
from videoanomaly.data.features import FeatureFolder, check_features, load_array
from videoanomaly.data.lists import load_lists
from videoanomaly.data.sampling import BalancedBatches, training_rows
from videoanomaly.runtime import console, files
from videoanomaly.runtime.console import InputError

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis (requirements-dev.txt)")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

# ---------------------------------------------------------------- helpers


@pytest.fixture
def root(tmp_path):
    """A small data set in the `custom` layout, of which each test spoils a part; class of train00 to 07: Normal."""
    return write_dataset(tmp_path / "data", dim=6)


def train_on(root: Path, *options: str) -> Path:
    out = root.parent / "run"
    train.main(
        [
            "--dataset",
            "custom",
            "--root",
            str(root),
            "--out",
            str(out),
            "--directions",
            "direct",
            *SMALL,
            "--epochs",
            "1",
            *options,
        ]
    )
    return out / "last.pt"


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


def refused(call, out: Path, *parts: str) -> str:
    """The call raises an InputError of one line with these parts, and leaves nothing new in `out`."""
    before = files_in(out)
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and all(part in message for part in parts), message
    assert files_in(out) == before
    return message


def change_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:number], line, *lines[number + 1 :]]))


@pytest.fixture
def no_step(monkeypatch):
    """Training must end before its first step."""
    monkeypatch.setattr(train, "train_epoch", lambda *args, **kwargs: pytest.fail("a training step was taken"))


# ---------------------------------------------------------------- feature files


def spoil_shape(path, rows):
    np.save(path, rows[:, :5])


FEATURE_FILES = {  # what to do to train12.npy (abnormal), and parts of the message
    "missing": (lambda path, rows: path.unlink(), "found no features of train12", "expected train12.npy"),
    "empty": (lambda path, rows: path.write_bytes(b""), "train12.npy: cannot be read", "expected a .npy file"),
    "truncated": (lambda path, rows: path.write_bytes(path.read_bytes()[:-1]), "train12.npy: cannot be read"),
    "not an array": (lambda path, rows: path.write_text("hello"), "train12.npy: cannot be read"),
    "an object array": (lambda path, rows: np.save(path, np.array([{}, {}])), "train12.npy: cannot be read"),
    "wrong width": (spoil_shape, "train12.npy: found features of size 5, expected 6"),
    "no rows": (lambda path, rows: np.save(path, rows[:0]), "train12.npy: "),
    "rows of zeros": (lambda path, rows: np.save(path, 0 * rows), "train12.npy of train12: found nothing but zeros"),
    "integers": (
        lambda path, rows: np.save(path, rows.astype(np.int32)),
        "train12.npy: found an array",
        "int32, expected rows",
    ),
    "float64": (lambda path, rows: np.save(path, rows.astype(float)), "float64", "float16 or float32"),
    "a folder": (lambda path, rows: (path.unlink(), path.mkdir()), "found no features of train12"),
}


@pytest.mark.parametrize("row", FEATURE_FILES)
def test_a_feature_file_that_is_none_ends_training_before_it_starts(root, row, no_step):
    spoil, *parts = FEATURE_FILES[row]
    path = root / "features" / "train12.npy"
    spoil(path, np.load(path))
    refused(lambda: train_on(root), root.parent / "run", *parts)
    assert not (root.parent / "run").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["train00", "train12"])  # normal, abnormal
def test_one_infinite_value_is_found_before_the_first_step_and_named_with_its_row(
    root, name, value, no_step, monkeypatch
):
    monkeypatch.setattr(prototype, "CHUNK_ROWS", 7)
    rows = np.load(root / "features" / f"{name}.npy")
    rows[15, 3] = value
    np.save(root / "features" / f"{name}.npy", rows)
    refused(
        lambda: train_on(root),
        root.parent / "run",
        f"{name}.npy of {name}: found features that are infinite",
        "in row 15,",
    )
    assert not (root.parent / "run").exists()


def test_a_link_out_of_the_feature_folder_is_refused_but_the_folder_may_be_one(root):
    secret = root.parent / "secret.npy"
    path = root / "features" / "train12.npy"
    path.rename(secret)
    path.symlink_to(secret)
    refused(
        lambda: train_on(root), root.parent / "run", "train12.npy: is a link to", "secret.npy, expected a file inside"
    )
    path.unlink()
    path.symlink_to("train13.npy")  # inside: fine, though another video's
    FeatureFolder(root).open("train12")
    (root / "features").rename(root.parent / "elsewhere")
    (root / "features").symlink_to(root.parent / "elsewhere")
    FeatureFolder(root).open("train11")


def test_links_in_the_folder_of_a_class_and_masks_are_refused_as_well(tmp_path):
    (tmp_path / "outside").mkdir()
    np.save(tmp_path / "outside" / "v.npy", np.ones((3, 2), np.float32))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Abuse").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="Abuse/v.npy: is a link to .*outside/v.npy, expected a file inside"):
        FeatureFolder(tmp_path / "in").open("Abuse/v")
    (tmp_path / "in" / "test_frame_mask").mkdir()
    (tmp_path / "in" / "test_frame_mask" / "01_0015.npy").symlink_to(tmp_path / "outside" / "v.npy")
    for name, text in {"train.txt": "01_0014\n01_002\n", "test.txt": "01_0015\n"}.items():
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(InputError, match="01_0015.npy: is a link to"):
        load_lists("shanghaitech", tmp_path / "in")


def test_a_name_too_long_for_the_system_is_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="found no features of x+, expected"):
        FeatureFolder(tmp_path).open("x" * 5000)


# ---------------------------------------------------------------- lists and annotations


LIST_ROWS = {  # file, number of the line, the line, parts of the message
    "too few fields": (
        "train.txt",
        2,
        "train02.mp4",
        "train.txt, line 3: found 'train02.mp4'",
        "expected 'relative/path.mp4 Class'",
    ),
    "unknown class": (
        "train.txt",
        2,
        "train02.mp4 Flood",
        "train.txt, line 3: found the class 'Flood'",
        "Normal or one of fire, fall",
    ),
    "duplicate video": ("train.txt", 2, "train01.mp4 Normal", "train.txt, line 3: found train01 again"),
    "path out of the root": ("train.txt", 2, "../x.mp4 Normal", "train.txt, line 3: found the path '../x.mp4'"),
    "absolute path": ("train.txt", 2, "/etc/x.mp4 Normal", "train.txt, line 3: found the path '/etc/x.mp4'"),
    "no path at all": ("train.txt", 2, ". Normal", "train.txt, line 3: found the path '.'"),
    "a control character": (
        "train.txt",
        2,
        "train\x0002.mp4 Normal",
        "train.txt, line 3: found the control character '\\x00'",
    ),
    "a line separator": ("train.txt", 2, "train\u2028.mp4 Normal", "found the control character '\\u2028'"),
    "an endless line": ("train.txt", 2, "x " * 10**5, "train.txt, line 3: found 199999 characters, expected at most"),
    "annotation of an unknown video": (
        "temporal_annotations.txt",
        16,
        "x.mp4 fire 1 2",
        "line 17: found x, expected a video of",
    ),
    "end before start": ("temporal_annotations.txt", 8, "test08.mp4 fire 9 4", "line 9: found the interval 9 4"),
    "overlapping intervals": (
        "temporal_annotations.txt",
        8,
        "test08.mp4 fire 9 14 1 9",
        "line 9: found the frames 1 to 9 and 9 to 14, which overlap",
    ),
    "a huge frame number": (
        "temporal_annotations.txt",
        8,
        f"test08.mp4 fire 1 {'9' * 5000}",
        "line 9: found the frame number 999999999999..., expected at most 12 digits",
    ),
    "an anomaly after the end": (
        "temporal_annotations.txt",
        8,
        "test08.mp4 fire 500 600",
        "an anomaly starts at frame 500",
    ),
}


@pytest.mark.parametrize("row", LIST_ROWS)
def test_a_bad_line_of_a_list_ends_training_before_it_starts(root, row, no_step):
    file, number, line, *parts = LIST_ROWS[row]
    change_line(root / file, number, line)
    refused(lambda: train_on(root), root.parent / "run", *parts)
    assert not (root.parent / "run").exists()


@pytest.mark.parametrize(
    "kept, found",
    [
        (slice(8), "data: found 0 anomalous and 8 normal training videos, expected some of both, or --normal"),
        (slice(8, 16), "train.txt: found 8 anomalous and 0 normal training videos, expected some of both"),
    ],
)
def test_training_needs_normal_and_abnormal_videos(root, kept, found, no_step):
    (root / "train.txt").write_text("\n".join((root / "train.txt").read_text().split("\n")[kept]))
    refused(lambda: train_on(root), root.parent / "run", found)


def test_intervals_that_only_touch_are_two(tmp_path):
    (tmp_path / "t.txt").write_text("v fire 5 9 1 4\n")
    assert annotations.read_temporal(tmp_path / "t.txt")["v"][1] == ((5, 10), (1, 5))
    annotations.check_apart("t.txt", ((5, 10), (1, 5)))


def test_an_annotation_that_ends_behind_the_last_frame_is_cut_off_with_one_line(root, capsys):
    num_rows = len(np.load(root / "features" / "test08.npy"))
    change_line(root / "temporal_annotations.txt", 8, f"test08.mp4 fire 3 {num_rows + 9}")
    lists = load_lists("custom", root)
    check_features(FeatureFolder(root), lists.test)
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "in 1 videos annotated anomalies end behind the last frame" in line and "by up to 10 frames (in test08)" in line
    )
    assert frame_labels(lists.test[8], num_rows)[3:].tolist() == [lists.test[8].label] * (num_rows - 3)


RELEASED = {
    "train_abnormal.txt": "Abuse/a 0 79 0\n",
    "train_normal.txt": "N/b 0 39 7\n",
    "test.txt": "Arson/c 1 50 2\nN/d 0 9 7\n",
    "temporal.txt": "c.mp4 Arson 20 30\nd.mp4 Normal -1 -1\n",
}


@pytest.mark.parametrize("frames_per_feature", [1, 4])
def test_annotated_lengths_may_be_15_frames_off_and_the_features_are_trusted(tmp_path, capsys, frames_per_feature):
    for name, text in RELEASED.items():
        (tmp_path / name).write_text(text)
    lists = load_lists("ucfcrime", tmp_path)
    lengths = {"Abuse/a": 80, "N/b": 40, "Arson/c": 50, "N/d": 10}
    assert {v.name: v.num_frames for v in lists.train + lists.test} == lengths
    restored = annotations.VideoLists.from_plain(lists.to_plain())
    assert [v.num_frames for v in restored.train + restored.test] == [80, 40, 50, 10]
    meta = {"encoder": "e", "weights_sha256": None, "dim": 2, "stride": frames_per_feature, "crops": 1, "jpeg": None}
    for difference, ok in ((0, True), (15, True), (-9, True), (16, False), (40, False)):
        frames = {name: length + difference * (name == "N/d") for name, length in lengths.items()}
        for name, count in frames.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            np.save(tmp_path / f"{name}.npy", np.ones((-(-count // frames_per_feature), 2), np.float32))
        videos = {name: {"frames": count, "fps": 25} for name, count in frames.items()}
        (tmp_path / "meta.json").write_text(json.dumps(meta | {"videos": videos}))
        for videos in (lists.train + lists.test, restored.train + restored.test):
            if not ok:
                with pytest.raises(
                    InputError, match=f"d.npy: found features of {frames['N/d']} frames, expected 10 as in the l"
                ):
                    check_features(FeatureFolder(tmp_path), videos)
                continue
            check_features(FeatureFolder(tmp_path), videos)
            told = capsys.readouterr().err.splitlines()
            assert len(told) == (difference != 0)
            assert (
                not told
                or f"in 1 videos lists and features differ in length, the features are trusted, by up to "
                f"{abs(difference)} frames (in N/d)"
                in told[0]
            )
    assert lists.test[0].intervals == ((19, 30),)  # frame 0 of the features is the list's first: never shifted


def test_annotations_of_videos_outside_the_test_list_are_counted(tmp_path, capsys):
    for name, text in (
        RELEASED | {"temporal.txt": RELEASED["temporal.txt"] + "x.mp4 Abuse 1 2\ny.mp4 Abuse 1 2\n"}
    ).items():
        (tmp_path / name).write_text(text)
    load_lists("ucfcrime", tmp_path)
    assert "ignored 2 annotated videos that are not in the test list, such as x" in capsys.readouterr().err


def test_a_mask_tells_the_length_of_its_video(tmp_path):
    (tmp_path / "test_frame_mask").mkdir()
    np.save(tmp_path / "test_frame_mask" / "01_0015.npy", np.array([0, 1, 0, 0], np.uint8))
    np.save(tmp_path / "01_0015.npy", np.ones((30, 2), np.float32))
    for name, text in {"train.txt": "01_0014\n01_002\n", "test.txt": "01_0015\n01_003\n"}.items():
        (tmp_path / name).write_text(text)
    video, normal = load_lists("shanghaitech", tmp_path).test
    assert (video.num_frames, normal.num_frames) == (4, None)
    with pytest.raises(InputError, match="found features of 30 frames, expected 4 as in the lists"):
        check_features(FeatureFolder(tmp_path), [video])


# ---------------------------------------------------------------- whole scripts


@pytest.mark.parametrize(
    "command, part",
    [
        (
            ["train.py", "--dataset", "custom", "--root", "{root}", "--out", "{out}", "--directions", "direct", *SMALL],
            "train12.npy",
        ),
        (["evaluate.py", "--ckpt", "{root}/train.txt", "--out", "{out}"], "train.txt: found"),
        (["extract_features.py", "--videos", "{root}", "--out", "{out}"], "found no video"),
    ],
)
def test_each_script_ends_with_one_line_and_status_2(root, command, part):
    (root / "features" / "train12.npy").write_bytes(b"")
    out = root.parent / "out"
    command = [str(ROOT / command[0]), *(text.format(root=root, out=out) for text in command[1:])]
    result = children.run(*command)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and part in result.stderr, result.stderr
    assert not out.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_ends_training_with_one_line_and_status_1(root, code, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as exit_:
        console.run_script(lambda: train_on(root))
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1 and os.strerror(code) in line and str(root.parent / "run") in line
    assert not [name for name in files_in(root.parent / "run") if not name.endswith("lock")]


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 200 kB; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.name != "posix"
        or os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save({"a": torch.zeros(10**6)}, file),
        lambda file: np.save(file, np.zeros(10**6)),
        lambda file: np.savez(file, a=np.zeros(10**6)),
        lambda file: file.write(bytes(10**6)),
    ],
)
def test_a_full_disk_is_told_with_the_file_and_keeps_the_old_one(tiny_disk, write):
    files.write_atomically(tiny_disk / "x", lambda file: file.write(b"old"))
    with pytest.raises(OSError, match=r"x: cannot be written \(No space left on device\)$") as error:
        files.write_atomically(tiny_disk / "x", write)
    assert "\n" not in str(error.value) and (tiny_disk / "x").read_bytes() == b"old" and files_in(tiny_disk) == ["x"]


def test_read_only_and_full_output_end_extraction_with_one_line(tiny_disk, tmp_path, capsys):
    video, encoder = write_video(tmp_path / "v.mp4", num_frames=4), tmp_path / "encoder.py"
    encoder.write_text(CUSTOM_ENCODER)
    command = [
        "--videos",
        str(video),
        "--out",
        str(tiny_disk / "out"),
        "--device",
        "cpu",
        "--encoder",
        f"{encoder}:MeanColour",
    ]
    (tiny_disk / "filler").write_bytes(bytes(196 * 1024))  # leaves a page for meta.json
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(SystemExit) as exit_:
        console.run_script(lambda: extract_features.main(command))
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and "Read-only file system" in line and files_in(tiny_disk) == ["filler"]


def test_fewer_segments_than_twice_the_selected_are_refused(root, no_step):
    refused(
        lambda: train_on(root, "--topk", "4"),
        root.parent / "run",
        "--num-segments 6: expected at least 8, twice --topk",
    )


# ---------------------------------------------------------------- videos


def write_two_sizes(path):
    """MPEG-2 lets a stream go on with pictures of another size; the decoder drops one where it begins anew."""
    parts = [
        write_video(path.with_name(f"{i}.mpg"), codec="mpeg2video", size=size, num_frames=6)
        for i, size in enumerate(((96, 64), (64, 48)))
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


def extract(video, tmp_path):
    encoder = tmp_path / "encoder.py"
    encoder.write_text(CUSTOM_ENCODER)
    return extract_features.main(
        [
            "--videos",
            str(video),
            "--out",
            str(tmp_path / "out"),
            "--device",
            "cpu",
            "--encoder",
            f"{encoder}:MeanColour",
        ]
    )


def test_a_video_whose_size_changes_midway_keeps_all_its_frames(tmp_path):
    video = write_two_sizes(tmp_path / "v.mpg")
    frames = our_frames(video)
    assert {frame.shape for frame in frames} == {(64, 96, 3), (48, 64, 3)}
    assert extract(video, tmp_path) == 0
    assert len(np.load(tmp_path / "out" / "v.npy")) == len(frames) >= 11


def test_a_video_of_one_frame_is_one_row(tmp_path):
    assert extract(write_video(tmp_path / "v.mp4", num_frames=1), tmp_path) == 0
    assert np.load(tmp_path / "out" / "v.npy").shape == (1, 3)


@pytest.mark.parametrize(
    "name, codec, pixels", [("v.mkv", "ffv1", "bgra"), ("v.mov", "png", "rgba"), ("v.mkv", "ffv1", "yuva420p")]
)
def test_transparency_is_dropped_as_opencv_does(tmp_path, name, codec, pixels):
    assert_same_frames(write_video(tmp_path / name, codec=codec, pixels=pixels), 12)


def test_a_video_without_width_is_skipped_and_named(tmp_path, capsys):
    video = write_video(tmp_path / "v.avi", codec="rawvideo", pixels="bgr24", num_frames=2)
    content = bytearray(video.read_bytes())
    start = content.index(b"strf") + 12
    content[start : start + 8] = bytes(8)  # width and height of the stream
    content[content.index(b"avih") + 40 : content.index(b"avih") + 48] = bytes(8)
    video.write_bytes(content)
    assert extract(video, tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipped {video}: ") and files_in(tmp_path / "out") == ["meta.json"]


def test_a_wrong_extension_does_not_matter_to_a_video_and_does_to_other_files(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "v.mkv", codec="ffv1", pixels="bgr0").rename(tmp_path / "in" / "v.mp4")
    (tmp_path / "in" / "notes.mp4").write_text("no video")
    (tmp_path / "in" / "video.txt").write_bytes((tmp_path / "in" / "v.mp4").read_bytes())
    assert extract(tmp_path / "in", tmp_path) == 1
    assert "notes.mp4" in capsys.readouterr().err and files_in(tmp_path / "out") == ["meta.json", "v.npy"]


# ---------------------------------------------------------------- hostile files


class RunsACommand:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def bounded():
    """A second or so of one core and 1 GiB are all that a hostile file may take."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < 5  # a second, on a busy machine


def zip_with(path: Path, members: dict) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def checkpoint_refused(path: Path, out: Path) -> str:
    return refused(lambda: evaluate.main(["--ckpt", str(path), "--out", str(out), "--device", "cpu"]), out, path.name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_checkpoint_that_would_run_a_command_is_refused(tmp_path, bounded, zipped, wrapped):
    evil, path = RunsACommand(tmp_path / "marker"), tmp_path / "evil.pt"
    state = {"format": 1, "config": {}, "model": {}, "lists": evil, "settings": {}, "encoder": None, "epoch": 1}
    torch.save(state if wrapped else evil, path, _use_new_zipfile_serialization=zipped)
    checkpoint_refused(path, tmp_path / "out")
    assert not (tmp_path / "marker").exists() and not (tmp_path / "out").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()  # the command itself works


def test_an_object_array_that_would_run_a_command_is_refused(tmp_path, bounded):
    np.save(tmp_path / "v.npy", np.array([RunsACommand(tmp_path / "marker")], dtype=object))
    with pytest.raises(InputError, match="v.npy: cannot be read"):
        load_array(tmp_path / "v.npy")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["/{}/escaped", "../escaped", "archive/../../escaped"])
def test_zip_entries_with_names_out_of_the_folder_write_nothing(tmp_path, bounded, name):
    folder = tmp_path / "inner"
    folder.mkdir()
    name = name.format(tmp_path)
    path = zip_with(folder / "evil.pt", {"archive/data.pkl": pickle.dumps({}, 2), "archive/version": "3\n", name: b"x"})
    checkpoint_refused(path, tmp_path / "out")
    zip_with(folder / "evil.npy", {name: b"x"})
    with pytest.raises(InputError, match="evil.npy: "):
        load_array(folder / "evil.npy")
    assert files_in(tmp_path) == ["inner", "inner/evil.npy", "inner/evil.pt"]


def test_a_terabyte_declared_in_a_kilobyte_is_refused(tmp_path, bounded):
    state = io.BytesIO()
    torch.save({"x": torch.zeros(4928)}, state)
    with zipfile.ZipFile(state) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pkl = next(name for name in members if name.endswith("data.pkl"))
    members[pkl] = members[pkl].replace(b"M\x40\x13", b"\x8a\x05" + (2**38).to_bytes(5, "little"))
    members[pkl.replace("data.pkl", "data/0")] = bytes(16)
    path = zip_with(tmp_path / "evil.pt", members)
    assert path.stat().st_size < 3000
    checkpoint_refused(path, tmp_path / "out")
    with open(tmp_path / "v.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**29, 512)})
        file.write(bytes(800))
    with pytest.raises(InputError, match="v.npy: cannot be read"):
        load_array(tmp_path / "v.npy")


@pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 10**6, "[" * 10**6 + "]" * 10**6])
def test_a_million_brackets_in_meta_json_are_refused(tmp_path, bounded, content):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(InputError, match="meta.json: is damaged"):
        FeatureFolder(tmp_path)


def test_a_million_brackets_in_an_array_header_are_refused(tmp_path, bounded):
    header = b"(" * 10**6
    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header)
    with pytest.raises(InputError, match="v.npy: cannot be read"):
        load_array(tmp_path / "v.npy")


NESTED = {
    "closed": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "open": b"\x80\x02" + b"(" * 10**6 + b".",
    "in the config": b"\x80\x02}(X\x06\x00\x00\x00formatK\x01X\x05\x00\x00\x00model}X\x06\x00\x00\x00config"
    + b"]" * 10**6
    + b"a" * (10**6 - 1)
    + b"X\x05\x00\x00\x00lists}X\x08\x00\x00\x00settings}X\x07\x00\x00\x00encoderNX\x05\x00\x00\x00epochK\x01u.",
}


@pytest.mark.parametrize(
    "kind", ["in the config", *(pytest.param(x, marks=pytest.mark.slow) for x in ("closed", "open"))]
)
def test_a_checkpoint_nested_a_million_deep_is_refused(tmp_path, bounded, kind):
    members = {"archive/data.pkl": NESTED[kind], "archive/version": "3\n", "archive/byteorder": "little"}
    checkpoint_refused(zip_with(tmp_path / "evil.pt", members), tmp_path / "out")


# ---------------------------------------------------------------- properties


lengths, class_counts = st.integers(1, 5000), st.integers(1, 20)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
def test_training_rows_are_runs_inside_the_video(num_rows, S, F, seed, released):
    rows = training_rows(num_rows, S, F, np.random.default_rng(seed), released)
    assert rows.shape == (S, F) and rows.min() >= 0 and rows.max() < num_rows
    assert ((rows[:, 1:] - rows[:, :-1]) % num_rows == 1 % num_rows).all()
    if not released and num_rows >= S * F:
        assert (np.diff(rows.ravel()) > 0).all()  # in order, no row twice


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_inference_rows_hold_each_row_once(num_rows, S, F, batch_size):
    batches = list(inference_rows(num_rows, S, F, batch_size))
    assert all(batch.shape[1:] == (S, F) and 1 <= len(batch) <= batch_size for batch in batches)
    rows = np.concatenate([batch.ravel() for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(rows))) and num_rows <= len(rows) < num_rows + S * F


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(0, 19), st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 3000)), max_size=5))
def test_frame_labels_are_those_of_a_loop(num_frames, label, spans):
    intervals = tuple((start, start + length) for start, length in spans)
    labels = frame_labels(Video("v", label, intervals), num_frames)
    inside = {frame for start, end in intervals for frame in range(start, min(end, num_frames))}
    assert np.flatnonzero(labels == label).tolist() == sorted(inside) and (labels == -1).sum() == num_frames - len(
        inside
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-1, 19), min_size=2, max_size=300), st.integers(1, 40), st.integers(0, 2**32), st.booleans()
)
def test_batches_have_two_halves_for_any_labels(labels, half, seed, released):
    labels = np.array([0, -1, *labels])
    batches = BalancedBatches(labels, 2 * half, seed, released)
    epoch = list(batches)
    videos = np.array([[video for video, _ in batch] for batch in epoch])
    assert videos.shape == (len(batches), 2 * half)
    assert (labels[videos[:, :half]] >= 0).all() and (labels[videos[:, half:]] < 0).all()
    if not released:
        longer = max((labels >= 0).sum(), (labels < 0).sum())
        assert max(len(np.unique(videos[:, :half])), len(np.unique(videos[:, half:]))) == longer


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.data())
def test_selected_segments_are_different_and_the_best_of_those_allowed(B, S, draw):
    k = draw.draw(st.integers(1, S))
    generator = torch.Generator().manual_seed(draw.draw(st.integers(0, 2**32)))
    ranking, mask = torch.randn(B, S, generator=generator), torch.rand(B, S, generator=generator) < 0.7
    for largest in (True, False):
        chosen = select_segments(ranking, mask, k, largest=largest)
        assert chosen.shape == (B, k)
        for values, allowed, idx in zip(ranking, mask, chosen):
            assert len(set(idx.tolist())) == k
            best = values[allowed].sort(descending=largest).values[:k]
            assert values[idx[allowed[idx]]].tolist() == best.tolist()


@settings(max_examples=40, deadline=None)
@given(
    class_counts,
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 8),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from(["paper", "released"]),
    st.data(),
)
def test_losses_and_gradients_are_finite_for_any_shape(C, half, S, F, scale, variant, draw):
    S, K = 2 * S, draw.draw(st.integers(1, S))  # S is at least 2K
    config = AnomalyCLIPConfig(
        classes=tuple(map(str, range(C))),
        feature_dim=2,
        num_segments=S,
        num_frames=F,
        topk=K,
        directions="direct",
        embed_dim=2,
        num_heads=1,
        variant=variant,
    )
    torch.manual_seed(draw.draw(st.integers(0, 2**32)))
    parts = [(scale * torch.randn(2 * half, S, F, *tail)).requires_grad_() for tail in ((C,), (C,), ())]
    losses = AnomalyCLIP(config).losses(Prediction(*parts, None), torch.randint(C, (half,)))
    losses["total"].backward()
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert all(part.grad.isfinite().all() for part in parts)


# ---------------------------------------------------------------- fuzzing


def test_two_thousand_damaged_files_raise_nothing_but_value_errors(tmp_path, capsys):
    assert fuzz.main(["--runs", "2000", "--seed", "7", "--save", str(tmp_path)]) == 0, capsys.readouterr().out
