"""Tests of data/: feature files, the prototype, segments and batches."""

import itertools
import json
import os
import pickle
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.places import ROOT, SHARED
from videoanomaly.data import prototype as prototype_
from videoanomaly.data.annotations import Video, VideoLists, note_rare_classes
from videoanomaly.data.features import FeatureFolder, check_features, load_array, matching_rows
from videoanomaly.data.lists import load_lists
from videoanomaly.data.prototype import normality_prototype
from videoanomaly.data.sampling import BalancedBatches, SegmentDataset, training_rows
from videoanomaly.runtime import console, files
from videoanomaly.runtime.console import InputError

RELEASED = SHARED / "reference" / "checkpoint"
SAMPLING = ROOT / "tests" / "reference" / "sampling.json"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the released data set in ../shared")


def write_features(root, arrays):
    for name, array in arrays.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", array)
    return root


def random_array(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---------------------------------------------------------------- scripts and files


@pytest.mark.parametrize("status, code", [(None, None), (0, 0), (1, 1)])
def test_a_script_exits_with_the_status_of_main(status, code):
    with pytest.raises(SystemExit) as exit_info:
        console.run_script(lambda: status)
    assert exit_info.value.code == code


@pytest.mark.parametrize(
    "error, code, line",
    [
        (OSError(28, "No space left"), 1, "failed: [Errno 28] No space left"),
        (FloatingPointError("the loss became nan"), 1, "failed: the loss became nan"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_a_failing_run_is_one_line_and_its_own_status(capsys, error, code, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        console.run_script(main)
    assert exit_.value.code == code and capsys.readouterr().err == f"{line}\n"


def test_bad_input_is_one_line_and_status_2(capsys):
    def main():
        raise InputError("list.txt, line 3: found x, expected y")

    with pytest.raises(SystemExit) as exit_info:
        console.run_script(main)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: list.txt, line 3: found x, expected y\n"


def test_another_process_waits_for_the_first_to_tell_an_error_and_tells_it_itself_if_that_does_not(monkeypatch, capsys):
    def main():
        raise InputError("an error of all")

    def sleep(seconds):  # torchrun ends the process here, as soon as the first one has told the error
        assert seconds == console.PATIENCE and not capsys.readouterr().err

    monkeypatch.setattr(console.time, "sleep", sleep)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as exit_info:
        console.run_script(main)
    assert exit_info.value.code == 2 and capsys.readouterr().err == "error: an error of all\n"


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new folder" / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        assert path.read_bytes() == b"old"  # nothing shows before the end
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------- feature files


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("sub", ["", "features", "Image-Features"])
def test_features_are_found_and_memory_mapped(tmp_path, sub, dtype):
    array = random_array(5, 3, dtype=dtype)
    write_features(tmp_path / sub, {"Class/v.1": array})
    features = FeatureFolder(tmp_path)
    opened = features.open("Class/v.1")
    assert isinstance(opened, np.memmap) and opened.dtype == dtype
    assert np.array_equal(opened, array[:, None]) and features.dim == 3
    assert features.meta is None and features.encoder is None and features.num_frames("Class/v.1") == 5
    assert FeatureFolder(tmp_path, frames_per_feature=16).num_frames("Class/v.1") == 80


def test_crops_are_read_in_three_layouts(tmp_path):
    array = random_array(7, 4, 3, dtype=np.float16)  # (N, crops, D)
    write_features(tmp_path / "whole", {"v": array})
    write_features(tmp_path / "flat", {"v_i3d": array.reshape(28, 3)})
    write_features(tmp_path / "files", {f"v__{crop}": array[:, crop] for crop in range(4)})
    for folder, crops in (("whole", 1), ("whole", 4), ("flat", 4), ("files", 1)):
        opened = FeatureFolder(tmp_path / folder, crops=crops).open("v")
        assert opened.shape == array.shape and len(opened) == 7, folder
        assert np.array_equal(np.asarray(opened), array)
        for index in (2, slice(1, 4), np.array([6, 0, 6]), (np.array([[1, 2], [6, 0]]), 3)):
            assert np.array_equal(opened[index], array[index]), (folder, index)


def demo_meta(**changed):
    return {
        "encoder": "ViT",
        "weights_sha256": "ab",
        "dim": 3,
        "stride": 4,
        "crops": 1,
        "jpeg": None,
        "videos": {"v": {"frames": 18, "fps": 25.0}},
    } | changed


@pytest.mark.parametrize("sub", ["", "features"])
def test_meta_gives_frames_stride_and_encoder(tmp_path, sub):
    write_features(tmp_path / sub, {"v": random_array(5, 3), "w": random_array(2, 3)})
    (tmp_path / sub / "meta.json").write_text(json.dumps(demo_meta()))
    features = FeatureFolder(tmp_path)
    assert (features.dim, features.frames_per_feature, features.meta) == (3, 4, demo_meta())
    assert (features.num_frames("v"), features.num_frames("w")) == (18, 8)
    assert features.encoder == {"encoder": "ViT", "weights_sha256": "ab", "dim": 3, "crops": 1, "jpeg": None}
    assert FeatureFolder(tmp_path, frames_per_feature=2).num_frames("w") == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        json.dumps(demo_meta(stride=0)),
        json.dumps(demo_meta(stride="4")),
        json.dumps(demo_meta(videos=["v"])),
        json.dumps(demo_meta(videos={"v": {"frames": 0}})),
        json.dumps(demo_meta(stride=1.5)),
        json.dumps(demo_meta(dim=True)),
        json.dumps(demo_meta(crops=0)),
        json.dumps(demo_meta(videos={"v": {"frames": 2.5}})),
        json.dumps(demo_meta(videos={"v": {"frames": 9, "fps": float("nan")}})),
        json.dumps(demo_meta(videos={"v": {"frames": 9, "fps": -1}})),
        json.dumps(demo_meta(videos={"v": {"frames": 9, "fps": "25"}})),
    ],
)
def test_damaged_meta_is_told(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(InputError, match="meta.json: .*expected what extract_features.py writes"):
        FeatureFolder(tmp_path)


@pytest.mark.parametrize(
    "array, crops, message",
    [
        (np.zeros(4, np.float32), 1, r"found an array \(4,\) of float32, expected rows"),
        (np.zeros((1, 2, 3, 4), np.float32), 1, r"found an array \(1, 2, 3, 4\)"),
        (np.zeros((4, 3)), 1, r"found an array \(4, 3\) of float64, .* float16 or float32"),
        (np.zeros((4, 3), ">f4"), 1, "of >f4"),
        (np.zeros((0, 3), np.float32), 1, r"v.npy: "),
        (np.zeros((7, 3), np.float32), 2, "expected 2 crops per frame"),
        (np.zeros((8, 3, 3), np.float32), 2, "expected 2 crops per frame"),
        (np.array([[{}]]), 1, "cannot be read .*expected a .npy file"),
    ],
)
def test_arrays_that_are_no_features_are_told(tmp_path, array, crops, message):
    write_features(tmp_path, {"v": array})
    with pytest.raises(InputError, match=message) as error:
        FeatureFolder(tmp_path, crops=crops).open("v")
    assert str(tmp_path / "v.npy") in str(error.value) and "\n" not in str(error.value)


AXIS_TOO_MANY = {  # shapes of the files of a folder, its meta.json, and a part of the message
    "a batch of one": ([(1, 90, 3)], None, r"found an array \(1, 90, 3\), expected \(N, 3\) or \(N, crops, 3\)"),
    "crops in front": ([(10, 90, 3)], None, r"found an array \(10, 90, 3\), expected \(N, 3\) or \(N, crops, 3\)"),
    "short videos": ([(1, 7, 3), (1, 9, 3)], None, r"found an array \(1, 9, 3\), expected 7 crops .* as in the others"),
    "crops that meta.json does not tell": ([(90, 10, 3)], 1, r"\(90, 10, 3\), expected 1 crops per frame, \(N, 1, 3\)"),
    "rows where it tells crops": ([(5, 9, 3)], 5, r"\(5, 9, 3\), expected 5 crops per frame, \(N, 5, 3\)"),
    "a batch of videos": ([(2, 90, 10, 3)], None, r"found an array \(2, 90, 10, 3\) of float32, expected rows"),
}


@pytest.mark.parametrize("kind", AXIS_TOO_MANY)
def test_an_axis_too_many_is_told_with_both_shapes(tmp_path, kind):
    shapes, crops, message = AXIS_TOO_MANY[kind]
    write_features(tmp_path, {f"v{i}": random_array(*shape) for i, shape in enumerate(shapes)})
    if crops:
        (tmp_path / "meta.json").write_text(json.dumps(demo_meta(crops=crops, videos={})))
    features = FeatureFolder(tmp_path)
    *others, last = (f"v{i}" for i in range(len(shapes)))
    for name in others:
        features.open(name)
    with pytest.raises(InputError, match=message):
        features.open(last)


def test_crops_in_the_middle_are_legal_beside_files_without(tmp_path):
    write_features(tmp_path, {"a": random_array(90, 10, 3), "b": random_array(1, 10, 3), "c": random_array(9, 3)})
    features = FeatureFolder(tmp_path)
    assert [features.open(name).shape for name in "abc"] == [(90, 10, 3), (1, 10, 3), (9, 1, 3)]


@pytest.mark.parametrize("shape", [(2**40, 3), (2**32, 2**32), (2**62, 4), (-1, 3), (10**12,), (3, 10**12, 10**9)])
def test_a_header_that_claims_more_than_the_file_holds_is_told(tmp_path, shape):
    with open(tmp_path / "v.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(bytes(800))
    with pytest.raises(InputError, match="v.npy: "):
        FeatureFolder(tmp_path).open("v")


def test_nobody_is_advised_to_load_a_file_unsafely(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, None]))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "archive", a=np.array([{}]))
    for name in ("objects.npy", "pickle.npy", "text.npy", "archive.npz"):
        with pytest.raises(InputError) as error:
            load_array(tmp_path / name)
        assert "pickle" not in str(error.value).replace("pickle.npy", "") and "unsafe" not in str(error.value)


def test_a_header_that_python_failed_to_parse_among_threads_is_read_again(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    plain, failures = np.load, iter([SystemError("AST constructor recursion depth mismatch (before=48, after=46)")])

    def load(*args, **options):
        if error := next(failures, None):
            raise error
        return plain(*args, **options)

    monkeypatch.setattr(np, "load", load)
    assert load_array(tmp_path / "a.npy").shape == (2, 3)


def test_files_that_are_no_arrays_are_told(tmp_path):
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "archive", a=np.zeros(3))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "cut.npy", random_array(50, 3))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    for name in ("empty", "text", "archive", "cut"):
        with pytest.raises(InputError, match=f"{name}.npy: .*expected a .npy file with one array") as error:
            FeatureFolder(tmp_path).open(name)
        assert "\n" not in str(error.value)


def test_a_damaged_file_never_raises_anything_else(tmp_path):
    np.save(tmp_path / "v.npy", random_array(4, 3))
    whole, rng = (tmp_path / "v.npy").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(128)] = rng.integers(256)
        (tmp_path / "v.npy").write_bytes(damaged)
        try:
            assert FeatureFolder(tmp_path).open("v").ndim == 3
        except InputError:
            pass


def test_checking_features_names_the_missing_and_the_odd_file(tmp_path):
    write_features(
        tmp_path / "features",
        {
            "a": random_array(2, 3),
            "b": random_array(2, 3),
            "c": random_array(2, 4),
            "d__0": random_array(2, 3),
            "d__1": random_array(3, 3),
        },
    )
    check_features(FeatureFolder(tmp_path), [Video("a", 0), Video("b", -1)])
    with pytest.raises(InputError, match="c.npy: found features of size 4, expected 3 as in the others"):
        check_features(FeatureFolder(tmp_path), [Video("a", 0), Video("c", -1)])
    with pytest.raises(InputError, match="d__0.npy: found .* in the files of the crops"):
        check_features(FeatureFolder(tmp_path), [Video("d", 0)])
    with pytest.raises(InputError, match="found no features of x, expected x.npy, x_i3d.npy or x__0.npy in") as error:
        check_features(FeatureFolder(tmp_path), [Video("x", 0)])
    folders = (tmp_path, tmp_path / "features", tmp_path / "Image-Features")
    assert all(str(folder) in str(error.value) for folder in folders)


def test_features_may_lie_flat_but_not_stand_for_two_videos(tmp_path):
    folder = FeatureFolder(write_features(tmp_path, {"a_i3d": random_array(5, 2), "b_i3d": random_array(6, 2)}))
    assert len(folder.open("Fight/a")) == 5 and len(folder.open("Normal/b")) == 6
    with pytest.raises(
        InputError, match="a_i3d.npy: found as features of Fight/a and of Normal/a, expected a file for each"
    ):
        check_features(folder, [Video("Fight/a", 0), Video("Normal/a", -1)])


def test_rows_must_cover_what_meta_and_annotations_say(tmp_path):
    write_features(tmp_path, {"a": random_array(5, 2)})
    check_features(FeatureFolder(tmp_path), [Video("a", 0, ((4, 99),))])  # an end beyond the video is clipped
    with pytest.raises(InputError, match="found 5 rows, of 1 frames each, expected more: an anomaly starts at frame 5"):
        check_features(FeatureFolder(tmp_path), [Video("a", 0, ((0, 2), (5, 6)))])
    check_features(FeatureFolder(tmp_path, frames_per_feature=2), [Video("a", 0, ((5, 6),))])
    meta = {"encoder": "e", "weights_sha256": None, "dim": 2, "stride": 2, "crops": 1, "jpeg": None}
    for frames, fits in ((8, False), (9, True), (10, True), (11, True), (12, False)):
        (tmp_path / "meta.json").write_text(json.dumps(meta | {"videos": {"a": {"frames": frames, "fps": 25}}}))
        if fits:
            check_features(FeatureFolder(tmp_path), [Video("a", -1)])
        else:
            with pytest.raises(
                InputError, match=f"found 5 rows, of 2 frames each, expected rows for the {frames} frames"
            ):
                check_features(FeatureFolder(tmp_path), [Video("a", -1)])


def test_features_must_be_as_wide_as_meta_says(tmp_path):
    write_features(tmp_path, {"v": random_array(2, 4)})
    (tmp_path / "meta.json").write_text(json.dumps(demo_meta()))
    with pytest.raises(InputError, match="v.npy: found features of size 4, expected 3"):
        check_features(FeatureFolder(tmp_path), [Video("v", 0)])


def test_matching_rows_show_the_same_frames(tmp_path):
    write_features(tmp_path / "fine", {"v": random_array(40, 3)})
    coarse = random_array(2, 5, 6)  # 2 rows of 16 frames
    write_features(tmp_path / "coarse", {"v": coarse})
    rows = matching_rows(FeatureFolder(tmp_path / "coarse", frames_per_feature=16), "v", 10, 4)
    expected = np.stack([coarse[min(4 * row // 16, 1)] for row in range(10)])
    assert rows.shape == expected.shape and len(rows) == 10 and np.array_equal(np.asarray(rows), expected)
    assert np.array_equal(rows[np.array([9, 3])], expected[[9, 3]])
    assert np.array_equal(rows[np.array([[9, 3]]), 4], expected[[[9, 3]], 4])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_prototype_is_the_mean_of_all_normal_frames(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(prototype_, "CHUNK_ROWS", 7)
    arrays = {
        "a": 100 + random_array(30, 2, 5, dtype=dtype),
        "b": 100 + random_array(7, 2, 5, dtype=dtype, seed=1),
        "c": random_array(9, 2, 5, dtype=dtype),
        "d__0": random_array(3, 5),
        "d__1": random_array(3, 5, seed=1),
    }
    write_features(tmp_path, arrays)
    rows = [arrays["a"].reshape(-1, 5), arrays["b"].reshape(-1, 5), arrays["d__0"], arrays["d__1"]]
    mean = np.concatenate(rows).astype(np.float64).mean(axis=0)
    videos = [Video("a", -1), Video("b", -1), Video("c", 0), Video("d", -1)]
    prototype = normality_prototype(FeatureFolder(tmp_path), videos)
    assert prototype.shape == (5,) and torch.equal(prototype, torch.from_numpy(mean).float())


def test_a_prototype_needs_normal_videos_and_finite_features(tmp_path, capsys):
    features = FeatureFolder(write_features(tmp_path, {"v": np.array([[1, 2], [np.inf, 0]], np.float16)}))
    with pytest.raises(InputError, match="no normal video"):
        normality_prototype(features, [Video("v", 0)])
    with pytest.raises(InputError, match="v: found features that are infinite or not a number"):
        normality_prototype(features, [Video("v", -1)])
    assert capsys.readouterr().err == ""  # no progress bar where there is no terminal


@needs_shared
def test_the_prototype_equals_the_official_one():
    root = RELEASED / "dataset"
    prototype = normality_prototype(FeatureFolder(root), load_lists("ucfcrime", root).train)
    official = torch.load(RELEASED / "ncentroid.pt", weights_only=True)
    assert (prototype - official).abs().max() < 1e-6


PARTS = ["features/Anomaly-Videos-Part-1/Arson/a", "features/Part-2/Training-Normal/n", "x/deep/er/u"]


@pytest.mark.parametrize("end", [".npy", "_i3d.npy", "__{}.npy"])
def test_features_are_found_where_archives_unpack_them_by_their_file_names(tmp_path, end):
    rows = {path.rsplit("/", 1)[1]: random_array(7, 5, seed=i) for i, path in enumerate(PARTS)}
    for path in PARTS:
        for crop in range(3 if "{}" in end else 1):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / f"{path}{end.format(crop)}", rows[path.rsplit("/", 1)[1]])
    folder = FeatureFolder(tmp_path)
    for name in ("Arson/a", "Training_Normal_Videos_Anomaly/n", "u"):
        found = folder.open(name)
        assert found.shape == (7, 3 if "{}" in end else 1, 5) and (found[:, 0] == rows[name[-1]]).all()
    with pytest.raises(
        InputError, match="found no features of Arson/b, expected Arson/b.npy.* or one file of that name"
    ):
        folder.open("Arson/b")


def test_of_several_files_of_a_name_the_one_with_the_whole_name_is_taken_or_all_are_named(tmp_path):
    write_features(tmp_path, {f"p{i}/{kind}/a": random_array(i + 1, 5) for i, kind in enumerate(("Arson", "Abuse"))})
    write_features(tmp_path, {".Trash/Arson/a": random_array(9, 5)})
    folder = FeatureFolder(tmp_path)
    assert len(folder.open("Abuse/a")) == 2 and len(folder.open("Arson/a")) == 1
    with pytest.raises(InputError, match="found .*p0/Arson/a.npy and .*p1/Abuse/a.npy for Fire/a, expected one"):
        folder.open("Fire/a")


def test_a_file_found_by_its_name_is_none_that_a_link_leads_out_to(tmp_path):
    write_features(tmp_path / "elsewhere", {"a": random_array(3, 5)})
    (tmp_path / "root" / "part").mkdir(parents=True)
    (tmp_path / "root" / "part" / "a.npy").symlink_to(tmp_path / "elsewhere" / "a.npy")
    with pytest.raises(InputError, match="is a link to .*elsewhere/a.npy, expected a file inside"):
        FeatureFolder(tmp_path / "root").open("Arson/a")


SPELLINGS = [
    "Schl\u00e4gerei/\u00e9t\u00e9 1",
    "\u00c5ngstr\u00f6m",
    "\uac10\uc2dc/\uce74\uba54\ub77c",
    "\u30d3\u30c7\u30aa/\u304c\u304e",
]


@pytest.mark.parametrize("on_disk, listed", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD"), ("NFC", "NFC")])
@pytest.mark.parametrize("name", SPELLINGS)
def test_an_accent_may_be_written_in_either_way(tmp_path, name, on_disk, listed):
    stored, asked = (unicodedata.normalize(form, name) for form in (on_disk, listed))
    write_features(tmp_path / "features", {stored: random_array(5, 3)})
    meta = {"encoder": "x", "weights_sha256": None, "dim": 3, "stride": 2}
    meta["videos"] = {stored: {"frames": 9, "fps": 12.5}}
    (tmp_path / "features" / "meta.json").write_text(json.dumps(meta))
    folder = FeatureFolder(tmp_path)
    assert folder.open(asked).shape == (5, 1, 3)
    assert folder.num_frames(asked) == 9 and folder.frame_rate(asked, 25) == 12.5


def test_a_video_of_no_told_rate_has_the_default_one(tmp_path):
    write_features(tmp_path, {"a": random_array(5, 3), "b": random_array(5, 3)})
    for told in ({"frames": 5}, {"frames": 5, "fps": None}):
        meta = {"encoder": "x", "weights_sha256": None, "dim": 3, "stride": 1, "videos": {"a": told}}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        folder = FeatureFolder(tmp_path)
        assert [folder.frame_rate(name, default) for name in "ab" for default in (None, 12.0)] == [30, 12, 30, 12]


def test_lists_may_mix_both_ways_of_writing_an_accent(tmp_path):
    forms = itertools.cycle(("NFC", "NFD"))
    lines = {
        "classes": ["Normal", "Schl\u00e4gerei"],
        "train": ["Caf\u00e9/a.mp4 Normal", "Caf\u00e9/b.mp4 Schl\u00e4gerei", "Caf\u00e9/c.mp4 Schl\u00e4gerei"],
        "test": ["\u00fc.mp4 Schl\u00e4gerei", "\u00f6.mp4 Schl\u00e4gerei"],
        "temporal_annotations": ["\u00f6.mp4 Schl\u00e4gerei 1 2", "\u00fc.mp4 Schl\u00e4gerei 1 2"],
    }
    for name, rows in lines.items():
        text = "\n".join(unicodedata.normalize(next(forms), row) for row in rows)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    lists = load_lists("custom", tmp_path)
    assert [video.label for video in lists.train] == [-1, 0, 0] and len(lists.test[1].intervals) == 1


@pytest.mark.parametrize("code", [0x200B, 0xFEFF, 0x200E, 0x202B, 0x2066, 0xAD, 0xA0, 0x2060, 0x3164, 0xFE0F])
def test_letters_that_cannot_be_seen_are_told_by_their_numbers(tmp_path, code):
    odd, shown = f"Fal{chr(code)}ling", f"Fal<U\\+{code:04X}>ling"
    lists = {
        "classes": "Normal\nFalling",
        "train": "a.mp4 Normal\nb.mp4 Falling",
        "test": "t.mp4 Falling",
        "temporal_annotations": "t.mp4 Falling 1 2",
    }
    cases = {
        "classes": (
            odd if not odd.isspace() and len(odd.split()) == 1 else None,
            f"'Falling', expected Normal or one of {shown}",
        ),
        "train": (
            odd if len(odd.split()) == 1 else None,
            f"the class '{shown}', expected Normal or one of Falling; Falling looks",
        ),
    }
    for file, (name, message) in cases.items():
        if name:
            for other, text in lists.items():
                changed = text.replace("Falling", name) if other == file else text
                (tmp_path / f"{other}.txt").write_text(changed, encoding="utf-8")
            with pytest.raises(InputError, match=message):
                load_lists("custom", tmp_path)
    (tmp_path / "test.txt").write_text("Falling.mp4 Falling")
    (tmp_path / "classes.txt").write_text(lists["classes"])
    (tmp_path / "train.txt").write_text(lists["train"])
    (tmp_path / "temporal_annotations.txt").write_text(f"{odd}.mp4  Falling  1  2", encoding="utf-8")
    with pytest.raises(InputError, match=f"0 intervals of Falling, expected one or more.*; {shown} looks alike"):
        load_lists("custom", tmp_path)
    write_features(tmp_path / "features", {odd: random_array(3, 4)})
    with pytest.raises(InputError, match=f"no features of Falling, .*; {shown} looks alike"):
        FeatureFolder(tmp_path).open("Falling")


def test_classes_that_few_training_videos_show_are_named_in_one_line(capsys):
    videos = [Video(f"v{i}", label) for i, label in enumerate((-1, 0, 0, 2, 4))]
    note_rare_classes("root", VideoLists(("a", "b", "c", "d", "e"), videos, []))
    assert capsys.readouterr().err.startswith(
        "note: root: no training video of b, d; a single training video of c, e; "
    )
    note_rare_classes("root", VideoLists(("a",), videos[:3], []))
    assert not capsys.readouterr().err


# ---------------------------------------------------------------- segments and batches


class LowestDraws:
    """A stand-in for a generator: every draw is the lowest, or the highest, and the bounds are kept."""

    def __init__(self, highest=False):
        self.highest = highest

    def integers(self, low, high=None, size=None, endpoint=False):
        low, high = (0, low) if high is None else (low, high)
        self.bound = high + endpoint
        return np.broadcast_to(self.bound - 1 if self.highest else low, size or np.shape(low)).copy()


@pytest.mark.parametrize(
    "case",
    [case for case in json.loads(SAMPLING.read_text())["train"] if case["stride"] == 1],
    ids=lambda case: f"{case['num_segments']}x{case['seg_length']}-{case['num_frames']}",
)
def test_released_segments_equal_those_of_the_official_code(case):
    num_rows, S, F = case["num_frames"], case["num_segments"], case["seg_length"]
    starts = np.array(case["block_starts_without_jitter"])
    bound = case["jitter_exclusive_upper_bound"]
    for highest, jitter in ((False, 0), (True, bound - 1)):
        rng = LowestDraws(highest)
        rows = training_rows(num_rows, S, F, rng, released=True)
        assert rng.bound == bound
        assert rows.tolist() == [[(start + jitter + i) % num_rows for i in range(F)] for start in starts]
    drawn = np.stack([training_rows(10**6 * S, S, F, np.random.default_rng(i), released=True)[:, 0] for i in range(2)])
    assert len(set((drawn - drawn.min(axis=0)).ravel().tolist())) > S // 2  # each segment has a jitter of its own


@pytest.mark.parametrize("num_rows, block", [(526, 15), (527, 16)])  # floor((T - 16 + 1) / 32)
def test_released_blocks_grow_from_527_rows_on(num_rows, block):
    starts = training_rows(num_rows, 32, 16, LowestDraws(), released=True)[:, 0]
    assert starts.tolist() == [i * block for i in range(32)]


@pytest.mark.parametrize("S, F", [(5, 7), (32, 16), (1, 1), (3, 1)])
def test_each_segment_lies_in_its_own_block(S, F):
    rng = np.random.default_rng(0)
    for num_rows in range(1, 3001, 1 if S == 5 else 7):
        length = max(num_rows, S * F)
        repeated = [row % num_rows for row in range(length)]  # loop padding
        for draws in (rng, LowestDraws(), LowestDraws(highest=True)):
            rows = training_rows(num_rows, S, F, draws)
            assert rows.shape == (S, F) and rows.dtype == np.int64
            for s, segment in enumerate(rows.tolist()):
                block = repeated[s * length // S : (s + 1) * length // S]  # blocks cover all and do not overlap
                if draws is rng and num_rows > S * F:
                    assert segment == list(range(segment[0], segment[0] + F))
                    assert s * length // S <= segment[0] and segment[-1] < (s + 1) * length // S
                elif isinstance(draws, LowestDraws):
                    assert segment == (block[-F:] if draws.highest else block[:F])


def test_starts_are_uniform_over_their_block():
    rng = np.random.default_rng(0)
    starts = np.stack([training_rows(30, 3, 4, rng)[:, 0] for _ in range(3000)])  # blocks of 10, so 7 starts
    for block in range(3):
        counts = np.bincount(starts[:, block] - 10 * block, minlength=7)
        assert len(counts) == 7 and abs(counts - 3000 / 7).max() < 100  # 5 standard deviations
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.1


@pytest.mark.parametrize("released", [False, True])
def test_a_sample_holds_the_rows_that_its_seed_draws(tmp_path, released):
    array = random_array(50, 6, dtype=np.float16)
    features = FeatureFolder(write_features(tmp_path, {"a": random_array(3, 6), "b": array}))
    dataset = SegmentDataset([Video("a", -1), Video("b", 4)], features, 3, 5, released=released)
    sample = dataset[1, 11]
    rows = training_rows(50, 3, 5, np.random.default_rng(11), released)
    assert len(dataset) == 2 and sample.keys() == {"features", "label", "video_idx"} and sample["label"] == 4
    assert sample["features"].dtype == torch.float32 and sample["features"].shape == (3, 5, 6)
    assert np.array_equal(sample["features"], array[rows].astype(np.float32))
    assert torch.equal(sample["features"], dataset[1, 11]["features"])
    assert not torch.equal(sample["features"], dataset[1, 12]["features"])


def test_every_crop_is_drawn_and_a_sample_stays_with_one(tmp_path):
    crops = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None], (20, 4, 2))
    dataset = SegmentDataset([Video("v", 0)], FeatureFolder(write_features(tmp_path, {"v": crops})), 2, 3)
    drawn = [dataset[0, seed]["features"].unique() for seed in range(60)]
    assert {tuple(values.tolist()) for values in drawn} == {(0,), (1,), (2,), (3,)}


@pytest.mark.parametrize("crops", [1, 2])
def test_second_features_show_the_same_frames(tmp_path, crops):
    frames = np.broadcast_to(np.arange(0, 200, 4, dtype=np.float32)[:, None, None], (50, 2, 3)) + [[[0], [1000]]]
    coarse = np.broadcast_to(np.arange(0, 180, 16, dtype=np.float32)[:, None, None], (12, crops, 5))
    coarse = coarse + 1000 * np.arange(crops)[:, None]
    write_features(tmp_path / "fine", {"v": frames.astype(np.float32)})
    write_features(tmp_path / "coarse", {"v": coarse.astype(np.float32)})
    folders = FeatureFolder(tmp_path / "fine", 4), FeatureFolder(tmp_path / "coarse", 16)
    dataset = SegmentDataset([Video("v", 0)], folders[0], 3, 4, folders[1])
    for seed in range(20):
        sample = dataset[0, seed]
        fine, other = sample["features"][..., 0] % 1000, sample["temporal_features"][..., 0] % 1000
        assert sample["temporal_features"].shape == (3, 4, 5)
        assert torch.equal(other, (fine // 16 * 16).clamp(max=176))
        if crops == 2:  # the same crop of both
            assert torch.equal(sample["features"][..., 0] >= 1000, sample["temporal_features"][..., 0] >= 1000)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape, crops", [((200, 5), 1), ((7, 5), 1), ((60, 5), 3), ((20, 3, 5), 1), ((20, 3, 5), 3)])
def test_samples_are_those_of_files_loaded_whole(tmp_path, shape, crops, order, dtype):
    """(7, 5): repeated from its start. Every kind of file twice: the second time it is known."""
    array = random_array(*shape, dtype=dtype)
    np.save(tmp_path / "v.npy", np.asarray(array, order=order))
    whole = array.reshape(-1, shape[1] if len(shape) == 3 else crops, 5)
    dataset = SegmentDataset([Video("v", 0)], FeatureFolder(tmp_path, crops=crops), 4, 3)
    for seed in (1, 2, 1):
        rng = np.random.default_rng(seed)
        rows = training_rows(len(whole), 4, 3, rng)
        sample = dataset[0, seed]["features"]
        expected = whole[rows, rng.integers(whole.shape[1])]
        assert sample.dtype == torch.float32 and torch.equal(sample, torch.from_numpy(expected).float())


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs reads at a place of a file")
def test_a_known_file_costs_one_read_a_segment(tmp_path, monkeypatch):
    write_features(tmp_path, {"v": random_array(500, 5)})
    dataset = SegmentDataset([Video("v", 0)], FeatureFolder(tmp_path), 4, 3)
    dataset[0, 0]
    reads, preadv = [], os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, parts, place: reads.append(len(parts[0])) or preadv(file, parts, place)
    )
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("the file was looked at again"))
    dataset[0, 1]
    assert reads == [3 * 5 * 4] * 4  # bytes


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs reads at a place of a file")
@pytest.mark.parametrize("num_rows", (3, 500))
def test_a_file_that_changes_while_it_is_used_is_told(tmp_path, num_rows):
    write_features(tmp_path, {"v": random_array(500, 5)})
    dataset = SegmentDataset([Video("v", 0)], FeatureFolder(tmp_path), 4, 3)
    dataset[0, 0]
    write_features(tmp_path, {"v": random_array(num_rows, 5, seed=1)})
    os.utime(tmp_path / "v.npy", (1, 1))
    with pytest.raises(InputError, match="v.npy: has been changed since it was first read"):
        dataset[0, 1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files")
def test_no_file_stays_open(tmp_path):
    names = [f"v{i}" for i in range(5)]
    write_features(tmp_path, {name: random_array(50, 5) for name in names})
    dataset = SegmentDataset([Video(name, 0) for name in names], FeatureFolder(tmp_path), 4, 3)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(5):
        dataset[i, 0]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
def test_a_sample_reads_its_rows_only(tmp_path):
    import resource

    path = tmp_path / "v.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (4_000_000, 512)})
        file.truncate(file.tell() + 4_000_000 * 512 * 4)  # 8 GB that take no space
    dataset = SegmentDataset([Video("v", 0)], FeatureFolder(tmp_path), 32, 16)
    dataset[0, 0]  # the first pays for imports
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert dataset[0, 1]["features"].sum() == 0
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def labels_of(num_abnormal, num_normal):
    return (
        [-1, 5] * min(num_abnormal, num_normal)
        + [5] * max(num_abnormal - num_normal, 0)
        + [-1] * max(num_normal - num_abnormal, 0)
    )


@pytest.mark.parametrize("num_abnormal, num_normal", [(3, 11), (11, 3), (8, 8), (1, 1), (2, 9), (5, 12)])
@pytest.mark.parametrize("released", [False, True])
def test_batches_are_balanced_and_show_the_longer_class_once(num_abnormal, num_normal, released):
    labels = np.array(labels_of(num_abnormal, num_normal))
    batches = BalancedBatches(labels, 8, seed=3, released=released)
    epoch, longest = list(batches), max(num_abnormal, num_normal)
    assert len(epoch) == len(batches) == (max(longest // 4, 1) if released else (longest + 3) // 4)
    videos = np.array([[video for video, _ in batch] for batch in epoch])
    assert videos.shape[1] == 8 and (labels[videos[:, :4]] >= 0).all() and (labels[videos[:, 4:]] < 0).all()
    for half, count in ((videos[:, :4].ravel(), num_abnormal), (videos[:, 4:].ravel(), num_normal)):
        used = count // 4 * 4 if released and count >= 4 else count
        rounds = [half[i : i + used] for i in range(0, len(half), used)]  # shuffle after shuffle
        assert all(len(set(r.tolist())) == len(r) for r in rounds)
        if not released and count == longest:
            assert set(half.tolist()) == set(np.flatnonzero(labels == labels[half[0]]).tolist())


def test_each_round_of_the_shorter_class_is_shuffled_anew():
    batches = BalancedBatches([-1] * 40 + [0] * 8, 16, seed=0)
    rounds = [[video for video, _ in batch[:8]] for batch in batches]
    assert len({tuple(r) for r in rounds}) == 5 and all(sorted(r) == list(range(40, 48)) for r in rounds)


def test_batches_depend_on_seed_and_epoch_alone():
    def epoch(seed, number):
        batches = BalancedBatches(labels_of(9, 14), 4, seed)
        batches.set_epoch(number)
        return list(batches)

    assert epoch(1, 2) == epoch(1, 2)
    others = [epoch(*key) for key in ((1, 2), (1, 3), (2, 1), (2, 2))]
    assert len({str([[video for video, _ in batch] for batch in other]) for other in others}) == 4
    seeds = [seed for other in others for batch in other for _, seed in batch]
    assert len(set(seeds)) == len(seeds)  # no two samples are drawn alike
    assert all(type(value) is int for pair in others[0][0] for value in pair)


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    videos = [Video(f"v{i}", i % 3 - 1) for i in range(9)]
    write_features(tmp_path, {v.name: random_array(40, 2, 3, seed=i) for i, v in enumerate(videos)})
    dataset = SegmentDataset(videos, FeatureFolder(tmp_path), 2, 4)
    epochs = []
    for num_workers in (0, 2):
        batches = BalancedBatches([v.label for v in videos], 4, seed=5)
        epochs.append(list(torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=num_workers)))
    assert len(epochs[0]) == 3
    for alone, shared in zip(*epochs, strict=True):
        assert alone["features"].shape == (4, 2, 4, 3)
        assert torch.equal(alone["features"], shared["features"]) and torch.equal(alone["label"], shared["label"])
        assert (alone["label"][:2] >= 0).all() and (alone["label"][2:] == -1).all()


@pytest.mark.parametrize("batch_size", [0, 1, 7])
def test_a_batch_must_have_two_halves(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be even and at least 2.*got {batch_size}"):
        BalancedBatches([0, -1], batch_size, seed=0)


@pytest.mark.parametrize("label", [0, -1])
def test_batches_need_both_kinds(label):
    with pytest.raises(ValueError, match="got only one kind"):
        BalancedBatches([label] * 5, 2, seed=0)
