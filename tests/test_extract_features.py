"""Tests of extract_features.py; the comparisons with OpenCV need opencv-python-headless and are skipped without it."""

import json
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import clip_model
import extract_features
from tests.children import Ranks
from tests.places import ROOT, SHARED
from tests.videos import CUSTOM_ENCODER, assert_same_frames, opencv_frames, our_frames, picture, write_video
from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.video import decoding, encoders, encoding
from videoanomaly.video.encoding import reading_ahead
from videoanomaly.video.extraction import finished_videos, split_by_size
from videoanomaly.video.finding import size_and_time
from videoanomaly.video.preprocessing import cut_crops, jpeg_round_trip, resize_like_opencv

# ---------------------------------------------------------------- helpers


def write_sound(path, empty_pictures=False):
    with av.open(str(path), "w") as container:
        if empty_pictures:
            video = container.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    torch.manual_seed(0)
    model = clip_model.CLIP(
        embed_dim=16,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def custom(tmp_path):
    path = tmp_path / "my_encoder.py"
    path.write_text(CUSTOM_ENCODER)
    return path


def run(videos, out, *options):
    return extract_features.main(["--videos", str(videos), "--out", str(out), "--device", "cpu", *map(str, options)])


def read_meta(out):
    return json.loads((out / "meta.json").read_text())


def plain_features(model, images):
    """One image at a time through the model, (n, D) float32."""
    preprocess = clip_model.preprocess(model.visual.input_resolution)
    with torch.inference_mode():
        return np.concatenate([model.encode_image(preprocess(image)[None]).numpy() for image in images])


def assert_equal_but_for_rounding(saved, exact):
    """1e-5 apart before the rounding to float16, which is at most 2**-11 of the value."""
    assert saved.dtype == np.float16 and saved.shape == exact.shape
    assert (np.abs(saved.astype(np.float32) - exact) <= 1e-5 + 2.0**-11 * np.abs(exact)).all()


def assert_no_trace(out, key):
    assert not (out / f"{key}.npy").exists()
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]
    assert key not in read_meta(out)["videos"]


# ---------------------------------------------------------------- decoding

KINDS = {
    "h264.mp4": {},
    "h264_422.mp4": {"pixels": "yuv422p"},
    "h264_444.mp4": {"pixels": "yuv444p"},
    "h264_10_bits.mp4": {"pixels": "yuv420p10le"},
    "hevc_10_bits.mp4": {"codec": "libx265", "pixels": "yuv420p10le"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "flv.flv": {"codec": "flv"},
    "wmv.wmv": {"codec": "wmv2"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "ffv1.mkv": {"codec": "ffv1", "pixels": "bgr0"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "h264_full_range.mp4": {"color_range": 2},
    "vp9_full_range.webm": {"codec": "libvpx-vp9", "color_range": 2},
    "h264.ts": {},
    "h264.mov": {},
    "hd_bt709.mp4": {"size": (1280, 720), "colorspace": 1, "color_range": 1, "num_frames": 3},
    "odd_h264_444.mp4": {"size": (97, 65), "pixels": "yuv444p"},
    "odd_mpeg4.avi": {"size": (97, 65), "codec": "mpeg4"},
    "odd_vp9.webm": {"size": (97, 65), "codec": "libvpx-vp9"},
    "odd_mjpeg.avi": {"size": (97, 65), "codec": "mjpeg", "pixels": "yuvj420p"},
    "rotated_90.mp4": {"rotation": 90},
    "rotated_180.mp4": {"rotation": 180},
    "rotated_270.mp4": {"rotation": 270},
    "rotated_30.mp4": {"rotation": 30},
    "variable_rate.mp4": {"variable_rate": True},
    "variable_rate.mkv": {"variable_rate": True},
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_opencv(name, tmp_path):
    settings = {"num_frames": 12} | KINDS[name]
    assert_same_frames(write_video(tmp_path / name, **settings), settings["num_frames"])


def test_a_rotated_video_stands_upright(tmp_path, monkeypatch):
    for rotation, turns in ((90, 1), (180, 2), (270, 3)):
        path = write_video(tmp_path / f"{rotation}.mp4", rotation=rotation)
        turned = our_frames(path)
        with monkeypatch.context() as patch:  # the same file as it lies there: x264 does not write the same bits twice
            patch.setattr(decoding, "TURNS", {})
            plain = our_frames(path)
        assert np.array_equal(turned, np.rot90(plain, turns, axes=(1, 2)))


@pytest.mark.parametrize(
    "name, num_frames",
    [
        ("cctv/Normal/Normal_Videos001_x264.mp4", 475),
        ("cctv/Fighting/Fighting012_x264.mp4", None),
        ("cctv/Falling/Falling001_x264.mp4", None),
        ("ucf_clips/Explosion/Explosion016_x264.mp4", None),
    ],
)
def test_frames_of_real_videos_are_those_of_opencv(name, num_frames):
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    assert_same_frames(path, num_frames or len(opencv_frames(path)))


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("size", [(320, 240), (97, 65)])
@pytest.mark.parametrize("quality", [95, 30])
def test_jpeg_round_trip_is_that_of_opencv(size, quality):
    cv2 = pytest.importorskip("cv2")
    image = picture(3, *size)
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    theirs = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    ours = np.asarray(jpeg_round_trip(Image.fromarray(image), quality))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(ours.astype(int) - image).max() > 1  # it does lose something


def test_jpeg_95_is_what_opencv_writes_by_default(tmp_path):
    cv2 = pytest.importorskip("cv2")
    image = picture(3, 320, 240)
    cv2.imwrite(str(tmp_path / "x.jpg"), image[..., ::-1])
    ours = np.asarray(jpeg_round_trip(Image.fromarray(image), 95)).astype(int)
    assert np.abs(ours - np.asarray(Image.open(tmp_path / "x.jpg"))).max() <= 1


@pytest.mark.parametrize("size", [(320, 240), (640, 360), (200, 100)])
def test_resize_is_that_of_opencv(size):
    cv2 = pytest.importorskip("cv2")
    image = picture(0, *size)
    ours = np.asarray(resize_like_opencv(Image.fromarray(image), 340, 256)).astype(int)
    assert np.abs(ours - cv2.resize(image, (340, 256))).max() <= 1


def test_resize_samples_bilinearly_at_pixel_centres():
    image = Image.fromarray(picture(0, 12, 9))
    ours, pixels = np.asarray(resize_like_opencv(image, 17, 5)), np.asarray(image).astype(float)
    for i in range(5):
        for j in range(17):
            y, x = np.clip((i + 0.5) * 9 / 5 - 0.5, 0, 8), np.clip((j + 0.5) * 12 / 17 - 0.5, 0, 11)
            y0, x0 = int(y), int(x)
            y1, x1, v, u = min(y0 + 1, 8), min(x0 + 1, 11), y - y0, x - x0
            value = (1 - v) * ((1 - u) * pixels[y0, x0] + u * pixels[y0, x1]) + v * (
                (1 - u) * pixels[y1, x0] + u * pixels[y1, x1]
            )
            assert np.abs(ours[i, j] - value).max() <= 1


def test_crops_are_those_of_vadclip():
    image = picture(0, 340, 256)  # already of the size that frames are stretched to
    boxes = [image[16:240, 58:282], image[:224, :224], image[:224, -224:], image[-224:, :224], image[-224:, -224:]]
    expected = boxes + [box[:, ::-1] for box in boxes]
    crops = cut_crops(Image.fromarray(image), 10, 224)
    assert len(crops) == 10
    for crop, box in zip(crops, expected):
        assert np.array_equal(np.asarray(crop), box)
    assert [np.array_equal(a, b) for a, b in zip(cut_crops(Image.fromarray(image), 5, 224), crops)] == [True] * 5


def test_crops_for_another_input_size_are_in_proportion():
    image = Image.fromarray(picture(0, 320, 240))
    resized = np.asarray(resize_like_opencv(image, 170, 128))
    crops = cut_crops(image, 5, 112)
    assert np.array_equal(np.asarray(crops[0]), resized[8:120, 29:141])
    assert np.array_equal(np.asarray(crops[4]), resized[-112:, -112:])


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("options", [(), ("--batch", 5, "--workers", 3)])
def test_features_are_those_of_a_plain_loop_over_opencv_frames(options, tmp_path, clip_path):
    video = write_video(tmp_path / "in" / "a.mp4", num_frames=17, size=(80, 60))
    assert run(tmp_path / "in", tmp_path / "out", "--clip", clip_path, *options) == 0
    images = [Image.fromarray(frame) for frame in opencv_frames(video)]
    assert_equal_but_for_rounding(
        np.load(tmp_path / "out" / "a.npy"), plain_features(clip_model.load(clip_path), images)
    )


def test_stride_keeps_every_nth_frame(tmp_path, clip_path, capsys):
    video = write_video(tmp_path / "a.mp4", num_frames=17)
    run(video, tmp_path / "all", "--clip", clip_path, "--batch", 1)
    run(video, tmp_path / "third", "--clip", clip_path, "--batch", 1, "--stride", 3)
    assert "1 of 1 videos written, 0 were there, 0 skipped; 6 frames" in capsys.readouterr().out
    assert np.array_equal(np.load(tmp_path / "third" / "a.npy"), np.load(tmp_path / "all" / "a.npy")[::3])
    assert read_meta(tmp_path / "third")["videos"] == {"a": {"frames": 17, "fps": 25.0, **size_and_time(video)}}


@pytest.mark.parametrize("num_crops", [5, 10])
def test_crops_have_an_axis_of_their_own(num_crops, tmp_path, clip_path):
    video = write_video(tmp_path / "a.mp4", num_frames=4)
    run(video, tmp_path / "out", "--clip", clip_path, "--crops", num_crops, "--batch", 7)
    images = [Image.fromarray(frame) for frame in our_frames(video)]
    exact = plain_features(
        clip_model.load(clip_path), [crop for image in images for crop in cut_crops(image, num_crops, 32)]
    )
    assert_equal_but_for_rounding(np.load(tmp_path / "out" / "a.npy"), exact.reshape(4, num_crops, 16))


def test_jpeg_option_encodes_what_jpeg_leaves(tmp_path, clip_path):
    video = write_video(tmp_path / "a.mp4", num_frames=3)
    run(video, tmp_path / "out", "--clip", clip_path, "--jpeg", 40)
    images = [jpeg_round_trip(Image.fromarray(frame), 40) for frame in our_frames(video)]
    assert_equal_but_for_rounding(
        np.load(tmp_path / "out" / "a.npy"), plain_features(clip_model.load(clip_path), images)
    )
    assert read_meta(tmp_path / "out")["jpeg"] == 40


def test_videos_read_at_once_are_not_mixed_up(tmp_path, custom):
    for i in range(9):
        write_video(tmp_path / "in" / f"{i}.mp4", num_frames=3 + 4 * i, size=(32, 32), seed=20 * i)
    for workers in (1, 4):
        run(
            tmp_path / "in",
            tmp_path / str(workers),
            "--encoder",
            f"{custom}:MeanColour",
            "--workers",
            workers,
            "--batch",
            2,
        )
    for i in range(9):
        one, four = (np.load(tmp_path / workers / f"{i}.npy") for workers in "14")
        assert len(one) == 3 + 4 * i and np.array_equal(one, four)


# ---------------------------------------------------------------- on the device


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (97, 65), (30, 20), (640, 360)])
def test_preprocessing_on_the_device_gives_the_pixels_of_pil(size, clip_path):
    encoder = encoders.ClipEncoder(clip_path, "cpu")
    seen = []
    encoder.encode = lambda images: seen.append(images)
    images = [Image.fromarray(picture(t, *size)) for t in range(3)]
    on_device = encoders.DevicePreprocessing(encoder)
    on_device.encode(torch.stack([on_device.preprocess(image) for image in images]))
    expected = torch.stack([encoder.preprocess(image) for image in images])
    levels = (seen[0] - expected).abs() * 0.26 * 255  # the smallest of the three standard deviations
    assert seen[0].shape == expected.shape and levels.max() <= 1.1 and levels.mean() <= 0.1


@pytest.mark.parametrize("options", [(), ("--crops", 5), ("--jpeg", 90)])
def test_features_preprocessed_on_the_device_are_within_a_thousandth(options, tmp_path, clip_path):
    write_video(tmp_path / "in" / "a.mp4", num_frames=9, size=(80, 60))
    for name, option in (("pil", "--no-device-preprocess"), ("device", "--device-preprocess")):
        assert run(tmp_path / "in", tmp_path / name, "--clip", clip_path, "--batch", 4, option, *options) == 0
    expected, found = (np.load(tmp_path / name / "a.npy").astype(float) for name in ("pil", "device"))
    distance = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert (
        found.shape == expected.shape and distance.max() <= 2e-3 and distance.mean() <= 1e-3
    )  # float16 alone: up to 5e-4
    with pytest.raises(InputError, match="features have preprocess device, now asked for preprocess None"):
        run(tmp_path / "in", tmp_path / "device", "--clip", clip_path, *options)


def test_a_users_preprocess_does_not_move_to_the_device(tmp_path, custom):
    with pytest.raises(InputError, match="--device-preprocess: found --encoder"):
        run(tmp_path, tmp_path / "out", "--encoder", f"{custom}:MeanColour", "--device-preprocess")


def test_frames_of_another_size_begin_another_batch(tmp_path):
    shapes = iter([(3, 4, 4)] * 3 + [(3, 6, 4)] * 3)
    path = write_video(tmp_path / "a.mp4", num_frames=6)
    *batches, info = encoding.read_batches(path, lambda image: [torch.zeros(next(shapes))], 1, 2, pin_memory=False)
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 4, 4), (1, 3, 4, 4), (2, 3, 6, 4), (1, 3, 6, 4)]
    assert len(info.times) == 6


# ---------------------------------------------------------------- encoders


@pytest.mark.parametrize("class_name, has_weights", [("MeanColour", False), ("Placed", True)])
def test_a_class_of_the_user_can_be_the_encoder(class_name, has_weights, tmp_path, custom):
    video = write_video(tmp_path / "a.mp4", num_frames=5)
    run(video, tmp_path / "out", "--encoder", f"{custom}:{class_name}")
    means = [np.asarray(Image.fromarray(frame).resize((8, 8))).mean(axis=(0, 1)) for frame in our_frames(video)]
    assert np.allclose(np.load(tmp_path / "out" / "a.npy"), means, rtol=1e-3)
    meta = read_meta(tmp_path / "out")
    assert (meta["encoder"], meta["dim"]) == (class_name, 3)
    assert (meta["weights_sha256"] is not None) == has_weights


@pytest.mark.parametrize(
    "spec, message",
    [
        ("nowhere.py:A", "found no file 'nowhere.py'"),
        ("{}", "found no file"),
        ("{}:Nothing", "found no class 'Nothing'"),
        ("{}:Lying", r"gave \(1, 3\) for one image, expected \(1, 4\)"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(spec, message, tmp_path, custom):
    video = write_video(tmp_path / "a.mp4", num_frames=2)
    with pytest.raises(InputError, match=message):
        run(video, tmp_path / "out", "--encoder", spec.format(custom))
    assert not (tmp_path / "out").exists()


DATACLASS = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
SETTINGS = "\n@dataclass\nclass Settings:\n    size: int = 8\n"


@pytest.mark.parametrize(
    "head", [DATACLASS, DATACLASS.split("\n", 1)[1], "import typing, enum\nfrom dataclasses import *\n"]
)
def test_an_encoder_file_may_hold_dataclasses(head, tmp_path, custom):
    custom.write_text(head + CUSTOM_ENCODER + SETTINGS)
    video = write_video(tmp_path / "a.mp4", num_frames=3)
    assert run(video, tmp_path / "out", "--encoder", f"{custom}:MeanColour") == 0


def write_encoder(path, code):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return f"{path}:Own"


def test_objects_of_an_encoder_file_can_be_pickled(tmp_path):
    own = "class Own:\n    dim = 3\n    class Inner: pass\n    def __init__(self): self.inner = Own.Inner()\n"
    encoder = encoders.custom_encoder(write_encoder(tmp_path / "my.encoder.py", own), "cpu")
    assert pickle.dumps(encoder)  # it looks the classes up, as workers do


def test_encoder_files_of_one_name_do_not_mix(tmp_path):
    specs = [write_encoder(tmp_path / c / "clip_model.py", f"class Own:\n    dim = {ord(c)}\n") for c in "ab"]
    ours, found = sys.modules["clip_model"], [encoders.custom_encoder(spec, "cpu") for spec in specs]
    assert [encoder.dim for encoder in found] == [97, 98] and sys.modules["clip_model"] is ours
    assert len(set(map(pickle.dumps, found))) == 2


def test_an_encoder_file_may_import_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "train.py").write_text("dim = 5\n")  # a name that the project has, too
    (tmp_path / "late_neighbour.py").write_text("dim = 6\n")
    own = "from train import dim\nclass Own:\n    dim = dim\n    def late(self):\n        import late_neighbour\n"
    monkeypatch.delitem(sys.modules, "train", raising=False)
    encoder = encoders.custom_encoder(
        write_encoder(tmp_path / "own.py", own + "        return late_neighbour.dim\n"), "cpu"
    )
    monkeypatch.delitem(sys.modules, "train")
    assert (encoder.dim, encoder.late()) == (5, 6)
    monkeypatch.delitem(sys.modules, "late_neighbour")


def test_an_encoder_file_that_fails_leaves_nothing_loaded(tmp_path):
    before, path = set(sys.modules), sys.path[:]
    with pytest.raises(ZeroDivisionError):
        encoders.custom_encoder(write_encoder(tmp_path / "own.py", "1 / 0\n"), "cpu")
    assert set(sys.modules) == before and sys.path == path


def test_weights_that_are_none_are_one_line(tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=2)
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="bad.pt"):
        run(tmp_path, tmp_path / "out", "--clip", tmp_path / "bad.pt")


# ---------------------------------------------------------------- files


def test_meta_json_tells_what_made_the_features(tmp_path, clip_path):
    b = size_and_time(write_video(tmp_path / "in" / "b.mp4", num_frames=3))
    a = size_and_time(write_video(tmp_path / "in" / "Deep" / "er" / "a v#1.avi", num_frames=5, codec="mpeg4"))
    run(tmp_path / "in", tmp_path / "out", "--clip", clip_path, "--stride", 2)
    assert read_meta(tmp_path / "out") == {
        "encoder": "clip embed 16, width 64, patch 8, resolution 32",
        "weights_sha256": clip_model.weights_hash(clip_model.load(clip_path).visual),
        "dim": 16,
        "precision": "float32",
        "stride": 2,
        "crops": 1,
        "jpeg": None,
        "videos": {"Deep/er/a v#1": {"frames": 5, "fps": 25.0, **a}, "b": {"frames": 3, "fps": 25.0, **b}},
    }
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")) == [
        "Deep/er/a v#1.npy",
        "b.npy",
        "meta.json",
    ]


def test_only_what_is_missing_is_done_again(tmp_path, custom, capsys):
    for name in "abc":
        write_video(tmp_path / "in" / f"{name}.mp4", num_frames=4)
    out, options = tmp_path / "out", ("--encoder", f"{custom}:MeanColour")
    run(tmp_path / "in", out, *options)
    for name in "ac":
        os.utime(out / f"{name}.npy", (1, 1))
    (out / "b.npy").unlink()
    stale, foreign = out / f".{'0123456789abcdef' * 2}.tmp", out / ".notes.tmp"
    stale.touch()
    foreign.touch()
    capsys.readouterr()
    assert run(tmp_path / "in", out, *options) == 0
    assert "1 of 3 videos written, 2 were there, 0 skipped; 4 frames" in capsys.readouterr().out
    assert [int((out / f"{name}.npy").stat().st_mtime) for name in "ac"] == [1, 1]
    assert len(np.load(out / "b.npy")) == 4
    assert not stale.exists() and foreign.exists()


def test_a_file_that_meta_json_does_not_list_is_done_again(tmp_path, custom):
    write_video(tmp_path / "in" / "a.mp4", num_frames=4)
    run(tmp_path / "in", tmp_path / "out", "--encoder", f"{custom}:MeanColour")
    meta = read_meta(tmp_path / "out")
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta | {"videos": {}}))
    os.utime(tmp_path / "out" / "a.npy", (1, 1))
    run(tmp_path / "in", tmp_path / "out", "--encoder", f"{custom}:MeanColour")
    assert (tmp_path / "out" / "a.npy").stat().st_mtime > 1
    assert read_meta(tmp_path / "out") == meta


@pytest.mark.parametrize("error", ["RuntimeError('out of memory')", "KeyboardInterrupt()"])
def test_a_run_that_dies_leaves_nothing_half_done_and_can_go_on(error, tmp_path, custom):
    for i, num_frames in enumerate((2, 40, 40, 40)):
        write_video(tmp_path / "in" / f"{i}.mp4", num_frames=num_frames)
    dying = CUSTOM_ENCODER.replace(
        "        return batch.mean",
        f"""
        MeanColour.calls = getattr(MeanColour, "calls", 0) + 1
        if MeanColour.calls > 5:
            raise {error}
        return batch.mean""",
    )
    custom.write_text(dying)
    options = ("--encoder", f"{custom}:MeanColour", "--batch", 2, "--workers", 3)
    num_threads = threading.active_count()
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        run(tmp_path / "in", tmp_path / "out", *options)
    assert threading.active_count() == num_threads  # none is left waiting
    assert read_meta(tmp_path / "out")["videos"].keys() <= {"0"}
    for key in "123":
        assert_no_trace(tmp_path / "out", key)
    custom.write_text(CUSTOM_ENCODER)
    assert run(tmp_path / "in", tmp_path / "out", *options) == 0
    assert [len(np.load(tmp_path / "out" / f"{i}.npy")) for i in range(4)] == [2, 40, 40, 40]


def test_an_error_in_the_users_preprocess_ends_the_run(tmp_path, custom):
    write_video(tmp_path / "a.mp4", num_frames=4)
    custom.write_text(CUSTOM_ENCODER.replace("image.resize", "{64: image}[image.width].resize"))  # fails for 96 pixels
    with pytest.raises(KeyError):
        run(tmp_path / "a.mp4", tmp_path / "out", "--encoder", f"{custom}:MeanColour")
    assert_no_trace(tmp_path / "out", "a")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--stride", 2), "features have stride 1, now asked for stride 2"),
        (("--crops", 5), "features have crops 1, now asked for crops 5"),
        (("--jpeg", 95), "features have jpeg None, now asked for jpeg 95"),
        (
            ("--encoder", "{}:Placed"),
            "features have encoder MeanColour, weights_sha256 None, now asked for encoder Placed",
        ),
    ],
)
def test_other_settings_than_those_of_the_folder_are_refused(options, message, tmp_path, custom, capsys):
    write_video(tmp_path / "in" / "a.mp4", num_frames=2)
    run(tmp_path / "in", tmp_path / "out", "--encoder", f"{custom}:MeanColour")
    write_video(tmp_path / "in" / "b.mp4", num_frames=2)
    options = [str(option).format(custom) for option in options]
    with pytest.raises(SystemExit) as exit:
        run_script(partial(run, tmp_path / "in", tmp_path / "out", "--encoder", f"{custom}:MeanColour", *options))
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "meta.json" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "b.npy").exists()


def test_features_from_elsewhere_are_not_overwritten(tmp_path, custom):
    write_video(tmp_path / "in" / "a.mp4", num_frames=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.npy").write_bytes(b"precious")
    with pytest.raises(InputError, match="found a.npy but no meta.json"):
        run(tmp_path / "in", tmp_path / "out", "--encoder", f"{custom}:MeanColour")
    assert (tmp_path / "out" / "a.npy").read_bytes() == b"precious"


def test_two_videos_for_one_file_are_refused(tmp_path, custom):
    write_video(tmp_path / "in" / "a.mp4", num_frames=2)
    write_video(tmp_path / "in" / "a.avi", num_frames=2, codec="mpeg4")
    with pytest.raises(InputError, match=r"a\.avi and .*a\.mp4 would both give a\.npy"):
        run(tmp_path / "in", tmp_path / "out", "--encoder", f"{custom}:MeanColour")


def test_a_folder_without_videos_is_refused(tmp_path, custom):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / "._a.mp4").touch()  # what macOS leaves beside a file
    with pytest.raises(InputError, match="found no video"):
        run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="found nothing there"):
        run(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--stride", 0), "--stride 0: expected at least 1"),
        (("--batch", -1), "--batch -1"),
        (("--workers", 0), "--workers 0"),
        (("--jpeg", 0), "--jpeg 0: expected a quality of 1 to 100"),
        (("--jpeg", 101), "--jpeg 101"),
        (("--device", "cpu:x"), "--device cpu:x: "),
        (("--device", "cuda:99"), "--device cuda:99: "),
        (("--out", __file__), "found a file, expected a folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path, tmp_path / "out", *options)


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8])
def test_shares_are_balanced_where_the_videos_allow(num_parts):
    lengths = np.random.default_rng(0).lognormal(7.5, 1.0, 400).astype(int) + 1
    sizes = {f"{i}": (int(n), 1000 * int(n)) for i, n in enumerate(lengths)}
    parts = split_by_size(sizes, num_parts)
    assert sorted(key for part in parts for key in part) == sorted(sizes)
    totals = [sum(sizes[key][0] for key in part) for part in parts]
    assert max(totals) <= 1.05 * min(totals)
    assert max(totals) - min(totals) <= lengths.max()


def test_a_video_whose_header_tells_no_length_counts_by_its_bytes():
    sizes = {"a": (100, 1000), "b": (0, 4000), "c": (300, 3000), "d": (0, 10)}  # a tenth of a frame each byte
    assert split_by_size(sizes, 2) == [["b", "d"], ["c", "a"]]
    assert split_by_size({"a": (0, 5), "b": (0, 7), "c": (0, 1)}, 2) == [["b"], ["a", "c"]]
    assert split_by_size({"a": (1, 1)}, 3) == [["a"], [], []]
    assert split_by_size({}, 2) == [[], []]


def test_a_note_that_was_cut_off_does_not_count(tmp_path):
    for key in "ab":
        (tmp_path / f"{key}.npy").touch()
    (tmp_path / ".done-0").write_bytes(b'{"a": {"frames": 3}}\n{"gone": {"frames": 2}}\n')
    (tmp_path / ".done-1").write_bytes(b'{"b": {"fra')
    assert finished_videos(tmp_path) == {"a": {"frames": 3}}


def torchrun(num_restarts, videos, out, *options):
    """Two processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "--max-restarts",
        num_restarts,
        extract_features.__file__,
        "--videos",
        videos,
        "--out",
        out,
        "--device",
        "cpu",
        *options,
    ]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


DYING = """
        import os, signal, time
        time.sleep(0.02)
        if os.environ.get("RANK") == "{rank}" and (batch.std() > 0) and os.path.exists("{fuse}"):
            MeanColour.calls = getattr(MeanColour, "calls", 0) + 1
            if MeanColour.calls == 6:
                os.remove("{fuse}")
                os.kill(os.getpid(), signal.SIGKILL)
        return batch.mean"""


@pytest.fixture
def six_videos(tmp_path):
    for i in range(6):
        write_video(
            tmp_path / "in" / "ab"[i % 2] / f"{i}.mp4", num_frames=10 + 2 * i, codec="mpeg4", size=(32, 32), seed=i
        )
    return tmp_path / "in"


def assert_same_folders(found, expected):
    files = [
        {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (found, expected)
    ]
    assert files[0] == files[1]


def test_two_processes_write_what_one_writes(tmp_path, six_videos, custom):
    options = ("--encoder", f"{custom}:MeanColour", "--batch", 4, "--workers", 1)
    assert run(six_videos, tmp_path / "one", *options) == 0
    (six_videos / "broken.mp4").write_bytes(b"no video " * 1000)
    words = ("--videos", six_videos, "--out", tmp_path / "two", "--device", "cpu", *options)
    both = Ranks("extract_features.py", *words)
    printed, _ = both.communicate()
    assert both.returncode == 1 and "6 of 7 videos written, 0 were there, 1 skipped; 90 frames" in printed
    assert printed.count("videos written") == 1 and printed.count("skipped ") == 1
    assert_same_folders(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_an_error_is_told_by_one_process(tmp_path, six_videos, custom):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").mkdir()
    (tmp_path / "out" / "a" / "0.npy").write_bytes(b"precious")
    for options, message in ((("--stride", 0), "error: --stride 0: expected"), ((), "found a/0.npy but no meta.json")):
        done = torchrun(0, six_videos, tmp_path / "out", "--encoder", f"{custom}:MeanColour", *options)
        assert (
            done.returncode == 1 and done.stderr.count(message) == 1 and done.stderr.count("Traceback") <= 1
        )  # its own
    assert (tmp_path / "out" / "a" / "0.npy").read_bytes() == b"precious"


@pytest.mark.slow
@pytest.mark.parametrize("rank, restarts", [(0, 1), (1, 0)])
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_what_a_killed_process_left_is_done_by_the_next_start(rank, restarts, tmp_path, six_videos, custom):
    options = ("--encoder", f"{custom}:MeanColour", "--batch", 4, "--workers", 1)
    assert run(six_videos, tmp_path / "one", *options) == 0
    fuse, out = tmp_path / "fuse", tmp_path / "two"
    fuse.touch()
    custom.write_text(CUSTOM_ENCODER.replace("        return batch.mean", DYING.format(rank=rank, fuse=fuse)))
    done = torchrun(restarts, six_videos, out, *options)
    assert not fuse.exists()
    assert (done.returncode == 0) == bool(restarts), done.stderr
    for path in out.rglob("*.npy"):
        assert len(np.load(path)) == len(np.load(tmp_path / "one" / path.relative_to(out)))
    assert not restarts or "6 of 6" not in done.stdout  # the second start found what the first had done
    if not restarts:
        assert read_meta(out)["videos"].keys() < read_meta(tmp_path / "one")["videos"].keys()
        assert run(six_videos, out, *options) == 0  # now with one process
    assert_same_folders(out, tmp_path / "one")


FAULTS = """
import ctypes, resource, sys
sys.path.insert(0, {folder!r})
from videoanomaly.runtime import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.memset.argtypes, libc.free.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), (ctypes.c_void_p,)
def count_faults(num_bytes=50_000_000):  # more than glibc ever keeps by itself, 32 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(num_bytes)
    libc.memset(block, 1, num_bytes)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = min(count_faults() for _ in range(3))
memory.keep_freed_memory()
count_faults()  # the heap grows
print(min(count_faults() for _ in range(3)), without)  # the least: what else happens only adds faults
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="needs glibc")
def test_freed_memory_comes_back_without_page_faults():
    command = [sys.executable, "-c", FAULTS.format(folder=str(ROOT))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept, without = map(int, printed.split())
    assert kept <= without / 4, printed


# ---------------------------------------------------------------- broken videos


def cut(path, fraction):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def overwrite_middle(path):
    data = bytearray(path.read_bytes())
    begin, end = len(data) * 4 // 10, len(data) * 6 // 10
    data[begin:end] = np.random.default_rng(0).integers(0, 256, end - begin, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def test_broken_videos_are_named_and_the_others_done(tmp_path, custom, capsys):
    videos, index_first = tmp_path / "in", {"movflags": "faststart"}
    write_video(videos / "good.mp4", num_frames=4)
    write_video(videos / "z_good.mp4", num_frames=4)
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_bytes(b"no video " * 1000)
    write_sound(videos / "sound.mp4")
    write_video(videos / "narrow.mkv", num_frames=2, codec="mpeg4", size=(4096, 16))
    write_sound(videos / "no_frame.mkv", empty_pictures=True)
    cut(write_video(videos / "without_index.mp4", num_frames=60), 0.5)
    cut(write_video(videos / "cut_off.mp4", num_frames=60, mux_options=index_first), 0.7)
    cut(write_video(videos / "cut_off_2.avi", num_frames=60, codec="mpeg4"), 0.7)
    overwrite_middle(write_video(videos / "overwritten.mp4", num_frames=60, mux_options=index_first))
    assert run(videos, tmp_path / "out", "--encoder", f"{custom}:MeanColour", "--batch", 4) == 1
    told = capsys.readouterr()
    lines = [line.replace(f"{videos}{os.sep}", "") for line in told.err.splitlines()]
    skipped = dict(line.removeprefix("skipped ").split(": ", 1) for line in lines if line.startswith("skipped "))
    invalid = "Invalid data found when processing input"
    assert skipped == {
        "empty.mp4": invalid,
        "text.mp4": invalid,
        "sound.mp4": "found no pictures in it, expected a video stream",
        "no_frame.mkv": "found no frame in it, expected at least one",
        "narrow.mkv": "found pictures of 4096 x 16, expected less narrow ones",
        "without_index.mp4": invalid,
    }
    in_part = dict(line.split(": cannot be decoded: ", 1) for line in lines if not line.startswith("skipped "))
    assert in_part.keys() == {"cut_off.mp4", "cut_off_2.avi", "overwritten.mp4"}
    assert in_part["cut_off_2.avi"].endswith(" (the file is cut off in the middle of a frame); the rest was used")
    done = read_meta(tmp_path / "out")["videos"]
    assert done.keys() == {"good", "z_good", "cut_off", "cut_off_2", "overwritten"}
    for name, info in done.items():
        assert len(np.load(tmp_path / "out" / f"{name}.npy")) == info["frames"]
        assert ("damage" in info) == (f"{name}.mp4" in in_part or f"{name}.avi" in in_part)
    num_frames = sum(info["frames"] for info in done.values())
    assert f"5 of 11 videos written, 0 were there, 6 skipped; {num_frames} frames" in told.out and num_frames > 100


# ---------------------------------------------------------------- reading ahead


def test_reading_ahead_holds_a_bounded_number_of_batches():
    num_workers, made, lock = 3, [], threading.Lock()

    def read(path):
        for i in range(50):
            with lock:
                made.append(i)
            yield i

    with reading_ahead({str(i): Path(str(i)) for i in range(5)}, read, num_workers) as next_item:
        for num_taken in range(1, 251):
            next_item()
            with lock:
                assert len(made) - num_taken <= 3 * num_workers
    assert len(made) == 250


def test_leaving_early_stops_the_readers():
    num_threads, made = threading.active_count(), []

    def read(path):
        for i in range(10_000):
            made.append(i)
            yield i

    with reading_ahead({str(i): Path(str(i)) for i in range(5)}, read, 2) as next_item:
        next_item()
    assert threading.active_count() == num_threads
    assert len(made) <= 1 + 3 * 2
