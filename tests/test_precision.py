"""Tests of the precision of inference: the machine's choice, accuracy, what is recorded, and every script's option."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import clip_model
import evaluate
import extract_features
import predict
import train
import watch
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from tests import children
from tests.synthetic import arguments, run, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import BLUE, RED, write_clip, write_video
from videoanomaly import Recogniser
from videoanomaly.runtime import fast_precision
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.fast_precision import choose_precision
from videoanomaly.video.encoders import ClipEncoder, MixedEncoder, custom_encoder, with_precision
from videoanomaly.watching.watch_settings import read_settings
from videoanomaly.weights import export
from videoanomaly.weights.checkpoints import load_model
from videoanomaly.winograd import accelerate, narrow

# rounding to 8 bits changes a number by up to this share. A block adds two products in a row to the stream, and each
# rounds inputs, weights and results: off by up to six times that where all add up, and by two more in attention
STEP = 2**-9
MOST = 8 * STEP
WARNING = "features in {} go with ones in {}"


@pytest.fixture
def no_choice_yet():
    """Machines are asked anew, before and after."""
    fast_precision.fast_precision.cache_clear()
    yield
    fast_precision.fast_precision.cache_clear()


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_clip_state_dict(), path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "made")


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory) -> Path:
    """Of an axial transformer, whose features are of no known precision: an older version made them."""
    folder = tmp_path_factory.mktemp("run")
    run(dataset, folder, "--epochs", "2")
    return folder / "last.pt"


# ---- the choice


def test_a_machine_without_bfloat16_instructions_chooses_float32():
    code = "from videoanomaly.runtime.fast_precision import choose_precision; print(choose_precision('auto', 'cpu'))"
    done = children.run("-c", code, ONEDNN_MAX_CPU_ISA="AVX2")  # oneDNN's way to play an older processor
    assert (done.stdout, done.stderr) == ("float32\n", "")


@pytest.mark.parametrize(
    "can, seconds_narrow, expected", [(True, 0.5, "bfloat16"), (True, 1.0, "float32"), (False, 0.5, "float32")]
)
def test_instructions_and_a_trial_product_decide_on_a_cpu(can, seconds_narrow, expected, monkeypatch, no_choice_yet):
    times = {torch.float32: 1.0, torch.bfloat16: seconds_narrow}
    monkeypatch.setattr(fast_precision, "has_instructions", lambda: can)
    monkeypatch.setattr(fast_precision, "seconds", lambda x, weight: times[x.dtype])
    assert choose_precision("auto", "cpu") == expected


def test_one_slow_round_of_the_trial_does_not_decide(monkeypatch, no_choice_yet):
    slow = iter([9.0, 9.0, 1.0, 9.0, 9.0, 0.5] + 20 * [9.0])  # in turn: float32, bfloat16
    monkeypatch.setattr(fast_precision, "has_instructions", lambda: True)
    monkeypatch.setattr(fast_precision, "seconds", lambda x, weight: next(slow))
    assert choose_precision("auto", "cpu") == "bfloat16"


@pytest.mark.parametrize("capability, expected", [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_the_capability_decides_on_cuda(capability, expected, monkeypatch, no_choice_yet):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", "cuda:1") == expected


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_by_name_is_taken(asked):
    assert choose_precision(asked, "cpu") == asked


# ---- accuracy


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def quick(clip: clip_model.CLIP, dtype: torch.dtype) -> clip_model.CLIP:
    clip = copy.deepcopy(clip)
    clip_model.quicken(clip.visual, dtype)
    return clip


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_quickened_image_tower_gives_the_same_features(quick_gelu, clip_path):
    clip = clip_model.load(clip_path, quick_gelu=quick_gelu)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = clip.double().encode_image(images.double()).float()
        clip.float()
        found = {dtype: quick(clip, dtype).encode_image(images) for dtype in (torch.float32, torch.bfloat16)}
        half = quick(clip, torch.float16).encode_image(images)
    assert {x.dtype for x in (*found.values(), half)} == {torch.float32}
    assert relative_error(found[torch.float32], expected) <= 1e-6
    assert 1e-4 < relative_error(found[torch.bfloat16], expected) <= MOST
    assert 1e-5 < relative_error(half, expected) <= MOST / 8  # three bits more
    cosine = torch.nn.functional.cosine_similarity(found[torch.bfloat16], expected)
    assert cosine.min() >= 1 - MOST**2 / 2


def test_quickening_twice_is_quickening_once_and_the_text_tower_stays(clip_path):
    clip = clip_model.load(clip_path)
    text = clip_model.tokenize(["a cat"])
    twice = quick(quick(clip, torch.float32), torch.bfloat16)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(twice.encode_image(images), quick(clip, torch.bfloat16).encode_image(images))
        assert torch.equal(twice.encode_text(text), clip.encode_text(text))


def random_model(depth: int = 2) -> AnomalyCLIP:
    sizes = {"num_segments": 6, "num_frames": 4, "topk": 2, "embed_dim": 32, "num_heads": 4, "depth": depth}
    torch.manual_seed(0)
    model = AnomalyCLIP(AnomalyCLIPConfig(classes=("a", "b"), feature_dim=12, directions="direct", **sizes))
    model.directions.normal_()
    accelerate(model)
    return model.eval()


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 2e-3), (torch.float16, 2.5e-4)])
def test_narrow_convolutions_change_p_A_little_and_no_parameter(dtype, most):
    model, rows = random_model(), torch.randn(200, 12)
    state = copy.deepcopy(model.state_dict())
    expected = model.predict(rows)
    narrow(model, dtype)
    found = model.predict(rows)
    for a, b in zip(found, expected):
        assert a.dtype == np.float32 and 0 < np.abs(a - b).max() <= most
    assert all(torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in state.items())


def test_float32_convolutions_stay_bit_for_bit():
    model, rows = random_model(), torch.randn(50, 12)
    expected = model.predict(rows)
    narrow(model, torch.float32)
    assert all(np.array_equal(a, b) for a, b in zip(model.predict(rows), expected))


@pytest.mark.parametrize("suffix", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_export_is_the_same_in_every_precision(suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    written = []
    for precision in (torch.float32, torch.bfloat16):
        model = random_model(depth=1)
        narrow(model, precision)
        export.write(path := tmp_path / f"{len(written)}.{suffix}", model)
        written.append(operations(path))
    assert written[0] == written[1] and not re.search("bfloat16", str(written), re.I)


def operations(path: Path) -> list[tuple]:
    """What an exported model does, and in which precision its weights are."""
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        weights = [(name, value.dtype) for name, value in program.state_dict.items()]
        return [(str(node.target), str(node.args)) for node in program.graph.nodes] + weights
    import onnx

    graph = onnx.load(path).graph
    return [(n.op_type, *n.input) for n in graph.node] + [(w.name, w.data_type) for w in graph.initializer]


# ---- encoders of the user's


SMALL_ENCODER = """
import numpy as np
import torch


class Small:
    dim = 4

    def __init__(self):
        self.weight = torch.eye(4, 3)

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32) / 255).permute(2, 0, 1)

    def encode(self, images):
        return images.mean(dim=(2, 3)) @ self.weight.T
"""


@pytest.mark.parametrize("asked, expected", [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_code_of_the_user_leaves_float32_only_where_that_is_asked_for(asked, expected, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(SMALL_ENCODER)
    encoder = custom_encoder(f"{tmp_path / 'own.py'}:Small", "cpu")
    monkeypatch.setattr(fast_precision, "fast_precision", lambda device: "bfloat16")
    found, chosen = with_precision(encoder, "cpu", asked)
    assert chosen == expected
    images = torch.rand(3, 3, 8, 8)
    given, plain = found.encode(images), encoder.encode(images)
    assert given.dtype == torch.float32 and torch.equal(given, plain) == (expected == "float32")
    torch.testing.assert_close(given, plain, rtol=MOST, atol=MOST)


# ---- the record


def extract(videos: Path, out: Path, clip: Path, *options: str) -> dict:
    words = ["--videos", str(videos), "--out", str(out), "--clip", str(clip), "--device", "cpu", *options]
    assert extract_features.main(words) == 0
    return json.loads((out / "meta.json").read_text())


def test_features_tell_their_precision_and_mix_with_one_warning(tmp_path, clip_path, capsys):
    write_video(tmp_path / "in" / "a.mp4", num_frames=4)
    meta = extract(tmp_path / "in", tmp_path / "full", clip_path)
    narrow_meta = extract(tmp_path / "in", tmp_path / "narrow", clip_path, "--precision", "bfloat16")
    assert (meta["precision"], narrow_meta["precision"]) == ("float32", "bfloat16")
    assert meta["weights_sha256"] == narrow_meta["weights_sha256"]  # of the weights as they were read
    full, half = (torch.from_numpy(np.load(tmp_path / name / "a.npy")).float() for name in ("full", "narrow"))
    assert 1e-4 < relative_error(half, full) <= MOST
    assert "go with" not in capsys.readouterr().err

    write_video(tmp_path / "in" / "b.mp4", num_frames=4)
    mixed = extract(tmp_path / "in", tmp_path / "full", clip_path, "--precision", "bfloat16")
    assert capsys.readouterr().err.count(WARNING.format("bfloat16", "float32")) == 1
    assert mixed["precision"] == "float32" and mixed["videos"]["b"]["precision"] == "bfloat16"
    assert "precision" not in mixed["videos"]["a"]


def test_features_of_an_older_version_are_float32(tmp_path, clip_path, capsys):
    write_video(tmp_path / "in" / "a.mp4", num_frames=4)
    meta = extract(tmp_path / "in", tmp_path / "out", clip_path)
    del meta["precision"]
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert extract(tmp_path / "in", tmp_path / "out", clip_path)["precision"] == "float32"
    assert capsys.readouterr().err == ""


def told_of(features: Path, precision: str) -> Path:
    """The folder, whose meta.json now tells that precision."""
    meta = json.loads((features / "meta.json").read_text())
    (features / "meta.json").write_text(json.dumps(meta | {"precision": precision}))
    return features


def test_a_checkpoint_tells_the_precision_of_its_features_and_others_are_used_with_a_warning(
    tmp_path, dataset, checkpoint, capsys
):
    shutil.copytree(dataset, tmp_path / "data")
    told_of(tmp_path / "data" / "features", "bfloat16")
    assert run(tmp_path / "data", tmp_path / "run", "--epochs", "1")["encoder"]["precision"] == "bfloat16"
    capsys.readouterr()
    options = ["--features", str(tmp_path / "data" / "features"), "--bootstrap", "1", "--timelines", "0"]
    evaluate.main(["--ckpt", str(checkpoint), "--out", str(tmp_path / "eval"), "--device", "cpu", *options])
    assert capsys.readouterr().err.count(WARNING.format("bfloat16", "float32")) == 1
    evaluate.main(["--ckpt", str(tmp_path / "run" / "last.pt"), "--device", "cpu", *options])
    assert "go with" not in capsys.readouterr().err


def test_a_training_goes_on_where_the_precision_alone_is_another(tmp_path, dataset, capsys):
    shutil.copytree(dataset, tmp_path / "data")
    run(tmp_path / "data", tmp_path / "run", "--epochs", "1")
    told_of(tmp_path / "data" / "features", "bfloat16")
    words = arguments(tmp_path / "data", tmp_path / "run", "--epochs", "1", "--resume", "--out", str(tmp_path / "run"))
    capsys.readouterr()
    train.main(words)
    assert capsys.readouterr().err.count(WARNING.format("bfloat16", "float32")) == 1


@pytest.mark.parametrize("value", ["float8", 16, ["float32"]])
def test_a_precision_that_is_none_is_refused_in_files(value, tmp_path, dataset, checkpoint):
    stored = torch.load(checkpoint, weights_only=True)
    torch.save(stored | {"encoder": stored["encoder"] | {"precision": value}}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="encoder"):
        load_model(str(tmp_path / "x.pt"))
    shutil.copytree(dataset, tmp_path / "data")
    told_of(tmp_path / "data" / "features", value)
    with pytest.raises(InputError, match=r"meta\.json: found a stride, .*, precision"):
        train.main(arguments(tmp_path / "data", tmp_path / "run"))


# ---- the scripts


@pytest.mark.parametrize("script, default", [(extract_features, "float32"), (evaluate, "float32"), (predict, "auto")])
def test_the_defaults_of_the_scripts(script, default):
    needed = {
        extract_features: ["--videos", "v", "--out", "o"],
        evaluate: ["--ckpt", "c"],
        predict: ["--ckpt", "c", "v", "--out", "o"],
    }[script]
    assert script.parse_args(needed).precision == default
    assert script.parse_args([*needed, "--precision", "float16"]).precision == "float16"
    with pytest.raises((SystemExit, InputError)):
        script.parse_args([*needed, "--precision", "float64"])


def test_evaluate_in_bfloat16_gives_nearly_the_numbers_of_float32(tmp_path, checkpoint):
    results = {}
    for precision in ("float32", "bfloat16"):
        words = ["--ckpt", str(checkpoint), "--out", str(tmp_path / precision), "--device", "cpu"]
        evaluate.main([*words, "--bootstrap", "1", "--timelines", "0", "--precision", precision])
        results[precision] = json.loads((tmp_path / precision / "metrics.json").read_text())
        assert results[precision]["precision"] == precision
    scores = [np.load(tmp_path / precision / "scores.npz") for precision in results]
    assert 0 < max(np.abs(scores[0][name] - scores[1][name]).max() for name in scores[0].files) <= 2e-3
    for key in ("AUC", "mAUC"):
        assert results["bfloat16"][key] == pytest.approx(results["float32"][key], abs=1e-3)


def test_predict_finds_the_same_events_and_does_anew_what_another_precision_made(planted, tmp_path, capsys):
    video = str(write_clip(tmp_path / "v.mp4", 150, [(30, 70, RED), (100, 140, BLUE)]))
    found, asked = {}, []
    for precision in ("float32", "bfloat16", "bfloat16"):
        capsys.readouterr()
        predict.main([*planted.options, video, "--out", str(tmp_path / "out"), "--precision", precision])
        told, asked = capsys.readouterr(), [*asked, precision]
        found[precision] = json.loads((tmp_path / "out" / "events.json").read_text())
        assert found[precision]["precision"] == precision
        assert ("1 were there" in told.out) == (len(asked) == 3)
    places = [[(e["class"], e["start_frame"], e["end_frame"]) for e in result["events"]] for result in found.values()]
    assert places[0] == places[1] and len(places[0]) == 2


def test_predict_warns_once_where_the_training_features_are_of_another_precision(planted, tmp_path, capsys):
    stored = torch.load(planted.checkpoint, weights_only=True)
    torch.save(stored, tmp_path / "old.pt")
    video = str(write_clip(tmp_path / "v.mp4", 9))
    words = ["--ckpt", str(tmp_path / "old.pt"), *planted.options[2:], video, "--out", str(tmp_path / "out")]
    predict.main([*words, "--precision", "bfloat16"])
    assert capsys.readouterr().err.count(WARNING.format("bfloat16", "float32")) == 1
    torch.save(stored | {"encoder": stored["encoder"] | {"precision": "bfloat16"}}, tmp_path / "old.pt")
    predict.main([*words, "--precision", "bfloat16", "--force"])
    assert "go with" not in capsys.readouterr().err


def test_live_encodes_in_the_precision_that_was_asked_for(planted, tmp_path, capfd):
    shutil.copy(planted.checkpoint, tmp_path / "own.pt")
    video = str(write_clip(tmp_path / "v.mp4", 55, [(10, 45, RED)]))
    words = ["--ckpt", str(tmp_path / "own.pt"), *planted.options[2:], "--live", video]
    predict.main([*words, "--precision", "bfloat16"])
    told = capfd.readouterr()
    assert told.err.count(WARNING.format("bfloat16", "float32")) == 1
    kinds = [json.loads(line)["event"] for line in told.out.splitlines()]
    assert kinds[0] == "begin" and kinds[-1] == "end"


def test_a_recogniser_takes_a_precision_and_shows_it(planted, tmp_path):
    given = {"encoder": planted.options[3], "device": "cpu"}
    for precision in ("float32", "bfloat16"):
        recogniser = Recogniser.load(planted.checkpoint, precision=precision, **given)
        assert repr(recogniser).endswith(f"cpu, {precision})")
        assert isinstance(recogniser.encoder.model, MixedEncoder) == (precision == "bfloat16")
    assert Recogniser.load(planted.checkpoint, **given).loaded.precision == choose_precision("auto", "cpu")
    with pytest.raises(InputError, match="--precision: found 'double', expected auto, .* or float16"):
        Recogniser.load(planted.checkpoint, precision="double", **given)


def write_settings(path: Path, planted, *lines: str) -> Path:
    own = [f'checkpoint = "{planted.checkpoint}"', f'encoder = "{planted.options[3]}"', 'folder = "watch"']
    path.write_text("\n".join([*own, 'device = "cpu"', *lines, "[camera.door]", 'url = "rtsp://127.0.0.1:9/x"']))
    return path


def test_watch_takes_a_precision(planted, tmp_path, capsys):
    assert read_settings(write_settings(tmp_path / "a.toml", planted)).precision == "auto"
    path = write_settings(tmp_path / "b.toml", planted, 'precision = "bfloat16"')
    assert watch.main(["--check", str(path)]) == 0
    assert "cpu, bfloat16)" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"c\.toml: precision: found 'half', expected auto, "):
        read_settings(write_settings(tmp_path / "c.toml", planted, 'precision = "half"'))


def test_a_clip_encoder_keeps_its_hash_until_it_is_quickened(clip_path):
    encoder = ClipEncoder(str(clip_path), "cpu")
    before = clip_model.weights_hash(encoder.visual)
    assert with_precision(encoder, "cpu", "float32") == (encoder, "float32")
    assert clip_model.weights_hash(encoder.visual) != before
