"""Tests of which files and folders are videos, and of folders of numbered pictures."""

import json
import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import extract_features
import predict
from tests.videos import CUSTOM_ENCODER, RED, picture, write_clip, write_video
from videoanomaly.prediction import annotated_video
from videoanomaly.runtime.console import InputError
from videoanomaly.video.decoding import BROKEN, to_image
from videoanomaly.video.key_frames import find_video
from videoanomaly.video.picture_folder import PictureFolder, is_picture_folder

# ---------------------------------------------------------------- helpers


@pytest.fixture
def extract(tmp_path):
    """Runs extract_features.py; gives (status, rows of each file that it wrote)."""
    (tmp_path / "encoder.py").write_text(CUSTOM_ENCODER)

    def run(videos, *options, out="out"):
        out = tmp_path / out
        command = ["--videos", str(videos), "--out", str(out), "--device", "cpu", "--workers", "1"]
        command += ["--encoder", f"{tmp_path / 'encoder.py'}:MeanColour", *map(str, options)]
        status = extract_features.main(command)
        paths = sorted(out.rglob("*.npy"))
        return status, {p.relative_to(out).with_suffix("").as_posix(): len(np.load(p)) for p in paths}

    return run


def small(path, num_frames=3, seed=0):
    """A video that is made fast."""
    return write_video(path, num_frames, codec="mpeg4", size=(32, 32), seed=seed)


def small_as(path, num_frames=3):
    """The same under a name that tells nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return small(path.parent / "made.avi", num_frames).rename(path)


def write_pictures(folder, names, size=(16, 8), colours=None):
    """Pictures of one colour each, by default (0, 0, 0), (1, 1, 1), ..., in the order of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", size, colours[i] if colours else (10 * i,) * 3).save(folder / name)
    return folder


def told_line(capsys):
    """The one line about what is left out."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(lines) == 1
    return lines[0].partition(": ")[2]


def refuse_to_list(monkeypatch, folder):
    """As for a user who may not look into it; root may look into everything."""
    scandir = os.scandir

    def refusing(path="."):
        if os.path.abspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


# ---------------------------------------------------------------- file types

MADE = {  # codec and the suffix that FFmpeg writes: suffixes under which such files are found
    ("libx264", ".h264"): (".264", ".avc", ".dav", ".h264"),
    ("libx265", ".hevc"): (".265", ".h265", ".hevc"),
    ("libx264", ".mp4"): (".3gp", ".f4v", ".m4v", ".mov", ".mp4", ".qt"),
    ("mpeg4", ".avi"): (".avi", ".divx"),
    ("mpeg2video", ".mxf"): (".mxf",),
    ("mpeg2video", ".m2v"): (".m2v",),
    ("mpeg2video", ".vob"): (".mpe", ".mpeg", ".mpg", ".vob"),
    ("libx264", ".ts"): (".m2t", ".m2ts", ".mts", ".ts"),
    ("libvpx", ".ogv"): (".ogm", ".ogv"),
    ("libvpx", ".ivf"): (".ivf",),
    ("mjpeg", ".mjpeg"): (".mjpeg", ".mjpg"),
    ("wmv2", ".asf"): (".asf", ".wmv"),
    ("rv10", ".rm"): (".rm", ".rmvb"),
}


@pytest.mark.parametrize("codec, made", MADE)
def test_what_recorders_write_is_a_video(codec, made, tmp_path, extract):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / f"made{made}", 3, codec=codec, pixels=pixels, size=(64, 48))
    for suffix in MADE[codec, made]:
        for name in {suffix, suffix.upper()}:
            target = tmp_path / "in" / name[1:] / f"a{name}"
            target.parent.mkdir(parents=True)
            target.write_bytes(path.read_bytes())
    status, rows = extract(tmp_path / "in")
    assert status == 0 and set(rows.values()) == {3}
    assert rows.keys() == {f"{name[1:]}/a" for s in MADE[codec, made] for name in (s, s.upper())}


@pytest.mark.parametrize(
    "name, key", [("a.MP4", "a"), ("a", "a"), ("a.xyz", "a.xyz"), ("12.30.05", "12.30.05"), (".a.mp4", ".a")]
)
def test_a_file_that_is_named_outright_is_tried_whatever_its_name(name, key, tmp_path, extract):
    assert extract(small_as(tmp_path / "in" / name)) == (0, {key: 3})


def test_a_named_file_that_is_none_is_told(tmp_path, extract, capsys):
    (tmp_path / "notes.txt").write_text("no video")
    assert extract(tmp_path / "notes.txt") == (1, {})
    assert f"skipped {tmp_path / 'notes.txt'}: " in capsys.readouterr().err
    os.mkfifo(tmp_path / "a.mp4")
    for source, found in ((tmp_path / "a.mp4", "a pipe, socket or device"), (Path("/dev/null"), "a pipe, socket")):
        with pytest.raises(InputError, match=f"^{source}: found {found}"):
            extract(source)
    with pytest.raises(InputError, match="cannot be read .File name too long"):
        extract("x" * 300)


# ---------------------------------------------------------------- what is left out


def test_what_is_left_out_is_told_once_in_a_line(tmp_path, extract, capsys, monkeypatch):
    small(tmp_path / "in" / "a.mp4")
    for name in ("notes.txt", "sub/b.TXT", "cover.jpg", "README", "x\x1b.\x1bz", "classes.txt", "a.npy", ".hidden"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    monkeypatch.chdir(tmp_path / "in")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
    (tmp_path / "in" / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "in" / "round.mp4").symlink_to("round.mp4")
    (tmp_path / "in" / "disk2").symlink_to("/unmounted/disk2")
    small(tmp_path / "in" / ".Trash-1" / "b.mp4")
    assert extract(tmp_path / "in") == (0, {"a": 3})
    assert sorted(told_line(capsys).replace("), ", ")\n").split("\n")) == [
        "1 hidden folder or waste bin (.Trash-1)",
        "2 pipes, sockets or devices (pipe.mp4, socket.mp4)",
        "3 links to nothing (disk2, gone.mp4, round.mp4)",
        "5 files of other types (.jpg, .txt, .\N{REPLACEMENT CHARACTER}z, ...)",
    ]


def test_nothing_is_told_where_all_is_done(tmp_path, extract, capsys):
    small(tmp_path / "in" / "a.mp4")
    write_pictures(tmp_path / "in" / "b", ["1.png", "2.png"])
    assert extract(tmp_path / "in", "--fps", 5)[0] == 0 and capsys.readouterr().err == ""


def test_a_folder_without_videos_tells_what_is_in_it(tmp_path, extract):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="in: found no video; expected files with .* or folders of pictures 000.jpg"):
        extract(tmp_path / "in")
    (tmp_path / "in" / "a.txt").touch()
    with pytest.raises(InputError, match=r"in: found no video, only 1 file of other types \(.txt\); expected") as error:
        extract(tmp_path / "in")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "folder",
    [
        *(".Trash-1000/files", ".git", "@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin/S-1-5", "lost+found"),
        *("System Volume Information", "__MACOSX", "sub/.snapshots", "sub/@eaDir/a.mp4"),
    ],
)
def test_waste_bins_and_hidden_folders_are_left_out(folder, tmp_path, extract, capsys):
    small(tmp_path / "in" / "sub" / "a.mp4")
    small(tmp_path / "in" / "sub" / "._a.mp4")
    write_pictures(small(tmp_path / "in" / folder / "deleted.mp4").parent / "more", ["1.png", "2.png"])
    assert extract(tmp_path / "in") == (0, {"sub/a": 3})
    assert told_line(capsys).startswith("1 hidden folder or waste bin (")
    assert extract(tmp_path / "in" / folder, out="other")[0] == 0  # but one that is given is given


# ---------------------------------------------------------------- links


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=True)


@pytest.mark.parametrize(
    "links, names, left_out",
    [
        ({"site/tuesday": "../disk/tuesday"}, {"tuesday/b"}, None),
        ({"site/disk": "../disk"}, {"disk/tuesday/b"}, None),
        ({"site/a": "../other/b", "other/b": "../disk"}, {"a/tuesday/b"}, None),  # a link to a link
        ({"site/a": "../disk", "disk/c": "../disk2", "disk2/d": "../disk3"}, {"a/tuesday/b", "a/c/d/e"}, None),
        ({"site/monday/loop": ".."}, set(), "loop"),
        ({"site/up": "../.."}, set(), "up"),
        ({"site/a": "monday"}, set(), "a"),  # it comes under its own name
        ({"site/a": "../disk/tuesday", "site/b": "../disk/tuesday"}, {"a/b"}, "b"),
        ({"site/a": "../disk", "disk/back": "../site", "disk/round": "."}, {"a/tuesday/b"}, "back, round"),
        ({"site/a": "../disk/tuesday", "site/b": "../disk"}, {"a/b"}, None),
    ],
)
def test_linked_folders_are_followed_each_once(links, names, left_out, tmp_path, extract, capsys):
    small(tmp_path / "site" / "monday" / "a.mp4")
    small(tmp_path / "disk" / "tuesday" / "b.mp4")
    small(tmp_path / "disk3" / "e.mp4")
    for path, target in links.items():
        link(tmp_path / path, target)
    assert extract(tmp_path / "site") == (0, dict.fromkeys({"monday/a"} | names, 3))
    if left_out:
        assert told_line(capsys).endswith(f"to folders that are looked at anyway ({left_out})")
    else:
        assert capsys.readouterr().err == ""


def test_a_linked_file_and_a_linked_source_are_followed(tmp_path, extract):
    small(tmp_path / "disk" / "b.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").symlink_to(tmp_path / "disk" / "b.mp4")
    link(tmp_path / "linked", tmp_path / "in")
    assert extract(tmp_path / "linked") == (0, {"a": 3})


def test_many_links_to_each_other_are_no_labyrinth(tmp_path, extract):
    folders = [tmp_path / "in" / f"{i}" for i in range(12)]
    for folder in folders:
        small_as(folder / "a.avi", 1)
        for other in folders:
            link(folder / f"to{other.name}", other)
    assert len(extract(tmp_path / "in")[1]) == 12


# ---------------------------------------------------------------- what cannot be read


def test_a_folder_that_cannot_be_read_is_named_and_the_others_done(tmp_path, extract, monkeypatch, capsys):
    small(tmp_path / "in" / "a.mp4")
    small(tmp_path / "in" / "locked" / "b.mp4")
    refuse_to_list(monkeypatch, tmp_path / "in" / "locked")
    assert extract(tmp_path / "in") == (1, {"a": 3})
    told = capsys.readouterr()
    assert told.err == f"skipped {tmp_path / 'in' / 'locked'}: Permission denied\n"
    assert "1 of 2 videos written, 0 were there, 1 skipped" in told.out
    refuse_to_list(monkeypatch, tmp_path / "in")
    with pytest.raises(InputError, match="in: cannot be read .Permission denied., expected a folder"):
        extract(tmp_path / "in")


def test_a_video_that_goes_between_finding_and_opening_is_named(tmp_path, extract, capsys):
    code = CUSTOM_ENCODER.replace("return torch", "os.path.exists(GONE) and os.remove(GONE)\n        return torch")
    paths = [small(tmp_path / "in" / f"{name}.mp4", 60) for name in "ab"]
    (tmp_path / "encoder.py").write_text(f"import os\nGONE = {str(paths[1])!r}\n{code}")
    status, rows = extract(tmp_path / "in", "--batch", 1)
    told = capsys.readouterr()
    if status:  # else it was open by then
        assert rows == {"a": 60} and told.err == f"skipped {paths[1]}: No such file or directory\n"


def test_names_that_are_no_text_are_names(tmp_path, extract, capsys):
    name = os.fsdecode(b"\xff\xfe")
    small_as(tmp_path / "in" / f"{name}.mp4")
    write_pictures(tmp_path / "in" / f"{name}p", ["1.png", "2.png"])
    (tmp_path / "in" / f"broken\n{name}.mp4").write_bytes(b"no video")
    assert extract(tmp_path / "in", "--fps", 5) == (1, {name: 3, f"{name}p": 2})
    assert "broken\N{REPLACEMENT CHARACTER}\\xff\\xfe.mp4: " in capsys.readouterr().err
    assert extract(tmp_path / "in")[0] == 1
    assert "0 of 3 videos written, 2 were there, 1 skipped" in capsys.readouterr().out


# ---------------------------------------------------------------- videos that changed


def test_a_video_that_changed_under_its_name_is_done_anew(tmp_path, extract, capsys):
    for name in "abcde":
        small(tmp_path / "in" / f"{name}.mp4")
    write_pictures(tmp_path / "in" / "p", ["1.png", "2.png"])
    assert extract(tmp_path / "in", "--fps", 5)[0] == 0
    capsys.readouterr()
    assert extract(tmp_path / "in")[0] == 0
    told = capsys.readouterr()
    assert "0 of 6 videos written, 6 were there" in told.out and told.err == ""
    small(tmp_path / "in" / "a.mp4", 7)
    same = small(tmp_path / "in" / "b.mp4", seed=50).stat()
    os.utime(tmp_path / "in" / "b.mp4", ns=(same.st_atime_ns, same.st_mtime_ns + 10**9))
    write_pictures(tmp_path / "in" / "p", ["3.png"])
    meta = tmp_path / "out" / "meta.json"
    content = json.loads(meta.read_text())
    content["videos"]["c"] = {"frames": 3, "fps": 25.0}  # as older versions wrote it
    meta.write_text(json.dumps(content))
    small(tmp_path / "in" / "c.mp4", 9)
    assert extract(tmp_path / "in") == (0, {"a": 7, "b": 3, "c": 3, "d": 3, "e": 3, "p": 3})
    told = capsys.readouterr()
    assert "3 of 6 videos written, 3 were there" in told.out
    assert "done anew, since the video is another: a, b, p\n" in told.err
    assert json.loads(meta.read_text())["videos"]["c"] == {"frames": 3, "fps": 25.0}


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    "names",
    [
        [f"{i:03d}.jpg" for i in range(12)],
        [f"frame{i}.png" for i in (*range(1, 12), 100)],
        [f"cam1_{i}.bmp" for i in range(12)],
        [f"img_{i:05d}_rgb.jpeg" for i in range(12)],
        [f"{i}.WEBP" for i in range(90, 102)],
        [f"Bild {i:02d}.{('jpg', 'JPG')[i % 2]}" for i in range(12)],
        [f"{i}.png".translate({ord("0") + n: 0x660 + n for n in range(10)}) for i in range(12)],
    ],
)
def test_pictures_come_in_the_order_of_their_numbers(names, tmp_path, extract):
    colours = [(20 * i, 10, 10) for i in range(12)]
    write_pictures(tmp_path / "in" / "01_0014", names, colours=colours)
    write_pictures(tmp_path / "in" / "01_0014", ["cover.png"])
    assert extract(tmp_path / "in") == (0, {"01_0014": 12})
    reds = np.load(tmp_path / "out" / "01_0014.npy")[:, 0]
    assert np.allclose(reds, [20 * i for i in range(12)], atol=2)


def test_video_files_and_folders_of_pictures_go_together(tmp_path, extract, capsys):
    small(tmp_path / "in" / "x" / "a.mp4")
    small(tmp_path / "in" / "x" / "b.c.mp4")
    for folder in ("01_0014", "x/deep/01_0015", "old.mp4", "a.b", "x/deep/01_0015/flow"):
        write_pictures(tmp_path / "in" / folder, ["000.jpg", "001.jpg"])
    status, rows = extract(tmp_path / "in")
    assert status == 0 and rows.keys() == {
        "x/a",
        "x/b.c",
        "01_0014",
        "x/deep/01_0015",
        "x/deep/01_0015/flow",
        "old",
        "a.b",
    }
    assert capsys.readouterr().err == "folders of pictures are taken for 25 frames/s; --fps tells another rate\n"
    videos = json.loads((tmp_path / "out" / "meta.json").read_text())["videos"]
    assert (videos["01_0014"]["frames"], videos["01_0014"]["fps"]) == (2, 25)
    assert extract(tmp_path / "in", "--fps", "24") == (status, rows)
    videos = json.loads((tmp_path / "out" / "meta.json").read_text())["videos"]
    assert (videos["01_0014"]["fps"], videos["x/a"]["fps"]) == (24, 25)
    small(tmp_path / "in" / "01_0014.avi")
    with pytest.raises(InputError, match=r"01_0014 and .*01_0014.avi would both give 01_0014.npy"):
        extract(tmp_path / "in")


@pytest.mark.parametrize(
    "names",
    [
        ["001.jpg"],
        ["a.jpg", "b.jpg"],
        ["a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg"],
        ["1.jpg", "2.jpg", "1.png", "2.png"],
        [".1.jpg", ".2.jpg"],
        ["1.gif", "2.gif"],
    ],
)
def test_other_folders_of_pictures_are_no_videos(names, tmp_path, extract):
    write_pictures(tmp_path / "in", names)
    for source in (tmp_path / "in", tmp_path):
        with pytest.raises(InputError, match="found no video"):
            extract(source)
    assert not is_picture_folder(tmp_path / "in")


def test_pictures_beside_videos_are_no_video(tmp_path, extract, capsys):
    small(tmp_path / "in" / "sub" / "a.mp4")
    write_pictures(tmp_path / "in", ["poster1.jpg", "poster2.jpg"])
    write_pictures(tmp_path / "in" / "sub", ["thumb1.jpg", "thumb2.jpg"])
    assert extract(tmp_path / "in") == (0, {"sub/a": 3})
    assert told_line(capsys) == "4 files of other types (.jpg)"


def test_a_folder_of_pictures_that_is_given_is_the_video(tmp_path, extract, capsys, monkeypatch):
    write_pictures(tmp_path / "in" / "01_0014", ["0.jpg", "1.jpg"])
    assert extract(tmp_path / "in" / "01_0014") == (0, {"01_0014": 2})
    monkeypatch.chdir(tmp_path / "in" / "01_0014")
    assert extract(".", out="here") == (0, {"01_0014": 2})
    write_pictures(tmp_path / "in" / "01_0014" / "flow", ["0.jpg", "1.jpg"])
    capsys.readouterr()
    assert extract(".", out="more") == (0, {"01_0014": 2})
    assert told_line(capsys) == "1 folder in a folder of pictures (flow)"


def test_a_damaged_picture_is_named(tmp_path, extract, capsys):
    for name in ("cut", "empty", "text", "script"):
        write_pictures(tmp_path / "in" / name, ["1.jpg", "2.jpg", "3.jpg"], size=(64, 64))
    for name, data in (("empty", b""), ("text", b"no picture"), ("script", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (tmp_path / "in" / name / "2.jpg").write_bytes(data)
    whole = (tmp_path / "in" / "cut" / "2.jpg").read_bytes()
    (tmp_path / "in" / "cut" / "2.jpg").write_bytes(whole[: len(whole) - 30])
    small(tmp_path / "in" / "good.mp4")
    write_pictures(tmp_path / "in" / "bad", ["1.jpg", "2.jpg"])
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "in" / "bad" / name).write_bytes(b"")
    rows = {"cut": 2, "empty": 2, "text": 2, "script": 2, "good": 3}
    assert extract(tmp_path / "in", "--fps", 25) == (1, rows)
    lines = sorted(capsys.readouterr().err.splitlines())
    place = "cannot be decoded: 00:00:00.040 to 00:00:00.080 (2.jpg: is damaged, or no picture); the rest was used"
    assert lines[:-1] == [f"{tmp_path / 'in' / name}: {place}" for name in ("cut", "empty", "script", "text")]
    assert lines[-1] == f"skipped {tmp_path / 'in' / 'bad'}: 1.jpg: is damaged, or no picture"


def frames_of(folder, **how):
    with PictureFolder(folder, **how) as video:
        return [
            (time, np.asarray(to_image(frame, av.video.reformatter.VideoReformatter())))
            for time, frame in video.frames()
        ]


def test_frames_are_the_pictures_with_their_times(tmp_path):
    images = [picture(t, *size) for t, size in enumerate([(97, 65), (97, 65), (31, 40)])]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").mkdir()
    os.mkfifo(tmp_path / "4.png")
    with PictureFolder(tmp_path, fps=30000 / 1001) as video:
        assert (video.rate, video.num_frames, video.codec) == (30000 / 1001, 3, "pictures")
    found = frames_of(tmp_path, fps=30000 / 1001)
    assert [time for time, _ in found] == pytest.approx([i * 1001 / 30000 for i in range(3)], abs=1e-12)
    assert all(np.array_equal(a, b) for (_, a), b in zip(found, images))


def test_pictures_of_every_kind_are_rgb_and_upright(tmp_path):
    image = Image.fromarray(picture(0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "0.png", exif=exif)
    image.convert("L").save(tmp_path / "1.png")
    image.convert("P").save(tmp_path / "2.png")
    image.convert("RGBA").save(tmp_path / "3.png")
    Image.fromarray(np.full((10, 20), 40000, np.uint16)).save(tmp_path / "4.png")
    image.convert("1").save(tmp_path / "5.png")
    found = [array for _, array in frames_of(tmp_path)]
    assert np.array_equal(found[0], np.rot90(np.asarray(image), -1))
    assert all(
        np.array_equal(a, np.asarray(image.convert(mode).convert("RGB")))
        for a, mode in zip(found[1:4], ("L", "P", "RGB"))
    )
    assert (found[4] == 40000 >> 8).all() and set(np.unique(found[5])) <= {0, 255}


def test_folders_that_are_no_videos_raise_what_a_broken_video_does(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "file", "absent"):
        with pytest.raises(BROKEN):
            PictureFolder(tmp_path / name)
        assert not is_picture_folder(tmp_path / name)
    write_pictures(tmp_path / "empty", ["1.png", "2.png"])
    for fps in (0.0, float("nan"), 1e9):
        with pytest.raises(InputError, match="--fps .*: expected 0.001 to 1000"):
            PictureFolder(tmp_path / "empty", fps)


def test_a_video_is_found_by_its_name_with_any_suffix_or_as_a_folder(tmp_path):
    small_as(tmp_path / "a.MP4")
    small_as(tmp_path / "sub" / "b.dav")
    write_pictures(tmp_path / "01_0014", ["1.png", "2.png"])
    found = [find_video(str(tmp_path), name) for name in ("a", "sub/b", "01_0014", "sub", "c")]
    assert found == [tmp_path / "a.MP4", tmp_path / "sub" / "b.dav", tmp_path / "01_0014", None, None]


# ---------------------------------------------------------------- predict.py


def read_result(folder):
    return json.loads((folder / "events.json").read_text())


def page_data(folder):
    text = (folder / "report.html").read_text().split('<script type="application/json" id="data">')[1]
    return json.loads(text.split("</script>")[0])


def test_a_folder_of_pictures_gives_events_pictures_and_an_annotated_copy(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(annotated_video, "MIN_WIDTH", 64)
    video = write_clip(tmp_path / "v.mkv", 80, [(20, 60, RED)], codec="ffv1")
    folder = tmp_path / "in" / "01_0014"
    folder.mkdir(parents=True)
    with av.open(str(video)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(folder / f"frame{i}.png")
    options = [*planted.options, "--threshold", "0.5", "--annotate"]
    assert predict.main([*options, str(folder), "--out", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err == "folders of pictures are taken for 25 frames/s; --fps tells another rate\n"
    assert predict.main([*options, "--fps", "10", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == ""
    for out, fps in ((tmp_path / "one", 25), (tmp_path / "out" / "01_0014", 10)):
        result, page = read_result(out), page_data(out)
        (event,) = result["events"]
        assert (result["video"], result["frames"], result["fps"], event["class"]) == ("01_0014", 80, fps, "fire")
        assert abs(event["start"] - 20 / fps) <= 2 / fps
        assert page["source"] is None and len(page["pictures"]) >= 10
        with av.open(str(out / "annotated.mp4")) as container:
            times = [frame.time for frame in container.decode(video=0)]
        assert np.allclose(times, np.arange(80) / fps, atol=1e-4)
        assert np.asarray(Image.open(out / "key_frame.jpg"))[..., 0].mean() > 150  # red
    assert (tmp_path / "out" / "index.html").is_file()


def test_results_may_lie_in_the_videos_own_folder(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(annotated_video, "MIN_WIDTH", 64)
    videos = tmp_path / "in"
    for name in ("a", "sub/b"):
        write_clip(videos / f"{name}.mp4", 5)
    write_pictures(videos / "p", ["1.png", "2.png", "3.png"])
    options = [*planted.options, "--annotate", "--fps", "25"]
    command = [*options, str(videos), "--out", str(videos)]
    assert predict.main(command) == 0
    told = capsys.readouterr()
    assert "3 of 3 videos done, 0 were there, 0 skipped" in told.out and told.err == ""
    assert predict.main(command) == 0
    told = capsys.readouterr()
    assert "0 of 3 videos done, 3 were there" in told.out
    line = "3 files of earlier results (a/annotated.mp4, b/annotated.mp4, p/annotated.mp4)"
    assert told.err == f"left out of {videos}: {line}\n"
    (videos / "a" / "events.json").unlink()  # as if killed on the way
    assert predict.main(command) == 0 and "1 of 3 videos done, 2 were there" in capsys.readouterr().out
    assert predict.main([*options, str(videos), "--out", str(tmp_path / "other")]) == 0  # results of another run
    assert "3 of 3 videos done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "sources, out, done",
    [
        (["in/a.mp4"], "in", 1),
        (["in/a.mp4", "in/sub/b.mp4"], "in", 2),
        (["in/sub"], "in", 1),
        (["in"], ".", 2),
        (["in"], "in/results", 2),
        (["in/a.mp4", "in/results", "in/sub"], "in/results", 2),  # as a shell makes of in/*
    ],
)
def test_no_place_of_the_results_hides_the_videos(sources, out, done, planted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "sub/b"):
        write_clip(Path("in", f"{name}.mp4"), 2)
    Path("in/results").mkdir()
    assert predict.main([*planted.options, *sources, "--out", out]) == 0
    assert f"{done} of {done} videos done" in capsys.readouterr().out


def test_an_output_folder_alone_that_holds_no_video_is_refused(planted, tmp_path):
    for sources in ([tmp_path], [tmp_path, tmp_path]):
        with pytest.raises(InputError, match="found no video"):
            predict.main([*planted.options, *map(str, sources), "--out", str(tmp_path)])


def test_a_folder_that_cannot_be_read_costs_that_folder_alone(planted, tmp_path, capsys, monkeypatch):
    write_clip(tmp_path / "in" / "a.mp4", 3)
    (tmp_path / "in" / "locked").mkdir()
    refuse_to_list(monkeypatch, tmp_path / "in" / "locked")
    assert predict.main([*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert f"skipped {tmp_path / 'in' / 'locked'}: Permission denied" in capsys.readouterr().err
    assert "<b>locked</b> Permission denied" in (tmp_path / "out" / "index.html").read_text()


# ---------------------------------------------------------------- names that FFmpeg takes for addresses

HARMLESS = [
    "%03d.mp4",
    "%d%s%%.mp4",
    "[1].mp4",
    "a*?.mp4",
    r"a\b.mp4",
    " a .mp4",
    "-i.mp4",
    "a\nb.mp4",
    "~.mp4",
    "$HOME.mp4",
    "#?&.mp4",
]
ADDRESSES = [
    *("12:30:05.mp4", "http:/127.0.0.1:9/a.mp4", "tcp:/127.0.0.1:9/a.mp4", "concat:other.mp4", "pipe:0.mp4"),
    *("cache:other.mp4", "file:other.mp4", "async:other.mp4", "subfile,,start,0,end,0,,:other.mp4", "C:a.mp4"),
    *("data:text.mp4", "concat:other.mp4|other.mp4", "crypto:other.mp4", "md5:other.mp4", "fd:.mp4", "lavfi:a.mp4"),
]
NAMES = [*HARMLESS, *ADDRESSES]


@pytest.fixture
def in_videos(tmp_path, monkeypatch):
    """A folder of work that holds another video; relative names are what a shell gives."""
    monkeypatch.chdir(tmp_path)
    small(tmp_path / "in" / "other.mp4", 2)
    monkeypatch.chdir(tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("name", NAMES)
def test_extract_features_opens_the_file_of_that_name(name, in_videos, extract):
    small_as(in_videos / name, 5)
    key = name.removesuffix(".mp4")
    assert extract(".") == (0, {"other": 2, key: 5})
    assert extract(f"./{name}", out="alone") == (0, {Path(key).name: 5})


@pytest.mark.parametrize("name", [*HARMLESS[:5], *ADDRESSES[:6]])
def test_predict_opens_the_file_of_that_name(name, planted, in_videos, tmp_path):
    small_as(in_videos / name, 5)
    assert predict.main([*planted.options, name, "--out", str(tmp_path / "out")]) == 0
    assert read_result(tmp_path / "out")["frames"] == 5


LISTS = {
    "concat": "ffconcat version 1.0\nfile other.mp4\n",
    "itself": "ffconcat version 1.0\nfile list.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n",
    "hls_ts": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nnext.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet>'
    "<Representation><BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "xspf": "file other.mp4\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
}


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_is_named_like_a_video_is_refused(kind, suffix, in_videos, extract, capsys):
    text = LISTS[kind].replace("list.mp4", f"list{suffix}")
    (in_videos / f"list{suffix}").write_text(text)
    write_video(in_videos / "next.ts", 12)
    assert extract(".") == (1, {"other": 2, "next": 12})
    assert capsys.readouterr().err.startswith(f"skipped list{suffix}: ")
