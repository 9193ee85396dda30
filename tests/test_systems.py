"""Tests of systems/: slow loops, gradients, a planted problem, whole runs."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import clip_model
import evaluate
import predict
import train
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from tests.places import torchrun
from tests.synthetic import equal, stop_in_the_third_epoch, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from videoanomaly import plots, settings
from videoanomaly.data.annotations import Video, VideoLists
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.sampling import BalancedBatches
from videoanomaly.data.training_data import TrainingData
from videoanomaly.runtime.console import InputError
from videoanomaly.systems import actionclip, base, binary, catalogue, mgfn, rtfm, s3r, ur_dmu, vadclip
from videoanomaly.systems.temporal_bodies import MTN, NonLocal
from videoanomaly.training.epochs import learning_rate
from videoanomaly.weights import export

B, S, F_, D, K = 10, 16, 4, 64, 6  # of the batches here
A = B // 2  # abnormal videos
CLASSES = ("fire", "fall")
LABELS = torch.tensor([0, 1, 1, 0, 1])
OTHERS = tuple(name for name in catalogue.SYSTEMS if name not in ("anomalyclip", "gaussian"))  # test_one_class.py
TRAINED = [name for name in OTHERS if name != "clip-zeroshot"]
BINARY = [name for name in TRAINED if issubclass(catalogue.SYSTEMS[name], binary.BinarySystem)]
SMALL = ["--num-segments", "6", "--num-frames", "4", "--batch-size", "8", "--workers", "0", "--device", "cpu"]
SMALL += ["--folds", "0"]
RTFMS_WIDTH = rtfm.RTFM.WIDTH


@pytest.fixture(autouse=True, scope="module")
def narrow():
    """Widths of a fraction, so that the tests are quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtfm.RTFM, "WIDTH", 64)
        patch.setattr(ur_dmu.URDMU, "DIM", 128)
        patch.setattr(mgfn.MGFN, "WIDTHS", (64, 64, 128))
        patch.setattr(mgfn.MGFN, "DEPTHS", (1, 1, 1))
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(tiny_clip_state_dict(), path)
    return clip_model.load(path), str(path)


def build(name: str, **options):
    """A system in training mode, of free vectors where it has prompts."""
    torch.manual_seed(0)
    options = {"num_segments": S, "num_frames": F_, "topk": K, "feature_dim": D, "directions": "direct"} | options
    config = AnomalyCLIPConfig(classes=CLASSES, **options)
    learned = {"dictionary": torch.randn(5, D)} if name == "s3r" else {}
    return catalogue.SYSTEMS[name](config, **learned).train()


def batch(seed: int = 1) -> torch.Tensor:
    return torch.randn(B, S, F_, D, generator=torch.Generator().manual_seed(seed))


def predicted(name: str):
    """A model whose dropout is off, and its prediction."""
    model = build(name).eval()
    with torch.no_grad():
        return model, model(batch())


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logits, label: int) -> float:
    return math.log(sum(math.exp(float(x)) for x in logits)) - float(logits[label])


def best(values, k: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -float(values[i]))[:k]


def binary_cross_entropy(p: float, y: float) -> float:
    return -y * math.log(p) - (1 - y) * math.log(1 - p)


def scores_of(prediction) -> list[list[float]]:
    return [[sigmoid(float(z[0])) for z in video] for video in prediction.anomaly_logits]


def check(losses: dict, expected: dict, weights: dict) -> None:
    assert losses.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    total = sum(weights.get(name, 1) * value for name, value in expected.items())
    assert losses["total"].item() == pytest.approx(total, rel=1e-5)


def slow_sparse_and_smooth(scores) -> dict:
    """Of all abnormal videos together."""
    abnormal = scores[:A]
    return {
        "sparse": math.sqrt(sum(s * s for video in abnormal for s in video)),
        "smooth": sum((a - b) ** 2 for video in abnormal for a, b in zip(video, video[1:])),
    }


# ---- losses and selection, beside slow loops ----


def test_sultani_ranks_each_abnormal_video_above_each_normal_one():
    model, prediction = predicted("sultani")
    scores = scores_of(prediction)
    abnormal, normal = scores[:A], scores[A:]
    expected = {
        "rank": sum(sum(max(0, 1 - max(a) + max(n)) for a in abnormal) for n in normal) / A,
        "sparse": sum(map(sum, abnormal)),
        "smooth": sum((a - b) ** 2 for video in abnormal for a, b in zip(video, video[1:])),
    }
    check(model.losses(prediction, LABELS), expected, {"sparse": 8e-5, "smooth": 8e-5})


def slow_top_loss(scores, chosen) -> float:
    means = [sum(video[s] for s in segments) / len(segments) for video, segments in zip(scores, chosen)]
    return sum(binary_cross_entropy(p, float(i < A)) for i, p in enumerate(means)) / B


def slow_rtfm(prediction) -> dict:
    scores = scores_of(prediction)
    chosen = [best([float(x.norm()) for x in video], K) for video in prediction.embedding]
    lengths = [
        float(sum(video[s] for s in segments).div(K).norm()) for video, segments in zip(prediction.embedding, chosen)
    ]
    return slow_sparse_and_smooth(scores) | {
        "top": slow_top_loss(scores, chosen),
        "magnitude": sum((abs(100 - lengths[i]) + lengths[A + i]) ** 2 for i in range(A)) / A,
    }


@pytest.mark.parametrize("name", ["rtfm", "ssrl"])
def test_rtfm_takes_the_longest_features_and_drives_their_lengths_apart(name):
    model, prediction = predicted(name)
    check(model.losses(prediction, LABELS), slow_rtfm(prediction), {"magnitude": 1e-4, "sparse": 8e-3, "smooth": 8e-4})


def test_s3r_adds_that_what_normality_reconstructs_is_normal():
    model, prediction = predicted("s3r")
    macro = sum(binary_cross_entropy(sigmoid(float(z)), 0) for z in prediction.macro_logits) / B
    check(
        model.losses(prediction, LABELS),
        slow_rtfm(prediction) | {"macro": macro},
        {"magnitude": 1e-4, "sparse": 8e-3, "smooth": 8e-4},
    )


def test_s3r_reconstructs_a_segment_from_the_atoms_that_match_it():
    model = build("s3r")
    x = batch()[:, :, 0]
    weights = [math.exp((model.to_q(x[2, 5]) @ model.to_k(atom)).item()) for atom in model.dictionary]
    expected = sum(w / sum(weights) * model.to_v(atom) for w, atom in zip(weights, model.dictionary))
    assert torch.allclose(model.reconstruct(x)[2, 5], expected, atol=1e-5)


def test_s3r_learns_atoms_from_the_means_of_normal_videos():
    rng = np.random.default_rng(0)
    rows = {f"v{i}": rng.normal(size=(9, 2, D)).astype(np.float32) + 5 * np.eye(D)[i % 2] for i in range(9)}
    lists = VideoLists(("a", "b"), [Video(name, 1 if name == "v8" else -1) for name in rows], [])
    features = SimpleNamespace(open=rows.get, paths=lambda name: [name])

    def learn(dataset: str = "ucfcrime", seed: int = 0) -> torch.Tensor:
        return s3r.S3R.learn(TrainingData(DATASETS[dataset], lists, features, None), seed)["dictionary"]

    dictionary = learn()
    assert dictionary.shape == (4, D) and dictionary.dtype == torch.float32  # half of 8 normal videos
    assert learn("shanghaitech").shape == (7, D)  # nine tenths
    assert not torch.equal(dictionary, learn(seed=1))
    assert ((dictionary != 0).sum(dim=0) <= 2).all() and (dictionary[:, :2] != 0).any(
        dim=0
    ).all()  # two shares of a channel
    means = torch.from_numpy(np.stack([rows[f"v{i}"].mean(axis=(0, 1)) for i in range(8)])).float()
    shares = torch.linalg.lstsq(dictionary.T, means.T).solution.T  # (8, 4), of the atoms in each video
    assert (shares @ dictionary - means)[:, :2].abs().max() < 1  # 5 is what tells the two kinds of videos apart
    rows["v8"] = rows["v8"] * 100
    assert torch.equal(dictionary, learn())  # nothing of the abnormal video is in it
    for i in range(8):
        rows[f"v{i}"] = rows[f"v{i}"] / 100
    assert torch.allclose(dictionary / 100, learn(), atol=1e-5)  # as long as features are


def test_training_hides_seven_tenths_of_the_segments_from_the_choice_by_length():
    torch.manual_seed(0)
    embedding = torch.ones(2000, 10, 4) * torch.arange(1, 11).view(10, 1)
    assert rtfm.magnitude_topk(embedding, 2, training=False).tolist() == [[9, 8]] * 2000
    chosen = rtfm.magnitude_topk(embedding, 1, training=True)[:, 0]
    shares = [(chosen == 9 - i).float().mean() for i in range(4)]
    assert shares == pytest.approx([0.3 * 0.7**i for i in range(4)], abs=0.04)


def test_mgfn_contrasts_the_lengths_of_the_longest_features():
    model, prediction = predicted("mgfn")
    scores = scores_of(prediction)
    lengths = [[float(x.norm()) for x in video] for video in prediction.embedding]
    chosen = [best(video, K) for video in lengths]
    top = [[video[s] for s in segments] for video, segments in zip(lengths, chosen)]
    apart = sum(max(0, 200 - math.dist(top[i], top[A + i])) ** 2 for i in range(A)) / A
    together = sum(math.dist(top[i], top[i + 2]) ** 2 for i in (0, 1, A, A + 1)) / 2  # of five, one is left out
    expected = slow_sparse_and_smooth(scores) | {
        "top": slow_top_loss(scores, chosen),
        "contrast": 1e-3 * apart + together,
    }
    check(model.losses(prediction, LABELS), expected, {"contrast": 1e-3, "sparse": 8e-3, "smooth": 8e-4})


def test_mgfn_of_one_pair_of_videos_has_finite_gradients():
    model = build("mgfn")
    model.losses(model(batch()[:2]), LABELS[:1])["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("training", [False, True])
def test_ur_dmu_has_its_losses_of_memories_and_latents(training):
    """The training adds noise to the latents of normal videos, and so tells them from their means."""
    model = build("ur-dmu").train(training)
    with torch.no_grad():
        p = model(batch())
    k, scores = S // 16 + 1, scores_of(p)
    a_fit, n_fit = p.abnormal_fit.tolist(), p.normal_fit.tolist()

    def mean(x, video, segments):
        return sum(x[video, s] for s in segments) / k

    memory = triplet = length = kl = 0
    for i in range(A):
        n = A + i
        by_a, by_n, of_n = best(a_fit[i], k), best(n_fit[i], k), best(n_fit[n], k)
        least = sorted(n_fit[i])[:k]
        memory += binary_cross_entropy(sum(a_fit[i][s] for s in by_a) / k, 1) / A
        memory += binary_cross_entropy(1 - sum(least) / k, 1) / A
        memory += (
            sum(binary_cross_entropy(n_fit[n][s], 1) + binary_cross_entropy(a_fit[n][s], 0) for s in range(S)) / S / A
        )
        anchor, positive, negative = (
            F.normalize(mean(p.embedding, video, s), dim=0) for video, s in ((n, of_n), (i, by_n), (i, by_a))
        )
        triplet += max(0, 1 + float((anchor - positive + 1e-6).norm() - (anchor - negative + 1e-6).norm())) / A
        length += (
            max(0, 100 - float(mean(p.abnormal_mean, i, by_a).norm()) + float(mean(p.normal_latent, n, of_n).norm()))
            / A
        )
        normal = torch.distributions.Normal(p.normal_mean[n], (p.normal_log_var[n] / 2).exp())
        divergence = torch.distributions.kl_divergence(
            normal, torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        )
        kl += float(divergence.sum()) / S / A
    expected = {
        "top": slow_top_loss(scores, [best(video, k) for video in scores]),
        "memory": memory,
        "triplet": triplet,
        "kl": kl,
        "distance": length,
    }
    check(model.losses(p, LABELS), expected, {"memory": 0.1, "triplet": 0.1, "kl": 1e-3, "distance": 1e-4})


def test_ur_dmu_adds_noise_to_normal_videos_of_the_training_alone():
    model = build("ur-dmu")
    with torch.no_grad():
        trained = model(batch())
        tested = model.eval()(batch())
    moved = (trained.normal_latent - trained.normal_mean).abs().amax(dim=(1, 2))
    assert (moved[:A] == 0).all() and (moved[A:] > 0.1).all()
    assert torch.equal(tested.normal_latent, tested.normal_mean)


def test_a_memory_fits_as_its_best_slots_do():
    torch.manual_seed(0)
    memory = ur_dmu.Memory(40, 8)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        fit, read_out = memory(x)
    weights = [sigmoid(float(x[1, 2] @ slot) / math.sqrt(8)) for slot in memory.slots.detach()]
    assert float(fit[1, 2]) == pytest.approx(sum(sorted(weights)[-3:]) / 3, rel=1e-5)  # 40 // 16 + 1
    assert torch.allclose(read_out[1, 2], sum(w * slot for w, slot in zip(weights, memory.slots)), atol=1e-5)


def test_near_segments_weigh_more():
    raw = [math.exp(-abs(1 - j) / math.e) for j in range(5)]
    assert base.closeness(5, "cpu", normalise=False)[1].tolist() == pytest.approx(raw)
    assert base.closeness(5, "cpu", normalise=True)[1].tolist() == pytest.approx([x / sum(raw) for x in raw])


def test_the_multi_scale_network_has_rtfms_width_whatever_the_features(monkeypatch):
    monkeypatch.setattr(rtfm.RTFM, "WIDTH", RTFMS_WIDTH)
    shapes = {name: tuple(p.shape) for name, p in MTN(48, 512).named_parameters() if p.ndim == 3}
    assert {shapes[f"scales.{i}.0.weight"] for i in range(3)} == {(512, 48, 3)} and shapes["fuse.0.weight"] == (
        48,
        2048,
        3,
    )
    assert shapes["non_local.0.weight"] == (512, 48, 1) and shapes["non_local.2.theta.weight"] == (256, 512, 1)
    assert tuple(
        catalogue.SYSTEMS["rtfm"](AnomalyCLIPConfig(classes=CLASSES, feature_dim=D + 1, directions="direct"))
        .mtn.fuse[0]
        .weight.shape
    ) == (D + 1, 2048, 3)  # of any width


def test_actionclip_matches_segments_with_texts_of_their_class_both_ways():
    model, prediction = predicted("actionclip")
    labels = [int(LABELS[v]) if v < A else 2 for v in range(B) for _ in range(S)]
    text = F.normalize(model.free_text[0].detach(), dim=-1)
    video = F.normalize(prediction.embedding.flatten(0, 1), dim=-1)
    logits = (video @ text[labels].T).mul(model.logit_scale.exp()).tolist()
    n, expected = len(labels), 0
    for rows in (logits, list(zip(*logits))):
        for i, row in enumerate(rows):
            weights = [math.exp(10.0 * (labels[i] == other)) for other in labels]
            total, log_sum = sum(weights), math.log(sum(map(math.exp, row)))
            expected += sum(w / total * (math.log(w / total) - (x - log_sum)) for w, x in zip(weights, row)) / n / 2
    check(model.losses(prediction, LABELS), {"contrast": expected}, {})


def test_vadclip_has_a_binary_loss_a_loss_of_classes_and_one_of_texts():
    model, prediction = predicted("vadclip")
    k, scores = S // 16 + 1, scores_of(prediction)
    text = F.normalize(model.free_text[0].detach(), dim=-1)
    classes = 0
    for v in range(B):
        columns = [sorted(prediction.all_logits[v, :, c].tolist())[-k:] for c in range(3)]
        classes += cross_entropy([sum(column) / k for column in columns], int(LABELS[v]) if v < A else 2) / B
    expected = {
        "top": slow_top_loss(scores, [best(video, k) for video in scores]),
        "class": classes,
        "text": (abs(float(text[0] @ text[2])) + abs(float(text[1] @ text[2]))) / 2,
    }
    check(model.losses(prediction, LABELS), expected, {"text": 0.1})


def test_vadclip_relates_a_segment_at_first_to_its_window_alone():
    model = build("vadclip").eval()
    a = batch()[:, :, 0]
    b = a.clone()
    b[:, 3] += 1
    model.alike.forward = model.near.forward = lambda x, graph: x[..., : D // 2]  # what the windows give
    model.join = torch.nn.Identity()
    changed = (model.relate(a) - model.relate(b)).abs().amax(dim=(0, 2)) > 0
    assert changed.tolist() == [True] * 8 + [False] * 8


def test_vadclip_relates_by_a_graph_of_similarity_and_one_of_time():
    model = build("vadclip").eval()
    torch.manual_seed(5)
    video = torch.randn(3, 1, D).repeat(1, 2, 1).flatten(0, 1)[:5]  # some segments alike, some not
    model.positions = torch.nn.Parameter(0.01 * torch.randn(5, D))
    with torch.no_grad():
        x = model.in_windows(video[None] + model.positions)[0]
        n, graphs = len(x), {"alike": [], "near": []}
        for i in range(n):
            cosines = [float(F.cosine_similarity(x[i], x[j], dim=0)) for j in range(n)]
            exponents = [math.exp(c if c > 0.7 else 0) for c in cosines]
            graphs["alike"].append([e / sum(exponents) for e in exponents])
            graphs["near"].append([math.exp(-abs(i - j) / math.e) for j in range(n)])
        assert max(graphs["alike"][0]) > 1.5 * min(graphs["alike"][0])  # the threshold parts them
        halves = []
        for name, graph in graphs.items():
            branch, h = getattr(model, name), x
            for layer, skip in ((branch.linear_1, branch.skip), (branch.linear_2, torch.nn.Identity())):
                passed = layer(h)
                h = torch.stack([sum(graph[i][j] * passed[j] for j in range(n)) + skip(h[i]) for i in range(n)])
                h = h * torch.sigmoid(1.702 * h)
            halves.append(h)
        expected = model.join(torch.cat(halves, dim=1))
        assert torch.allclose(model.relate(video[None])[0], expected, atol=1e-5)


def test_vadclip_compares_segments_with_texts_moved_by_what_the_binary_branch_looks_at():
    model, prediction = predicted("vadclip")
    with torch.no_grad():
        x = model.relate(batch().mean(dim=2))[2]  # of one video, (S, D)
        scores = [sigmoid(float(model.binary_head(row + model.binary_mlp(row)))) for row in x]
        pooled = sum(score * row for score, row in zip(scores, x))
        for c in range(3):
            text = F.normalize(model.free_text[0][c], dim=0) + pooled / pooled.norm()
            text = text + model.text_mlp(text)
            for s in range(S):
                logit = float(F.cosine_similarity(x[s], text, dim=0)) / 0.07
                assert float(prediction.all_logits[2, s, c]) == pytest.approx(logit, abs=1e-3)
    assert [sigmoid(float(z)) for z in prediction.anomaly_logits[2, :, 0]] == pytest.approx(scores, abs=1e-5)


def test_windows_at_once_are_windows_one_by_one():
    model = build("vadclip").eval()
    x = torch.randn(3, 21, D)
    with torch.no_grad():
        assert torch.allclose(model.in_windows(x)[:, :16], model.in_windows(x[:, :16]), atol=1e-5)


def test_actionclip_starts_near_the_mean_of_the_rows_that_clip_gives():
    torch.manual_seed(0)
    config = AnomalyCLIPConfig(classes=CLASSES, num_segments=4, num_frames=8, directions="direct")
    model = catalogue.SYSTEMS["actionclip"](config).eval()
    rows = 10 * F.normalize(
        torch.randn(2, 4, 1, 512) + 0.3 * torch.randn(2, 4, 8, 512), dim=-1
    )  # as long as CLIP's, alike
    with torch.no_grad():
        cosine = F.cosine_similarity(model(rows).embedding, rows.mean(dim=2), dim=-1)
    assert cosine.min() > 0.5, cosine


def test_actionclip_without_its_temporal_head_is_clip_with_sixteen_templates(clip):
    names = ("Abuse", "RoadAccidents")
    dim = clip[0].text_projection.shape[1]
    config = AnomalyCLIPConfig(classes=names, feature_dim=dim, num_segments=4, num_frames=2, directions="frozen")
    model = catalogue.SYSTEMS["actionclip"](config, clip=clip[0], tokenize=clip_model.tokenize).eval()
    with torch.no_grad():
        for block in model.temporal.resblocks:
            for layer in (block.attn.out_proj, block.mlp.c_proj):
                layer.weight.zero_(), layer.bias.zero_()
        model.positions.zero_()
        x = torch.randn(1, 4, 2, dim)
        texts = [template.format(name) for template in actionclip.TEMPLATES for name in (*names, "normal")]
        text = F.normalize(clip[0].encode_text(clip_model.tokenize(texts)), dim=-1).unflatten(0, (16, 3)).mean(dim=0)
        logits = clip[0].logit_scale.exp() * F.normalize(x.mean(dim=2), dim=-1) @ F.normalize(text, dim=-1).T
        prediction = model(x)
    assert torch.allclose(prediction.class_logits[:, :, 1], logits[..., :2], atol=1e-3)
    assert torch.allclose(prediction.anomaly_logits[:, :, 0].sigmoid(), 1 - logits.softmax(dim=-1)[..., 2], atol=1e-4)


def test_zero_shot_clip_is_a_softmax_of_cosines(clip):
    config = AnomalyCLIPConfig(
        classes=("Abuse", "RoadAccidents"), feature_dim=clip[0].text_projection.shape[1], directions="engineered"
    )
    model = catalogue.SYSTEMS["clip-zeroshot"](config, clip=clip[0], tokenize=clip_model.tokenize).eval()
    texts = clip_model.tokenize(
        [f"a video from a CCTV camera of a {name}" for name in ("Abuse", "RoadAccidents", "normal")]
    )
    with torch.no_grad():
        text = F.normalize(clip[0].encode_text(texts), dim=-1)
        rows = torch.randn(40, text.shape[1])
        probs = (clip[0].logit_scale.exp() * F.normalize(rows, dim=-1) @ text.T).softmax(dim=-1).numpy()
    p_A, p_class = model.predict(rows)
    assert np.allclose(p_class, probs[:, :2], atol=1e-5) and np.allclose(p_A, probs[:, :2].sum(axis=1), atol=1e-5)


def test_vadclip_prompts_have_context_on_both_sides_of_the_name(clip):
    config = SimpleNamespace(classes=("Abuse", "RoadAccidents", "normal"), directions="frozen")
    prompts = vadclip.AroundPrompts(config, clip[0], clip_model.tokenize, num_ctx=3)
    with torch.no_grad():
        prompts.ctx.normal_()
        found = prompts()
        for name, text in zip(config.classes, found):
            tokens = clip_model.tokenize([name])
            eot = int(tokens.argmax())
            x = clip[0].token_embedding(tokens)[0]  # SOS, the name, EOT, nothing
            x = torch.cat([x[:1], prompts.ctx[0], x[1:eot], prompts.ctx[1], x[eot:]])[:77]
            assert torch.allclose(text, clip[0].encode_text_embeddings(x[None], torch.tensor([eot + 6]))[0], atol=1e-4)


def test_actionclip_reads_each_name_in_each_template(clip):
    config = SimpleNamespace(classes=("Abuse", "normal"), directions="finetune")
    prompts = actionclip.TemplatePrompts(config, clip[0], clip_model.tokenize)
    with torch.no_grad():
        found = prompts()
        for i, template in enumerate(actionclip.TEMPLATES):
            plain = clip[0].encode_text(clip_model.tokenize([template.format(name) for name in config.classes]))
            assert torch.allclose(found[i], plain, atol=1e-4)
    assert len(actionclip.TEMPLATES) == len(set(actionclip.TEMPLATES)) == 16


@pytest.mark.parametrize("name", TRAINED)
def test_systems_that_see_means_alone_learn_the_same_of_means(name):
    model = build(name).eval()  # without dropout
    with torch.no_grad():
        losses = [model.losses(model(x), LABELS)["total"].item() for x in (batch(), batch().mean(dim=2, keepdim=True))]
    assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == model.SEES_MEANS


# ---- gradients ----


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(name):
    model = build(name)
    for module in model.modules():
        if isinstance(module, NonLocal):  # its residual starts at zero, which nothing passes
            torch.nn.init.ones_(module.out[1].weight)
    for seed in range(5):  # dropout may silence a narrow layer once
        model.losses(model(batch(seed)), LABELS)["total"].backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_autocast_changes_losses_a_little(name):
    losses = []
    for enabled in (False, True):
        model = build(name).eval()  # without dropout
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), torch.no_grad():
            prediction = model(batch())
        losses.append(model.losses(prediction, LABELS)["total"].item())
        assert all(x.dtype == torch.float32 for x in prediction)
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def as_data(x, labels):
    """Videos and their features, as `finish` reads them, of segments (n, S, F, D)."""
    return data_of({str(i): x[i].reshape(-1, 1, x.shape[-1]).numpy() for i in range(len(labels))}, labels)


def data_of(features: dict[str, np.ndarray], labels) -> TrainingData:
    lists = VideoLists(CLASSES, [Video(name, int(label)) for name, label in zip(features, labels)], [])
    return TrainingData(DATASETS["custom"], lists, SimpleNamespace(open=features.get), None)


@pytest.mark.parametrize("name", BINARY)
def test_the_class_head_is_fitted_after_the_training_and_nothing_else(name):
    """To the minimum of the cross-entropy of the segments that the system itself selects in the abnormal videos."""
    model, x, labels = build(name), batch(), [*LABELS.tolist(), *[-1] * A]
    model.losses(model(x), LABELS)["total"].backward()
    assert model.class_head.weight.grad is None
    before = {n: value.clone() for n, value in model.state_dict().items()}
    model.eval()
    model.finish(as_data(x, labels))
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"class_head.weight", "class_head.bias"}
    with torch.no_grad():
        prediction = model(x[:A])
        top = model.rank(prediction)
        found = prediction.class_logits[torch.arange(A)[:, None], top, 0].argmax(dim=-1)  # (A, K)
    assert found.tolist() == [[label] * K for label in LABELS.tolist()]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("most, passes", [(8, (0, 1, 2)), (2, (0, 2))])
def test_the_class_head_sees_what_is_selected_in_each_crop_of_evenly_spaced_passes(name, most, passes, monkeypatch):
    monkeypatch.setattr(binary.BinarySystem, "PASSES", most)
    model, N = build(name).eval(), 3 * S * F_ - 5
    torch.nn.init.normal_(model.class_head.weight)
    rows, expected = torch.randn(N, 2, D), []
    with torch.no_grad():
        for j in passes:
            row_of = [[((s * 3 + j) * F_ + f) % N for f in range(F_)] for s in range(S)]
            for crop in range(2):
                prediction = model(rows[row_of, crop].unsqueeze(0))
                expected += [prediction.class_logits[0, s, 0] for s in model.rank(prediction)[0]]
        found = model.class_head(model.selected(rows.numpy()))
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_all_videos_weigh_the_same_in_the_class_head_however_long_they_are():
    """At the minimum, then, what the class probabilities are off by is 0 on the average over videos, each an average
    itself.
    """
    model, labels = build("sultani").eval(), [0, 1, 1, -1]
    features = {
        str(i): np.random.default_rng(i).normal(size=(n * S * F_, 1, D)).astype(np.float32)
        for i, n in enumerate((7, 1, 2, 1))
    }
    model.finish(data_of(features, labels))
    with torch.no_grad():
        probs = [model.class_head(model.selected(features[str(i)])).softmax(dim=-1).mean(dim=0) for i in range(3)]
    assert torch.allclose(sum(probs) / 3, torch.tensor([1 / 3, 2 / 3]), atol=1e-3)


def test_a_fitted_linear_layer_is_at_the_minimum_whatever_the_length_of_features():
    torch.manual_seed(0)
    x, labels = torch.randn(200, 5) * torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0]) + 1, torch.randint(3, (200,))
    x[:, 0] += labels
    weights = torch.full((200,), 1 / 200)
    logits = []
    for scale in (1e-2, 1.0, 1e3):
        layer = torch.nn.Linear(5, 3).requires_grad_(False)
        binary.fit_linear(layer, scale * x, labels, weights)
        logits.append(layer(scale * x))
    assert torch.allclose(logits[0], logits[1], atol=1e-2) and torch.allclose(logits[2], logits[1], atol=1e-2)
    residual = logits[1].softmax(dim=1) - F.one_hot(labels, 3)  # the bias is not decayed: each class as often as it is
    assert residual.mean(dim=0).abs().max() < 1e-3
    assert (logits[1].argmax(dim=1) == labels).float().mean() > 0.45


@pytest.mark.parametrize("name, frozen", [("actionclip", "frozen"), ("actionclip", "finetune"), ("vadclip", "frozen")])
def test_of_clip_only_what_is_tuned_gets_a_gradient(name, frozen, clip):
    dim = clip[0].text_projection.shape[1]
    config = AnomalyCLIPConfig(
        classes=("Abuse", "Arson"), feature_dim=dim, num_segments=S, num_frames=F_, directions=frozen
    )
    model = catalogue.SYSTEMS[name](config, clip=clip[0], tokenize=clip_model.tokenize).train()
    model.losses(model(torch.randn(B, S, F_, dim)), LABELS)["total"].backward()
    of_prompts = {n: p.grad is not None for n, p in model.named_parameters() if n.startswith("prompt_learner")}
    learned = {n for n, has in of_prompts.items() if has}
    assert (
        learned
        == {
            ("vadclip", "frozen"): {"prompt_learner.ctx"},
            ("actionclip", "frozen"): set(),
            ("actionclip", "finetune"): {"prompt_learner.text_projection"},
        }[name, frozen]
    )
    optimized = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.grad is not None}
    assert all(p.grad is None for p in clip[0].parameters())


# ---- a planted problem ----


PLANTED_STEPS = {
    "actionclip": 160,
    "sultani": 60,
    "rtfm": 60,
    "ssrl": 60,
    "s3r": 60,
    "mgfn": 60,
    "ur-dmu": 75,
    "vadclip": 200,
}


SLOWLY_LEARNED = ("actionclip", "ssrl")  # twice as long as the others; ssrl is rtfm here


def planted(num_videos: int, rng) -> tuple[torch.Tensor, np.ndarray]:
    """Videos (n, S, 2, D) and labels of their rows, (n, S * 2).

    The first half is abnormal, class i % 2 along axis i % 2 in 6 segments in a row.
    """
    x = rng.normal(size=(num_videos, S, 2, D)).astype(np.float32)
    labels = np.full((num_videos, S), -1)
    for i in range(num_videos // 2):
        start = rng.integers(S - 5)
        labels[i, start : start + 6] = i % 2
        x[i, start : start + 6, :, i % 2] += 6
    return torch.from_numpy(x), np.repeat(labels, 2, axis=1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOWLY_LEARNED else ()) for name in TRAINED]
)
def test_a_planted_problem_is_learned(name):
    """mAUC is no proof of the classes, being high where p_A alone is right: counted are the anomalous rows whose class
    is.
    """
    model, rng = build(name, num_frames=2, topk=3), np.random.default_rng(0)
    optimizer = catalogue.make_optimizer(model, 1.0, released=False)
    for group in optimizer.param_groups:
        group["lr"] = completed("custom", name, 60, 60).lr * group.get("scale", 1)
    for _ in range(PLANTED_STEPS[name]):
        x, _ = planted(16, rng)
        optimizer.zero_grad()
        model.losses(model(x), torch.arange(8) % 2)["total"].backward()
        optimizer.step()
    model.finish(as_data(planted(40, rng)[0], [*(i % 2 for i in range(20)), *[-1] * 20]))
    x, labels = planted(40, rng)
    p_A, p_class = (np.concatenate(p) for p in zip(*(model.predict(video.flatten(0, 1)) for video in x)))
    labels, anomalous = labels.reshape(-1), labels.reshape(-1) >= 0
    right = (p_class.argmax(axis=1) == labels)[anomalous].mean()
    assert roc_auc_score(anomalous, p_A) >= 0.95 and right > 0.8, (roc_auc_score(anomalous, p_A), right)


# ---- settings ----


def completed(dataset: str, name: str, num_abnormal: int, num_normal: int, frames_per_feature: int = 1, *options: str):
    """The settings of a training on so many videos."""
    given = ["--dataset", dataset, "--root", "x", "--out", "nowhere", "--model", name, *options]
    videos = [Video(str(i), 0 if i < num_abnormal else -1) for i in range(num_abnormal + num_normal)]
    lists = VideoLists(CLASSES, videos, [])
    features = SimpleNamespace(frames_per_feature=frames_per_feature)
    return train.parse_args(given)[0].for_data(TrainingData(DATASETS[dataset], lists, features, None))


def test_every_system_has_its_papers_settings():
    args = {name: completed("ucfcrime", name, 810, 800) for name in catalogue.SYSTEMS}
    found = {
        name: (a.lr, a.epochs, a.batch_size, a.config["num_segments"], a.config["num_frames"])
        for name, a in args.items()
    }
    assert found == {
        "anomalyclip": (1e-5, 50, 64, None, None),
        "clip-zeroshot": (1.0, 0, 64, 32, 16),
        "actionclip": (5e-6, 50, 64, 32, 8),
        "sultani": (0.01, 741, 60, 32, 16),
        "rtfm": (1e-3, 577, 64, 32, 16),
        "s3r": (1e-3, 577, 64, 32, 16),
        "ssrl": (1e-3, 577, 64, 32, 16),
        "mgfn": (1e-3, 1000, 32, 32, 16),
        "ur-dmu": (1e-4, 231, 128, 200, 16),
        "vadclip": (2e-5, 97, 128, 256, 16),
        "gaussian": (1.0, 0, 64, 32, 16),
    }


@pytest.mark.parametrize("name", OTHERS)
def test_epochs_take_the_steps_of_the_system_on_any_data_set(name):
    defaults = catalogue.SYSTEMS[name].DEFAULTS
    for dataset, videos in (
        ("shanghaitech", (63, 175)),
        ("xdviolence", (1905, 2049)),
        ("custom", (60, 60)),
        ("demo", (9, 12)),
    ):
        args = completed(dataset, name, *videos)
        batches = BalancedBatches([0] * videos[0] + [-1] * videos[1], args.batch_size, 0)
        small = dataset in ("custom", "demo")
        steps = settings.SMALL_STEPS if small and name != "clip-zeroshot" else defaults.steps
        assert steps is None and args.epochs == 50 or 0 <= args.epochs * len(batches) - steps < len(batches)
    if name != "clip-zeroshot":  # which is not trained
        assert completed("custom", name, 60, 60, 1, "--epochs", "7").epochs == 7


def rows_of(found) -> int | None:
    return found.config["num_frames"]


def test_a_segment_has_the_rows_of_sixteen_frames_where_the_data_set_says_nothing_else():
    for frames_per_feature, rows in ((1, 16), (2, 8), (16, 1), (64, 1)):
        for dataset in ("ucfcrime", "custom"):
            found = {name: rows_of(completed(dataset, name, 9, 9, frames_per_feature)) for name in catalogue.SYSTEMS}
            assert found == dict.fromkeys(found, rows) | {"actionclip": 8, "anomalyclip": None}  # the config's 16
    assert all(rows_of(completed("demo", name, 9, 9, 4)) == 2 for name in catalogue.SYSTEMS)
    assert all(rows_of(completed("demo", name, 9, 9, 4, "--num-frames", "3")) == 3 for name in catalogue.SYSTEMS)


def test_small_data_sets_have_settings_of_their_own():
    small = completed("demo", "ur-dmu", 9, 9, 1, "--lr", "0.5")
    assert (small.lr, small.batch_size, small.config["num_segments"]) == (0.5, 32, None)
    assert small.config["embed_dim"] is None and small.config["directions"] == "direct"


@pytest.mark.parametrize("name", OTHERS)
def test_only_anomalyclip_needs_twice_as_many_segments_as_it_selects(name):
    topk = ("--topk", "2") if name in BINARY else ()
    args = completed("custom", name, 9, 9, 1, "--num-segments", "2", *topk)
    assert settings.make_config(args, CLASSES, D, None).num_segments == 2


def test_optimisers_are_the_papers():
    kinds = {name: type(catalogue.make_optimizer(build(name), 0.1, released=False)).__name__ for name in TRAINED}
    assert kinds == {"actionclip": "AdamW", "vadclip": "AdamW", "sultani": "Adagrad"} | dict.fromkeys(
        ("rtfm", "s3r", "ssrl", "mgfn", "ur-dmu"), "Adam"
    )
    groups = catalogue.make_optimizer(build("actionclip"), 0.1, released=False).param_groups
    num_parameters = len(list(build("actionclip").parameters())) - 1  # without the temperature
    assert [(len(group["params"]), group["scale"]) for group in groups] == [(num_parameters, 10)]
    assert groups[0]["weight_decay"] == 0.2


def test_a_class_head_counts_among_the_parameters_and_nothing_does_without_training():
    layers = ((D, 512), (512, 32), (32, 1), (D, len(CLASSES)))  # Sultani's and the class head
    assert catalogue.num_trained(build("sultani"), epochs=3) == sum((a + 1) * b for a, b in layers)
    assert catalogue.num_trained(build("sultani"), epochs=0) == 0


def test_learning_rates_stay_or_fall_in_steps():
    def rates(kind):
        return [learning_rate(step, 3, 10, 1.0, released=False, kind=kind) for step in range(30)]

    assert rates("constant") == [1.0] * 30
    assert rates("steps") == pytest.approx([1.0] * 12 + [0.1] * 12 + [0.01] * 6)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "rtfm", "--depth", "2"], "--depth: found with --model rtfm, which has no use for it"),
        (["--model", "vadclip", "--topk", "2"], "--topk: found with --model vadclip, which has no use for it"),
        (
            ["--model", "clip-zeroshot", "--epochs", "2"],
            "--epochs: found with --model clip-zeroshot, which has no use for it",
        ),
        (
            ["--model", "vadclip", "--directions", "finetune"],
            "--directions finetune: expected frozen or direct with --model vad",
        ),
        (["--model", "mgfn", "--lambdas", "sparse=1"], "--lambdas: found with --model mgfn"),
        (["--model", "vadclip", "--temporal-features", "x"], "--temporal-features: found with --model vadclip"),
        (["--model", "rtfm", "--clip", "x"], "--clip: found with --model rtfm"),
        (
            ["--model", "vadclip", "--temporal-frames-per-feature", "2"],
            "--temporal-frames-per-feature: found with --model vadclip",
        ),
        (
            ["--model", "clip-zeroshot", "--directions", "direct"],
            "--directions direct: expected engineered with --model clip",
        ),
        (["--model", "sultani", "--epochs", "0"], "--epochs 0: expected at least 1"),
    ],
)
def test_options_that_a_system_has_no_use_for_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        train.parse_args(["--dataset", "custom", "--root", "x", *options])


# ---- whole runs ----


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def run(dataset, out, *options: str) -> dict:
    train.main(["--dataset", "custom", "--root", str(dataset), "--out", str(out), *SMALL, *options])
    return torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_trained_evaluated_and_named(name, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: None)  # its pictures are those of any system
    checkpoint = run(dataset, tmp_path, "--model", name, "--directions", "direct", "--epochs", "1", "--folds", "2")
    assert checkpoint["system"] == name and 0 < checkpoint["threshold"] <= 1
    evaluate.main(
        ["--ckpt", str(tmp_path / "last.pt"), "--device", "cpu", "--rules", "--timelines", "0", "--bootstrap", "2"]
    )
    with pytest.raises(InputError, match=f"--projections: found {name} in .*last.pt, expected AnomalyCLIP"):
        evaluate.main(["--ckpt", str(tmp_path / "last.pt"), "--device", "cpu", "--projections"])
    results = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert results["system"] == name and results["videos"] == 16 and results["rules"]
    assert f"\n{name} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["s3r", "vadclip"])
def test_four_epochs_equal_two_resumed_and_two_more(name, dataset, tmp_path, monkeypatch):
    options = ("--model", name, "--directions", "direct", "--epochs", "4")
    whole = run(dataset, tmp_path / "whole", *options)
    stop_in_the_third_epoch(monkeypatch, lambda: run(dataset, tmp_path / "parts", *options))
    resumed = run(dataset, tmp_path / "parts", *options, "--resume")
    for key in ("model", "optimizer", "rng", "epoch", "config", "system"):
        assert equal(whole[key], resumed[key]), key


def test_a_run_stopped_behind_its_last_epoch_is_refused_until_it_has_fitted_the_class_head(
    dataset, tmp_path, monkeypatch
):
    options = ("--model", "sultani", "--epochs", "2")
    whole = run(dataset, tmp_path / "whole", *options)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(binary.BinarySystem, "finish", stop)
        run(dataset, tmp_path / "parts", *options)
    unfinished = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    heads = [checkpoint["model"]["class_head.weight"] for checkpoint in (unfinished, whole)]
    assert unfinished["epoch"] == 2 and not heads[0].any() and heads[1].any()
    features = ["--features", str(dataset / "features" / "test09.npy"), "--out", str(tmp_path / "out")]
    for script, more in ((evaluate, []), (predict, features)):
        with pytest.raises(
            InputError, match="last.pt: found sultani without its class head, .* go on with train.py --resume"
        ):
            script.main(["--ckpt", str(tmp_path / "parts" / "last.pt"), "--device", "cpu", *more])
    resumed = run(dataset, tmp_path / "parts", *options, "--resume")
    assert equal(whole["model"], resumed["model"]) and whole["threshold"] == resumed["threshold"]


def test_of_many_epochs_every_hundredth_part_is_saved(dataset, tmp_path, monkeypatch):
    saved, real = [], train.save
    monkeypatch.setattr(train, "save", lambda *args: saved.append(args[3]) or args[3] < 251 or real(*args))
    run(dataset, tmp_path, "--model", "sultani", "--epochs", "251")
    assert saved == [*range(2, 252, 2), 251, 251]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 251


@pytest.mark.slow
def test_two_processes_train_a_system_as_one(dataset, tmp_path):
    """VadCLIP: it has no dropout, whose draws differ, and a loss of parameters beside those of predictions."""
    options = ("--model", "vadclip", "--directions", "direct", "--epochs", "3")
    arguments = ["--dataset", "custom", "--root", str(dataset), "--out", str(tmp_path / "two"), *SMALL, *options]
    process = torchrun("train.py", *arguments)
    one = run(dataset, tmp_path / "one", *options)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    two = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    for key, value in one["model"].items():
        if not key.endswith("in_proj_bias"):  # that of keys has no gradient but noise, which Adam makes large
            assert torch.allclose(two["model"][key], value, atol=5e-5), key
    assert two["threshold"] == pytest.approx(one["threshold"], abs=1e-4)


@pytest.mark.parametrize("name", ["clip-zeroshot", "actionclip", "vadclip"])
def test_systems_with_prompts_need_clip_for_the_training_alone(name, clip, dataset, tmp_path):
    epochs = () if name == "clip-zeroshot" else ("--epochs", "1")
    checkpoint = run(dataset, tmp_path, "--model", name, "--clip", clip[1], *epochs)
    assert not any("text_tower" in key for key in checkpoint["model"])
    assert checkpoint["epoch"] == (0 if name == "clip-zeroshot" else 1) and checkpoint["model"]["directions"].any()
    assert "normal_moments" not in checkpoint  # which new classes of AnomalyCLIP need
    rows = np.load(dataset / "features" / "test08.npy")
    p_A, p_class = catalogue.from_dict(checkpoint).eval().predict(np.stack([rows] * 3, axis=1))  # three equal crops
    again, _ = catalogue.from_dict(checkpoint).eval().predict(rows)
    assert np.allclose(p_A, again, atol=1e-6) and (p_class.sum(axis=1) <= p_A + 1e-5).all()
    assert len(p_A) == len(rows) and ((0 <= p_A) & (p_A <= 1)).all()


def test_predict_reads_features_with_any_system(dataset, tmp_path):
    run(dataset, tmp_path, "--model", "sultani", "--epochs", "1")
    options = [
        "--ckpt",
        str(tmp_path / "last.pt"),
        "--features",
        str(dataset / "features" / "test09.npy"),
        "--device",
        "cpu",
    ]
    predict.main([*options, "--out", str(tmp_path / "out")])
    assert list((tmp_path / "out").rglob("report.html"))
    with pytest.raises(
        InputError, match="--classes and --explain are for checkpoints of AnomalyCLIP, found one of sultani"
    ):
        predict.main([*options, "--out", str(tmp_path / "explained"), "--explain"])


@pytest.mark.parametrize("name", ["rtfm", "vadclip"])
def test_an_exported_system_computes_the_same(name, tmp_path):
    model = build(name).eval()
    if name == "rtfm":
        torch.nn.init.normal_(model.class_head.weight)
    export.write(tmp_path / "model.pt2", model)
    x = batch()[:3]
    with torch.no_grad():
        p_A, p_class = torch.export.load(tmp_path / "model.pt2").module()(x)
        prediction = model(x)
    assert torch.allclose(p_A, prediction.anomaly_logits.sigmoid(), atol=1e-6)
    assert torch.allclose(p_class, p_A.unsqueeze(-1) * prediction.class_logits.softmax(dim=-1), atol=1e-6)


@pytest.mark.parametrize("name", ["clip-zeroshot", "actionclip", "vadclip"])
def test_without_clip_or_a_checkpoint_there_are_no_texts_to_compare_with(name):
    directions = "engineered" if name == "clip-zeroshot" else "frozen"
    model = catalogue.SYSTEMS[name](AnomalyCLIPConfig(classes=CLASSES, feature_dim=D, directions=directions))
    with pytest.raises(ValueError, match="the model has no directions yet: give it CLIP, or load a checkpoint"):
        model.predict(torch.randn(9, D))


@pytest.mark.parametrize("name, dim, multiple", [("actionclip", 60, 8), ("s3r", 72, 16), ("vadclip", 65, 2)])
def test_features_of_a_width_that_a_system_cannot_take_are_named(name, dim, multiple):
    with pytest.raises(ValueError, match=f"feature_dim must be a multiple of {multiple} for {name}, got {dim}"):
        build(name, feature_dim=dim)
    with pytest.raises(
        InputError, match=f"feature_dim must be a multiple of {multiple}"
    ):  # before the features are read
        settings.make_config(completed("custom", name, 9, 9), CLASSES, dim, None)


def test_a_damaged_dictionary_in_a_checkpoint_is_named():
    checkpoint = build("s3r").checkpoint()
    assert catalogue.from_dict(checkpoint).dictionary.shape == (5, D)
    huge = torch.zeros(1, 1).expand(10**9, D)
    for found in (7, None, torch.zeros(5, D - 1), torch.zeros(5, D, 1), torch.zeros(0, D), huge):
        broken = checkpoint | {"model": checkpoint["model"] | {"dictionary": found}}
        with pytest.raises(ValueError, match="state does not fit the model at dictionary: found"):
            catalogue.from_dict(broken)


@pytest.mark.parametrize("name", ["actionclip", "vadclip"])
def test_class_names_that_no_prompt_can_hold_are_named(name, clip):
    dim = clip[0].text_projection.shape[1]
    for classes, message in ((("fall", "fire " * 80), "too long"), (("Normal", "fire"), "must not be called 'normal'")):
        config = AnomalyCLIPConfig(classes=classes, feature_dim=dim, directions="frozen")
        with pytest.raises(InputError, match=message):
            catalogue.build(name, config, clip=clip[0], tokenize=clip_model.tokenize)


def test_checkpoints_of_unknown_or_other_systems_are_refused(tmp_path):
    checkpoint = build("rtfm").checkpoint()
    with pytest.raises(ValueError, match="the checkpoint's system is not one of this version: 'i3d'"):
        catalogue.from_dict(checkpoint | {"system": "i3d"})
    with pytest.raises(ValueError, match="state does not fit the model"):
        AnomalyCLIP.from_dict(checkpoint)
    old = AnomalyCLIP(AnomalyCLIPConfig(classes=CLASSES, feature_dim=8, directions="direct", embed_dim=8)).checkpoint()
    del old["system"]  # as they were before there were others
    assert isinstance(catalogue.from_dict(old), AnomalyCLIP)
