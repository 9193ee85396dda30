"""Thresholds that hold: the operating curve, and folds whose models have not seen what they score."""

import json
import multiprocessing
import re
import shutil
import signal

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch

import train
from tests.children import server
from tests.synthetic import equal, run, write_dataset
from videoanomaly import plots
from videoanomaly.data.annotations import Video
from videoanomaly.data.features import FeatureFolder
from videoanomaly.operating_curve import OperatingCurve, Watched, measure, quantile_of, rate_interval, share_interval
from videoanomaly.runtime.console import InputError
from videoanomaly.training import cross_fitting
from videoanomaly.training.cross_fitting import sources, split

HOUR = 3600


def watched(label: int, *peaks: float, seconds: int = HOUR, source: str = "", named: int = 0) -> Watched:
    """A video of one frame a second with a bump of ten seconds for each peak."""
    p_A = np.zeros(seconds, np.float32)
    for i, peak in enumerate(peaks):
        p_A[50 * i + 20 : 50 * i + 30] = peak
    return Watched(label, p_A, p_A[:, None] * np.eye(2)[named], 1.0, source)


VIDEOS = [watched(-1, 0.5, 0.5, 0.2), watched(-1), watched(0, 0.9), watched(1, 0.4), watched(1, 0.3, 0.8, named=1)]


def test_a_curve_counts_alarms_in_unseen_videos_by_hand():
    curve = measure(VIDEOS)
    assert (curve.num_normal, curve.num_abnormal, curve.normal_hours) == (2, 3, 2)
    low, high = curve.at(0.46), curve.at(0.86)
    assert low["false_alarms_per_hour"] == 1 and low["normal_alarmed"] == 0.5
    assert low["found"] == low["named"] == pytest.approx(2 / 3) and low["balanced_accuracy"] == pytest.approx(7 / 12)
    assert high["false_alarms_per_hour"] == 0 and high["found"] == pytest.approx(1 / 3)
    lowest = curve.at(0.25)
    assert lowest["found"] == 1 and lowest["named"] == pytest.approx(2 / 3)  # 0.4 shows class 0 and is of class 1
    for row in curve.rows():
        for name in ("false_alarms_per_hour", "normal_alarmed", "found", "named"):
            low, high = row[f"{name}_interval"]
            assert low <= row[name] <= high


def test_thresholds_are_looked_up_by_rate_and_by_balanced_accuracy():
    curve = measure([*VIDEOS, watched(0, 0.95), watched(0, 0.92)])
    assert 0.5 < curve.best_threshold() < 0.8
    quiet, loud = curve.threshold_at(0), curve.threshold_at(1)
    assert 0.5 < quiet < 0.8 and loud < 0.5
    assert all(curve.at(t)["false_alarms_per_hour"] == 0 for t in curve.thresholds if t >= quiet)
    assert curve.lowest_rate == 0.5
    only_normal = measure([watched(-1, 0.9), watched(-1, 0.6), watched(-1, 0.3)])
    assert only_normal.best_threshold() < 0.6  # two alarms in three hours
    assert measure([watched(-1, 0.9, seconds=600)]).best_threshold() > 0.9
    assert only_normal.at(0.7)["found"] is only_normal.at(0.7)["balanced_accuracy"] is None
    only_abnormal = measure(VIDEOS[2:])
    assert only_abnormal.threshold_at(1) is not None and only_abnormal.at(0.5)["false_alarms_per_hour"] is None


def test_a_curve_comes_back_from_a_checkpoints_plain_values():
    curve = measure(VIDEOS)
    back = OperatingCurve.from_plain(json.loads(json.dumps(curve.to_plain())))
    assert [back.at(t) for t in (0.1, 0.5, 0.9)] == [curve.at(t) for t in (0.1, 0.5, 0.9)]
    assert back.rows() == curve.rows() and back.best_threshold() == curve.best_threshold()


def test_the_picture_shows_for_each_rate_what_its_threshold_finds():
    rng = np.random.default_rng(0)
    videos = [watched(label, *rng.random(3)) for label in (-1, 0, 1) for _ in range(20)]
    videos += [
        video._replace(p_A=np.maximum(video.p_A, 0.45)) for video in [watched(-1, *[0.95] * 9)]
    ]  # 9 alarms, or 1
    curve = measure(videos)
    assert (np.diff(curve.false_alarms) > 0).any()
    axes = plt.figure().subplots()
    plots.draw_shares(axes, curve)
    rates, shares = axes.lines[0].get_data()
    for rate in np.arange(0.01, 2, 0.06):
        threshold = curve.threshold_at(rate)
        assert shares[rates <= rate][-1] == pytest.approx(100 * curve.at(threshold)["found"])
    plots.draw_rates(axes := plt.figure().subplots(), curve)
    for threshold, rate in zip(*axes.lines[0].get_data()):
        assert rate == curve.at(threshold)["false_alarms_per_hour"]
    plt.close("all")


@pytest.mark.parametrize("videos", [VIDEOS[:2], VIDEOS[2:], [watched(-1), watched(0, 0.9)], [watched(-1, 0.9)]])
def test_a_picture_is_drawn_whatever_there_is_of_either_kind(videos, tmp_path):
    plots.operating_curve(tmp_path / "curve.png", measure(videos))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_are_the_published_ones():
    assert rate_interval(10, 2) == pytest.approx((4.795 / 2, 18.39 / 2), rel=2e-3)  # exact Poisson
    assert rate_interval(0, 1) == pytest.approx((0, 3.69), rel=2e-2) and rate_interval(3, 0) == (0, np.inf)
    assert share_interval(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3) and share_interval(0, 0) == (0, 1)


def test_alarms_that_come_from_one_source_widen_the_interval():
    loud = [watched(-1, 0.9, 0.9, 0.9, source=f"camera{i // 5}" if i < 5 else f"other{i // 5}") for i in range(5)]
    calm = [watched(-1, source=f"calm{i // 5}") for i in range(15)]
    together = measure([*loud, *calm, watched(0, 0.95)]).at(0.5)
    alone = measure([v._replace(source="") for v in (*loud, *calm, watched(0, 0.95))]).at(0.5)
    assert together["false_alarms_per_hour"] == alone["false_alarms_per_hour"] == 0.75
    widths = [np.diff(found["false_alarms_per_hour_interval"])[0] for found in (together, alone)]
    assert widths[0] > 1.5 * widths[1]


def test_intervals_contain_what_later_videos_do():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):  # cameras with rates of their own, several videos each
        cameras = rng.gamma(1, 2, 12)
        videos = [
            watched(-1, *[0.9] * rng.poisson(rate), source=str(i)) for i, rate in enumerate(cameras) for _ in range(3)
        ]
        low, high = measure([*videos, watched(0, 0.95)]).at(0.5)["false_alarms_per_hour_interval"]
        inside += low <= 2 <= high
    assert inside >= 170


def test_few_sources_leave_room_for_what_others_do():
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        cameras = rng.gamma(1, 2, 3)
        videos = [
            watched(-1, *[0.9] * rng.poisson(rate), source=str(i)) for i, rate in enumerate(cameras) for _ in range(6)
        ]
        low, high = measure([*videos, watched(0, 0.95)]).at(0.5)["false_alarms_per_hour_interval"]
        inside += low <= 2 <= high
    assert inside >= 180  # 150 where three cameras are taken to tell how much cameras differ
    alone = [video._replace(source="") for video in videos]
    many = [video._replace(source=str(i)) for i, video in enumerate(videos)]  # nothing is shared
    assert np.array_equal(measure(alone).dispersion, measure(many).dispersion)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 10, 30, 1000])
def test_the_quantile_is_students(freedom):
    assert quantile_of(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=0.01)


# ---- folds ----


def test_folds_spread_classes_evenly_and_keep_sources_together():
    labels = [-1] * 30 + [0] * 15 + [1] * 15
    folds = split(labels, [str(i) for i in range(60)], 5, 0)
    counts = np.array([[np.sum((folds == k) & (np.array(labels) == c)) for c in (-1, 0, 1)] for k in range(5)])
    assert (counts == [6, 3, 3]).all()
    groups = [f"camera{i % 12}" for i in range(60)]
    by_camera = {}
    for group, fold in zip(groups, split(labels, groups, 3, 0)):
        by_camera.setdefault(group, set()).add(fold)
    assert all(len(found) == 1 for found in by_camera.values())


@pytest.mark.parametrize(
    "labels, groups, num_folds",
    [
        ([-1, -1, 0, 0], "abcd", 2),  # fewer than asked for
        ([-1] * 10 + [0, 1, 2], [str(i) for i in range(13)], 3),  # one video of each class
        ([-1] * 10, [str(i) for i in range(10)], 5),  # normal ones alone
        ([-1] * 10 + [0], [str(i) for i in range(11)], None),  # one abnormal video
        ([-1, -1, 0, 0], "aaaa", None),  # one source
    ],
)
def test_few_videos_make_fewer_folds_or_none(labels, groups, num_folds):
    folds = split(labels, list(groups), 5, 0)
    assert (folds is None) if num_folds is None else len(set(folds)) == num_folds


def test_videos_that_cannot_be_split_are_told_before_the_training(tmp_path, capsys):
    root = write_dataset(tmp_path / "data")
    names = [line.split(".mp4")[0] for line in (root / "train.txt").read_text().splitlines()]
    (root / "groups.txt").write_text("".join(f"{name} {'hall' if i else 'yard'}\n" for i, name in enumerate(names)))
    run(root, tmp_path / "out", "--epochs", "1", "--folds", "4")
    told = capsys.readouterr()
    expected = (
        "--folds 4: found 2 sources of normal videos and 1 source of abnormal videos, which cannot be split so that"
    )
    assert expected in told.err and "what they do to other videos is unknown without folds" in told.out
    (root / "groups.txt").unlink()
    run(root, tmp_path / "out", "--epochs", "1", "--folds", "4", "--resume")
    assert "cannot be split" not in capsys.readouterr().err


def test_sources_come_from_a_file_or_from_the_beginnings_of_names(tmp_path):
    videos = [Video("Normal/cam1_001", -1), Video("Fire/cam1_002", 0), Video("Fire/cam2_001", 0)]
    assert sources(videos, tmp_path, None) == ["Normal/cam1_001", "Fire/cam1_002", "Fire/cam2_001"]
    assert sources(videos, tmp_path, "_") == ["cam1", "cam1", "cam2"]
    (tmp_path / "groups.txt").write_text("Normal/cam1_001.mp4 hall\nFire/cam1_002.mp4 yard\nFire/cam2_001 yard\n")
    assert sources(videos, tmp_path, "_") == ["hall", "yard", "yard"]
    (tmp_path / "groups.txt").write_text("Normal/cam1_001.mp4 hall\n")
    with pytest.raises(InputError, match="groups.txt: found no line for Fire/cam1_002"):
        sources(videos, tmp_path, None)
    (tmp_path / "groups.txt").write_text("hall\n")
    with pytest.raises(InputError, match="found 'hall', expected 'video source'"):
        sources(videos, tmp_path, None)


FOLDS = ("--folds", "4", "--epochs", "4")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run with folds: its folder, its checkpoint, and what was read while each fold trained and was scored."""
    root, reads, steps = tmp_path_factory.mktemp("folds"), [], []

    def note(step, real):
        def noted(*args):
            reads.append((step, set()))
            steps.append(step)
            result = real(*args)
            steps.clear()
            return result

        return noted

    def opening(real):
        def opened(self, name, **options):
            if steps:
                reads[-1][1].add(name)
            return real(self, name, **options)

        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_fitting, "train_fold", note("train", cross_fitting.train_fold))
        patch.setattr(cross_fitting, "score_videos", note("score", cross_fitting.score_videos))
        for name in ("open", "open_scattered"):
            patch.setattr(FeatureFolder, name, opening(getattr(FeatureFolder, name)))
        checkpoint = run(write_dataset(root / "data"), root / "out", *FOLDS)
    return root, checkpoint, reads


def test_no_video_is_scored_by_a_model_that_has_seen_it(fitted):
    _, checkpoint, reads = fitted
    assert [step for step, _ in reads] == ["train", "score"] * 4
    names = {video[0] for video in checkpoint["lists"]["train"]}
    for (_, seen), (_, scored) in zip(reads[::2], reads[1::2]):
        assert seen and scored and not seen & scored and seen | scored == names
    assert sorted(name for _, scored in reads[1::2] for name in scored) == sorted(names)


def test_the_curve_is_kept_with_the_checkpoint_and_its_best_threshold_is_the_default(fitted, capsys):
    root, checkpoint, _ = fitted
    curve = OperatingCurve.from_plain(checkpoint["operating_curve"])
    assert (curve.num_normal, curve.num_abnormal) == (8, 8) and curve.normal_hours > 0
    assert checkpoint["threshold"] == curve.best_threshold()
    assert (root / "out" / "operating_curve.png").read_bytes().startswith(b"\x89PNG")
    with np.load(root / "out" / "held_out.npz") as held_out:
        assert {f"{video[0]}.p_A" for video in checkpoint["lists"]["train"]} <= set(held_out)


def test_the_model_is_the_same_with_folds_and_without(fitted, tmp_path):
    root, checkpoint, _ = fitted
    alone = run(root / "data", tmp_path, "--epochs", "4")
    assert equal(alone["model"], checkpoint["model"]) and equal(alone["rng"], checkpoint["rng"])
    assert "operating_curve" not in alone and alone["threshold"] != checkpoint["threshold"]


def test_a_run_stopped_in_a_fold_goes_on_with_the_folds_that_are_left(fitted, tmp_path, monkeypatch, capsys):
    root, checkpoint, _ = fitted
    folds, real = [], cross_fitting.train_fold

    def stop_in_the_third(*args):
        folds.append(1)
        if len(folds) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(cross_fitting, "train_fold", stop_in_the_third)
    run(root / "data", tmp_path, *FOLDS)
    assert "before the last fold" in capsys.readouterr().out
    resumed = run(root / "data", tmp_path, *FOLDS, "--resume")
    assert len(folds) == 5
    assert equal(resumed["operating_curve"], checkpoint["operating_curve"]) and equal(resumed["rng"], checkpoint["rng"])


def test_a_wrong_list_of_sources_is_told_before_the_training(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "data")
    (root / "groups.txt").write_text("train00.mp4 hall\n")
    monkeypatch.setattr(train, "train_epoch", None)
    with pytest.raises(InputError, match="groups.txt: found no line for train01"):
        run(root, tmp_path / "out", *FOLDS)
    assert not (tmp_path / "out" / "last.pt").exists()


def test_check_looks_at_the_list_of_sources_of_published_data_too(tmp_path):
    videos = ["Abuse/Abuse001_x264", *(f"Training_Normal_Videos_Anomaly/Normal_Videos{i:03}_x264" for i in (1, 2))]
    for name in videos:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 8), np.float32))
    (tmp_path / "Anomaly_Train.txt").write_text("".join(f"{name}.mp4\n" for name in videos[:2]))
    (tmp_path / "Anomaly_Test.txt").write_text(f"{videos[2]}.mp4\n")
    (tmp_path / "Temporal_Anomaly_Annotation.txt").write_text("Normal_Videos002_x264  Normal  -1  -1  -1  -1  \n")
    (tmp_path / "groups.txt").write_text("Abuse/Abuse001_x264.mp4 hall\n")
    words = ["--dataset", "ucfcrime", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    train.main([*words, "--check"])  # without folds nothing asks for it
    with pytest.raises(InputError, match="groups.txt: found no line for Training_Normal_Videos_Anomaly/Normal_Vid"):
        train.main([*words, "--check", "--folds", "2"])


# ---- side by side ----


@pytest.fixture
def two_at_once(monkeypatch):
    monkeypatch.setattr(cross_fitting, "folds_at_once", lambda *given: 2)


def test_folds_side_by_side_give_what_folds_one_after_the_other_give(
    fitted, two_at_once, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cross_fitting, "train_fold", None)  # here, not in other processes
    children = server()  # in place of `spawn`, which tests/test_side_by_side.py has: they begin sooner
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: children)
    found = run(fitted[0] / "data", tmp_path, *FOLDS)
    assert sorted(re.findall(r"fold (\d)/4  12 videos seen, 4 scored", capsys.readouterr().out)) == ["1", "2", "3", "4"]
    with np.load(tmp_path / "held_out.npz") as apart, np.load(fitted[0] / "out" / "held_out.npz") as together:
        assert set(apart) == set(together) and str(apart["made_with"]) == str(together["made_with"])
        for name in set(apart) - {"made_with"}:
            np.testing.assert_allclose(apart[name], together[name], atol=1e-5)  # 24 bits; threads may round otherwise
    assert found["threshold"] == pytest.approx(fitted[1]["threshold"], abs=1e-5)


@pytest.mark.slow
def test_an_error_in_a_fold_that_is_trained_elsewhere_is_one_line(fitted, tmp_path, monkeypatch):
    data = shutil.copytree(fitted[0] / "data", tmp_path / "data")
    monkeypatch.setattr(
        cross_fitting, "folds_at_once", lambda *given: [2, (data / "features" / "train03.npy").unlink()][0]
    )
    with pytest.raises(InputError, match="data: found no features of train03"):
        run(data, tmp_path / "out", *FOLDS)
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["epoch"] == 4  # the training stays


@pytest.mark.slow
def test_a_signal_ends_folds_side_by_side_and_the_run_goes_on(fitted, two_at_once, tmp_path, monkeypatch, capsys):
    real = cross_fitting.HeldOut.add

    def stop_after_the_first(held_out, scores):
        real(held_out, scores)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(cross_fitting.HeldOut, "add", stop_after_the_first)
        run(fitted[0] / "data", tmp_path, *FOLDS)
    told = capsys.readouterr().out
    assert (
        told.count("videos seen") == 1 and "before the last fold" in told and "stopped by SIGTERM; go on with" in told
    )
    monkeypatch.undo()  # the others one after the other
    resumed = run(fitted[0] / "data", tmp_path, *FOLDS, "--resume")
    assert capsys.readouterr().out.count("videos seen") == 3
    assert resumed["threshold"] == pytest.approx(fitted[1]["threshold"], abs=1e-5)


@pytest.mark.parametrize(
    "given, device, expected",
    [([], "cpu", 2), (["--workers", "0"], "cpu", 1), (["--compile"], "cpu", 1), ([], "cuda", 1), ([], "cuda:1", 1)],
)
def test_folds_are_trained_side_by_side_on_cpus_alone(given, device, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    settings, _ = train.parse_args(["--dataset", "custom", "--root", "x", *given])
    assert cross_fitting.folds_at_once(settings, device, 5) == expected
    assert cross_fitting.folds_at_once(settings, device, 1) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cross_fitting.folds_at_once(settings, device, 5) == 1


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive"])
def test_damaged_scores_of_folds_are_made_anew(damage, tmp_path):
    (tmp_path / "held_out.npz").write_bytes(damage)
    held_out = cross_fitting.HeldOut(tmp_path / "held_out.npz", "settings")
    assert Video("a", -1) not in held_out
    held_out.add({"a": watched(-1)})
    assert Video("a", -1) in cross_fitting.HeldOut(tmp_path / "held_out.npz", "settings")
    assert Video("a", -1) not in cross_fitting.HeldOut(tmp_path / "held_out.npz", "other settings")


def test_without_folds_one_line_says_what_is_unknown(fitted, tmp_path, capsys):
    run(fitted[0] / "data", tmp_path, "--epochs", "1")
    assert "what they do to other videos is unknown" in capsys.readouterr().out
    with pytest.raises(InputError, match="--folds 1: expected 0, or 2 and more"):
        run(fitted[0] / "data", tmp_path / "other", "--folds", "1")
