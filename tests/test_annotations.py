"""Tests of annotations.py. Real annotation files are read where ../shared has them; small copies of each format are
inline.
"""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch

from tests.places import SHARED
from videoanomaly.data import annotations, datasets
from videoanomaly.data.annotations import Video, VideoLists, frame_labels, frame_masks
from videoanomaly.data.features import FeatureFolder, check_features
from videoanomaly.data.lists import load_lists
from videoanomaly.runtime.console import InputError
from videoanomaly.weights.entries import is_video

ANNOTATIONS = SHARED / "data" / "annotations"
RELEASED = SHARED / "reference" / "checkpoint"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the real annotation files in ../shared")

# One small data set of each layout, as {file: text}.
CUSTOM = {
    "classes.txt": "Normal\nFight\nFall\n",
    "train.txt": "Normal/a 1.mp4 Normal\nFight/b.mp4 Fight\n",
    "test.txt": "Normal/c.mp4 Normal\n\nFall/my d.mp4 Fall\n",
    "temporal_annotations.txt": "c.mp4  Normal  -1  -1  -1  -1  \nmy d.mp4  Fall  3  5  9  9  \n",
}
RELEASED_LISTS = {
    "Annotations/Anomaly_Train_Abnormal.txt": "Abuse/Abuse001_x264 0 79 0\nVandalism/Vandalism001_x264 0 9 13\n",
    "Annotations/Anomaly_Train_Normal.txt": "Training_Normal_Videos_Anomaly/Normal_Videos801_x264 0 39 7\n",
    "Annotations/Anomaly_Test.txt": "RoadAccidents/RoadAccidents905_x264 1 512 8\n"
    "Testing_Normal_Videos_Anomaly/Normal_Videos_908_x264 0 36 7\n",
    "Temporal_Anomaly_Annotation_for_Testing_Videos.txt": "RoadAccidents905_x264.mp4  RoadAccidents  200  512  -1  -1\n"
    "Normal_Videos_908_x264.mp4  Normal  -1  -1  -1  -1\n"
    "Unlisted001_x264.mp4  Abuse  1  2  -1  -1\n",
}
UCF = {
    "Anomaly_Train.txt": "Abuse/Abuse001_x264.mp4\nTraining_Normal_Videos_Anomaly/Normal_Videos001_x264.mp4\n",
    "Anomaly_Test.txt": "Arson/Arson016_x264.mp4\nTesting_Normal_Videos_Anomaly/Normal_Videos_003_x264.mp4\n",
    "Temporal_Anomaly_Annotation.txt": "Arson016_x264  Arson  1000  1796  -1  -1  \n"
    "Normal_Videos_003_x264  Normal  -1  -1  -1  -1  \n"
    "Abuse028_x264  Abuse  1  2  -1  -1  \n",
}
XD = {
    "train.txt": "Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0\n"
    "v=a__#1_label_B1-B2-0\nv=b__#1_label_A\nv=c__#1_label_G\n",
    "test.txt": "v=d e__#1_label_0-B6-0.mp4\nv=f__#1_label_A\nv=g__#1_label_B1-G-B2\n",
    "annotations.txt": "v=d e__#1_label_0-B6-0 51 210 273 410\nv=g__#1_label_B1-G-B2 1 5\n",
}
SHANGHAITECH = {"SH_Train.txt": "01_0014\n01_002\n", "SH_Test.txt": "01_001\n01_0015\n01_0016"}


def write_files(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def write_masks(root, masks):
    (root / "test_frame_mask").mkdir(exist_ok=True)
    for name, mask in masks.items():
        np.save(root / "test_frame_mask" / f"{name}.npy", mask)


def count_labels(videos, classes):
    return Counter("Normal" if v.label < 0 else classes[v.label] for v in videos)


def test_frame_labels_are_clipped_to_the_video():
    video = Video("v", 2, ((-5, -2), (-1, 1), (3, 5), (8, 99), (50, 60)))
    assert frame_labels(video, 10).tolist() == [2, -1, -1, 2, 2, -1, -1, -1, 2, 2]
    assert frame_labels(video, 10).dtype == np.int64
    assert frame_labels(Video("n", -1), 3).tolist() == [-1, -1, -1]


def test_lists_survive_a_checkpoint_that_is_read_without_unpickling():
    lists = VideoLists(("a", "b"), [Video("x", 1), Video("y", -1)], [Video("z", 0, ((1, 2), (5, 9)))])
    file = io.BytesIO()
    torch.save(lists.to_plain(), file)
    file.seek(0)
    restored = VideoLists.from_plain(torch.load(file, weights_only=True))
    assert restored == lists and hash(restored.test[0]) == hash(lists.test[0])


def test_custom_lists(tmp_path):
    lists = load_lists("custom", write_files(tmp_path, CUSTOM))
    assert lists == VideoLists(
        ("Fight", "Fall"),
        [Video("Normal/a 1", -1), Video("Fight/b", 0)],
        [Video("Normal/c", -1), Video("Fall/my d", 1, ((3, 6), (9, 10)))],
    )


def test_a_test_video_may_show_several_classes_whose_intervals_share_frames(tmp_path):
    lines = "Fall/my d.mp4  Fight  4  7\nNormal/c.avi Normal -1 -1\nFall/my d.mp4  Fall  3  5  9  9\n"
    lists = load_lists("custom", write_files(tmp_path, CUSTOM | {"temporal_annotations.txt": lines}))
    video = lists.test[1]
    assert video == Video("Fall/my d", 1, ((4, 8), (3, 6), (9, 10)), interval_labels=(0, 1, 1))
    assert VideoLists.from_plain(json.loads(json.dumps(lists.to_plain()))) == lists
    assert is_video(lists.to_plain()["test"][1], 2) and not is_video(lists.to_plain()["test"][1], 1)
    fight, fall = frame_masks(video, 10, 2).T
    assert np.flatnonzero(fight).tolist() == [4, 5, 6, 7] and np.flatnonzero(fall).tolist() == [3, 4, 5, 9]
    assert not frame_masks(lists.test[0], 10, 2).any()


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            "Fall/my d.mp4 Fight 4 7\nFall/my d.mp4 Fight 9 9",
            "line 2: found Fall/my d again, expected each video once, or",
        ),
        (
            "Fall/my d.mp4 Fight 4 7\nFall/my d.mp4 Flood 9 9",
            "line 2: found the class 'Flood', expected Normal or one of",
        ),
        ("Fall/my d.mp4 Fight 4 7\nFall/my d.mp4 Fall 3 5 5 6", "which overlap, expected intervals apart"),
        ("Normal/c.avi Normal -1 -1\nNormal/c.avi Fall 1 2", "found 1 intervals of Normal/c, expected none"),
        ("Fall/my d.mp4 Fight 4 7\nFall/my d.mp4 Fall -1 -1", "found Fall/my d without intervals of its class in"),
    ],
)
def test_lines_of_several_classes_that_make_no_sense_are_told(tmp_path, lines, message):
    write_files(tmp_path, CUSTOM | {"temporal_annotations.txt": lines})
    with pytest.raises(InputError, match=message):
        load_lists("custom", tmp_path)


def test_custom_annotations_may_give_paths_where_file_names_repeat(tmp_path):
    changed = {
        "test.txt": "Fight/c.mp4 Fight\nFall/c.mp4 Fall\n",
        "temporal_annotations.txt": "Fall/c.mp4 Fall 1 2\nFight/c.mp4 Fight 3 4\n",
    }
    lists = load_lists("custom", write_files(tmp_path, CUSTOM | changed))
    assert [v.intervals for v in lists.test] == [((3, 5),), ((1, 3),)]


def test_lists_may_have_windows_line_ends_and_a_byte_order_mark(tmp_path):
    plain = load_lists("custom", write_files(tmp_path, CUSTOM))
    for name, text in CUSTOM.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_lists("custom", tmp_path) == plain


def test_released_lists_count_frames_from_the_first_of_the_line(tmp_path):
    lists = load_lists("ucfcrime", write_files(tmp_path, RELEASED_LISTS))
    assert len(lists.classes) == 13 and "Normal" not in lists.classes
    assert lists.train == [
        Video("Abuse/Abuse001_x264", 0),
        Video("Vandalism/Vandalism001_x264", 12),
        Video("Training_Normal_Videos_Anomaly/Normal_Videos801_x264", -1),
    ]
    assert lists.test == [
        Video("RoadAccidents/RoadAccidents905_x264", 7, ((199, 512),)),
        Video("Testing_Normal_Videos_Anomaly/Normal_Videos_908_x264", -1),
    ]
    assert lists.classes[7] == "RoadAccidents"


def test_released_lists_with_their_own_class_ids(tmp_path):
    files = {
        "train_abnormal.txt": "a 0 1 2\n",
        "train_normal.txt": "b 0 1 1\n",
        "TEST.txt": "my c 2 9 2\n",
        "temporal.txt": "my c fire 4 5\n",
        "ids.csv": "id,name\n0,dust, fine\n1,normal\n2,fire\n",
    }
    root = write_files(tmp_path, {f"ANNOTATIONS/{name}": text for name, text in files.items()})
    lists = load_lists("shanghaitech", root, root / "ANNOTATIONS" / "ids.csv")
    assert lists == VideoLists(("dust, fine", "fire"), [Video("a", 1), Video("b", -1)], [Video("my c", 1, ((2, 4),))])


@needs_shared
def test_released_labels_equal_those_of_the_official_code():
    lists = load_lists("ucfcrime", RELEASED / "dataset")
    assert (len(lists.train), len(lists.test)) == (18, 12)
    with np.load(RELEASED / "expected.npz") as expected:
        for video in lists.test:
            labels = expected[f"{video.name.split('/')[1]}.labels"].astype(int)  # ids with Normal = 7
            ours = frame_labels(video, len(labels))
            assert np.array_equal(np.where(ours < 0, 7, ours + (ours >= 7)), labels), video.name


def test_ucfcrime_lists(tmp_path):
    lists = load_lists("ucfcrime", write_files(tmp_path, UCF))
    assert lists.train == [
        Video("Abuse/Abuse001_x264", 0),
        Video("Training_Normal_Videos_Anomaly/Normal_Videos001_x264", -1),
    ]
    assert lists.test == [
        Video("Arson/Arson016_x264", 2, ((1000, 1797),)),
        Video("Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264", -1),
    ]


@needs_shared
def test_ucfcrime_counts():
    lists = load_lists("ucfcrime", ANNOTATIONS / "ucf_crime")
    train, test = (count_labels(videos, lists.classes) for videos in (lists.train, lists.test))
    assert (train["Normal"], train.total()) == (800, 1610)
    assert test == {
        "Normal": 150,
        "Shooting": 23,
        "RoadAccidents": 23,
        "Explosion": 21,
        "Shoplifting": 21,
        "Burglary": 13,
        "Arson": 9,
        "Arrest": 5,
        "Fighting": 5,
        "Robbery": 5,
        "Stealing": 5,
        "Vandalism": 5,
        "Assault": 3,
        "Abuse": 2,
    }
    by_name = {v.name: v for v in lists.test}
    assert by_name["Vandalism/Vandalism036_x264"].intervals == ((540, 781), (990, 1081))
    assert frame_labels(by_name["Arson/Arson016_x264"], 1795)[1000:].tolist() == [2] * 795  # its end lies beyond it


def test_xdviolence_labels_come_from_the_names(tmp_path, capsys):
    lists = load_lists("xdviolence", write_files(tmp_path, XD))
    assert lists.classes == ("Abuse", "Car_accident", "Explosion", "Fighting", "Riot", "Shooting")
    assert lists.train == [
        Video("Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0", 5),
        Video("v=b__#1_label_A", -1),
        Video("v=c__#1_label_G", 2),
    ]
    assert lists.test == [Video("v=d e__#1_label_0-B6-0", 1, ((51, 210), (273, 410))), Video("v=f__#1_label_A", -1)]
    assert "left out 2 videos" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["", "features/", "Image-Features/"])
def test_xdviolence_splits_may_be_folders(tmp_path, base):
    write_files(tmp_path, {"annotations.txt": XD["annotations.txt"]})
    names = {
        "XDTrainFeatures/v=b__#1_label_A__0": 1,
        "XDTrainFeatures/v=b__#1_label_A__1": 1,
        "XDTrainFeatures/v=c__#1_label_G_i3d": 1,
        "test/part 2/v=d e__#1_label_0-B6-0": 1,
    }
    for name in names:
        (tmp_path / base / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / base / f"{name}.npy", np.zeros((500, 3), np.float32))
    lists = load_lists("xdviolence", tmp_path)
    assert lists.train == [Video("XDTrainFeatures/v=b__#1_label_A", -1), Video("XDTrainFeatures/v=c__#1_label_G", 2)]
    assert lists.test == [Video("test/part 2/v=d e__#1_label_0-B6-0", 1, ((51, 210), (273, 410)))]
    check_features(FeatureFolder(tmp_path), lists.train + lists.test)


@needs_shared
def test_xdviolence_counts(tmp_path):
    """The 300 normal test videos are in no public list; the 500 others are those of the annotations."""
    source = ANNOTATIONS / "xd_violence"
    annotations = (source / "annotations.txt").read_text()
    names = "\n".join(line.split()[0] for line in annotations.splitlines())
    write_files(
        tmp_path,
        {
            "annotations.txt": annotations,
            "test.txt": names,
            "train.txt": (source / "train_videos_derived.txt").read_text(),
        },
    )
    lists = load_lists("xdviolence", tmp_path)
    train, test = (count_labels(videos, lists.classes) for videos in (lists.train, lists.test))
    assert (train["Normal"], train.total() - train["Normal"], test.total(), test["Normal"]) == (2049, 1662, 453, 0)
    assert train == {
        "Normal": 2049,
        "Fighting": 377,
        "Shooting": 232,
        "Riot": 374,
        "Abuse": 31,
        "Car_accident": 375,
        "Explosion": 273,
    }
    fields = {line.split()[0].removesuffix(".mp4"): line.split()[1:] for line in annotations.splitlines()}
    for video in lists.test:
        assert [str(n) for pair in video.intervals for n in pair] == fields[video.name], video.name


def test_shanghaitech_masks_become_intervals(tmp_path, capsys):
    masks = {"01_0015": np.array([1, 1, 0, 0, 1], np.uint8), "01_0016": np.array([0, 1, 0], bool)}
    write_masks(write_files(tmp_path, SHANGHAITECH), masks)
    lists = load_lists("shanghaitech", tmp_path)
    assert lists == VideoLists(
        ("anomaly",),
        [Video("01_0014", 0), Video("01_002", -1)],
        [Video("01_001", -1), Video("01_0015", 0, ((0, 2), (4, 5))), Video("01_0016", 0, ((1, 2),))],
    )
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "names, classes",
    [
        (("car", "throwing object", "vehicle"), annotations.without_normal(datasets.DATASETS["shanghaitech"].classes)),
        (("cycling", "car", "wandering"), ("car", "cycling", "wandering")),
    ],
)
def test_shanghaitech_classes_come_from_a_table(tmp_path, names, classes):
    write_masks(write_files(tmp_path, SHANGHAITECH), {"01_0015": np.eye(4)[1], "01_0016": np.eye(4)[2]})
    rows = [f"{video},{name}\n" for video, name in zip(("01_0014", "01_0015", "01_0016"), names)]
    (tmp_path / "classes.csv").write_text("video,class\n01_002,normal\n" + "".join(rows))
    lists = load_lists("shanghaitech", tmp_path)
    assert lists.classes == classes and "normal" not in classes
    assert [classes[v.label] for v in lists.train + lists.test if v.label >= 0] == list(names)
    (tmp_path / "classes.csv").rename(tmp_path / "other.csv")
    assert load_lists("shanghaitech", tmp_path, tmp_path / "other.csv") == lists


@needs_shared
def test_shanghaitech_counts_and_masks():
    root = ANNOTATIONS / "shanghaitech"
    lists = load_lists("shanghaitech", root)
    counts = [Counter(v.label for v in videos) for videos in (lists.train, lists.test)]
    assert counts == [{0: 63, -1: 175}, {0: 44, -1: 155}]
    for video in lists.test:
        if video.label >= 0:
            mask = np.load(root / "test_frame_mask" / f"{video.name}.npy")
            assert np.array_equal(frame_labels(video, len(mask)) == 0, mask == 1), video.name


@needs_shared
def test_custom_counts():
    lists = load_lists("custom", SHARED / "data" / "cctv")
    assert count_labels(lists.train, lists.classes) == {"Normal": 60, "Fighting": 44, "Falling": 16}
    assert count_labels(lists.test, lists.classes) == {"Normal": 24, "Fighting": 17, "Falling": 7}
    frames = Counter()
    for video in lists.test:
        frames[lists.classes[video.label]] += sum(end - start for start, end in video.intervals)
    assert frames == {"Fighting": 1838, "Falling": 833}  # of the data's own README, ends inclusive


TEMPORAL = "temporal_annotations.txt"
TWO_NAMESAKES = {"test.txt": "Normal/c.mp4 Normal\nFight/c.mp4 Fight\n", TEMPORAL: "c.mp4 Fight 1 2\n"}


@pytest.mark.parametrize(
    "dataset, files, changed, message",
    [
        (
            "custom",
            CUSTOM,
            {"train.txt": "Normal/a.mp4 Normal\n\nFight/b.mp4\n"},
            r"train.txt, line 3: found 'Fight/b.mp4'",
        ),
        (
            "custom",
            CUSTOM,
            {"train.txt": "a.mp4 Normal\nb.mp4 Fire\n"},
            "train.txt, line 2: found the class 'Fire', .*Fight, Fall",
        ),
        (
            "custom",
            CUSTOM,
            {"train.txt": "a.mp4 Normal\nb.mp4 Fall\na.mp4 Normal\n"},
            "train.txt, line 3: found a again.*line 1",
        ),
        (
            "custom",
            CUSTOM,
            {"train.txt": "Normal/c.mp4 Normal\nb.mp4 Fall\n"},
            "test.txt, line 1: found Normal/c again",
        ),
        ("custom", CUSTOM, {"train.txt": "/a.mp4 Normal\nb.mp4 Fall\n"}, "train.txt, line 1: found the path '/a.mp4'"),
        ("custom", CUSTOM, {"train.txt": "a.mp4 Normal\nb/../../c.mp4 Fall\n"}, "train.txt, line 2: found the path"),
        ("custom", CUSTOM, {"train.txt": "a.mp4 Fall\n"}, "train.txt: found 1 anomalous and 0 normal"),
        ("custom", CUSTOM, {"train.txt": " \n"}, "train.txt: is empty"),
        ("custom", CUSTOM, {"classes.txt": "Fight\nNormal\n"}, "classes.txt: found .*expected Normal, then"),
        ("custom", CUSTOM, {"classes.txt": "Normal\nFight\nFight\n"}, "classes.txt: found .*each anomaly class once"),
        (
            "custom",
            CUSTOM,
            {TEMPORAL: "my d.mp4 Fall\n"},
            f"{TEMPORAL}, line 1: found 'my d.mp4 Fall', expected 'name Class",
        ),
        ("custom", CUSTOM, {TEMPORAL: "d.mp4 1 2\n"}, f"{TEMPORAL}, line 1: found 'd.mp4 1 2', expected 'name Class"),
        ("custom", CUSTOM, {TEMPORAL: "my d.mp4 Fall 3 5 9\n"}, f"{TEMPORAL}, line 1: found 3 frame numbers"),
        ("custom", CUSTOM, {TEMPORAL: "my d.mp4 Fall 5 4\n"}, f"{TEMPORAL}, line 1: found the interval 5 4"),
        ("custom", CUSTOM, {TEMPORAL: "my d.mp4 Fall -1 4\n"}, f"{TEMPORAL}, line 1: found the interval -1 4"),
        (
            "custom",
            CUSTOM,
            {TEMPORAL: "my d.mp4 Fall 1 2\nmy d.mp4 Fall 5 6\n"},
            f"{TEMPORAL}, line 2: found my d again",
        ),
        (
            "custom",
            CUSTOM,
            {TEMPORAL: "my d.mp4 Fall -1 -1\n"},
            f"{TEMPORAL}: found 0 intervals of Fall/my d, .*line 3",
        ),
        (
            "custom",
            CUSTOM,
            {TEMPORAL: CUSTOM[TEMPORAL] + "x.mp4 Fall 5 6\n"},
            f"{TEMPORAL}, line 3: found x, expected a video of",
        ),
        (
            "custom",
            CUSTOM,
            {TEMPORAL: CUSTOM[TEMPORAL].replace("-1  -1", "1 2")},
            "found 2 intervals of Normal/c, expected none",
        ),
        ("custom", CUSTOM, TWO_NAMESAKES, f"{TEMPORAL}: found c for two test videos"),
        (
            "ucfcrime",
            RELEASED_LISTS,
            {"Annotations/Anomaly_Test.txt": "a 0 9\n"},
            "Test.txt, line 1: found 'a 0 9', expected 'path",
        ),
        (
            "ucfcrime",
            RELEASED_LISTS,
            {"Annotations/Anomaly_Test.txt": "a 0 9 14\n"},
            "found the label id 14, expected 0 to 13",
        ),
        ("ucfcrime", RELEASED_LISTS, {"Annotations/Anomaly_Test.txt": "a 9 8 1\n"}, "found the frames 9 to 8"),
        (
            "ucfcrime",
            RELEASED_LISTS,
            {"Annotations/Anomaly_Test.txt": "a 0 9 1\n"},
            "Videos.txt: found 0 intervals of a",
        ),
        (
            "ucfcrime",
            RELEASED_LISTS,
            {"Annotations/other_test.txt": "a"},
            "found Anomaly_Test.txt and other_test.txt, expected one",
        ),
        (
            "ucfcrime",
            UCF,
            {"Anomaly_Train.txt": "Abuse001_x264.mp4\n"},
            "Train.txt, line 1: .*expected 'Class/video.mp4'",
        ),
        (
            "ucfcrime",
            UCF,
            {"Anomaly_Train.txt": "Abuses/Abuse001.mp4\n"},
            "Train.txt, line 1: found the class 'Abuses'",
        ),
        (
            "xdviolence",
            XD,
            {"train.txt": "v=c__#1_label_B3-0-0\n"},
            "train.txt, line 1: found 'v=c__#1_label_B3-0-0', .*B1, B2, B4",
        ),
        ("xdviolence", XD, {"train.txt": "v=c__#1\n"}, "train.txt, line 1: found 'v=c__#1'"),
        (
            "xdviolence",
            XD,
            {"annotations.txt": "v=d e__#1_label_0-B6-0 51 51\n"},
            "annotations.txt, line 1: found the interval 51 51",
        ),
        ("shanghaitech", SHANGHAITECH, {"SH_Train.txt": "01_14\n"}, "SH_Train.txt, line 1: found '01_14'"),
        (
            "shanghaitech",
            SHANGHAITECH,
            {"classes.csv": "01_0014,car\n"},
            "SH_Test.txt, line 2: found the anomalous video 01_0015",
        ),
        (
            "shanghaitech",
            SHANGHAITECH,
            {"classes.csv": "01_0014\n"},
            "classes.csv, line 1: found '01_0014', expected 'video,class'",
        ),
        ("shanghaitech", SHANGHAITECH, {}, "01_0015.npy: cannot be read"),
    ],
)
def test_bad_lists_are_named_with_file_and_line(tmp_path, dataset, files, changed, message):
    write_files(tmp_path, files | changed)
    with pytest.raises(InputError, match=message) as error:
        load_lists(dataset, tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dataset, files, message",
    [
        ("custom", {"classes.txt": "Normal\nFight\n"}, "train.txt: cannot be read"),
        (
            "ucfcrime",
            {"Anomaly_Test.txt": "x"},
            r"found no \*train\*.txt, \*temporal\*.txt here or in Annotations, .*\*train\*abn",
        ),
        ("ucfcrime", {"x_train_normal.txt": "x"}, r"found no \*train\*abnormal\*.txt, \*test\*.txt, \*temporal\*.txt"),
        ("ucfcrime", {"x_train_abnormal.txt": "x"}, r"found no \*train\*normal\*.txt, \*test\*.txt, \*temporal\*.txt"),
        ("xdviolence", {}, "found no annotations.txt"),
        (
            "xdviolence",
            {"annotations.txt": "x 1 2"},
            r"found no train videos, expected a list \*train\*.txt .* folder \*train\*",
        ),
        ("shanghaitech", {}, r"found no \*train\*.txt, \*test\*.txt"),
    ],
)
def test_missing_lists_are_told_with_what_was_looked_for(tmp_path, dataset, files, message):
    with pytest.raises(InputError, match=message):
        load_lists(dataset, write_files(tmp_path, files))


def test_a_missing_folder_and_needless_or_missing_class_files_are_told(tmp_path):
    with pytest.raises(InputError, match="nowhere: is no folder"):
        load_lists("custom", tmp_path / "nowhere")
    with pytest.raises(InputError, match="c.csv: found a file of classes, expected none"):
        load_lists("custom", write_files(tmp_path, CUSTOM), "c.csv")
    with pytest.raises(InputError, match="c.csv: cannot be read"):
        load_lists("shanghaitech", write_files(tmp_path / "sh", SHANGHAITECH), tmp_path / "c.csv")


@pytest.mark.parametrize(
    "text, message",
    [
        ("0,a\n2,normal\n", "ids.csv, line 2: found the id '2', expected 1"),
        ("0,a\n1,b\n", "expected Normal and others"),
        ("0,normal\n1,a\n2,a\n", "expected Normal and others, each once"),
        ("0;a", "line 1: found '0;a', expected 'id,name'"),
    ],
)
def test_bad_class_ids_are_told(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_lists("ucfcrime", write_files(tmp_path, RELEASED_LISTS | {"ids.csv": text}), tmp_path / "ids.csv")


@pytest.mark.parametrize("mask", [np.array([0, 2, 1]), np.zeros((2, 3)), np.array([0, np.nan, 1])])
def test_a_mask_that_is_no_mask_is_told(tmp_path, mask):
    write_masks(write_files(tmp_path, SHANGHAITECH), {"01_0015": mask})
    with pytest.raises(InputError, match="01_0015.npy: found an array .* expected 0 or 1 for each frame"):
        load_lists("shanghaitech", tmp_path)


def test_a_list_that_is_no_text_is_told(tmp_path):
    write_files(tmp_path, CUSTOM)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="train.txt: is not UTF-8 text"):
        load_lists("custom", tmp_path)
