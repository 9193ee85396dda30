"""search.py: the moments that words describe, against brute force over all rows; what is refused; the page."""

import csv
import json

import numpy as np
import pytest
import torch

import clip_model
import search as script
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import write_video
from videoanomaly.data.features import FeatureFolder
from videoanomaly.retrieval import moments
from videoanomaly.retrieval.moments import best_of_file, file_names, mean_row, search, similarities
from videoanomaly.retrieval.texts import text_features
from videoanomaly.runtime.console import InputError

D = 12


def write_folder(root, lengths, crops=1, stride=2, fps=10.0, meta=True, seed=0):
    """Random rows of some videos, and what extract_features.py writes of them."""
    rng, rows = np.random.default_rng(seed), {}
    for i, length in enumerate(lengths):
        name = f"part{i % 2}/video{i}"
        shape = (length, D) if crops == 1 else (length, crops, D)
        rows[name] = rng.normal(size=shape).astype(np.float16) + 1
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", rows[name])
    if meta:
        videos = {name: {"frames": len(x) * stride, "fps": fps} for name, x in rows.items()}
        about = {"encoder": "clip tiny", "weights_sha256": None, "dim": D, "stride": stride, "crops": crops}
        (root / "meta.json").write_text(json.dumps(about | {"jpeg": None, "videos": videos}))
    return rows


def brute_force(rows, text, apart, top, centre):
    """One moment after the other over all rows of all videos."""
    scores = {}
    for name, x in rows.items():
        x = x.reshape(len(x), -1, D).astype(np.float64) - centre
        t = text - centre
        scores[name] = ((x @ t) / np.linalg.norm(x, axis=2) / np.linalg.norm(t)).max(axis=1)
    found = []
    while len(found) < top:
        score, name, row = max((s, name, row) for name, of in scores.items() for row, s in enumerate(of))
        if score == -np.inf:
            break
        found.append((score, name, row))
        scores[name][max(row - apart, 0) : row + apart + 1] = -np.inf
    return found


@pytest.mark.parametrize("crops, centred, threads", [(1, False, 1), (3, False, 3), (1, True, 2)])
def test_moments_are_those_of_brute_force_over_all_rows(tmp_path, monkeypatch, crops, centred, threads):
    monkeypatch.setattr(moments, "ROWS_AT_ONCE", 7)
    rows = write_folder(tmp_path, [30, 1, 45, 8, 20], crops)
    folder, texts = FeatureFolder(tmp_path), torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    names = file_names(folder)
    centre = mean_row(folder, names) if centred else None
    if centred:
        mean = np.concatenate([x.reshape(-1, D).astype(np.float64) for x in rows.values()]).mean(0)
        np.testing.assert_allclose(centre, mean, atol=1e-5)
    found = search(folder, names, texts, top=9, apart=0.8, centre=centre, threads=threads)  # 4 rows at 5 rows/s
    for text, of in zip(texts.double().numpy(), found):
        expected = brute_force(rows, text, 4, 9, centre.double().numpy() if centred else 0.0)
        assert [(m.name, m.row) for m in of] == [(name, row) for _, name, row in expected]
        np.testing.assert_allclose([m.score for m in of], [score for score, *_ in expected], atol=1e-5)
        assert [m.time for m in of] == pytest.approx([row * 2 / 10 for *_, row in expected])


def test_without_meta_json_all_files_are_searched_and_fewer_moments_are_all_there_are(tmp_path):
    write_folder(tmp_path, [5, 3], meta=False)
    folder = FeatureFolder(tmp_path)
    (found,) = search(folder, file_names(folder), torch.ones(1, D), top=99, apart=0.0)
    assert len(found) == 8 and [m.score for m in found] == sorted((m.score for m in found), reverse=True)


def test_neighbours_of_a_moment_do_not_count():
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.7, 0.75])
    assert best_of_file(scores, 1, 9) == [1, 5, 3]
    assert best_of_file(scores, 0, 3) == [1, 2, 5] and best_of_file(scores, 9, 3) == [1]


def test_rows_of_zeros_have_a_score():
    rows = np.zeros((4, 1, D), np.float16)
    assert similarities(rows, torch.ones(2, D), None).tolist() == [[0.0] * 4] * 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A tiny CLIP, a folder of features in which rows of two videos are its texts' own, and one of the videos."""
    root = tmp_path_factory.mktemp("archive")
    torch.save(tiny_clip_state_dict(), root / "clip.pt")
    clip = clip_model.load(str(root / "clip.pt"))
    with torch.inference_mode():
        smoke, fight = clip.encode_text(clip_model.tokenize(["Explosion", "Fighting"])).numpy()
    dim, rng = len(smoke), np.random.default_rng(0)
    for name, row, feature in (("day/a", 20, smoke), ("night/b", 7, fight)):
        rows = rng.normal(size=(40, dim)) * np.linalg.norm(feature) / dim**0.5
        rows[row] = feature
        (root / "features" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / "features" / f"{name}.npy", rows.astype(np.float16))
    meta = {"encoder": "clip tiny", "weights_sha256": clip_model.weights_hash(clip.visual), "dim": dim, "stride": 1}
    videos = {name: {"frames": 40, "fps": 10.0} for name in ("day/a", "night/b")}
    (root / "features" / "meta.json").write_text(json.dumps(meta | {"videos": videos}))
    (root / "videos" / "day").mkdir(parents=True)
    write_video(root / "videos" / "day" / "a.mp4", 40)
    return root


def test_the_script_finds_what_words_say_and_writes_a_page_and_a_table(archive, tmp_path, capsys):
    options = ["--features", str(archive / "features"), "--clip", str(archive / "clip.pt"), "--device", "cpu"]
    out = ["--videos", str(archive / "videos"), "--out", str(tmp_path), "--top", "2", "--apart", "1"]
    assert script.main([*options, *out, "Explosion", "Fighting"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Explosion" and lines[1].split() == ["1.000", "00:00:02.000", "day/a"]
    assert lines[3] == "Fighting" and lines[4].split() == ["1.000", "00:00:00.700", "night/b"]
    page = (tmp_path / "search.html").read_text()
    assert page.count("<li>") == 4 and "data:image/jpeg;base64," in page and "no picture" in page
    assert f"{archive}/videos/day/a.mp4#t=2.0" in page and "<script" not in page
    table = list(csv.DictReader((tmp_path / "search.csv").open()))
    assert [(row["text"], row["rank"], row["video"], row["row"]) for row in table][::2] == [
        ("Explosion", "1", "day/a", "20"),
        ("Fighting", "1", "night/b", "7"),
    ]


def test_names_and_texts_stay_texts_on_the_page(archive, tmp_path):
    options = ["--features", str(archive / "features"), "--clip", str(archive / "clip.pt"), "--device", "cpu"]
    assert script.main([*options, "--out", str(tmp_path), "<script>alert(1)</script>", "=1+1"]) == 0
    assert "<script" not in (tmp_path / "search.html").read_text()
    assert "'=1+1" in (tmp_path / "search.csv").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--clip", "none.pt"], "--clip none.pt"),
        (["--features", "none"], "none: found no features|none"),
        (["--apart", "-1"], "--apart -1.0: expected seconds, at least 0"),
        (["--top", "0"], "--top 0: expected at least 1"),
        (["--videos", "."], "--videos is for the pictures of --out"),
        (["rtsp://a:b@c/d", "--features", "rtsp://a:s3cret@c/d"], "features: found the address rtsp://c/d"),
        (["  "], "'  ': found no word"),
        (["word " * 100], "word word .*: is too long for CLIP, expected at most 75 tokens"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(archive, changes, message):
    options = ["--features", str(archive / "features"), "--clip", str(archive / "clip.pt"), "--device", "cpu", "smoke"]
    with pytest.raises(InputError, match=message) as caught:
        script.main([*options, *changes])
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_features_of_other_weights_or_without_texts_are_refused(archive, tmp_path):
    other = tiny_clip_state_dict()
    other["visual.conv1.weight"] += 1
    torch.save(other, tmp_path / "other.pt")
    encoder = json.loads((archive / "features" / "meta.json").read_text())
    with pytest.raises(InputError, match="did not make the features .*expected clip tiny"):
        text_features(["smoke"], str(tmp_path / "other.pt"), encoder, "cpu")
    with pytest.raises(InputError, match="were made by Colours, expected CLIP's, which has texts"):
        text_features(["smoke"], str(archive / "clip.pt"), encoder | {"encoder": "Colours"}, "cpu")
