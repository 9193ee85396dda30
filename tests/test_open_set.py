"""Tests of open_set.py and explain.py: classes that were never trained, on videos whose anomalies lie along text
directions.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import clip_model
import predict
import train
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import RED, write_clip
from videoanomaly.data import features as features_, prototype
from videoanomaly.data.annotations import Video
from videoanomaly.evaluation.paper_metrics import metrics
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction import explain, open_set, recogniser
from videoanomaly.runtime.console import InputError, options_of
from videoanomaly.systems import ours

TRAINED, NEW = ("Assault", "Robbery", "Shoplifting"), "Abuse"
KINDS = (*TRAINED, NEW)
SMALL = [
    "--num-segments",
    "6",
    "--num-frames",
    "4",
    "--topk",
    "2",
    "--embed-dim",
    "16",
    "--num-heads",
    "2",
    "--batch-size",
    "16",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--temporal",
    "mlp",
    "--num-ctx",
    "2",
    "--epochs",
    "30",
    "--lr",
    "2e-3",
    "--folds",
    "0",
]
HEIGHT = 6  # of an anomaly along its direction, in standard deviations of the noise


def planted_geometry(weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """A mean of normal features, (D,), and the unit directions from it to the texts of all classes, (C, D).

    The mean lies aside of all texts, as pictures do in CLIP's space, so that the directions have a part in common.
    """
    clip = clip_model.load(weights)
    with torch.no_grad():
        texts = clip.encode_text(clip_model.tokenize([f"X X {name}." for name in KINDS])).double().numpy()
    aside = np.random.default_rng(1).normal(size=texts.shape[1])
    mean = texts.mean(axis=0) + 3 * aside / np.linalg.norm(aside)
    return mean, (texts - mean) / np.linalg.norm(texts - mean, axis=1, keepdims=True)


def write_planted(root: Path, weights: Path) -> dict[str, np.ndarray]:
    """Videos in the `custom` layout, the new class's in neither list; frame labels of test videos."""
    rng, (mean, directions) = np.random.default_rng(0), planted_geometry(weights)
    (root / "features").mkdir(parents=True)
    truth, annotations = {}, []
    for split, kinds in (("train", TRAINED), ("test", KINDS)):
        lines = []
        for i, kind in enumerate(["Normal"] * 16 + 6 * [*kinds]):
            rows = mean + rng.normal(size=(60 + 7 * i % 40, len(mean)))
            start = int(rng.integers(5, 25))
            if kind != "Normal":
                rows[start : start + 24] += HEIGHT * directions[KINDS.index(kind)]
            name = f"{kind}_{split}{i:02d}"
            np.save(root / "features" / f"{name}.npy", rows.astype(np.float32))
            if kind != NEW:
                lines.append(f"{name}.mp4 {kind}")
            if split == "test":
                truth[name] = np.full(len(rows), -1)
                truth[name][start : start + 24] = KINDS.index(kind) if kind != "Normal" else -1
                interval = "-1  -1" if kind == "Normal" else f"{start}  {start + 23}"
                annotations.append(f"{name}.mp4  {kind}  {interval}  -1  -1")
        (root / f"{split}.txt").write_text("\n".join(lines))
    (root / "temporal_annotations.txt").write_text("\n".join(line for line in annotations if NEW not in line))
    (root / "classes.txt").write_text("\n".join(["Normal", *TRAINED]))
    return truth


class World:
    """The planted data, the tiny CLIP, and checkpoints trained on them by their options."""

    def __init__(self, root: Path):
        self.root, self.weights, self.checkpoints = root, root / "clip.pt", {}
        torch.save(tiny_clip_state_dict(), self.weights)
        self.data = root / "data"
        self.truth = write_planted(self.data, self.weights)

    def train(self, *options: str) -> str:
        if options not in self.checkpoints:
            out = self.root / f"run{len(self.checkpoints)}"
            train.main(
                [
                    "--dataset",
                    "custom",
                    "--root",
                    str(self.data),
                    "--out",
                    str(out),
                    "--clip",
                    str(self.weights),
                    *SMALL,
                    *options,
                ]
            )
            self.checkpoints[options] = str(out / "last.pt")
        return self.checkpoints[options]

    def load(self, training: tuple[str, ...], *options: str) -> recogniser.LoadedCheckpoint:
        return load_file(self.train(*training), *options)

    def scores(self, training: tuple[str, ...], *options: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """p_A and p_class of all test videos."""
        model = self.load(training, *options).model
        return [model.predict(np.load(self.data / "features" / f"{name}.npy")) for name in self.truth]


def load_file(checkpoint, *options: str) -> recogniser.LoadedCheckpoint:
    rest = ["--features", "x.npy", "--out", "out", "--device", "cpu"]
    args = predict.parse_args(["--ckpt", str(checkpoint), *rest, *options])
    return recogniser.load(options_of(recogniser.PredictionOptions, vars(args)))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


# ---- new classes


@pytest.mark.parametrize(
    "options",
    [("--shared-ctx",), ("--shared-ctx", "--temporal-input", "both"), ("--shared-ctx", "--likelihood", "cosine")],
    ids=lambda options: " ".join(options),
)
def test_a_class_never_trained_is_told_and_the_others_keep_their_scores(world, options):
    before, after = world.scores(options), world.scores(options, "--classes", f" {NEW}")
    for (p_A, p_class), (p_A_after, p_class_after) in zip(before, after):
        assert p_A.tobytes() == p_A_after.tobytes()
        rest = 1 - p_class_after[:, 3:] / p_A[:, None]
        assert np.allclose(
            p_class_after[:, :3], p_class * rest, atol=1e-5
        )  # the new class takes its share of each alike
        assert np.allclose(p_class_after.sum(axis=1), p_A, atol=1e-5)
    p_A, p_class = (np.concatenate(parts) for parts in zip(*after))
    truth = np.concatenate(list(world.truth.values()))
    found = metrics(p_A, p_class, truth, KINDS)
    assert found["per_class"][NEW]["AUC"] >= 0.9 and found["mAUC"] >= 0.9
    if "cosine" not in options:  # of four classes each is likeliest in a quarter of the normal frames
        assert (p_class.argmax(axis=1)[truth < 0] == 3).mean() < 0.35


def test_the_direction_of_a_new_class_is_its_prompt_with_the_learned_contexts_minus_the_prototype(world):
    """Both where the contexts are learned and with engineered prompts, which have none; slowly, at all 77 places."""
    clip, engineered = (
        clip_model.load(world.weights),
        ("--directions", "engineered", "--temporal", "axial", "--epochs", "1"),
    )
    cases = (("--shared-ctx",), "X X {}.", 2), (engineered, "a video from a CCTV camera of a {}", 0)
    for options, prompt, num_ctx in cases:
        loaded = world.load(options, "--classes", NEW)
        tokens = clip_model.tokenize([prompt.format(NEW)])
        embeddings, state = clip.token_embedding(tokens), loaded.checkpoint["model"]
        if num_ctx:
            embeddings[:, 1:3] = state["prompt_learner.ctx"]
        clip.text_projection.data = state["prompt_learner.text_projection"]
        with torch.no_grad():
            text = clip.encode_text_embeddings(embeddings, tokens.argmax(dim=-1))
        assert torch.allclose(loaded.model.new_directions, text - state["prototype"], atol=1e-5)
    recipe = ("--recipe", "beyond", "--temporal", "axial", "--epochs", "1")
    found = world.load(recipe, "--classes", NEW).model
    whole = AnomalyCLIP(
        replace(found.config, classes=(NEW, "other")),
        clip=clip,
        tokenize=clip_model.tokenize,
        prototype=found.prototype,
    )
    assert found.config.directions == "ensemble"
    assert torch.allclose(found.new_directions[0], whole.class_directions()[0], atol=1e-5)
    before, after = world.scores(options), world.scores(options, "--classes", NEW)
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(before, after))


def test_statistics_of_trained_classes_estimated_from_each_other_are_near_their_own(world):
    loaded = world.load(("--shared-ctx",))
    model, moments = loaded.model, loaded.checkpoint["normal_moments"]
    mean, var = open_set.projection_statistics(model, moments, 5 * model.directions)
    assert ((var / model.batch_norm.running_var).log().abs() < np.log(1.5)).all()
    assert ((mean - model.batch_norm.running_mean).abs() < 0.4 * var.sqrt()).all()
    normal = np.concatenate([np.load(path) for path in (world.data / "features").glob("Normal_train*.npy")])
    unit = torch.nn.functional.normalize(model.directions, dim=-1).T.numpy()
    spread = np.var((normal - model.prototype.numpy()) @ unit, axis=0)
    assert (
        model.batch_norm.running_var.numpy() > 1.2 * spread
    ).all()  # so that without calibration the first would fail


def test_what_all_trained_classes_have_in_common_is_met_exactly():
    """Running statistics three times the variance over normal rows, the mean half a deviation higher: so is a new
    class's.
    """
    rng = np.random.default_rng(0)
    model = AnomalyCLIP(
        AnomalyCLIPConfig(classes=("a", "b", "c"), feature_dim=7, embed_dim=8, num_heads=2),
        prototype=torch.from_numpy(rng.normal(size=7)),
    )
    rows = rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    moments = {"count": 500, "sum": torch.from_numpy(rows.sum(axis=0)), "outer": torch.from_numpy(rows.T @ rows)}
    directions = rng.normal(size=(5, 7)).astype(np.float32)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = (rows - model.prototype.numpy()) @ unit.T  # (500, 5)
    mean, var = lengths.mean(axis=0) + 0.5 * lengths.std(axis=0), 3 * lengths.var(axis=0)
    model.directions.copy_(torch.from_numpy(directions[:3]))
    model.batch_norm.running_mean.copy_(torch.from_numpy(mean[:3]))
    model.batch_norm.running_var.copy_(torch.from_numpy(var[:3]))
    found = open_set.projection_statistics(model, moments, torch.from_numpy(directions[3:]))
    assert np.allclose(found[0], mean[3:], rtol=1e-4) and np.allclose(found[1], var[3:], rtol=1e-4)
    opened = open_set.OpenSetAnomalyCLIP(model.eval(), ("d", "e"), torch.from_numpy(directions[3:]), *found)
    x = torch.from_numpy(rows[:1]).float()[None, None] - model.prototype
    assert np.allclose(
        opened.select_new(x)[0, 0], (lengths[:1, 3:] - mean[3:]) / np.sqrt(var[3:]), rtol=1e-3, atol=1e-4
    )


# ---- moments


def test_moments_are_those_of_evenly_spaced_normal_rows_and_add_up_over_processes(tmp_path, monkeypatch):
    rng, kept = np.random.default_rng(0), []
    monkeypatch.setattr(prototype, "MOMENT_ROWS", 4)
    videos = [Video("a", -1), Video("b", 0), Video("c", -1), Video("d", -1)]
    for video, length in zip(videos, (10, 9, 3, 4)):
        rows = rng.normal(size=(length, 2, 5)).astype(np.float16)
        np.save(tmp_path / f"{video.name}.npy", rows)
        if video.label < 0:
            kept.append(rows[[0, 3, 6, 9] if length == 10 else slice(None)].reshape(-1, 5))
    kept = np.concatenate(kept).astype(np.float64)
    found = prototype.normal_moments(features_.FeatureFolder(tmp_path), videos)
    assert found["count"] == len(kept) == 22 and found["outer"].dtype == torch.float64
    assert np.allclose(found["sum"], kept.sum(axis=0)) and np.allclose(found["outer"], kept.T @ kept)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(prototype, "rank_and_world", lambda: (rank, rank, 2))
        parts.append(prototype.normal_moments(features_.FeatureFolder(tmp_path), videos))
    assert all(0 < part["count"] < 22 for part in parts)
    for key, value in found.items():
        assert np.allclose(parts[0][key] + parts[1][key], value)


def test_a_resumed_training_keeps_the_moments(world, tmp_path, monkeypatch):
    def stop_in_the_second(*args, real=train.train_epoch):
        if args[1] == 1:
            raise KeyboardInterrupt
        return real(*args)

    options = [
        "--dataset",
        "custom",
        "--root",
        str(world.data),
        "--out",
        str(tmp_path),
        "--clip",
        str(world.weights),
        *SMALL,
        "--epochs",
        "2",
        "--shared-ctx",
    ]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_epoch", stop_in_the_second)
        train.main(options)
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    monkeypatch.setattr(ours, "normal_moments", None)
    train.main([*options, "--resume"])
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert after["epoch"] == 2 and torch.equal(after["normal_moments"]["outer"], before["normal_moments"]["outer"])


# ---- bad input


@pytest.mark.parametrize(
    "names, message",
    [
        ("", "found an empty name"),
        ("fire,,smoke", "found an empty name"),
        ("fire, _", "found an empty name"),
        ("Fire, fire", "found a name twice"),
        ("fire\nsmoke", "found the control character"),
        ("assault", "is 'Assault', a trained"),
        ("fire " * 77, "found a name of more than 77 tokens"),
        ("fire " * 73, "the longest prompt has 78 tokens"),
    ],
)
def test_wrong_names_are_refused(world, names, message):
    with pytest.raises(InputError, match=message) as error:
        world.load(("--shared-ctx",), "--classes", names)
    assert "--classes" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_checkpoints_that_cannot_have_new_classes_are_refused(world, tmp_path):
    short = ("--epochs", "1")
    with pytest.raises(InputError, match="found contexts of each class; train with --shared-ctx"):
        world.load(short, "--classes", NEW)
    with pytest.raises(InputError, match="found --directions direct"):
        world.load(("--directions", "direct", *short), "--classes", NEW)
    with pytest.raises(InputError, match="classes that come from prompts, found --class-head"):
        world.load(("--shared-ctx", "--class-head", "--epochs", "1"), "--classes", NEW)
    stored = torch.load(world.train("--shared-ctx"), weights_only=True)
    for entry, value, message in (
        ("normal_moments", None, "moments of the normal features, found none"),
        ("clip_sha256", "0" * 64, "found no CLIP .*: another CLIP, weights_sha256 .*; give --clip FILE"),
        ("clip_sha256", None, "the checkpoint does not tell which"),
        ("normal_moments", {"count": 3, "sum": 1}, "moments of the normal features, found none"),
        ("model", stored["model"] | {"prompt_learner.ctx": torch.zeros(3, 64)}, "found no ctx and"),
        (
            "settings",
            stored["settings"] | {"clip": "gone.pt"},
            "found no CLIP .*neither 'gone.pt'.*passed over: nothing; give --clip FILE",
        ),
    ):
        torch.save(stored | {entry: value}, tmp_path / "changed.pt")
        with pytest.raises(InputError, match=message):
            load_file(tmp_path / "changed.pt", "--classes", NEW)
    loaded = load_file(tmp_path / "changed.pt", "--classes", NEW, "--clip", str(world.weights))
    assert loaded.model.config.classes == KINDS


def test_explanations_need_videos_or_features():
    with pytest.raises(InputError, match="--explain tells of videos or --features"):
        predict.parse_args(["--ckpt", "x", "--live", "0", "--explain"])


# ---- explanations


def test_the_vocabulary_is_the_tokenizers():
    words = explain.vocabulary()
    assert len(words) == 49406 and words[int(clip_model.tokenize("fire")[0, 1])] == "fire"
    ids = clip_model.tokenize("extraordinarily naïve")[0].tolist()
    spelled = "".join(words[i] + " " for i in ids[1 : ids.index(49407)]).replace("- ", "").strip()
    assert spelled == "extraordinarily naïve"


def test_the_words_nearest_to_a_context_are_found_by_euclidean_distance():
    embedding = torch.randn(49408, 6, generator=torch.Generator().manual_seed(0))
    fire, smoke = (int(clip_model.tokenize(word)[0, 1]) for word in ("fire", "smoke"))
    embedding[fire] = torch.tensor([9.0, 0, 0, 0, 0, 0])
    embedding[smoke] = torch.tensor([90.0, 0, 0, 0, 0, 0])  # nearer by its angle alone
    vectors = torch.tensor([[9.5, 0.1, 0, 0, 0, 0], [88.0, 0, 0, 0, 0, 0]])
    first, second = explain.nearest_words(vectors, embedding, ("a", "b"))["all classes"]
    assert (
        first[0]["word"] == "fire" and first[0]["distance"] == pytest.approx(0.26**0.5) and second[0]["word"] == "smoke"
    )
    assert len(first) == 5 and all(a["distance"] <= b["distance"] for a, b in zip(first, first[1:]))
    own = explain.nearest_words(torch.stack([vectors, vectors.flip(0), vectors]), embedding, ("a", "b"))
    assert own["a"] == [first, second] and own["b"] == [second, first] and list(own) == ["a", "b"]


def test_segments_are_ranked_by_mean_p_class_the_last_one_being_short():
    p_class = np.array([[0.1], [0.3], [0.9], [0.1], [0.8]])
    scores = FrameScores(np.arange(5) / 10, p_class, np.arange(5) * 0.5, 2.0, -p_class)
    found = explain.driving_segments(scores, ("a",), 2)["a"]
    assert [(s["start_frame"], s["end_frame"]) for s in found] == [(4, 5), (2, 4), (0, 2)]
    assert [(s["start"], s["end"]) for s in found] == [(2, 2.5), (1, 2), (0, 1)]
    assert [s["p_class"] for s in found] == pytest.approx([0.8, 0.5, 0.2])
    assert [s["likelihood"] for s in found] == pytest.approx([-0.8, -0.5, -0.2]) and found[0]["p_A"] == pytest.approx(
        0.4
    )


def test_the_command_tells_events_of_a_new_class_and_what_drove_them(world, tmp_path, capsys):
    name = next(name for name in world.truth if name.startswith(NEW))
    features, out = world.data / "features" / f"{name}.npy", tmp_path / "out"
    command = [
        "--ckpt",
        world.train("--shared-ctx"),
        "--features",
        str(features),
        "--fps",
        "25",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--classes",
        f"{NEW}, arson",
        "--explain",
        "--threshold",
        "0.5",
    ]
    assert predict.main(command) == 0
    result, told = json.loads((out / "events.json").read_text()), json.loads((out / "explain.json").read_text())
    assert result["classes"] == [*KINDS, "arson"] and result["new_classes"] == [NEW, "arson"]
    assert NEW in {event["class"] for event in result["events"]}
    assert list(told["segments"]) == result["classes"] and len(told["contexts"]["all classes"]) == 2
    best = told["segments"][NEW][0]
    assert (world.truth[name][best["start_frame"] : best["end_frame"]] == 3).mean() >= 0.5
    loaded = world.load(("--shared-ctx",), "--classes", f"{NEW}, arson")
    rows = np.load(features)
    with torch.no_grad():
        likelihood = loaded.model(torch.from_numpy(rows[:24]).view(1, 6, 4, 64)).likelihood.flatten(0, 2)
    assert np.allclose(explain.likelihoods(loaded.model, rows)[:24], likelihood, atol=1e-4)
    assert np.allclose(explain.likelihoods(loaded.model, np.stack([rows, rows], 1))[:24], likelihood, atol=1e-4)
    text, printed = (out / "explain.txt").read_text(), capsys.readouterr().out
    assert (
        re.search(rf"{NEW}\n    00:00:0\d\.\d+ - 00:00:0\d\.\d+  likelihood +\d", text)
        and "contexts of all classes" in text
    )
    assert all(line in printed for line in text.splitlines())


def test_a_finished_video_is_explained_when_that_is_asked_for(planted, tmp_path, capsys):
    video = write_clip(tmp_path / "v.mp4", 100, [(50, 75, RED)])
    command = [*planted.options, str(video), "--out", str(tmp_path / "out")]
    predict.main(command)
    assert not (tmp_path / "out" / "explain.txt").exists()
    predict.main([*command, "--explain"])
    told = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert told["video"] == "v" and told["contexts"] == {} and "no learned contexts" in capsys.readouterr().out
    best, other = (told["segments"][name][0] for name in ("fire", "fall"))
    assert 48 <= best["start_frame"] < best["end_frame"] <= 76 and best["p_class"] > 0.9 > other["p_class"]
    assert best["start"] == pytest.approx(best["start_frame"] / 25) and best["likelihood"] > 5
