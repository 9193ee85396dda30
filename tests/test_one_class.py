"""Tests of systems/one_class.py: learning from normal videos alone, from lists to events."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

import clip_model
import evaluate
import predict
import train
from tests.places import torchrun
from tests.synthetic import equal
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import write_clip
from videoanomaly.data.annotations import Video, VideoLists
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.features import FeatureFolder, check_features
from videoanomaly.data.training_data import TrainingData
from videoanomaly.prediction.recogniser import PredictionOptions, load
from videoanomaly.runtime.console import InputError
from videoanomaly.systems import one_class
from videoanomaly.systems.catalogue import from_dict
from videoanomaly.weights.checkpoints import open_folders

D = 12
LOUD = np.array([20.0] + [1.0] * (D - 1))  # what normal rows vary by: most along axis 0
META = {"encoder": "normal", "weights_sha256": None, "dim": D, "stride": 1, "crops": 1, "jpeg": None}
QUICK = ["--bootstrap", "20", "--timelines", "2"]
WIDE = ["--num-segments", "6", "--num-frames", "4", "--device", "cpu"]


def write_normal(root: Path, num_train: int = 40, odd: bool = True, length: int = 30, meta: dict = META) -> Path:
    """Lists of normal training videos; `odd` test videos lie 7 units along the quiet last axis in rows 10 to 19."""
    rng = np.random.default_rng(0)
    (root / "features").mkdir(parents=True)
    lines, annotations = {"train": [], "test": []}, []
    dim = meta["dim"]
    for split, number in (("train", num_train), ("test", 12)):
        for i in range(number):
            rows = rng.normal(size=(length, dim)) * np.resize(LOUD, dim) + rng.normal(size=dim) / 4 + 5
            kind = "Normal" if split == "train" or i % 2 or not odd else "Fall"
            rows[10:20, -1] += 7 * (kind == "Fall")
            np.save(root / "features" / f"{split}{i}.npy", rows.astype(np.float32))
            lines[split].append(f"{split}{i}.mp4 {kind}")
            if split == "test":
                annotations.append(f"{split}{i}.mp4  {kind}  {'10  19' if kind == 'Fall' else '-1  -1'}")
    for split, text in lines.items():
        (root / f"{split}.txt").write_text("\n".join(text))
    (root / "temporal_annotations.txt").write_text("\n".join(annotations))
    (root / "classes.txt").write_text("Normal\nFall\n" if odd else "Normal\n")
    videos = {line.split(".")[0]: {"frames": length, "fps": 5.0} for text in lines.values() for line in text}
    (root / "features" / "meta.json").write_text(json.dumps(meta | {"videos": videos}))
    return root


def learn(root: Path, out: Path, *options: str) -> dict:
    train.main(["--dataset", "custom", "--root", str(root), "--out", str(out), "--normal-only", *WIDE, *options])
    return torch.load(out / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def normal(tmp_path_factory) -> Path:
    return write_normal(tmp_path_factory.mktemp("normal") / "data")


@pytest.fixture(scope="module")
def trained(normal, tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint file and what it holds."""
    out = tmp_path_factory.mktemp("run") / "out"
    checkpoint = learn(normal, out)
    return out / "last.pt", checkpoint


def data_of(checkpoint: dict) -> TrainingData:
    lists, (features, temporal) = VideoLists.from_plain(checkpoint["lists"]), open_folders(checkpoint)
    check_features(features, lists.train)
    return TrainingData(DATASETS["custom"], lists, features, temporal)


# ---- statistics


def test_the_covariance_is_that_of_scikit_learns_oas():
    rng = np.random.default_rng(0)
    for num_rows in (4, 30, 3000):
        rows = rng.normal(size=(num_rows, D)) * np.linspace(0.1, 3, D)
        expected = OAS(assume_centered=True).fit(rows).covariance_
        found = one_class.shrunk(rows.T @ rows / num_rows, num_rows)
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sums_over_groups_of_videos_give_what_all_rows_at_once_give(normal, trained):
    rows = np.concatenate([np.load(normal / "features" / f"train{i}.npy").astype(float) for i in range(40)])
    model = from_dict(trained[1]).eval()
    assert np.allclose(model.prototype, rows.mean(axis=0), atol=1e-5)
    precision = np.linalg.inv(one_class.shrunk(np.cov(rows.T, bias=True), 40))  # a video of 6 s is one sample
    assert np.allclose(model.whitening @ model.whitening.T, precision, rtol=1e-3, atol=1e-5)


def test_an_hour_counts_as_its_half_minutes_and_few_videos_leave_the_distance_to_the_prototype(tmp_path):
    features = FeatureFolder(write_normal(tmp_path / "d", num_train=2, length=900))
    groups = one_class.grouped([Video("train0", -1), Video("train1", -1), Video("test0", 0)], features)
    assert [(len(group.videos), group.num_samples) for group in groups] == [(1, 6), (1, 6)]  # 180 s
    _, whitening = one_class.gaussian(groups[:1])
    lengths = np.linalg.eigvalsh(whitening @ whitening.T)
    assert lengths.max() / lengths.min() < 40  # where the variances of the rows differ by a factor of 400


def judges(data, model) -> list:
    """Of each group of videos: the model with the statistics of all others, and the videos."""
    found = []
    for videos, *statistics in one_class.left_out(one_class.grouped(data.lists.train, data.features)):
        centre, whitening = (torch.from_numpy(value).float() for value in statistics)
        known = {"prototype": centre, "whitening": whitening, "usual": model.usual, "rare": model.rare}
        found.append((one_class.OneClassGaussian(model.config, **known).eval(), videos))
    return found


def test_statistics_leave_the_scored_videos_out(trained):
    """A planted leak: a row that no other video is like is far from the statistics of the others alone."""
    data, model = data_of(trained[1]), from_dict(trained[1]).eval()
    for judge, videos in judges(data, model):
        others = [v for v in data.lists.train if v not in videos]
        rows = np.concatenate([data.features.open(v.name)[:, 0].astype(float) for v in others])
        assert len(videos) == 8 and np.allclose(judge.prototype, rows.mean(axis=0), atol=1e-4)
        assert judge.usual == model.usual and judge.rare == model.rare
    scored = [v.name for _, videos in judges(data, model) for v in videos]
    assert sorted(scored) == sorted(v.name for v in data.lists.train)


def test_p_A_is_a_half_where_one_normal_row_in_twenty_lies_and_near_one_far_beyond(trained):
    data, model = data_of(trained[1]), from_dict(trained[1]).eval()
    p_A = np.concatenate(
        [judge.predict(data.features.open(v.name))[0] for judge, videos in judges(data, model)
         for v in videos]
    )  # fmt: skip
    assert np.mean(p_A > 0.5) == pytest.approx(0.05, abs=2e-3)
    assert np.median(p_A) == pytest.approx(0.05 / 0.55, abs=2e-3)
    far = model.prototype.numpy() + np.eye(D, dtype=np.float32)[-1] * np.array([[0.0], [3], [6], [50]], np.float32)
    found = model.predict(far)[0]
    assert (np.diff(found) > 0).all() and found[0] < 0.02 and found[-1] > 0.99


def test_the_threshold_comes_from_statistics_that_have_not_seen_the_video(tmp_path):
    """One is like no other: what has seen it finds it less odd, and would promise too much."""
    path = write_normal(tmp_path / "d") / "features" / "train0.npy"
    np.save(path, np.load(path) + 8 * np.eye(D, dtype=np.float32)[-1])
    checkpoint = learn(tmp_path / "d", tmp_path / "out")
    flattering = learn(tmp_path / "d", tmp_path / "without", "--folds", "0")
    assert equal(flattering["model"], checkpoint["model"]) and flattering["threshold"] < checkpoint["threshold"]


@pytest.mark.parametrize("num_train", [1, 2, 7])
def test_few_videos_do(tmp_path, num_train):
    checkpoint = learn(write_normal(tmp_path / "d", num_train), tmp_path / "out")
    p_A, _ = from_dict(checkpoint).eval().predict(np.load(tmp_path / "d" / "features" / "test0.npy"))
    assert np.isfinite(p_A).all() and 0 < checkpoint["threshold"] <= 1


def test_rows_that_are_all_alike_are_normal_and_any_other_is_not(tmp_path):
    root = write_normal(tmp_path / "d", 6)
    for i in range(6):
        np.save(root / "features" / f"train{i}.npy", np.full((30, D), 5, np.float32))
    model = from_dict(learn(root, tmp_path / "out")).eval()
    p_A, _ = model.predict(np.array([[5.0] * D, [5.0] * (D - 1) + [6]]))
    assert p_A[0] < 0.5 and p_A[1] > 0.99


def test_a_part_of_the_videos_and_the_whole_give_the_same_kind_of_model(trained):
    """What cross-fitting does."""
    data = data_of(trained[1])
    part = data._replace(lists=VideoLists(data.lists.classes, data.lists.train[::2], []))
    learned = one_class.OneClassGaussian.learn(part, seed=0)
    model = one_class.OneClassGaussian(from_dict(trained[1]).config, **learned)
    assert model.finish(part) is None and model.extras(part) == {}
    assert not torch.equal(model.whitening, from_dict(trained[1]).whitening)


# ---- from lists to events


def test_planted_outliers_are_found_better_than_by_the_distance_to_the_prototype(normal, trained, tmp_path, capsys):
    """They are small beside what normal rows do along another axis."""
    path = trained[0]
    evaluate.main(["--ckpt", str(path), "--out", str(tmp_path), "--rules", "--device", "cpu", *QUICK])
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["AUC"] > 0.97 and results["rules"]["distance to prototype"]["AUC"] < 0.7
    assert results["rules"].keys() == {"distance to prototype"}  # a regression has nothing to tell apart
    assert results["per_class"].keys() == {"Anomaly"} and results["operation"]["event_recall"] == 1
    assert (tmp_path / "confusion.png").exists() and len(list(tmp_path.rglob("timelines/*.png"))) == 2
    assert "no training video of" not in capsys.readouterr().err


def test_the_score_is_that_of_a_slow_loop(trained, normal):
    model, rows = from_dict(trained[1]).eval(), np.load(normal / "features" / "test0.npy")
    W, usual, rare = (x.double().numpy() for x in (model.whitening, model.usual, model.rare))
    for row, p, of_class in zip(rows, *model.predict(rows)):
        distance = np.sqrt(sum(((row - model.prototype.numpy()) @ W[:, k]) ** 2 for k in range(D)))
        tail = 0.5 * (distance / usual) ** (np.log(0.1) / np.log(rare / usual))
        assert p == pytest.approx(0.05 / (0.05 + tail), abs=1e-4) and of_class == pytest.approx(p)


def test_lists_of_normal_videos_alone_are_enough(tmp_path, capsys):
    root = write_normal(tmp_path / "d", odd=False)
    checkpoint = learn(root, tmp_path / "out")
    assert checkpoint["lists"]["classes"] == ["Anomaly"] and "0 abnormal and 40 normal" in capsys.readouterr().out
    results = evaluate.main(["--ckpt", str(tmp_path / "out" / "last.pt"), "--device", "cpu", *QUICK])
    assert results is None and "absent" in capsys.readouterr().out
    with pytest.raises(InputError, match="d: found 0 anomalous and 40 normal training videos, .* or --normal-only"):
        train.main(["--dataset", "custom", "--root", str(root), "--out", str(tmp_path / "other")])


def test_abnormal_training_videos_are_left_out_with_their_features_and_one_line(normal, trained, tmp_path, capsys):
    root = write_normal(tmp_path / "d")
    with open(root / "train.txt", "a") as file:
        file.write("\nthere_is_no_such_file.mp4 Fall")
    checkpoint = learn(root, tmp_path / "out")
    assert "d: --normal-only leaves out 1 abnormal training videos" in capsys.readouterr().err
    assert equal(checkpoint["model"], trained[1]["model"])


def test_resuming_a_finished_run_changes_nothing(normal, trained, tmp_path):
    learn(normal, tmp_path)
    assert equal(learn(normal, tmp_path, "--resume")["model"], trained[1]["model"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "rtfm"], "not allowed with argument"),
        (["--epochs", "3"], "--epochs: found with --normal-only, which has no use for it"),
        (["--directions", "frozen"], "--directions: found with --normal-only"),
        (["--lambdas", "sparse=1"], "--lambdas: found with --normal-only"),
        (["--temporal-features", "x"], "--temporal-features: found with --normal-only"),
    ],
)
def test_what_does_not_go_with_it_is_told_in_one_line(normal, tmp_path, options, message):
    with pytest.raises(InputError, match=message) as error:
        learn(normal, tmp_path / "out", *options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def events_of(folder: Path) -> list[dict]:
    return json.loads((folder / "events.json").read_text())["events"]


def test_a_red_second_in_grey_noise_is_an_event_of_predict_and_of_live(planted, tmp_path, capsys):
    root = tmp_path / "d"
    root.mkdir()
    for name in ("test.txt", "temporal_annotations.txt", "classes.txt"):
        (root / name).write_text((planted.root / "data" / name).read_text())
    lines = (planted.root / "data" / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join(line for line in lines if line.endswith("Normal")))
    checkpoint = learn(root, tmp_path / "run", "--features", str(planted.features))
    options = ["--ckpt", str(tmp_path / "run" / "last.pt"), *planted.options[2:]]
    video = str(write_clip(tmp_path / "v.mp4"))  # red from 2 to 3 s
    capsys.readouterr()
    assert predict.main([*options, video, "--out", str(tmp_path / "out")]) == 0
    (event,) = events_of(tmp_path / "out")
    assert event["class"] == "Anomaly" and abs(event["start_frame"] - 50) <= 2 and event["end_frame"] == 75
    assert event["p_class"] > checkpoint["threshold"] / 2 and (tmp_path / "out" / "report.html").exists()
    capsys.readouterr()
    assert predict.main([*options, "--live", video]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in told if line["event"] == "end"] == ["Anomaly"]
    with pytest.raises(InputError, match="--classes needs the CLIP that made its features, found features of Colours"):
        predict.main([*options, video, "--out", str(tmp_path / "named"), "--classes", "fire"])
    with pytest.raises(InputError, match="--explain are for checkpoints of AnomalyCLIP, found one of gaussian"):
        predict.main([*options, video, "--out", str(tmp_path / "named"), "--explain"])


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_the_exported_model_agrees(trained, tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    if suffix == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    predict.main(["--ckpt", str(trained[0]), "--export", str(path), "--device", "cpu"])
    passes = torch.randn(3, 6, 4, D)
    expected = from_dict(trained[1]).eval().score_segments(passes[None])
    if suffix == "onnx":
        found = onnxruntime.InferenceSession(str(path)).run(["p_A", "p_class"], {"features": passes.numpy()})
    else:
        found = [x.detach().numpy() for x in torch.export.load(path).module()(passes)]
    for ours, theirs in zip(found, expected):
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4


# ---- names from CLIP


@pytest.fixture(scope="module")
def of_clip(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint on features that are said to be the tiny CLIP's, and that CLIP."""
    root = tmp_path_factory.mktemp("clip")
    torch.save(tiny_clip_state_dict(), root / "clip.pt")
    clip = clip_model.load(root / "clip.pt")
    own = {"encoder": "clip tiny", "weights_sha256": clip_model.weights_hash(clip.visual)}
    write_normal(root / "d", 8, meta=META | own | {"dim": clip.text_projection.shape[1]})
    learn(root / "d", root / "run", "--clip", str(root / "clip.pt"))
    return root / "run" / "last.pt", root / "clip.pt"


def test_names_are_those_of_zero_shot_clip_and_p_A_stays_bit_for_bit(of_clip, tmp_path):
    names = ("Abuse", "Robbery", "Shoplifting")
    plain, named = (load(PredictionOptions(str(of_clip[0]), "cpu", classes=given)).model for given in (None, names))
    clip = clip_model.load(of_clip[1])
    with torch.no_grad():
        prompts = clip.encode_text(clip_model.tokenize([f"a video from a CCTV camera of a {name}" for name in names]))
    unit = torch.nn.functional.normalize(prompts.float(), dim=-1).numpy()
    rows = np.concatenate([20 * prompts.numpy(), np.load(of_clip[0].parents[1] / "d" / "features" / "test0.npy")])
    (before, _), (p_A, p_class) = plain.predict(rows), named.predict(rows)
    assert np.array_equal(before, p_A)
    cosines = rows / np.linalg.norm(rows, axis=1, keepdims=True) @ unit.T
    expected = torch.from_numpy(cosines * clip.logit_scale.exp().item()).softmax(dim=1).numpy() * p_A[:, None]
    assert np.allclose(p_class, expected, atol=1e-4) and (p_class[:3].argmax(axis=1) == np.arange(3)).all()


def test_predict_names_events_and_the_export_holds_the_names(of_clip, tmp_path):
    np.save(tmp_path / "x.npy", np.load(of_clip[0].parents[1] / "d" / "features" / "test0.npy"))
    options = ["--ckpt", str(of_clip[0]), "--device", "cpu", "--classes", "Abuse, Robbery"]
    predict.main([*options, "--features", str(tmp_path / "x.npy"), "--fps", "5", "--out", str(tmp_path / "out"),
                  "--threshold", "0.6"])  # fmt: skip
    assert {event["class"] for event in events_of(tmp_path / "out")} <= {"Abuse", "Robbery"}
    assert json.loads((tmp_path / "out" / "events.json").read_text())["classes"] == ["Abuse", "Robbery"]
    predict.main([*options, "--export", str(tmp_path / "model.pt2")])


def test_another_clip_or_none_is_told(of_clip, tmp_path):
    state = tiny_clip_state_dict()
    torch.save(state | {"visual.proj": state["visual.proj"] + 1}, tmp_path / "other.pt")
    rest = ["--ckpt", str(of_clip[0]), "--features", "x.npy", "--out", str(tmp_path / "out"), "--device", "cpu"]
    needs = "--classes needs the CLIP that made its features, found"
    for given, classes, message in (
        (str(tmp_path / "other.pt"), "Abuse", f"{needs} another one in .*other.pt"),
        (str(tmp_path / "none.pt"), "Abuse", f"{needs} none .*none.pt.*; give --clip FILE"),
        (str(of_clip[1]), "Abuse " * 90, "found a name of more than 77 tokens"),
    ):
        with pytest.raises(InputError, match=message) as error:
            predict.main([*rest, "--clip", given, "--classes", classes])
        assert "\n" not in str(error.value)


def test_the_clip_that_names_is_found_beside_the_checkpoint(of_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    checkpoint = torch.load(of_clip[0], weights_only=True)
    checkpoint["settings"]["clip"] = "gone/clip.pt"
    torch.save(checkpoint, tmp_path / "last.pt")
    options = PredictionOptions(str(tmp_path / "last.pt"), "cpu", classes=("Abuse",))
    with pytest.raises(InputError, match="found no CLIP whose image tower has weights_sha256 .*; give --clip FILE"):
        load(options)
    state = tiny_clip_state_dict()
    torch.save(state | {"visual.proj": state["visual.proj"] + 1}, tmp_path / "clip.pt")
    with pytest.raises(InputError, match="passed over: .*clip.pt: another CLIP"):
        load(options)
    (tmp_path / "clip.pt").write_bytes(of_clip[1].read_bytes())
    assert load(options).model.config.classes == ("Abuse",)


# ---- several processes, and the demo


@pytest.mark.slow
def test_several_processes_learn_what_one_does(normal, trained, tmp_path):
    words = ["--dataset", "custom", "--root", str(normal), "--out", str(tmp_path / "out"), "--normal-only", *WIDE]
    process = torchrun("train.py", *words)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    found = torch.load(tmp_path / "out" / "last.pt", weights_only=True)
    for key, value in trained[1]["model"].items():
        assert torch.allclose(found["model"][key], value, atol=1e-4), key
    assert found["threshold"] == pytest.approx(trained[1]["threshold"], abs=1e-4)
