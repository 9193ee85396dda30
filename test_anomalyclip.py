"""Tests of anomalyclip.py, in its order; `tests/reference` holds numbers computed with the authors' code (random
weights).
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import anomalyclip
import clip_model
from anomalyclip import (
    PROMPTS,
    AnomalyCLIP,
    AnomalyCLIPConfig,
    AxialTransformer,
    Prediction,
    TemporalModel,
    draw_segment_mask,
    inference_rows,
    median,
    select_segments,
)
from tests.tiny_clip import small_config, tiny_clip_state_dict
from videoanomaly.weights.released import convert_state

HERE = Path(__file__).parent
REFERENCE = HERE / "tests" / "reference"
XD_CLASSES = ("Abuse", "Car_accident", "Explosion", "Fighting", "Riot", "Shooting")
UCF_CLASSES = (
    "Abuse",
    "Arrest",
    "Arson",
    "Assault",
    "Burglary",
    "Explosion",
    "Fighting",
    "RoadAccidents",
    "Robbery",
    "Shooting",
    "Shoplifting",
    "Stealing",
    "Vandalism",
)
XD_NORMAL_ID = 4


# ---- helpers ----


def tiny_clip() -> clip_model.CLIP:
    """The random CLIP that the reference numbers were computed with: 64-d, two layers."""
    clip = clip_model.CLIP(
        embed_dim=64,
        image_resolution=32,
        vision_layers=2,
        vision_width=64,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
    )
    clip.load_state_dict({k: v.float() for k, v in tiny_clip_state_dict().items() if v.ndim or k == "logit_scale"})
    return clip.eval()


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def small_model(clip, seed=0, **changes) -> AnomalyCLIP:
    torch.manual_seed(seed)
    config = small_config(**changes)
    return AnomalyCLIP(
        config,
        clip=None if config.directions == "direct" else clip,
        tokenize=clip_model.tokenize,
        prototype=torch.randn(64),
    )


def random_batch(config, B=6, seed=1):
    torch.manual_seed(seed)
    return torch.randn(B, config.num_segments, config.num_frames, config.feature_dim), torch.tensor([2, 0, 3])


def from_released(state: dict) -> dict:
    return convert_state(state, XD_NORMAL_ID)


def read_reference(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    state = clip_model._read_safetensors(REFERENCE / f"{name}.safetensors")
    return {prefix + k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def arrays(name: str) -> dict[str, torch.Tensor]:
    return {
        k: torch.from_numpy(v).float() if v.dtype == np.float16 else torch.from_numpy(v)
        for k, v in np.load(REFERENCE / f"{name}.npz").items()
    }


def assert_near(actual, expected, *, atol, relative_to_largest=False):
    scale = float(expected.detach().abs().max()) if relative_to_largest else 1.0
    assert float((actual - expected).detach().abs().max()) <= atol * max(scale, 1e-12)


# ---- config ----


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": ()}, "one or more different names"),
        ({"classes": ("a", "a")}, "one or more different names"),
        ({"classes": "fire"}, "one or more different names"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"topk": 8}, r"topk must be in \[1, 7\]"),
        ({"temporal": "lstm"}, "temporal must be one of axial, mlp"),
        ({"embed_dim": 15}, "multiple of num_heads"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \[0, 1\)"),
        ({"smoothing": -0.1}, r"smoothing must be in \[0, 10\]"),
        ({"temporal_input": "similarity", "temporal_feature_dim": 9}, "no use for features of its own"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        small_config(**change)


# ---- Temporal models ----


@pytest.mark.parametrize(
    "case, sizes",
    [
        ("depth1", dict(input_dim=24, E=16, num_heads=8, head_dim=None, depth=1, S=8, F=4, B=3)),
        ("depth2", dict(input_dim=24, E=16, num_heads=8, head_dim=None, depth=2, S=8, F=4, B=2)),
        ("depth1_dimheads", dict(input_dim=10, E=8, num_heads=2, head_dim=3, depth=1, S=5, F=3, B=2)),
    ],
)
def test_temporal_model_equals_the_released_one(case, sizes):
    S, F_ = sizes["S"], sizes["F"]
    body = AxialTransformer(
        sizes["E"],
        num_segments=S,
        num_frames=F_,
        num_heads=sizes["num_heads"],
        depth=sizes["depth"],
        head_dim=sizes["head_dim"],
    )
    model = TemporalModel(sizes["input_dim"], body, sizes["E"])
    rename = {f"temporal_model.{k}": v for k, v in read_reference(f"temporal/{case}").items()}
    model.load_state_dict({k.removeprefix("temporal_model."): v for k, v in from_released(rename).items()})
    expected = arrays(f"temporal/{case}")
    x = expected["train_input"].view(sizes["B"], S, F_, -1).requires_grad_()
    scores = model(x)[0].sigmoid()
    assert_near(scores.reshape(-1, 1), expected["train_scores"], atol=2e-6)
    (scores.reshape(-1, 1) * expected["train_weights"]).sum().backward()
    assert_near(x.grad.view_as(expected["grad_input"]), expected["grad_input"], atol=1e-5, relative_to_largest=True)
    grads = {f"temporal_model.{k.removeprefix('grad.')}": v for k, v in expected.items() if k.startswith("grad.")}
    parameters = {f"temporal_model.{k}": p for k, p in model.named_parameters()}
    assert from_released(grads).keys() == parameters.keys()
    for name, grad in from_released(grads).items():
        assert_near(parameters[name].grad, grad, atol=1e-5, relative_to_largest=True)
    passes = expected["test_input"].view(S, 3, F_, -1).transpose(0, 1)  # rows are ordered (n s l)
    scores = model(passes)[0].sigmoid().transpose(0, 1).reshape(-1, 1)
    assert_near(scores, expected["test_scores"], atol=2e-6)


@pytest.mark.parametrize("temporal", ["short", "long", "mtn"])
def test_bodies_of_other_files_are_named_with_where_they_are(temporal):
    message = f"temporal must be 'axial' or 'mlp' in this file, got '{temporal}'; AnomalyCLIPSystem in videoanomaly/"
    with pytest.raises(ValueError, match=message):
        AnomalyCLIP(small_config(directions="direct", temporal=temporal))


def test_ucf_crime_preset_has_the_published_number_of_trainable_parameters():
    clip = clip_model.CLIP(
        embed_dim=512,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=1,
    )  # text sizes of ViT-B/16; how many frozen layers there are adds nothing
    model = AnomalyCLIP(AnomalyCLIPConfig(classes=UCF_CLASSES), clip=clip, tokenize=clip_model.tokenize)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 10_430_466


# ---- directions ----


def test_directions_are_text_features_of_the_prompts_minus_the_prototype(clip):
    model = small_model(clip, num_ctx=1)
    ctx_token = clip_model.tokenize("suspicious")[0, 1]
    with torch.no_grad():
        model.prompt_learner.ctx.copy_(clip.token_embedding(ctx_token))  # the context is now an ordinary word
        texts = clip_model.tokenize([f"suspicious {name}." for name in model.config.classes])
        expected = clip.encode_text(texts) - model.prototype
    assert_near(model.class_directions(), expected, atol=2e-6)
    assert_near(model.eval().directions, expected, atol=2e-6)


def test_prompts_cut_at_their_longest_equal_all_77_positions_in_value_and_gradient(clip):
    learner = small_model(clip).prompt_learner
    short = learner()
    weights = torch.randn(short.shape)
    (grad_short,) = torch.autograd.grad((short * weights).sum(), learner.ctx)
    padding = clip.token_embedding(torch.zeros(len(learner.prefix), 77 - len(learner.positions), dtype=torch.long))
    x = torch.cat([learner.prefix, learner.ctx[:-1], learner.suffix, padding], dim=1) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x))[torch.arange(len(x)), learner.eot_idx] @ learner.text_projection
    (grad_full,) = torch.autograd.grad((x * weights).sum(), learner.ctx)
    assert len(learner.positions) < 12
    assert_near(short, x, atol=2e-6)
    assert_near(grad_short, grad_full, atol=1e-5, relative_to_largest=True)


def test_engineered_prompts_are_those_of_the_paper_and_nothing_of_them_is_trained(clip):
    model = small_model(clip, directions="engineered")
    with torch.no_grad():
        texts = clip_model.tokenize([f"a video from a CCTV camera of a {name}" for name in model.config.classes])
        expected = clip.encode_text(texts) - model.prototype
    assert_near(model.class_directions(), expected, atol=2e-6)
    assert not any(p.requires_grad for p in model.prompt_learner.parameters())


def test_the_direction_of_an_ensemble_is_the_mean_of_its_prompts_directions_as_long_as_they_are(clip):
    model = small_model(clip, directions="ensemble")
    assert len(PROMPTS["ensemble"]) == len({*PROMPTS["ensemble"]}) > 1
    with torch.no_grad():
        for name, found in zip(model.config.classes, model.class_directions()):
            texts = clip.encode_text(clip_model.tokenize([prompt.format(name) for prompt in PROMPTS["ensemble"]]))
            lengths = texts.norm(dim=-1)
            mean = (texts / lengths[:, None]).mean(dim=0)
            assert_near(found, mean / mean.norm() * lengths.mean() - model.prototype, atol=2e-6)
    assert not any(p.requires_grad for p in model.prompt_learner.parameters())


def test_a_prompt_too_long_for_the_text_tower_is_refused(clip):
    with pytest.raises(ValueError, match="the longest prompt has 79 tokens, 74 of them context vectors"):
        small_model(clip, num_ctx=74)


def test_features_of_another_width_than_clips_are_refused_with_the_way_out(clip):
    with pytest.raises(
        ValueError, match="text features have 64 values, the video features 2048; .*directions='direct'"
    ):
        AnomalyCLIP(small_config(feature_dim=2048), clip=clip, tokenize=clip_model.tokenize)


# ---- Selector ----


def test_likelihood_is_the_batch_normalised_projection_of_equation_4(clip):
    model = small_model(clip)
    features, _ = random_batch(model.config)
    likelihood = model(features).likelihood
    directions = model.class_directions()
    for c in range(4):
        d = directions[c] / directions[c].norm()
        lengths = torch.stack([(x - model.prototype) @ d for x in features.flatten(0, 2)])
        expected = (lengths - lengths.mean()) / (lengths.var(unbiased=False) + 1e-5).sqrt()
        assert_near(likelihood[..., c].flatten(), expected, atol=1e-5)


def test_cosine_likelihood_lives_in_clips_own_space(clip):
    model = small_model(clip, likelihood="cosine", selection="magnitude")
    features, _ = random_batch(model.config)
    prediction = model(features)
    expected = F.cosine_similarity(features.unsqueeze(-2), model.prompt_learner(), dim=-1)
    assert_near(prediction.likelihood, expected, atol=1e-5)
    assert_near(prediction.class_logits, expected * clip.logit_scale.exp(), atol=1e-3)
    assert_near(prediction.magnitude, features.norm(dim=-1), atol=1e-5)


# ---- MIL selection ----


@pytest.mark.parametrize("num_segments, topk, num_left", [(32, 3, 10), (8, 3, 6), (4, 3, 4), (100, 3, 30)])
def test_the_mask_hides_seventy_per_cent_but_leaves_room_for_top_and_bottom(num_segments, topk, num_left):
    config = small_config(num_segments=num_segments, topk=topk)
    torch.manual_seed(0)
    mask = draw_segment_mask(400, config, "cpu")
    assert (mask.sum(dim=1) == num_left).all()
    assert_near(mask.float().mean(dim=0), torch.full((num_segments,), num_left / num_segments), atol=0.1)


def test_the_released_mask_hides_each_segment_by_chance():
    config = small_config(num_segments=32, topk=3, variant="released")
    torch.manual_seed(0)
    left = draw_segment_mask(4000, config, "cpu").sum(dim=1).float()
    assert abs(float(left.mean()) - 9.6) < 0.2 and abs(float(left.std()) - math.sqrt(32 * 0.3 * 0.7)) < 0.2


def test_selected_segments_equal_a_sorted_list_of_the_unmasked():
    torch.manual_seed(0)
    ranking, mask = torch.randn(5, 11), torch.rand(5, 11) < 0.6
    top, bottom = (select_segments(ranking, mask, 3, largest=largest) for largest in (True, False))
    for b in range(5):
        allowed = sorted((s for s in range(11) if mask[b, s]), key=lambda s: float(ranking[b, s]))
        assert bottom[b].tolist() == allowed[:3]
        assert top[b].tolist() == allowed[::-1][:3]


# ---- losses ----


def slow_losses(model: AnomalyCLIP, prediction: Prediction, labels, mask) -> dict[str, float]:
    """Eq. 5, 7-13, 15, 16 with loops, one video at a time, on Python floats; means over videos."""
    config, half = model.config, len(labels)
    S, F_, C, K = config.num_segments, config.num_frames, len(config.classes), config.topk
    likelihood, p_A = prediction.likelihood.tolist(), prediction.anomaly_logits.double().sigmoid().tolist()
    cond = prediction.class_logits.double().softmax(-1).tolist()
    videos: dict[str, list[float]] = {}

    def add(name, value):
        videos.setdefault(name, []).append(value)

    for b in range(2 * half):
        c = int(labels[b]) if b < half else None
        segment = [
            sum(likelihood[b][s][f][c] if b < half else sum(likelihood[b][s][f]) for f in range(F_)) for s in range(S)
        ]
        if config.selection == "magnitude":
            segment = [float(prediction.magnitude[b, s].sum()) for s in range(S)]
        allowed = sorted((s for s in range(S) if mask[b, s]), key=lambda s: segment[s])
        top, bottom = allowed[-K:], allowed[:K]
        if b < half:
            add("dir_abnormal", -sum(likelihood[b][s][f][c] for s in top for f in range(F_)) / (K * F_))
            add(
                "top_abnormal",
                -sum(math.log(p_A[b][s][f] * cond[b][s][f][c]) for s in top for f in range(F_)) / (K * F_),
            )
            add("bottom_abnormal", -sum(math.log(1 - p_A[b][s][f]) for s in bottom for f in range(F_)) / (K * F_))
            add("dir_bottom_abnormal", sum(likelihood[b][s][f][c] for s in bottom for f in range(F_)) / (K * F_))
            frames = [p for row in p_A[b] for p in row]
            add("sparse", sum(frames) / (S * F_))
            add("smooth", sum((frames[i] - frames[i - 1]) ** 2 for i in range(1, S * F_)))
        else:
            add(
                "dir_normal",
                sum(likelihood[b][s][f][c] for s in range(S) for f in range(F_) for c in range(C)) / (S * F_ * C),
            )
            add("top_normal", -sum(math.log(1 - p_A[b][s][f]) for s in top for f in range(F_)) / (K * F_))
            add(
                "dir_top_normal",
                sum(likelihood[b][s][f][c] for s in top for f in range(F_) for c in range(C)) / (K * F_ * C),
            )
    return {name: sum(values) / len(values) for name, values in videos.items()}


@pytest.mark.parametrize(
    "changes", [{}, {"selection": "magnitude"}, {"likelihood": "cosine"}, {"temporal_input": "both"}]
)
def test_losses_equal_the_equations_written_as_loops(clip, changes):
    weights = {
        f"lambda_{name}": 0.1 * i
        for i, name in enumerate(
            (
                "dir_abnormal",
                "top_abnormal",
                "bottom_abnormal",
                "dir_normal",
                "top_normal",
                "sparse",
                "smooth",
                "dir_bottom_abnormal",
                "dir_top_normal",
            ),
            1,
        )
    }
    model = small_model(clip, **changes, **weights)
    features, labels = random_batch(model.config)
    prediction = model(features)
    mask = torch.ones(6, 7, dtype=torch.bool)
    mask[:, 2] = mask[1, 5] = False
    losses = model.losses(prediction, labels, mask)
    expected = slow_losses(model, prediction, labels, mask)
    assert losses.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(value, abs=2e-6), name
    assert float(losses["total"].detach()) == pytest.approx(
        sum(weights[f"lambda_{k}"] * v for k, v in expected.items()), abs=1e-5
    )


def test_smoothness_stops_at_the_end_of_a_video_but_not_in_the_released_variant(clip):
    steps = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # (B, S * F), each video constant
    assert small_model(clip, directions="direct").smoothness(steps) == 0
    assert small_model(clip, directions="direct", variant="released").smoothness(steps) == 1


def test_a_saturated_score_gives_a_finite_loss_and_gradient(clip):
    model = small_model(clip, directions="direct")
    features, labels = random_batch(model.config)
    prediction = model(features)
    z = torch.full_like(prediction.anomaly_logits, 300.0).requires_grad_()
    total = model.losses(prediction._replace(anomaly_logits=z), labels)["total"]
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(z.grad).all()


def test_labels_that_do_not_go_with_the_batch_are_refused(clip):
    model = small_model(clip, directions="direct")
    features, labels = random_batch(model.config)
    with pytest.raises(ValueError, match="2 labels for the abnormal half go with 4 videos, got 6"):
        model.losses(model(features), labels[:2])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_ctx": True},
        {"directions": "frozen"},
        {"directions": "engineered"},
        {"directions": "ensemble", "smoothing": 0.5},
        {"directions": "direct"},
        {"directions": "direct", "class_head": True},
        {"likelihood": "cosine"},
        {"selection": "magnitude"},
        {"temporal": "mlp"},
        {"temporal_input": "similarity"},
        {"temporal_input": "both"},
        {"temporal_input": "relative"},
        {"depth": 2},
        {"temporal_feature_dim": 10},
        {"variant": "released"},
    ],
)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(clip, changes):
    model = small_model(clip, lambda_dir_top_normal=1.0, lambda_dir_bottom_abnormal=1.0, **changes)
    features, labels = random_batch(model.config)
    others = [torch.randn(*features.shape[:3], 10)] if model.config.temporal_feature_dim else []
    model.losses(model(features, *others), labels)["total"].backward()
    for name, p in model.named_parameters():
        expected = p.requires_grad and (name != "logit_scale" or model.config.likelihood == "cosine")
        assert (p.grad is not None) == expected, name
        if expected:
            assert p.grad.abs().max() > 0, name
    assert not any(p.grad is not None for p in clip.parameters())


# ---- the released code, number by number ----


def reference_model(clip, state: dict, prototype, **changes) -> AnomalyCLIP:
    config = AnomalyCLIPConfig(classes=XD_CLASSES, feature_dim=64, embed_dim=16, variant="released", **changes)
    model = AnomalyCLIP(config, clip=clip, tokenize=clip_model.tokenize, prototype=prototype)
    own = model.trained_state()
    model.load_trained_state(own | from_released(state))
    return model


NET_TERMS = {
    "dir_abn": "dir_abnormal",
    "dir_nor": "dir_normal",
    "topk_abn": "top_abnormal",
    "bottomk_abn": "bottom_abnormal",
    "topk_nor": "top_normal",
    "smooth": "smooth",
    "sparse": "sparse",
    "total": "total",
}


@pytest.mark.parametrize(
    "case, changes",
    [
        ("class_specific", {}),
        ("shared_context", {"shared_ctx": True}),
        ("concat_depth2", {"temporal_input": "both", "depth": 2}),
    ],
)
def test_the_released_variant_equals_the_released_code(clip, case, changes, monkeypatch):
    inputs, expected = arrays("net/inputs"), arrays(f"net/{case}")
    meta = json.loads((REFERENCE / "net/meta.json").read_text())["cases"][case]
    model = reference_model(clip, read_reference(f"net/{case}"), inputs["ncentroid"], **changes).train()
    features = inputs["features_float16"].view(8, 32, 16, 64)
    labels = torch.tensor([c - (c > XD_NORMAL_ID) for c in inputs["labels"][:4].tolist()])
    selected = []
    monkeypatch.setattr(
        anomalyclip, "select_segments", lambda *a, **k: selected.append(select_segments(*a, **k)) or selected[-1]
    )
    prediction = model(features)
    losses = model.losses(prediction, labels, inputs["mask"].bool())
    losses["total"].backward()

    text = expected["text_features"][[i for i in range(7) if i != XD_NORMAL_ID]]
    assert_near(model.prompt_learner(), text, atol=2e-5)
    assert_near(prediction.likelihood.view(-1, 6), expected["logits"], atol=2e-5)
    assert_near(prediction.anomaly_logits.sigmoid().flatten(), expected["scores"], atol=5e-6)
    for idx, name in zip(selected, ("idx_topk_abn", "idx_bottomk_abn", "idx_topk_nor")):
        assert torch.equal(idx, expected[name]), name
    for theirs, ours in NET_TERMS.items():
        weight = 1.0 if ours == "total" else getattr(model.config, f"lambda_{ours}")
        assert weight * float(losses[ours].detach()) == pytest.approx(meta["losses"][theirs], abs=1e-5), ours
    norms = from_released({k: torch.tensor(v) for k, v in meta["gradient_norms"].items() if "pos_emb" not in k})
    parameters = dict(model.named_parameters())
    for name, norm in norms.items():
        assert float(parameters[name].grad.norm()) == pytest.approx(float(norm), rel=1e-5), name
    for name, grad in from_released({k[5:]: v for k, v in expected.items() if k.startswith("grad.")}).items():
        assert_near(parameters[name].grad, grad, atol=5e-5, relative_to_largest=True)
    assert_near(model.batch_norm.running_mean, expected["bn_running_mean"], atol=1e-5)
    assert_near(model.batch_norm.running_var, expected["bn_running_var"], atol=1e-5)

    video = torch.cat([inputs["features_float16"][0, 0], inputs["features_float16"][5, 0]])  # (1024, 64)
    p_A, p_class = model.predict(video)
    cond = expected["test_similarity"].softmax(-1)
    assert_near(torch.from_numpy(p_A), expected["test_scores"], atol=5e-6)
    assert_near(torch.from_numpy(p_class), cond * expected["test_scores"].unsqueeze(1), atol=5e-6)


@pytest.mark.parametrize("run, beta2", [("run_official", 0.999), ("run_paper", 0.98)])
def test_thirty_training_steps_end_where_the_released_codes_do(clip, run, beta2, monkeypatch):
    from videoanomaly.training.epochs import learning_rate

    selected = []
    monkeypatch.setattr(
        anomalyclip, "select_segments", lambda *a, **k: selected.append(select_segments(*a, **k)) or selected[-1]
    )
    data, expected = arrays("trajectory/batches"), arrays(f"trajectory/{run}")
    model = reference_model(
        clip, read_reference("trajectory/initial_state"), data["ncentroid"], num_segments=8, num_frames=4
    ).train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], betas=(0.9, beta2), eps=1e-8, weight_decay=0.2
    )
    for step in range(30):
        lr = optimizer.param_groups[0]["lr"] = learning_rate(step, 3, 10, 5e-4, released=True)
        assert lr == pytest.approx(float(expected["lr"][step]), abs=1e-12)
        videos = [
            data[f"{kind}_features_float16"][data[f"{kind}_index"][step].long()] for kind in ("abnormal", "normal")
        ]
        labels = data["abnormal_labels"][data["abnormal_index"][step].long()]
        prediction = model(torch.cat(videos).view(8, 8, 4, 64))
        losses = model.losses(prediction, labels - (labels > XD_NORMAL_ID).long(), data["masks"][step].bool())
        order = ("total", "dir_abn", "dir_nor", "topk_abn", "bottomk_abn", "topk_nor", "smooth", "sparse")
        weighted = [
            losses[n] if n == "total" else losses[n] * getattr(model.config, f"lambda_{n}")
            for n in (NET_TERMS[o] for o in order)
        ]
        assert_near(torch.stack(weighted).double(), expected["losses"][step], atol=1e-5)
        for idx, name in zip(selected[-3:], ("idx_topk_abn", "idx_bottomk_abn", "idx_topk_nor")):
            assert torch.equal(idx, expected[name][step].long()), (step, name)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    final = from_released({k.removeprefix("final."): v for k, v in expected.items() if k.startswith("final.")})
    state = model.trained_state()
    for name, value in final.items():
        assert_near(state[name], value, atol=1e-5)


# ---- inference ----


def slow_predict(model, features):
    """Sec. 4.1 word by word: pad by looping, S blocks of J * F rows, pass j takes the j-th F rows of every block."""
    S, F_, N = model.config.num_segments, model.config.num_frames, len(features)
    J = math.ceil(N / (S * F_))
    padded = torch.stack([features[i % N] for i in range(J * S * F_)])
    p_A, p_class = torch.zeros(len(padded)), torch.zeros(len(padded), len(model.config.classes))
    for j in range(J):
        rows = [[n * J * F_ + j * F_ + f for f in range(F_)] for n in range(S)]
        prediction = model(padded[torch.tensor(rows)].unsqueeze(0))
        for n in range(S):
            for f in range(F_):
                score = prediction.anomaly_logits[0, n, f].sigmoid()
                p_A[rows[n][f]] = score
                p_class[rows[n][f]] = score * prediction.likelihood[0, n, f].softmax(-1)
    return p_A[:N], p_class[:N]


@pytest.mark.parametrize("num_rows", [1, 2, 20, 21, 22, 63, 100])  # S * F is 21
@pytest.mark.parametrize("batch_size", [1, 16])
def test_prediction_for_a_video_of_any_length_equals_the_papers_passes(clip, num_rows, batch_size):
    model = small_model(clip).eval()
    features = torch.randn(num_rows, 64)
    expected = [t.detach() for t in slow_predict(model, features)]
    for given in (features, features.numpy()):
        p_A, p_class = model.predict(given, batch_size=batch_size)
        assert p_A.shape == (num_rows,) and p_class.shape == (num_rows, 4)
        assert_near(torch.from_numpy(p_A), expected[0], atol=1e-6)
        assert_near(torch.from_numpy(p_class), expected[1], atol=1e-6)
    assert np.allclose(p_class.sum(axis=1), p_A, atol=1e-6)


def test_relative_features_are_also_what_is_not_the_videos_median():
    torch.manual_seed(0)
    config = small_config(directions="direct", temporal_input="relative")
    model = AnomalyCLIP(config).eval()
    features = torch.randn(3, config.num_segments, config.num_frames, config.feature_dim)  # (B, S, F, D)
    usual = features.flatten(1, 2).median(dim=1).values[:, None, None]
    assert torch.equal(median(features), usual)
    seen = torch.cat([features - model.prototype, features - usual], dim=-1)
    assert_near(model(features).anomaly_logits, model.temporal_model(seen)[0], atol=1e-5)
    with torch.no_grad():
        model.temporal_model.projection.weight[:, : config.feature_dim] = 0  # what differs alone
    assert_near(model(features + 5).anomaly_logits, model(features).anomaly_logits, atol=1e-4)


def test_a_class_head_tells_the_classes_and_the_selector_still_selects(clip):
    torch.manual_seed(0)
    model = small_model(clip, directions="direct", class_head=True)
    features, labels = random_batch(model.config)
    first = model(features)
    assert first.class_logits.shape == first.likelihood.shape and not first.class_logits.any()  # nothing is learned yet
    torch.nn.init.normal_(model.class_head.weight)
    found = model(features)
    logits, embedding = model.temporal_model(model.recentre(features, model.prototype))
    assert_near(found.class_logits, embedding @ model.class_head.weight.T + model.class_head.bias, atol=1e-5)
    assert_near(found.anomaly_logits, logits, atol=1e-5)
    losses = model.losses(found, labels, torch.ones(features.shape[:2], dtype=torch.bool))
    by_head, by_directions = torch.autograd.grad(
        losses["top_abnormal"], [model.class_head.weight, model.free_directions], retain_graph=True, allow_unused=True
    )
    assert by_head.any() and by_directions is None  # Eq. 8 teaches the head
    assert torch.autograd.grad(losses["dir_abnormal"], model.free_directions)[0].any()  # and Eq. 7 the directions


@pytest.mark.parametrize("num_rows, smoothing", [(1, 0.5), (4, 2.0), (50, 0.5), (50, 1.7)])
def test_smoothed_probabilities_are_a_gaussian_mean_over_time(clip, num_rows, smoothing):
    torch.manual_seed(0)
    model = small_model(clip).eval()
    features = torch.randn(num_rows, 64)
    plain = model.predict(features)
    model.config.smoothing = smoothing
    p_A, p_class = found = model.predict(features)
    sigma = smoothing * model.config.num_frames
    for curve, expected in zip(found, plain):
        for t in range(num_rows):
            around = np.arange(t - math.ceil(3 * sigma), t + math.ceil(3 * sigma) + 1)
            weights = np.exp(-((around - t) ** 2) / (2 * sigma**2))
            mean = np.average(expected[np.clip(around, 0, num_rows - 1)], axis=0, weights=weights)
            assert np.allclose(curve[t], mean, atol=1e-5)
    assert np.allclose(p_class.sum(axis=1), p_A, atol=1e-5)


def test_the_rows_of_all_passes_are_each_row_once():
    rows = np.concatenate([r.ravel() for r in inference_rows(100, 7, 3, 2)])
    assert sorted(rows) == list(range(105))


def test_probabilities_are_means_over_crops_and_float16_files_are_read_as_float32(clip):
    model = small_model(clip).eval()
    features = torch.randn(50, 3, 64).half()
    p_A, p_class = model.predict(features.numpy())
    crops = [model.predict(features[:, i].float()) for i in range(3)]
    assert np.allclose(p_A, np.mean([c[0] for c in crops], axis=0), atol=1e-6)
    assert np.allclose(p_class, np.mean([c[1] for c in crops], axis=0), atol=1e-6)


@pytest.mark.parametrize("crops, temporal_crops", [(1, 10), (10, 1), (10, 10)])
@pytest.mark.parametrize("temporal_input", ["features", "both", "relative"])
def test_features_of_one_crop_go_with_others_of_ten(crops, temporal_crops, temporal_input):
    torch.manual_seed(0)
    model = AnomalyCLIP(small_config(directions="direct", temporal_feature_dim=5, temporal_input=temporal_input)).eval()
    features, others = torch.randn(50, crops, 64), torch.randn(50, temporal_crops, 5)
    p_A, p_class = model.predict(features, others)
    each = [model.predict(features[:, i % crops], others[:, i % temporal_crops]) for i in range(10)]
    assert np.allclose(p_A, np.mean([e[0] for e in each], axis=0), atol=1e-6)
    assert np.allclose(p_class, np.mean([e[1] for e in each], axis=0), atol=1e-6)


def test_features_that_do_not_go_with_the_config_are_refused(clip):
    model, video = small_model(clip), torch.randn(30, 64)
    with pytest.raises(ValueError, match="must be 64 and None wide, got 64 and 64"):
        model.predict(video, video)
    with pytest.raises(ValueError, match=r"features: found \(30, 9\), expected \(N, 64\) or \(N, crops, 64\)"):
        model.predict(video[:, :9])
    assert model.training
    with pytest.raises(ValueError, match="the model has no directions yet"):
        AnomalyCLIP(small_config()).predict(video)


def test_prediction_leaves_the_model_as_it_was(clip):
    model = small_model(clip).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.predict(torch.randn(30, 64))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k != "directions")
    with pytest.raises(ValueError, match="no rows"):
        model.predict(torch.empty(0, 64))


def test_lists_and_arrays_of_any_number_type_give_the_scores_of_float32():
    model, rows = AnomalyCLIP(small_config(directions="direct")), np.ones((5, 64), np.float32)
    model.finish_directions()
    expected = model.predict(rows)
    for given in (
        rows.tolist(),
        tuple(map(tuple, rows)),
        list(rows),
        *(rows.astype(d) for d in (">f4", "<f8", ">i2", "u2", "?")),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(model.predict(given), expected))
    crops = rows[:, None].repeat(10, axis=1)
    assert all(np.array_equal(a, b) for a, b in zip(model.predict(crops.tolist()), model.predict(crops)))


@pytest.mark.parametrize(
    "given, found",
    [
        (np.zeros(64, np.float32), r"\(64,\)"),
        (torch.zeros(()), r"\(\)"),
        ([0.1] * 64, r"\(64,\)"),
        (np.zeros((5, 63)), r"\(5, 63\)"),
        (np.zeros((1, 90, 64)), r"\(1, 90, 64\)"),  # a batch of one
        (torch.zeros(2, 90, 64), r"\(2, 90, 64\)"),
        (np.zeros((1, 5, 2, 64)), r"\(1, 5, 2, 64\)"),
        (np.zeros((5, 0, 64)), r"\(5, 0, 64\)"),
        ([[0.1] * 64, [0.1]], "a list that is no array of numbers"),
        ([["a"] * 64], "a list that is no array of numbers"),
        (np.full((5, 64), "a"), "<U1"),
        (np.full((5, 64), None), "object"),
        (np.zeros((5, 64), complex), "complex128"),
        (torch.zeros(5, 64, dtype=torch.complex64), "torch.complex64"),
        (None, "a NoneType that is no array of numbers"),
        (3.0, "a float that is no array of numbers"),
        ("rows", "a str that is no array of numbers"),
        ({"rows": 1}, "a dict that is no array of numbers"),
    ],
)
def test_features_of_another_shape_or_kind_are_named_with_what_is_expected(given, found):
    model = AnomalyCLIP(small_config(directions="direct"))
    model.finish_directions()
    with pytest.raises(ValueError, match=f"^features: found {found}, expected "):
        model.predict(given)
    for empty in ([], np.zeros((0, 64)), torch.zeros(0, 3, 64)):
        with pytest.raises(ValueError, match="features hold no rows"):
            model.predict(empty)


def test_features_of_the_temporal_model_go_row_for_row():
    model = AnomalyCLIP(small_config(directions="direct", temporal_feature_dim=9))
    model.finish_directions()
    with pytest.raises(ValueError, match=r"temporal_features: found \(4, 9\), expected \(5, 9\) or \(5, crops, 9\)"):
        model.predict(torch.zeros(5, 64), torch.zeros(4, 9))


# ---- checkpoints ----


def test_a_checkpoint_predicts_the_same_without_clip(clip, tmp_path):
    for changes in (
        {},
        {"directions": "direct"},
        {"directions": "ensemble", "smoothing": 0.5},
        {"directions": "direct", "class_head": True},
        {"likelihood": "cosine", "shared_ctx": True},
    ):
        model = small_model(clip, **changes)
        model.losses(
            model(random_batch(model.config)[0]), random_batch(model.config)[1]
        )  # moves the running statistics
        torch.save(model.checkpoint(), tmp_path / "x.pt")
        loaded = AnomalyCLIP.from_checkpoint(tmp_path / "x.pt")
        video = torch.randn(50, 64)
        for ours, theirs in zip(model.predict(video), loaded.predict(video)):
            assert np.array_equal(ours, theirs)
    assert not any("text_tower" in k for k in model.checkpoint()["model"])


def test_files_that_are_no_checkpoint_are_named(clip, tmp_path):
    with pytest.raises(ValueError, match="x.pt: no such file"):
        AnomalyCLIP.from_checkpoint(tmp_path / "x.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt: found .* on reading, expected a checkpoint"):
        AnomalyCLIP.from_checkpoint(tmp_path / "text.pt")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: found a file without config, format, model"):
        AnomalyCLIP.from_checkpoint(tmp_path / "other.pt")
    checkpoint = small_model(clip).checkpoint()
    torch.save(checkpoint | {"format": 99}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="new.pt: found checkpoint format 99"):
        AnomalyCLIP.from_checkpoint(tmp_path / "new.pt")
    checkpoint["config"]["embed_dim"] = 32
    torch.save(checkpoint, tmp_path / "size.pt")
    with pytest.raises(ValueError, match="state does not fit the model at temporal_model"):
        AnomalyCLIP.from_checkpoint(tmp_path / "size.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": "a"},
        {"feature_dim": 64.5},
        {"num_ctx": [8]},
        {"num_frames": 0},
        {"temporal": 3},
        {"more": 1},
        None,
        [],
    ],
    ids=str,
)
def test_a_config_of_another_version_is_refused_in_one_line(changes):
    checkpoint = AnomalyCLIP(small_config(directions="direct")).checkpoint()
    checkpoint["config"] = {**checkpoint["config"], **changes} if isinstance(changes, dict) else changes
    with pytest.raises(ValueError) as caught:
        AnomalyCLIP.from_dict(checkpoint)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300


BAD_STATES = {
    "whole numbers": lambda x: x.int(),
    "complex": lambda x: x.to(torch.complex64),
    "no tensor": lambda x: x.tolist(),
    "another shape": lambda x: x[:-1],
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_state_that_is_none_of_the_model_is_refused(kind):
    checkpoint, name = AnomalyCLIP(small_config(directions="direct")).checkpoint(), "temporal_model.projection.weight"
    checkpoint["model"][name] = BAD_STATES[kind](checkpoint["model"][name])
    with pytest.raises(ValueError, match="state does not fit the model at temporal_model"):
        AnomalyCLIP.from_dict(checkpoint)
    for state in (None, [], {1: torch.ones(1)}):
        with pytest.raises(ValueError, match="no dict of tensors"):
            AnomalyCLIP.from_dict(checkpoint | {"model": state})


def test_training_without_the_clip_that_the_directions_need_is_refused():
    model = AnomalyCLIP(small_config())
    with pytest.raises(ValueError, match="directions='finetune' need CLIP to be trained"):
        model(torch.randn(2, 7, 3, 64))


# ---- on its own, and with other people's CLIPs ----


def test_the_file_works_when_copied_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "clip").mkdir()
    shutil.copy(HERE / "anomalyclip.py", tmp_path / "mine")
    for file in ["clip_model.py", *(p.name for p in HERE.glob("bpe_merges*"))]:
        shutil.copy(HERE / file, tmp_path / "clip")
    (tmp_path / "mine" / "use.py").write_text("""
import sys, torch, anomalyclip
assert anomalyclip.__file__.startswith(sys.path[0])
import clip_model
clip = clip_model.CLIP(embed_dim=8, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
    context_length=77, vocab_size=49408, transformer_width=8, transformer_heads=2, transformer_layers=1)
config = anomalyclip.AnomalyCLIPConfig(classes=("fire", "fall"), feature_dim=8, embed_dim=16)
model = anomalyclip.AnomalyCLIP(config, clip=clip, tokenize=clip_model.tokenize)
model.losses(model(torch.randn(4, 32, 16, 8)), torch.tensor([0, 1]))["total"].backward()
print(*(p.shape for p in model.predict(torch.randn(600, 8))))
torch.save(model.checkpoint(), "model.pt")
print(*(p.shape for p in anomalyclip.AnomalyCLIP.from_checkpoint("model.pt").predict(torch.randn(600, 8))))
""")
    result = subprocess.run(
        [sys.executable, "use.py"],
        cwd=tmp_path / "mine",
        env={"PYTHONPATH": str(tmp_path / "clip")},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "(600,) (600, 2)\n" * 2, result.stderr


def directions_of(clip, tokenize):
    torch.manual_seed(3)
    model = AnomalyCLIP(small_config(), clip=clip, tokenize=tokenize, prototype=torch.full((64,), 0.1))
    return model.class_directions().detach()


def test_openais_clip_gives_the_same_directions(clip):
    openai = pytest.importorskip("clip.model", reason="PyPI's clip-anytorch is not installed")
    from clip import tokenize

    theirs = openai.CLIP(64, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
    theirs.load_state_dict(clip.state_dict())
    assert_near(directions_of(theirs, tokenize), directions_of(clip, clip_model.tokenize), atol=2e-6)


def test_open_clip_gives_the_same_directions(clip):
    open_clip = pytest.importorskip("open_clip", reason="PyPI's open-clip-torch is not installed")
    theirs = open_clip.model.CLIP(
        embed_dim=64,
        quick_gelu=True,
        vision_cfg=dict(layers=2, width=64, patch_size=8, image_size=32),
        text_cfg=dict(layers=2, width=64, heads=1, vocab_size=49408, context_length=77),
    )
    theirs.load_state_dict(clip.state_dict(), strict=False)
    assert_near(directions_of(theirs, open_clip.tokenize), directions_of(clip, clip_model.tokenize), atol=2e-6)
