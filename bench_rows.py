"""The rows of bench.py's table, a function each, from the command line's arguments to lines; ROWS names them."""
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import bench_peers as peers
from bench_peers import MissingPeer
from bench_tools import HERE, Line, against, gib, in_subprocess, peak_memory, pick, rates, relative, spread, take_turns
from videoanomaly import winograd
from videoanomaly.runtime.files import write_atomically

CCTV = HERE.parent / "shared" / "data" / "cctv"
VIT_B16 = {"embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 16,
           "context_length": 77, "vocab_size": 49408, "transformer_width": 512, "transformer_heads": 8,
           "transformer_layers": 12}
SMALL = VIT_B16 | {"embed_dim": 64, "image_resolution": 96, "vision_layers": 3, "vision_width": 256, "transformer_width": 128,
                   "transformer_heads": 2, "transformer_layers": 3}  # for --quick


# ---- the machine's own limits ----


def gemm_rate(dtype: torch.dtype, args) -> list[float]:
    """FLOP/s of a matrix product of the image tower's feed-forward, for more images where that takes no time."""
    n = 197 * pick(args, 16, 1024 if args.device.startswith("cuda") else 64)
    x, weight = torch.randn(n, 768, device=args.device).to(dtype), torch.randn(3072, 768, device=args.device).to(dtype)
    _, seconds = take_turns({"linear": partial(torch.nn.functional.linear, x, weight)}, pick(args, 2, 7), args.device)
    return [2 * n * 768 * 3072 / s for s in seconds["linear"]]


def copy_rate(args) -> list[float]:
    """Bytes/s read and written by a copy that no cache holds."""
    source = torch.ones(pick(args, 2**26, 2**28), dtype=torch.float32, device=args.device)
    target = torch.empty_like(source)
    _, seconds = take_turns({"copy": lambda: target.copy_(source)}, pick(args, 2, 7), args.device)
    return [2 * source.nbytes / s for s in seconds["copy"]]


def limits(args) -> list[Line]:
    video = sample_videos(args)[0]
    num_frames, seconds = take_turns({"decode": lambda: sum(1 for _ in decoded(video))}, args.rounds, args.device)
    return [Line("limit: matrix product, fp32", spread(gemm_rate(torch.float32, args), "GFLOP/s", 1e-9)),
            Line("limit: matrix product, bf16", spread(gemm_rate(torch.bfloat16, args), "GFLOP/s", 1e-9)),
            Line("limit: memory, reading and writing", spread(copy_rate(args), "GB/s", 1e-9)),
            Line("limit: decoding, one thread", rates(seconds["decode"], num_frames["decode"], "frames/s"), note=video.name)]


# ---- CLIP ----


def random_clip(sizes: dict, seed: int = 0):
    import clip_model

    torch.manual_seed(seed)
    return clip_model.CLIP(**sizes).eval()


def image_flops(sizes: dict) -> float:
    """Floating point operations of the image tower for one image: its matrix products, and the attention."""
    width, tokens = sizes["vision_width"], (sizes["image_resolution"] // sizes["vision_patch_size"])**2 + 1
    per_layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return sizes["vision_layers"] * per_layer + 2 * tokens * 3 * sizes["vision_patch_size"]**2 * width


@torch.inference_mode()
def encode(model, images, dtype=torch.float32):
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = model.encode_image(images) if hasattr(model, "encode_image") else model(images).image_embeds
    return features.float()


def image_inputs(args):
    """Sizes, a random CLIP of ours, its state and a batch of images."""
    sizes = pick(args, SMALL, VIT_B16)
    model = random_clip(sizes)
    images = torch.randn(pick(args, 4, 16), 3, *[sizes["image_resolution"]] * 2).to(args.device)
    return sizes, model.to(args.device), {k: v.cpu() for k, v in model.state_dict().items()}, images


def image_fp32(args) -> list[Line]:
    sizes, model, state, images = image_inputs(args)
    work, functions, lines = f"image tower, fp32, batch {len(images)}", {"ours": partial(encode, model, images)}, []
    for name, build in (("OpenAI", peers.openai_clip), ("open_clip", peers.open_clip_clip),
                        ("transformers", peers.transformers_image_tower)):
        try:
            functions[name] = partial(encode, build(state, sizes).to(args.device), images)
        except MissingPeer as error:
            lines.append(Line(work, peer=name, note=f"needs {error}"))
    results, seconds = take_turns(functions, args.rounds, args.device)
    show = partial(rates, count=len(images), unit="images/s")
    return lines + [against(work, name, seconds["ours"], seconds[name], show, 1.2, tolerance=1e-4,
                            difference=relative(results["ours"], results[name])) for name in functions if name != "ours"]


def image_bf16(args) -> list[Line]:
    sizes, model, state, images = image_inputs(args)
    openai = peers.openai_clip(state, sizes).to(args.device)
    functions = {"ours": partial(encode, model, images, torch.bfloat16), "OpenAI": partial(encode, openai, images)}
    results, seconds = take_turns(functions, args.rounds, args.device)
    cosine = torch.nn.functional.cosine_similarity(results["ours"], results["OpenAI"]).min()
    limit = np.median(gemm_rate(torch.bfloat16, args))
    share = image_flops(sizes) * len(images) / np.median(seconds["ours"]) / limit
    line = against(f"image tower, bf16, batch {len(images)}", "OpenAI fp32", seconds["ours"], seconds["OpenAI"],
                   partial(rates, count=len(images), unit="images/s"), 3, difference=1 - float(cosine), tolerance=5e-4,
                   note=f"{share:.0%} of the bf16 matrix product's rate (goal 75%)")
    line.reached = line.reached and bool(share >= 0.75)
    return [line]


# ---- training ----


def preset(args):
    """UCF-Crime's config; smaller with --quick."""
    from anomalyclip import AnomalyCLIPConfig
    from videoanomaly.data.datasets import CLASS_NAMES

    classes = tuple(name for name in CLASS_NAMES["ucfcrime"] if name != "Normal")
    small = {"num_segments": 8, "num_frames": 4, "embed_dim": 32} if args.quick else {}
    return AnomalyCLIPConfig(classes=classes, feature_dim=pick(args, SMALL, VIT_B16)["embed_dim"], **small)


def our_model(args):
    import clip_model
    from anomalyclip import AnomalyCLIP

    clip, config = random_clip(pick(args, SMALL, VIT_B16)), preset(args)
    prototype = torch.randn(config.feature_dim)
    model = AnomalyCLIP(config, clip=clip, tokenize=clip_model.tokenize, prototype=prototype).to(args.device)
    winograd.accelerate(model)
    return model


def released_model(args):
    import clip_model

    sizes, config = pick(args, SMALL, VIT_B16), preset(args)
    clip = peers.openai_clip(random_clip(sizes).state_dict(), sizes)
    return peers.ReleasedModel(config, clip, clip_model.tokenize, torch.randn(config.feature_dim)).to(args.device)


def make_pair(args):
    """Our model and the released one with the same weights."""
    from videoanomaly.weights import released

    ours, theirs = our_model(args), released_model(args)
    state = released.convert_state(theirs.published_state(), normal_id=len(ours.config.classes))
    left = ours.load_state_dict(state | {"prototype": theirs.prototype}, strict=False).missing_keys
    shared = ("temporal_model", "prompt_learner.ctx", "prompt_learner.text_projection")
    assert not any(name.startswith(shared) for name in left), f"the two models differ in {left}"
    return ours, theirs


def text(args) -> list[Line]:
    ours, theirs = make_pair(args)
    towers = {"ours": ours.prompt_learner, "77": theirs.prompts}

    def both_ways(tower):
        tower.zero_grad()
        features = tower()
        features.square().sum().backward()
        return features, tower.ctx.grad.clone()

    results, seconds = take_turns({name: partial(both_ways, tower) for name, tower in towers.items()}, args.rounds, args.device)
    difference = max(map(relative, results["ours"], results["77"]))
    work = f"text tower, {len(ours.config.classes)} classes, forward and backward"
    return [against(work, "OpenAI, 77 positions", seconds["ours"], seconds["77"], partial(spread, unit="ms", scale=1e3), 4,
                    difference=difference, tolerance=1e-5)]


def training_step(model, loss, optimizer, features, labels, seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """All of a step but reading the batch, as in train.py; the seed decides the masks."""
    torch.manual_seed(seed)
    with torch.autocast(features.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        prediction = model(features)
    losses = loss(prediction, labels)
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


def make_step(args, model, loss, config, num_videos: int, dtype=torch.float32):
    """A function that takes the next training step and gives its losses."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_videos, config.num_segments, config.num_frames, config.feature_dim, generator=generator)
    labels = torch.arange(num_videos // 2) % len(config.classes)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, betas=(0.9, 0.98), weight_decay=0.2)
    model.train()
    return partial(training_step, model, loss, optimizer, features.to(args.device), labels.to(args.device), seed=0,
                   dtype=dtype)


def training_run(which: str, quick: bool, device: str, threads: int, num_videos: int, num_steps: int) -> dict:
    """Losses of the first step, median seconds of those after it, and peak bytes of a process that trains one of the two."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    models = dict(zip(("ours", "released"), make_pair(SimpleNamespace(quick=quick, device=device))))
    ours = models["ours"]
    step = make_step(SimpleNamespace(device=device), models[which], ours.losses, ours.config, num_videos)
    results, seconds = take_turns({"step": step}, num_steps, device)
    losses = {name: float(value) for name, value in results["step"].items()}
    return {"losses": losses, "seconds": float(np.median(seconds["step"])), "peak": peak_memory(device)}


def train(args) -> list[Line]:
    """Each model in processes of its own, which take turns: memory that one has freed does not speed up the other."""
    num_videos, runs = pick(args, 8, 64), {"ours": [], "released": []}
    for _ in range(min(args.rounds, 3)):
        for which, done in runs.items():
            done.append(in_subprocess("bench_rows", "training_run", which, args.quick, args.device, torch.get_num_threads(),
                                      num_videos, 2))
    losses = [done[0]["losses"] for done in runs.values()]
    difference = max(abs(losses[0][name] - value) / max(1, abs(value)) for name, value in losses[1].items())
    seconds, memory = ([[run[key] for run in done] for done in runs.values()] for key in ("seconds", "peak"))
    most = [max(peaks) for peaks in memory]
    line = against(f"training step, B {num_videos}", "OpenAI's text tower, reversible axial_attention", *seconds,
                   partial(spread, unit="s"), 1.5, difference=difference, tolerance=1e-5,
                   note=f"peak memory {gib(most[0])}, peer {gib(most[1])} (goal: not higher)")
    line.reached = line.reached and most[0] <= most[1]
    return [line]


# ---- features on disk ----


def write_features(folder: Path, lengths, dim: int, dtype) -> list:
    """Random features of videos named 0, 1, ...; every other video has a class and two intervals. The videos."""
    from videoanomaly.data.annotations import Video

    rng, videos = np.random.default_rng(0), []
    block = rng.standard_normal((4096, dim), dtype=np.float32)
    for i, length in enumerate(map(int, lengths)):
        start = rng.integers(len(block))
        rows = np.resize(np.roll(block, start, axis=0), (length, dim)) * np.float32(rng.uniform(0.5, 1.5))
        write_atomically(folder / f"{i}.npy", lambda file: np.save(file, rows.astype(dtype)))
        intervals = ((length // 4, length // 3), (length // 2, length * 3 // 5)) if i % 2 else ()
        videos.append(Video(str(i), i // 2 % 13 if i % 2 else -1, intervals, length))
    return videos


def video_lengths(count: int, mean: int) -> np.ndarray:
    """Skewed as those of UCF-Crime are, with the given mean."""
    lengths = np.random.default_rng(0).lognormal(sigma=1.0, size=count)
    return np.maximum(lengths * mean / lengths.mean(), 40).astype(int)


def forget(folder: Path) -> None:
    """Drops the folder's files from the system's cache, where it can be asked to."""
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(args) -> list[Line]:
    from videoanomaly.data.features import FeatureFolder
    from videoanomaly.data.sampling import SegmentDataset, training_rows

    folder, count = args.folder / "loading", pick(args, 16, 128)
    videos = write_features(folder, video_lengths(count, pick(args, 1000, 7000)), pick(args, 64, 512), np.float32)
    dataset = SegmentDataset(videos, FeatureFolder(folder), 32, 16)
    functions = {
        "ours": lambda: [dataset[i, i]["features"].numpy() for i in range(count)],
        "whole files": lambda: [peers.whole_file_sample(folder / f"{i}.npy", 32, 16, i, training_rows) for i in range(count)]}
    results, warm = take_turns(functions, args.rounds, "cpu")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(results["ours"], results["whole files"]))
    line = partial(against, peer="whole files", show=partial(rates, count=count, unit="samples/s"), difference=difference)
    lines = [line("training samples from disk, warm", ours=warm["ours"], theirs=warm["whole files"], least=20)]
    if not hasattr(os, "posix_fadvise"):
        return lines + [Line("training samples from disk, cold", note="this system cannot be told to drop its cache")]
    cold = {name: [] for name in functions}
    for _ in range(args.rounds):
        for name, function in functions.items():
            forget(folder)
            start = time.perf_counter()
            function()
            cold[name].append(time.perf_counter() - start)
    return lines + [line("training samples from disk, cold", ours=cold["ours"], theirs=cold["whole files"])]


# ---- evaluation ----


def evaluate_ours(model, videos, folder: Path) -> dict:
    from videoanomaly.data.features import FeatureFolder
    from videoanomaly.evaluation import scoring

    scores = scoring.score_videos(model.predict, videos, FeatureFolder(folder))
    results = scoring.frame_metrics(scores, model.config.classes)
    write_atomically(folder / "metrics.json", lambda file: file.write(json.dumps(results).encode()))
    return results


def evaluate_released(model, config, videos, folder: Path, device: str) -> dict:
    p_A, p_class, labels = [], [], []
    for video in videos:
        path = folder / f"{video.name}.npy"
        score, per_class = peers.loop_scores(model, path, config.num_segments, config.num_frames, device)
        p_A += score.tolist()
        p_class += per_class.tolist()
        labels += peers.loop_labels(video, len(score))
    results = peers.loop_metrics(p_A, p_class, labels, config.classes)
    write_atomically(folder / "metrics_released.json", lambda file: file.write(json.dumps(results).encode()))
    return results


def evaluation_memory(quick: bool, device: str, longest: int) -> int:
    """Peak bytes of a process that evaluates a few videos, the longest of so many frames."""
    args = SimpleNamespace(quick=quick, device=device)
    ours = our_model(args)
    with tempfile.TemporaryDirectory() as folder:
        videos = write_features(Path(folder), [longest, 2000, 2000, 2000], ours.config.feature_dim, np.float16)
        evaluate_ours(ours.eval(), videos, Path(folder))
    return peak_memory(device)


def evaluation(args) -> list[Line]:
    folder, count = args.folder / "evaluation", pick(args, 24, 290)
    ours, theirs = (model.eval() for model in make_pair(args))
    lengths = video_lengths(count, pick(args, 1500, 1_109_680 // 290))
    videos = write_features(folder, lengths, ours.config.feature_dim, np.float16)
    functions = {"ours": partial(evaluate_ours, ours, videos, folder),
                 "released": partial(evaluate_released, theirs, ours.config, videos, folder, args.device)}
    results, seconds = take_turns(functions, min(args.rounds, 3), args.device, warm_up=args.quick)
    difference = max(abs(results["ours"][key] - value) for key, value in results["released"].items())
    short, long = pick(args, (2000, 8000), (5000, 100_000))
    memory = [in_subprocess("bench_rows", "evaluation_memory", args.quick, args.device, longest) for longest in (short, long)]
    work = f"evaluation, {count} videos, {lengths.sum():,} frames, features to metrics.json"
    line = against(work, "text tower per video, loops over frames", seconds["ours"], seconds["released"],
                   partial(spread, unit="s"), 10, difference=difference,
                   tolerance=pick(args, 1e-5, 1e-6),  # two frames whose order rounding decides weigh more among few
                   note=f"peak memory {gib(memory[0])} with videos up to {short:,} frames, {gib(memory[1])} up to {long:,} "
                   "(goal: under 2 GiB, independent)")
    line.reached = line.reached and memory[1] < min(2 * 2**30, 1.1 * memory[0])
    return [line]


def random_scores(num_videos: int, mean_length: int, num_classes: int) -> list:
    from videoanomaly.evaluation.scoring import Scores

    rng, videos = np.random.default_rng(0), []
    for i, length in enumerate(video_lengths(num_videos, mean_length)):
        labels = np.full(length, -1)
        if i % 2:
            labels[length // 4:length // 2] = i // 2 % num_classes
        p_class = rng.random((length, num_classes), dtype=np.float32) / num_classes
        p_A = 0.8 * rng.random(length, dtype=np.float32) + 0.2 * (labels >= 0).astype(np.float32)
        videos.append(Scores(p_A, p_A[:, None] * p_class, labels))
    return videos


def bootstrap(args) -> list[Line]:
    """Ours with all draws, scikit-learn with a few; equality is that of the intervals from these few, of the same seed."""
    from videoanomaly.evaluation import metrics

    num_draws, few, classes = pick(args, 100, 1000), 2, tuple("ABCDEF")
    scores = random_scores(pick(args, 60, 800), pick(args, 300, 2875), len(classes))
    weights = np.random.default_rng(0).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), few)
    functions = {"ours": lambda: metrics.bootstrap_metrics(scores, classes, num_draws=num_draws),
                 "scikit-learn": lambda: peers.sklearn_draws(scores, classes, weights)}
    results, seconds = take_turns(functions, min(args.rounds, 3), "cpu", warm_up=args.quick)
    intervals = metrics.bootstrap_metrics(scores, classes, num_draws=few)
    difference = max(float(np.abs(np.percentile(draws, (2.5, 97.5)) - intervals[key]).max())
                     for key, draws in results["scikit-learn"].items())
    theirs = [s * num_draws / few for s in seconds["scikit-learn"]]
    num_frames = sum(len(s.labels) for s in scores)
    work = f"bootstrap, {num_frames:,} frames, {len(classes)} classes, {num_draws} draws"
    return [against(work, "scikit-learn", seconds["ours"], theirs, partial(spread, unit="s"), 50, difference=difference,
                    tolerance=1e-9, note=f"scikit-learn's time is that of {few} draws, times {num_draws // few}")]


# ---- videos ----


def sample_videos(args) -> list[Path]:
    """The shortest of the real videos, or made ones where those are absent."""
    found = sorted(CCTV.rglob("*.mp4"), key=lambda path: (path.stat().st_size, path.name))
    return found[:pick(args, 1, 2)] or [made_video(args.folder / "made.mp4", pick(args, 60, 300))]


def made_video(path: Path, num_frames: int) -> Path:
    """Moving coloured noise, 320x240, 25 frames/s."""
    import av

    if path.exists():
        return path
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * i, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path: Path):
    """Frames of a video as PIL images, decoded in one thread, with the same conversion of colours as ours."""
    import av
    from av.video.reformatter import VideoReformatter

    from videoanomaly.video.decoding import to_image

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        reformatter = VideoReformatter()
        for frame in container.decode(video=0):
            yield to_image(frame, reformatter)


def extract_in_turn(paths: list[Path], encoder, batch_size: int) -> list[np.ndarray]:
    """Decode, PIL, encode, one after the other, float16 (N, D) of each video."""
    features = []
    for path in paths:
        done, images = [], []
        for image in decoded(path):
            images.append(encoder.preprocess(image))
            if len(images) == batch_size:
                done.append(encoder.encode(torch.stack(images)))
                images = []
        done += [encoder.encode(torch.stack(images))] if images else []
        features.append(torch.cat(done).half().numpy())
    return features


def extract_ours(args, sources: Path, weights: Path, batch_size: int) -> tuple[list[np.ndarray], float]:
    """Features and seconds of extract_features.py; a second start, with nothing to do, tells what starting costs."""
    with tempfile.TemporaryDirectory(dir=args.folder) as out:
        command = [sys.executable, HERE / "extract_features.py", "--videos", sources, "--out", out, "--clip", weights,
                   "--batch", str(batch_size), "--device", args.device]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        middle = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = (middle - start) - (time.perf_counter() - middle)
        return [np.load(path) for path in sorted(Path(out).rglob("*.npy"))], seconds


def encoder_alone(encoder, batch_size: int, num_batches: int = 4) -> float:
    """Seconds per image where the encoder has nothing to wait for."""
    batch = torch.randn(batch_size, 3, *[encoder.visual.input_resolution] * 2)
    start = time.perf_counter()
    for _ in range(num_batches):
        encoder.encode(batch)
    return (time.perf_counter() - start) / num_batches / batch_size


def extraction(args) -> list[Line]:
    from videoanomaly.video.encoders import ClipEncoder

    sources, weights, batch_size = args.folder / "videos", args.folder / "clip.pt", pick(args, 16, 32)
    sources.mkdir(exist_ok=True)
    paths = sorted((Path(shutil.copy(path, sources)) for path in sample_videos(args)))
    torch.save(random_clip(pick(args, SMALL, VIT_B16)).state_dict(), weights)
    encoder = ClipEncoder(str(weights), args.device)
    seconds, results = {"ours": [], "in turn": [], "encoder": []}, {}
    for _ in range(pick(args, 1, min(args.rounds, 3))):
        results["ours"], took = extract_ours(args, sources, weights, batch_size)
        seconds["ours"].append(took)
        start = time.perf_counter()
        results["in turn"] = extract_in_turn(paths, encoder, batch_size)
        seconds["in turn"].append(time.perf_counter() - start)
        num_frames = sum(map(len, results["ours"]))
        seconds["encoder"].append(encoder_alone(encoder, batch_size) * num_frames)
    show = partial(rates, count=num_frames, unit="frames/s")
    difference = max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(results["ours"], results["in turn"]))
    work = f"video to features, {len(paths)} videos, {num_frames} frames"
    return [against(work, "decode, PIL, encode in turn", seconds["ours"], seconds["in turn"], show, difference=difference),
            against(work, "the encoder alone", seconds["ours"], seconds["encoder"], show, 0.95)]


# ---- start-up, accelerator ----


def startup(args) -> list[Line]:
    works = {"evaluate.py --help": ["evaluate.py", "--help"], "python -c pass": ["-c", "pass"],
             "import anomalyclip": ["-c", "import anomalyclip"], "import torch": ["-c", "import torch"]}
    calls = {work: partial(subprocess.run, [sys.executable, *command], cwd=HERE, check=True, capture_output=True)
             for work, command in works.items()}
    _, seconds = take_turns(calls, pick(args, args.rounds, max(args.rounds, 3)), "cpu")
    goals = (("evaluate.py --help", "python -c pass", 0.3), ("import anomalyclip", "import torch", 3))
    return [against(f"start-up: {work}", bound, seconds[work], seconds[bound], partial(spread, unit="s"),
                    goal=f"under {most} s", reached=bool(np.median(seconds[work]) < most)) for work, bound, most in goals]


def accelerator(args) -> list[Line]:
    """torch.compile of the image tower and bf16 autocast of the training step; on CUDA also pinned memory."""
    sizes, model, _, images = image_inputs(args)
    compiled = copy.deepcopy(model)
    compiled.visual = torch.compile(compiled.visual)
    work = f"image tower, bf16, batch {len(images)}, torch.compile"
    lines = [compared_compile(work, args, *(partial(encode, m, images, torch.bfloat16) for m in (compiled, model))),
             compared_autocast(args)]
    if not args.device.startswith("cuda"):
        return lines + [Line("copies to the device, pinned memory", note="needs --device cuda")]
    pageable = torch.empty(2**28, dtype=torch.uint8)
    pinned = pageable.pin_memory()
    _, seconds = take_turns({"pinned": lambda: pinned.to(args.device, non_blocking=True),
                             "pageable": lambda: pageable.to(args.device)}, args.rounds, args.device)
    show = partial(rates, count=2**28 / 1e9, unit="GB/s")
    return lines + [against("copies to the device, pinned memory", "pageable", seconds["pinned"], seconds["pageable"], show)]


def compared_compile(work: str, args, compiled, eager) -> Line:
    if not (shutil.which("g++") or shutil.which("clang++")):
        return Line(work, note="needs a C++ compiler")
    start = time.perf_counter()
    compiled()
    first = time.perf_counter() - start
    results, seconds = take_turns({"compiled": compiled, "eager": eager}, args.rounds, args.device)
    cosine = torch.nn.functional.cosine_similarity(results["compiled"], results["eager"]).min()
    gain = np.median(seconds["eager"]) - np.median(seconds["compiled"])
    after = f"pays after {first / gain:,.0f} batches" if gain > 0 else "never pays"
    return against(work, "the same without", seconds["compiled"], seconds["eager"], partial(spread, unit="ms", scale=1e3),
                   difference=1 - float(cosine), tolerance=5e-4, note=f"compiling took {first:.1f} s, {after}")


def compared_autocast(args) -> Line:
    num_videos, model = pick(args, 8, 64), our_model(args)
    loss, config = model.losses, model.config
    steps = {"bf16": make_step(args, copy.deepcopy(model), loss, config, num_videos, torch.bfloat16),
             "fp32": make_step(args, model, loss, config, num_videos)}
    results, seconds = take_turns(steps, args.rounds, args.device)
    return against(f"training step, B {num_videos}, bf16 autocast", "fp32", seconds["bf16"], seconds["fp32"],
                   partial(spread, unit="s"), tolerance=0.05,
                   difference=relative(results["bf16"]["total"], results["fp32"]["total"]))


ROWS = {row.__name__: row for row in (limits, image_fp32, image_bf16, text, train, loading, evaluation, bootstrap, extraction,
                                      startup, accelerator)}
