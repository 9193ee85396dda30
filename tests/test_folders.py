"""Tests of train.py from folders of videos: labels out of names, encoding, sizes that fit, what is told and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import train
from tests.synthetic import SMALL, run, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import BLUE, CUSTOM_ENCODER, RED, write_clip
from videoanomaly.data.annotations import read_custom
from videoanomaly.data.folders import class_of, folder_lists
from videoanomaly.runtime.console import InputError
from videoanomaly.training import epochs
from videoanomaly.training.sizes import Length, sizes_for, stride_for
from videoanomaly.training.source import find_class_videos
from videoanomaly.video import extraction

TINY = [*SMALL, "--num-frames", "2", "--epochs", "1", "--batch-size", "4", "--lr", "1e-3"]
TEMPORAL = "temporal_annotations.txt"


def kinds(lists) -> tuple[dict, dict]:
    """Class of each training and of each test video."""
    names = (*lists.classes, "Normal")
    train_videos, test_videos = ({v.name: names[v.label] for v in videos} for videos in (lists.train, lists.test))
    return train_videos, test_videos


# ---- labels ----


@pytest.mark.parametrize(
    "folder, expected",
    [
        *(
            (name, "Normal")
            for name in ("Normal", "normal", "NORMAL", "normal_videos", "Normal Videos", "NormalVideos")
        ),
        *(
            (name, "Normal")
            for name in ("Training_Normal_Videos_Anomaly", "Normal_Videos_event", "01-normal", "normals")
        ),
        *(
            (name, name)
            for name in ("Abnormal", "abnormal", "AbNormal", "Non-normal", "not_normal", "Fighting", "打架")
        ),
        ("no normal", "no_normal"),
        ("Road accident", "Road_accident"),
        ("Cafe\u0301  bar", "Caf\u00e9_bar"),
    ],
)
def test_a_folders_name_is_the_class_of_its_videos(folder, expected):
    assert class_of(folder) == expected


def test_the_top_folder_is_the_label_and_folders_of_one_class_join(tmp_path, capsys):
    names = ["Normal/a", "normal_videos/b", "Fighting/cam1/c", "fighting/d", "Road accident/e", "Road_accident/f", "g"]
    train_videos, test_videos = kinds(folder_lists(tmp_path, names))
    road = dict.fromkeys(("Road accident/e", "Road_accident/f"), "Road_accident")
    fights = dict.fromkeys(("Fighting/cam1/c", "fighting/d"), "Fighting")
    assert train_videos == dict.fromkeys(("Normal/a", "normal_videos/b"), "Normal") | fights | road
    assert not test_videos
    assert capsys.readouterr().err == f"note: {tmp_path}: left out 1 video that lie in no folder of a class: g\n"


NAMES = ["Normal/a", "Normal/b", "Fire/c", "Fire/d"]
TESTED = [*NAMES, "test/Normal/e", "test/Fire/f", "test/Fire/g"]


@pytest.mark.parametrize(
    "names, files, test, told",
    [
        (
            TESTED,
            {TEMPORAL: "Fire/f.mp4 Fire 3 9\ng.mp4 Fire 1 2"},
            [["test/Fire/f", (3, 10)], ["test/Fire/g", (1, 3)]],
            "",
        ),
        (
            TESTED,
            {TEMPORAL: "f.mp4 Fire 3 9"},
            [["test/Fire/f", (3, 10)]],
            "found no times of 1 video for test, left out",
        ),
        (TESTED, {}, [], "no anomalous video is left for test, so the 1 normal ones are left out, too"),
        (
            TESTED,
            {TEMPORAL: "f.mp4 Fire 3 9\ng Fire 1 2\nd.mp4 Fire 1 2"},
            None,
            "of 1 video for training are not used",
        ),
        (NAMES, {TEMPORAL: "d.mp4 Fire 3 9\nb.mp4 Normal -1 -1"}, [["Fire/d", (3, 10)], ["Normal/b"]], ""),
        (NAMES, {"test.txt": "Fire/d.mp4 Fire", TEMPORAL: "d.mp4 Fire 3 9"}, [["Fire/d", (3, 10)]], ""),
    ],
)
def test_test_videos_are_those_below_test_or_listed_or_annotated(tmp_path, capsys, names, files, test, told):
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    lists = folder_lists(tmp_path, names)
    assert {"Normal/a", "Fire/c"} <= {video.name for video in lists.train} <= set(NAMES)
    assert not {video.name for video in lists.train} & {video.name for video in lists.test}
    if test is not None:
        expected = [*test, *([["test/Normal/e"]] if test and names == TESTED else [])]
        assert sorted([video.name, *video.intervals] for video in lists.test) == sorted(expected)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, files, message",
    [
        (
            ["Normal/a", "normal/b"],
            {},
            "found 2 normal videos alone, expected a folder for each anomaly.*--normal-only",
        ),
        (["Fire/a", "Abnormal/b"], {}, "found 2 videos in folders of anomalies, expected a folder named Normal"),
        (NAMES, {TEMPORAL: "x.mp4 Fire 1 2"}, f"{TEMPORAL}, line 1: found x, expected the path of one video below"),
        (
            ["Fire/a", "Normal/a"],
            {TEMPORAL: "a.mp4 Fire 1 2"},
            "found a for Fire/a and Normal/a, expected the path of one",
        ),
        (NAMES, {TEMPORAL: "c.mp4 Fire 1 2\nd.mp4 Fire 1 2"}, "found 2 normal videos alone, besides 2 for test"),
        (NAMES, {TEMPORAL: "c.mp4 Fight 1 2"}, "found the class 'Fight', expected Normal or one of Fire"),
        (NAMES, {"test.txt": "Fire/d.mp4"}, "test.txt, line 1: found 'Fire/d.mp4', expected 'relative/path.mp4 Class'"),
    ],
)
def test_folders_that_cannot_be_learned_from_are_told_in_one_line(tmp_path, names, files, message):
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        folder_lists(tmp_path, names)
    assert "\n" not in str(error.value)


def test_features_runs_and_results_below_the_root_are_no_classes_and_empty_folders_are_told(tmp_path, capsys):
    here = [
        "Normal/a.mp4",
        "Fire/b.mp4",
        "features/Fire/b.mp4",
        "out/events.json",
        "out/c.mp4",
        "run/d.mp4",
        "Fire/c.txt",
    ]
    for name in [*here, *(f"runs/x/eval/timelines/Fire{i}.png" for i in range(3))]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Arson").mkdir()
    assert list(find_class_videos(tmp_path, tmp_path / "run")) == ["Fire/b", "Normal/a"]
    told = capsys.readouterr().err.splitlines()
    assert told[1:] == [
        f"note: {tmp_path}: left out folders of results: features, out, runs",
        f"note: {tmp_path}: found no video in Arson, run",
    ]


def test_lists_without_a_test_list_are_lists_for_training_alone(tmp_path):
    write_dataset(tmp_path / "data")
    (tmp_path / "data" / "test.txt").unlink()
    with pytest.raises(InputError, match="test.txt: cannot be read"):
        read_custom(tmp_path / "data")  # its annotations are of some
    (tmp_path / "data" / TEMPORAL).unlink()
    assert len(read_custom(tmp_path / "data").train) == 16 and not read_custom(tmp_path / "data").test


# ---- sizes ----


@pytest.mark.parametrize(
    "count, seconds, fps, has_gpu, stride, sizes",
    [
        (120, 20, 25, False, 4, (32, 16, 30, 4)),  # the cameras' pack, on two cores
        (120, 20, 25, True, 2, (32, 16, 30, 8)),  # as it was trained with a stride of 2
        (240, 7, 8, False, 1, (32, 16, 30, 2)),  # the demo's rate
        (10, 20, 25, False, 4, (32, 16, 240, 4)),  # enough steps
        (120, 4, 25, False, 1, (32, 16, 30, 3)),  # short clips: two rows a segment at least
        (600, 60, 30, False, 11, (128, 32, 40, 5)),  # 10 h
        (100, 3600, 25, False, 25, (32, 16, 35, 16)),  # 100 h: a row a second
        (1600, 100, 30, True, 1, (256, 64, 50, 16)),  # UCF-Crime's size
    ],
)
def test_sizes_follow_from_number_and_length_of_the_videos_and_the_device(count, seconds, fps, has_gpu, stride, sizes):
    lengths = [Length(seconds * fps, fps)] * count
    assert stride_for(lengths, has_gpu) == stride
    names = ("embed_dim", "batch_size", "epochs", "num_frames")
    assert sizes_for(lengths, count // 2, stride) == dict(zip(names, sizes)) | {"depth": 1}


def test_videos_of_unknown_length_have_sizes_too():
    lengths = [Length(0, 0.0)] * 4
    assert stride_for(lengths, False) == 1 and sizes_for(lengths, 2, 1)["num_frames"] == 2


# ---- from folders to a checkpoint ----


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folders of short videos, nested and of pictures among them, an encoder without text, and one video for test."""
    root = tmp_path_factory.mktemp("made")
    for i, name in enumerate(("Normal/a", "Normal/cam1/b", "Road accident/d", "Road accident/e")):
        write_clip(root / "videos" / f"{name}.mp4", 24 + i, ((5, 15, RED),) if "Road" in name else ())
    pictures = root / "videos" / "normal_frames" / "c"
    pictures.mkdir(parents=True)
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(pictures / f"{i:03}.png")
    (root / "encoder.py").write_text(CUSTOM_ENCODER)
    return root


def words(made: Path, out: Path, *more: str, videos: Path | None = None) -> list[str]:
    data = ["--dataset", "custom", "--root", str(videos or made / "videos"), "--out", str(out)]
    return [*data, "--encoder", f"{made / 'encoder.py'}:MeanColour", *TINY, *more]


def times(features: Path) -> dict[str, int]:
    return {path.relative_to(features).as_posix(): path.stat().st_mtime_ns for path in features.rglob("*.npy")}


@pytest.fixture(scope="module")
def trained(made) -> Path:
    train.main(words(made, made / "run"))
    return made / "run" / "last.pt"


def test_one_command_leads_from_folders_to_a_checkpoint_that_finds_events(made, trained, capsys):
    checkpoint = torch.load(trained, weights_only=True)
    assert checkpoint["lists"]["classes"] == ["Road_accident"] and not checkpoint["lists"]["test"]
    assert [name for name, *_ in checkpoint["lists"]["train"]] == [
        *("Normal/a", "Normal/cam1/b", "Road accident/d", "Road accident/e", "normal_frames/c")
    ]
    assert checkpoint["settings"]["directions"] == "direct" and checkpoint["settings"]["features"]
    meta = json.loads((made / "run" / "features" / "meta.json").read_text())
    assert meta["encoder"] == "MeanColour" and meta["videos"]["normal_frames/c"]["frames"] == 20
    with pytest.raises(InputError, match="last.pt: was trained without test videos, expected some with the frames"):
        evaluate.main(["--ckpt", str(trained), "--device", "cpu"])
    options = ["--encoder", f"{made / 'encoder.py'}:MeanColour", "--device", "cpu", "--out", str(made / "report")]
    video = made / "videos" / "Road accident" / "d.mp4"
    assert not predict.main(["--ckpt", str(trained), *options, str(video)])
    assert json.loads((made / "report" / "events.json").read_text())["frames"] == 26


def test_what_there_is_and_what_it_takes_is_told_before_the_work(made, tmp_path, capsys):
    train.main(words(made, tmp_path / "run", "--epochs", "6"))
    told = capsys.readouterr()
    assert "5 videos for training, 0 for test\n  Normal             3 videos      0.00 h\n" in told.out
    assert "  Road_accident      2 videos" in told.out
    assert "--lr 1e-3 --epochs 6 --depth 1 --directions direct --stride 1\n" in told.out
    assert told.out.count("--epochs") == 1  # given twice, as 1 and as 6
    assert "encoding: 122 frames of 5 videos" in told.out and "training: 8 steps left, about " in told.out
    assert (
        "warning: 3 of Normal, 2 of Road_accident: of 10 videos of a class and more less is learned by chance"
        in told.out
    )
    assert "h of normal video cannot tell rates below" in told.out
    assert "MeanColour has no text, so the directions of the classes are learned without it" in told.out
    assert told.err == "folders of pictures are taken for 25 frames/s; --fps tells another rate\n"
    assert f"next: python predict.py --ckpt {tmp_path}/run/last.pt --encoder" in told.out


def test_only_what_is_new_or_another_file_is_encoded_and_options_rule(made, trained, tmp_path, capsys):
    videos, features = tmp_path / "videos", tmp_path / "features"
    shutil.copytree(made / "videos", videos, copy_function=shutil.copy2)
    shutil.copytree(made / "run" / "features", features, copy_function=shutil.copy2)
    before = times(features)
    write_clip(videos / "Fire" / "a.mp4", 20, ((5, 15, BLUE),))  # there is another a
    write_clip(videos / "Road accident" / "d.mp4", 30)
    (videos / "Normal" / "broken.mp4").write_bytes(b"no video")
    train.main(words(made, tmp_path / "run", "--features", str(features), videos=videos))
    after = times(features)
    assert {name for name in after if after[name] != before.get(name)} == {"Fire/a.npy", "Road accident/d.npy"}
    told = capsys.readouterr().err
    assert f"note: {videos}: left out 1 video that cannot be read: Normal/broken" in told
    with pytest.raises(
        InputError, match="--stride 3: found features with stride 1 in .*, expected the same, or another"
    ):
        train.main(words(made, tmp_path / "b", "--features", str(features), "--stride", "3", videos=videos))
    with pytest.raises(InputError, match="found features of MeanColour, but none of 1 video such as Normal/broken"):
        data = ["--dataset", "custom", "--root", str(videos), "--features", str(features), "--out", str(tmp_path / "b")]
        train.main([*data, *TINY])
    assert not (tmp_path / "b").exists()
    (videos / "Normal" / "broken.mp4").unlink()
    before = after
    write_clip(videos / "Normal" / "a.mp4", 40)
    for out, expected in (("c", {"Normal/a.npy"}), ("d", set())):
        train.main(words(made, tmp_path / out, "--features", str(features), videos=videos))
        after, before = times(features), after
        assert {name for name in after if after[name] != before[name]} == expected


def test_a_run_goes_on_where_encoding_stopped_and_with_the_videos_it_began_with(made, tmp_path, monkeypatch, capsys):
    out, videos, real = tmp_path / "run", tmp_path / "videos", extraction.Record.add
    shutil.copytree(made / "videos", videos)

    def stop(record, key, info):
        real(record, key, info)
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction.Record, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(words(made, out, videos=videos))
    assert "go on with: python train.py --dataset custom" in capsys.readouterr().out
    monkeypatch.setattr(extraction.Record, "add", real)
    first = times(out / "features")
    assert len(first) == 1
    train.main(words(made, out, "--resume", videos=videos))
    assert first.items() <= times(out / "features").items() and len(times(out / "features")) == 5
    write_clip(videos / "Fire" / "f.mp4", 20)
    capsys.readouterr()
    train.main(words(made, out, "--resume", "--epochs", "1", videos=videos))
    told = capsys.readouterr()
    assert "goes on without 1 video that it was not begun with: Fire/f; another --out" in told.err
    assert len(times(out / "features")) == 5
    (videos / "Road accident" / "e.mp4").unlink()
    train.main(words(made, out, "--resume", videos=videos))  # what is gone does not matter: its features are there


def test_lists_rule_and_their_videos_are_encoded_where_features_are_missing(made, tmp_path, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(made / "videos", videos)
    (videos / "classes.txt").write_text("Normal\nfire")
    (videos / "train.txt").write_text("Normal/a.mp4 Normal\nNormal/cam1/b.mp4 fire")
    train.main(words(made, tmp_path / "run", videos=videos))
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert [name for name, *_ in checkpoint["lists"]["train"]] == ["Normal/a", "Normal/cam1/b"]
    assert checkpoint["lists"]["classes"] == ["fire"] and times(tmp_path / "run" / "features").keys() == {
        "Normal/a.npy",
        "Normal/cam1/b.npy",
    }
    (videos / "train.txt").write_text("Normal/a.mp4 Normal\nNormal/x.mp4 fire")
    with pytest.raises(InputError, match="found no features of Normal/x, expected Normal/x.npy"):
        train.main(words(made, tmp_path / "b", videos=videos))
    assert not (tmp_path / "b").exists()


def test_clip_encodes_and_gives_the_text_and_sizes_stay_with_the_run(made, tmp_path, capsys, monkeypatch):
    torch.save(tiny_clip_state_dict(), tmp_path / "clip.pt")
    data = ["--dataset", "custom", "--root", str(made / "videos"), "--out", str(tmp_path / "run")]
    options = [*data, "--clip", str(tmp_path / "clip.pt"), "--device", "cpu", "--workers", "0"]
    train.main([*options, "--epochs", "1"])
    told = capsys.readouterr()
    assert "has no text" not in told.out
    assert "--epochs 1 --embed-dim 32 --depth 1 --batch-size 16 --num-frames 2 --stride 1\n" in told.out
    settings = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["settings"]
    assert (settings["embed_dim"], settings["batch_size"], settings["directions"]) == (32, 16, None)
    monkeypatch.setattr("videoanomaly.training.preparation.sizes_for", lambda *_: pytest.fail("chosen anew"))
    train.main([*options, "--epochs", "1", "--resume"])
    assert "sizes for" not in capsys.readouterr().out


def test_a_wrong_list_of_sources_is_told_before_anything_is_encoded(made, tmp_path):
    shutil.copytree(made / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "groups.txt").write_text("Normal/a.mp4 hall\n")
    for more in ([], ["--check"]):
        with pytest.raises(InputError, match="groups.txt: found no line for Normal/cam1/b, expected one for each"):
            train.main(words(made, tmp_path / "run", *more, "--folds", "2", videos=tmp_path / "videos"))
    assert not (tmp_path / "run").exists()


def test_check_encodes_nothing(made, tmp_path, capsys):
    train.main(words(made, tmp_path / "run", "--check"))
    assert f"5 videos would be encoded into {tmp_path}/run/features\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--evaluate"],
            "--evaluate: found no test videos in .*, expected some in a folder test/CLASS, or in test.txt",
        ),
        (["--clip", "ViT-B/32"], "--clip ViT-B/32: found with --encoder .*, expected one of them"),
        (["--crops", "10"], "--crops 10: found 5 videos to encode, expected no such option"),
        (["--fps", "0"], "--fps 0.0: expected 0.001 to 1000 frames/s"),
        (["--stride", "0"], "--stride 0: expected at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(made, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train.main(words(made, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_features_of_an_encoder_without_text_are_trained_on_without_it(tmp_path, capsys):
    root = write_dataset(tmp_path / "data")
    options = ["--dataset", "custom", "--root", str(root), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1"]
    train.main(options)
    assert "synthetic has no text" in capsys.readouterr().out
    settings = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["settings"]
    assert (settings["directions"], settings["features"]) == ("direct", None)
    with pytest.raises(InputError, match="--encoder: found with --dataset ucfcrime, expected custom"):
        train.main(["--dataset", "ucfcrime", "--root", str(root), "--encoder", "e.py:E"])
    (root / "features" / "meta.json").unlink()
    with pytest.raises(InputError, match="--stride 2: found all features in .*, expected no such option"):
        run(root, tmp_path / "b", "--stride", "2")


def test_the_time_left_is_told_once(monkeypatch, capsys):
    clock = iter(range(100))
    monkeypatch.setattr(epochs.time, "perf_counter", lambda: next(clock) * 2.0)
    tell = epochs.TimeLeft(34)
    for step in range(1, 8):
        tell(step)
    assert capsys.readouterr().out == "training: 30 steps left, about 60 s\n"
