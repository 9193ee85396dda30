"""Feeds damaged files to every parser of foreign bytes; only ValueError (InputError, WeightsError) may come out.

    python -m tests.fuzz --runs 100000 --seed 0 --save findings/

Each case is a valid file with a few mutations: flipped bits, a cut, a splice, a repeated part, a huge number. Of
archives also the members are mutated and packed again, for a damaged archive hardly ever gets past its checksums. A
case may take 5 seconds, and all of them together 1 GiB of memory beyond what the imports took. Exit status 1 if
anything was found.
"""

import argparse
import gzip
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
import zipfile
from collections import Counter, defaultdict
from contextlib import redirect_stderr
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

import clip_model
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, VideoModel
from videoanomaly.data import datasets, lists
from videoanomaly.data.features import load_array, read_meta
from videoanomaly.systems.checks import check_claims
from videoanomaly.systems.s3r import S3R
from videoanomaly.video.decoding import BROKEN, VideoFile, mean_rate, to_image, why_skipped, with_holes
from videoanomaly.weights.reading import read_checkpoint

SECONDS, MEMORY = 5, 2**30  # of a case, of all cases
MEDIA = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4", "mpg": "mpeg2video", "flv": "flv"}
MEDIA |= {"webm": "libvpx", "mov": "mpeg4", "wmv": "wmv2", "h264": "libx264", "mxf": "mpeg2video"}
HUGE = [
    b"9" * 20,
    b"9" * 5000,
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    str(2**31).encode(),
    str(2**63).encode(),
    str(2**64).encode(),
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b"\x00" * 8,
    (2**40).to_bytes(8, "little"),
    b"[" * 3000,
    b"(" * 3000,
    b" " * 3000,
    b"\x8a\x09" + b"\xff" * 8 + b"\x00",
    b"../../x",
    b"/etc/passwd",
    b"\xe2\x80\xa8",
    b"\n",
    b"\r",
    b"\x85",
]


class TooSlow(BaseException):
    """Past every `except Exception` of a parser."""


# ---------------------------------------------------------------- mutations


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        begin, length = rng.randrange(len(data) + 1), min(rng.choice((1, 2, 4, 8, 30, 300)), len(data))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[begin % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[begin : begin + length] = rng.randbytes(length)
        elif kind == 2:
            del data[begin : begin + length]
        elif kind == 3 and rng.random() < 0.3:
            del data[begin:]
        elif kind == 4:  # a part of it in another place
            source = rng.randrange(len(data) + 1)
            data[begin:begin] = data[source : source + length]
        elif kind == 5:
            data[begin : begin + rng.choice((0, length))] = rng.choice(HUGE)
        elif numbers := list(re.finditer(rb"[0-9]+", data)):
            number = rng.choice(numbers)
            data[number.start() : number.end()] = rng.choice(HUGE)
    return bytes(data)


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """The archive with one member or its name mutated, and checksums that fit; or mutated as a whole."""
    if rng.random() < 0.2:
        return mutate(data, rng)
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", rng.choice((0, 0, 0, zipfile.ZIP_DEFLATED))) as new,
    ):
        names = old.namelist()
        chosen = rng.choice([rng.choice(names), next(name for name in names if name.endswith("data.pkl"))])
        for name in names:
            content = old.read(name)
            if name != chosen:
                new.writestr(name, content)
            elif rng.random() < 0.1:
                new.writestr(rng.choice(("/etc/" + name, "../../" + name, name + "\x7f", "x" * 3000)), content)
            else:
                new.writestr(name, mutate(content, rng))
    return out.getvalue()


def mutate_gzip(data: bytes, rng: random.Random) -> bytes:
    return mutate(data, rng) if rng.random() < 0.3 else gzip.compress(mutate(gzip.decompress(data), rng), 1)


# ---------------------------------------------------------------- valid files


LISTS = {  # data set: {file: text}, each a small valid one
    "custom": {
        "classes.txt": "Normal\nFight\nFall\n",
        "train.txt": "Normal/a 1.mp4 Normal\nFight/b.mp4 Fight\n",
        "test.txt": "Normal/c.mp4 Normal\nFall/my d.mp4 Fall\n",
        "temporal_annotations.txt": "c.mp4 Normal -1 -1\nmy d.mp4 Fall 3 5 9 9\n",
    },
    "released": {
        "train_abnormal.txt": "Abuse/a 0 79 0\n",
        "train_normal.txt": "N/b 0 39 7\n",
        "test.txt": "Arson/c 1 512 2\nN/d 0 9 7\n",
        "temporal.txt": "c.mp4 Arson 200 512 -1 -1\nd.mp4 Normal -1 -1\n",
        "ids.csv": "id,name\n"
        + "".join(f"{i},{name}\n" for i, name in enumerate(datasets.DATASETS["ucfcrime"].classes)),
    },
    "ucfcrime": {
        "train.txt": "Abuse/a.mp4\nNormal_Videos/b.mp4\n",
        "test.txt": "Arson/c.mp4\nNormal_Videos/d.mp4\n",
        "temporal.txt": "c Arson 1000 1796 -1 -1\nd Normal -1 -1 -1 -1\n",
    },
    "xdviolence": {
        "train.txt": "v=a__#1_label_B2-0-0\nv=b__#1_label_A\nv=e_label_B1-B2\n",
        "test.txt": "v=d e__#1_label_0-B6-0\n",
        "annotations.txt": "v=d e__#1_label_0-B6-0 51 210 273 410\n",
    },
    "shanghaitech": {
        "train.txt": "01_0014\n01_002\n",
        "test.txt": "01_001\n01_0015\n",
        "classes.csv": "01_0014,car\n01_0015,car\n",
    },
}


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def small_clip() -> clip_model.CLIP:
    torch.manual_seed(0)
    return clip_model.CLIP(
        embed_dim=2,
        image_resolution=4,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=4,
        context_length=3,
        vocab_size=5,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )


def safetensors(state: dict) -> bytes:
    header, data = {}, b""
    for name, tensor in state.items():
        content = tensor.detach().half().numpy().tobytes()
        header[name] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def torchscript(state: dict) -> bytes:
    """An archive with the weights as OpenAI's: modules without code that hold buffers."""
    module = torch.nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        parent = module
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent._modules[part]
        parent.register_buffer(last, tensor)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch would like another format
        torch.jit.save(torch.jit.script(module), file)
    return file.getvalue()


class NarrowS3R(S3R):
    """The system whose checkpoint tells a size, that of the dictionary."""

    WIDTH = 8


def checkpoint(model=AnomalyCLIP, feature_dim=3, **options) -> bytes:
    config = AnomalyCLIPConfig(
        classes=("a", "b"),
        feature_dim=feature_dim,
        num_segments=4,
        num_frames=2,
        topk=1,
        directions="direct",
        embed_dim=2,
        num_heads=1,
    )
    return saved(model(config).checkpoint(), **options)


def model_of(path: Path, system: type[VideoModel]) -> VideoModel:
    """A system of any width from a checkpoint."""
    content = read_checkpoint(path)
    check_claims(system, content)
    return system.from_dict(content)


# ---------------------------------------------------------------- parsers


def list_parsers(folder: Path):
    """(name, file to mutate, its valid bytes, its mutation, function to call) of every annotation file."""
    for layout, files in LISTS.items():
        root = folder / layout
        root.mkdir()
        for name, text in files.items():
            (root / name).write_text(text)
        if layout == "shanghaitech":
            (root / "test_frame_mask").mkdir()
            mask = npy(np.array([1, 1, 0, 0, 1], np.uint8))
            (root / "test_frame_mask" / "01_0015.npy").write_bytes(mask)
            yield (
                "mask",
                root / "test_frame_mask" / "01_0015.npy",
                mask,
                mutate,
                lambda root=root: lists.load_lists("shanghaitech", root),
            )
        dataset, ids = ("ucfcrime", root / "ids.csv") if layout == "released" else (layout, None)
        for name, text in files.items():
            yield (
                f"lists {layout}",
                root / name,
                text.encode(),
                mutate,
                lambda a=(dataset, root, ids): lists.load_lists(*a),
            )


def binary_parsers(folder: Path):
    """The same for features, meta.json, checkpoints, CLIP weights and the merge table."""
    meta = {
        "encoder": "e",
        "weights_sha256": None,
        "dim": 3,
        "stride": 2,
        "crops": 1,
        "jpeg": None,
        "videos": {"a/b": {"frames": 8, "fps": 25.0}, "c": {"frames": 1, "fps": None}},
    }
    clip = small_clip()
    state = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    config = json.dumps(
        {"model_cfg": {"embed_dim": 2, "vision_cfg": {"head_width": 64}, "text_cfg": {"heads": 1}}}
    ).encode()
    merges = gzip.compress(b"i n\nt h\na n\nin g</w>\nr e\n")
    for name in ("weights", "with_config", "table"):
        (folder / name).mkdir()
    (folder / "with_config" / "clip.pt").write_bytes(saved(state))
    weights, files = folder / "weights", {"plain": "v.pt", "old": "w.pt", "script": "x.pt", "safe": "y.safetensors"}
    path = {kind: weights / name for kind, name in files.items()}
    table = folder / "table" / "bpe_merges.txt.gz"
    array = folder / "v.npy"
    yield ".npy", array, npy(np.zeros((4, 3), np.float32)), mutate, lambda: load_array(array)
    yield "meta.json", folder / "meta.json", json.dumps(meta).encode(), mutate, lambda: read_meta(folder / "meta.json")
    for name, data, change in (
        ("m.pt", checkpoint(), mutate_zip),
        ("n.pt", checkpoint(_use_new_zipfile_serialization=False), mutate),
    ):
        file = folder / name
        yield f"checkpoint {change.__name__}", file, data, change, lambda file=file: model_of(file, AnomalyCLIP)
    s3r = folder / "s3r.pt"
    yield "checkpoint of S3R", s3r, checkpoint(NarrowS3R, 16), mutate_zip, lambda: model_of(s3r, NarrowS3R)
    yield "CLIP torch zip", path["plain"], saved(state), mutate_zip, lambda: clip_model.load(path["plain"])
    yield (
        "CLIP torch, old",
        path["old"],
        saved(state, _use_new_zipfile_serialization=False),
        mutate,
        lambda: clip_model.load(path["old"]),
    )
    yield "CLIP TorchScript", path["script"], torchscript(state), mutate_zip, lambda: clip_model.load(path["script"])
    yield "CLIP safetensors", path["safe"], safetensors(state), mutate, lambda: clip_model.load(path["safe"])
    yield (
        "CLIP config",
        folder / "with_config" / "open_clip_config.json",
        config,
        mutate,
        lambda: clip_model.load(folder / "with_config" / "clip.pt"),
    )
    yield "merge table", table, merges, mutate_gzip, lambda: read_merges(table)


def media_parsers(folder: Path):
    """The same for videos, all frames of which are read."""
    for suffix, codec in MEDIA.items():
        path = folder / f"v.{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 32, 32, "yuv420p", 5
            for i in range(12):
                picture = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
        yield f"video .{suffix}", path, path.read_bytes(), mutate, lambda path=path: read_video(path)


def read_video(path: Path) -> None:
    """All frames as pictures; AssertionError if time falls."""
    try:
        with VideoFile(path) as video:
            times = [time for time, frame in video.frames() if to_image(frame, VideoReformatter())]
    except BROKEN as error:
        raise ValueError(why_skipped(error)) from None
    damage = with_holes(video.damage, np.array(times))
    assert times[0] >= 0 and (np.diff(times) >= 0).all() and mean_rate(np.array(times), None) > 0, times
    assert all(place.start >= 0 and (place.end is None or place.end >= place.start) for place in damage), damage


def read_merges(path: Path):
    """The merge table is read from beside clip_model.py: for a moment that is another folder."""
    real, clip_model.__file__ = clip_model.__file__, str(path.with_name("clip_model.py"))
    try:
        return clip_model.merge_table.__wrapped__()
    finally:
        clip_model.__file__ = real


# ---------------------------------------------------------------- running


def stop_slow(*_):
    raise TooSlow(f"took more than {SECONDS} s")


def limit_memory() -> None:
    """Address space of this process from here on; where the system tells no size (not Linux), nothing is limited."""
    if Path("/proc/self/statm").exists():
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def outcome(call) -> str | None:
    """ "read", "refused", or what came out that must not."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call()
        return "read"
    except ValueError as error:
        return "refused" if len(str(error).splitlines()) <= 1 else f"a message of several lines: {str(error)[:200]!r}"
    except (Exception, TooSlow) as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(parsers: list, runs: int, rng: random.Random, save: Path | None) -> tuple[Counter, dict]:
    """Counts of (parser, outcome) over `runs` cases, and the cases of each finding as {(parser, what): [bytes]}."""
    counts, findings = Counter(), defaultdict(list)
    for _, path, data, *_ in parsers:
        path.write_bytes(data)
    for *_, call in parsers:
        with redirect_stderr(io.StringIO()):
            call()  # a valid file is read
    for run in range(runs):
        name, path, data, change, call = parsers[run % len(parsers)]
        case = change(data, rng)
        path.write_bytes(case)
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            what = outcome(call)
        path.write_bytes(data)  # the file that other parsers of the same folder see
        counts[name, what if what in ("read", "refused") else "found"] += 1
        if what not in ("read", "refused"):
            key = name, re.sub(r"0x[0-9a-f]+|\d+", "#", what)[:100]
            findings[key].append(case)
            if save and len(findings[key]) == 1:
                save.mkdir(parents=True, exist_ok=True)
                (save / f"{len(findings)}-{re.sub(r'[^a-z]+', '-', name.lower())}").write_bytes(case)
    return counts, findings


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=100_000, help="cases, shared evenly by the files (default: 100,000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all mutations (default: 0)")
    parser.add_argument(
        "--save", type=Path, help="folder for the bytes of the first case of each finding (default: not kept)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    before = signal.signal(signal.SIGALRM, stop_slow), resource.getrlimit(resource.RLIMIT_AS)
    try:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            parsers = [*list_parsers(Path(folder))] * 5 + [
                *binary_parsers(Path(folder)),
                *media_parsers(Path(folder)),
            ]  # lists take a tenth of the time
            limit_memory()
            counts, findings = fuzz(parsers, args.runs, random.Random(args.seed), args.save)
    finally:
        signal.signal(signal.SIGALRM, before[0])
        resource.setrlimit(resource.RLIMIT_AS, before[1])
    print(f"{'parser':24}{'cases':>10}{'read':>10}{'refused':>10}{'found':>10}")
    for name in dict.fromkeys(name for name, _ in counts):
        numbers = [counts[name, what] for what in ("read", "refused", "found")]
        print(f"{name:24}{sum(numbers):>10,}" + "".join(f"{number:>10,}" for number in numbers))
    print(f"{'all':24}{sum(counts.values()):>10,}, seed {args.seed}")
    for (name, what), cases in findings.items():
        print(f"found: {name}, {len(cases)} times: {what}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
