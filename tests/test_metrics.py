"""Tests of metrics.py against slow references that anybody can check, and closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from videoanomaly import event_rule
from videoanomaly.evaluation import metrics, paper_metrics
from videoanomaly.evaluation.metrics import (
    IOUS,
    NMS_IOU,
    PROPOSAL_THRESHOLDS,
    average_precision,
    bootstrap_metrics,
    choose_threshold,
    equal_error_rate,
    event_map,
    false_alarm_rate,
    interval_iou,
    match_events,
    operating_points,
    overlapping_pairs,
    propose_events,
    quiet_threshold,
    suppress,
    vadclip_events,
    vadclip_map,
    weighted_auc_ap,
)
from videoanomaly.event_rule import cut_events, runs

CLASSES = ("fire", "fall", "theft", "riot")  # no video has the last
FPS = 5.0


def noisy_video(rng, label: int, num_frames: int) -> SimpleNamespace:
    """Curves that move slowly and are rounded, so that scores tie; two anomalous stretches unless normal."""
    labels = np.full(num_frames, -1)
    if label >= 0:
        labels[num_frames // 5 : num_frames // 3] = label
        labels[num_frames // 2 : num_frames // 2 + 9] = label
    walk = np.cumsum(rng.normal(size=(num_frames, 5)), axis=0) / 4
    walk += 1.5 * (labels[:, None] == np.arange(-1, 4)) * (np.arange(-1, 4) >= 0)
    walk[:, 0] += 1.5 * (labels >= 0)
    p = np.round(1 / (1 + np.exp(-walk)), 2).astype(np.float32)
    return SimpleNamespace(p_A=p[:, 0], p_class=p[:, 1:], labels=labels)


def noisy_videos(seed: int = 0):
    rng = np.random.default_rng(seed)
    return [noisy_video(rng, label, int(rng.integers(60, 150))) for label in (-1, 0, 1, 2, -1, 0, 1, 0, -1)]


def oracle(label_rows, num_classes: int) -> list:
    videos = [np.asarray(row) for row in label_rows]
    one_hot = np.eye(num_classes + 1, dtype=np.float32)[:, :-1]  # the last row, -1, is normal
    return [SimpleNamespace(p_A=(x >= 0).astype(np.float32), p_class=one_hot[x], labels=x) for x in videos]


# Bootstrap


@pytest.mark.parametrize("levels_at_once", (3, 1024))
def test_weighted_auc_and_ap_equal_scikit_learn_with_sample_weights(monkeypatch, levels_at_once):
    monkeypatch.setattr(metrics, "LEVELS_AT_ONCE", levels_at_once)
    rng = np.random.default_rng(1)
    video_idx = np.repeat(np.arange(7), rng.integers(20, 60, 7))
    positive = (rng.random(len(video_idx)) < 0.3) & (video_idx > 2)
    weights = rng.multinomial(7, np.full(7, 1 / 7), 20)
    for p in (
        rng.random(len(video_idx)),
        np.round(rng.random(len(video_idx)), 1),
        np.zeros(len(video_idx)),
    ):  # with ties
        auc, ap = weighted_auc_ap(p, positive, video_idx, weights)
        for r, row in enumerate(weights):
            assert auc[r] == pytest.approx(roc_auc_score(positive, p, sample_weight=row[video_idx]), abs=1e-9)
            assert ap[r] == pytest.approx(average_precision_score(positive, p, sample_weight=row[video_idx]), abs=1e-9)


def test_counts_beyond_single_precision_stay_exact():
    p, positive, video_idx = np.array([3.0, 2, 1, 0]), np.array([False, True, False, True]), np.arange(4)
    weights = np.array([[1, 2**24 + 1, 3, 2**25 + 3]])
    auc, ap = weighted_auc_ap(p, positive, video_idx, weights)
    assert auc[0] == pytest.approx(roc_auc_score(positive, p, sample_weight=weights[0]), abs=1e-14)
    assert ap[0] == pytest.approx(average_precision_score(positive, p, sample_weight=weights[0]), abs=1e-14)


def test_a_draw_with_one_kind_of_frame_alone_has_no_auc_and_no_ap():
    positive = np.array([False, False, True, True])
    auc, ap = weighted_auc_ap(np.arange(4.0), positive, np.array([0, 0, 1, 1]), np.array([[2, 0], [0, 2], [1, 1]]))
    np.testing.assert_array_equal(auc, [np.nan, np.nan, 1])
    np.testing.assert_array_equal(ap, [np.nan, np.nan, 1])


def slow_bootstrap(videos, num_draws: int, seed: int) -> dict:
    """Frames of each drawn video copied, scikit-learn on the copies."""
    draws = {}
    for row in np.random.default_rng(seed).multinomial(len(videos), np.full(len(videos), 1 / len(videos)), num_draws):
        chosen = [v for v, times in zip(videos, row) for _ in range(times)]
        labels = np.concatenate([v.labels for v in chosen])
        p = np.concatenate([np.column_stack([v.p_A, v.p_class]) for v in chosen])
        values = {}
        for i in range(p.shape[1]):
            positive = labels >= 0 if i == 0 else labels == i - 1
            if 0 < positive.sum() < len(positive):
                values[i] = roc_auc_score(positive, p[:, i]), average_precision_score(positive, p[:, i])
                draws.setdefault(i, []).append(values[i])
        classes = [values[i] for i in values if i]
        if classes:
            draws.setdefault("mean", []).append(np.mean(classes, axis=0))
    return draws


def test_bootstrap_intervals_equal_those_of_drawn_copies_of_the_videos():
    videos = noisy_videos()[:6]
    slow, fast = slow_bootstrap(videos, 40, 3), bootstrap_metrics(videos, CLASSES, num_draws=40, seed=3)
    results = {0: fast, "mean": {"AUC": fast["mAUC"], "AP": fast["mAP"]}}
    results |= {i + 1: fast["per_class"][name] for i, name in enumerate(CLASSES)}
    for i, values in slow.items():
        expected = np.percentile(values, (2.5, 97.5), axis=0)
        np.testing.assert_allclose([results[i]["AUC"], results[i]["AP"]], expected.T, atol=1e-9)
        assert i == "mean" or results[i]["draws"] == len(values)
    assert fast["per_class"]["theft"]["draws"] < 40  # one video, not in every draw
    assert fast["per_class"]["riot"] == {"AUC": None, "AP": None, "draws": 0, "videos": 0, "frames": 0}
    assert fast["per_class"]["fire"]["videos"] == 2 and fast["videos"] == 6
    assert fast["per_class"]["fire"]["frames"] == sum((v.labels == 0).sum() for v in videos)
    assert fast["frames"] == sum(len(v.labels) for v in videos)


def test_bootstrap_of_normal_videos_has_no_interval_and_of_one_video_no_width():
    normal = bootstrap_metrics([noisy_videos()[0]], CLASSES, num_draws=5)
    assert [normal[key] for key in ("AUC", "AP", "mAUC", "mAP", "draws")] == [None, None, None, None, 0]
    video = noisy_videos()[1]
    low, high = bootstrap_metrics([video], CLASSES, num_draws=5)["AUC"]
    assert low == high == pytest.approx(roc_auc_score(video.labels >= 0, video.p_A))


def test_bootstrap_depends_on_the_seed_and_does_without_classes():
    videos = noisy_videos()
    assert bootstrap_metrics(videos, CLASSES, 30) == bootstrap_metrics(videos, CLASSES, 30)
    assert bootstrap_metrics(videos, CLASSES, 30)["AUC"] != bootstrap_metrics(videos, CLASSES, 30, seed=1)["AUC"]
    rule = [SimpleNamespace(p_A=v.p_A, p_class=None, labels=v.labels) for v in videos]
    assert set(bootstrap_metrics(rule, CLASSES, 30)) == {"AUC", "AP", "draws", "videos", "frames"}


# Events


def slow_events(p, fps, high, low, merge_gap, min_length) -> list[tuple[int, int, float]]:
    found, start = [], None
    for i in range(len(p) + 1):
        if i < len(p) and p[i] >= low:
            start = i if start is None else start
        elif start is not None:
            if any(x >= high for x in p[start:i]):
                found.append([start, i])
            start = None
    merged = []
    for start, end in found:
        if merged and (start - merged[-1][1]) / fps <= merge_gap:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return [(s, e, math.fsum(p[s:e]) / (e - s)) for s, e in merged if (e - s) / fps >= min_length]


@pytest.mark.parametrize(
    "rule", ((0.5, 0.25, 1, 1), (0.6, 0.6, 0, 0), (0.7, 0.2, 0.4, 2), (0.5, 0.0, 1, 1), (2.0, 0.5, 1, 1))
)
def test_events_equal_a_loop_over_the_frames(rule):
    high, low, merge_gap, min_length = rule
    for video in noisy_videos(2):
        events = cut_events(video.p_A, FPS, high=high, low=low, merge_gap=merge_gap, min_length=min_length)
        expected = slow_events(video.p_A.astype(float), FPS, *rule)
        assert [(s, e) for s, e in events.intervals.tolist()] == [(s, e) for s, e, _ in expected]
        np.testing.assert_allclose(events.scores, [score for *_, score in expected])


def test_events_close_gaps_and_lengths_at_exactly_the_limit_and_touch_both_ends():
    p = np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 1.0])
    events = cut_events(p, fps=2, merge_gap=1, min_length=0.5)
    assert events.intervals.tolist() == [[0, 6], [9, 10]] and events.scores.tolist() == [4 / 6, 1]
    assert cut_events(p, fps=2, merge_gap=0, min_length=1).intervals.tolist() == [[0, 2], [4, 6]]
    assert cut_events(np.array([0.3, 0.5, 0.24]), 1, merge_gap=0, min_length=0).intervals.tolist() == [
        [0, 2]
    ]  # low: high / 2


def slow_iou(a, b) -> float:
    one, other = set(range(*map(int, a))), set(range(*map(int, b)))
    return len(one & other) / len(one | other)


def slow_proposals(p, fps) -> list[tuple[int, int, float]]:
    rules = [(t, t / 2, gap, 0) for t in PROPOSAL_THRESHOLDS for gap in (0, 1)]
    found = {(s, e): score for rule in rules for s, e, score in slow_events(p, fps, *rule)}
    kept = []
    for (s, e), score in sorted(found.items(), key=lambda item: (-round(item[1], 9), item[0])):
        if all(slow_iou((s, e), (a, b)) <= NMS_IOU for a, b, _ in kept):
            kept.append((s, e, score))
    return kept


def slow_matching(detections, truths, min_iou: float) -> list[bool]:
    """detections: (video, start, end), best first. truths: lists of (start, end)."""
    left, hits = [list(map(tuple, t)) for t in truths], []
    for v, start, end in detections:
        ious = [slow_iou((start, end), t) for t in left[v]]
        hits.append(bool(ious) and max(ious) >= min_iou)
        if hits[-1]:
            del left[v][ious.index(max(ious))]
    return hits


def slow_ap(hits, scores, num_truths: int) -> float:
    """Sum over the distinct scores of (recall gained) * (precision of all detections so far)."""
    area, recall = 0.0, 0.0
    for score in sorted(set(scores), reverse=True):
        taken = [hit for hit, s in zip(hits, scores) if s >= score]
        area += (sum(taken) / num_truths - recall) * sum(taken) / len(taken)
        recall = sum(taken) / num_truths
    return area


def slow_map(videos, c: int, cut, ties_as_one: bool) -> list[float]:
    truths = [runs(v.labels == c).tolist() for v in videos]
    found = [(round(score, 9), i, s, e) for i, v in enumerate(videos) for s, e, score in cut(v)]
    found.sort(key=lambda d: (-d[0], *d[1:]))
    values = []
    for iou in IOUS:
        hits = slow_matching([d[1:] for d in found], truths, iou)
        values.append(slow_ap(hits, [d[0] if ties_as_one else -i for i, d in enumerate(found)], sum(map(len, truths))))
    return values


def test_event_map_equals_the_slow_reference_per_class():
    videos = noisy_videos(5)
    result = event_map(videos, FPS, CLASSES)
    for c, name in enumerate(CLASSES[:3]):
        expected = slow_map(videos, c, lambda v: slow_proposals(v.p_class[:, c].astype(float), FPS), True)
        assert 0 < expected[0] < 1
        values = result["per_class"][name]
        np.testing.assert_allclose([values[f"AP@{iou}"] for iou in IOUS], expected, atol=1e-12)
        assert values["AP"] == pytest.approx(np.mean(expected)) and values["events"] == sum(
            2 for v in videos if c in v.labels
        )
    assert result["per_class"]["riot"] == dict.fromkeys(("AP", *(f"AP@{iou}" for iou in IOUS))) | {"events": 0}
    for key in ("", *(f"@{iou}" for iou in IOUS)):
        assert result[f"mAP{key}"] == pytest.approx(np.mean([result["per_class"][n][f"AP{key}"] for n in CLASSES[:3]]))


def random_events(seed: int) -> event_rule.Events:
    """Lengths from 1 to 300, so that intervals nest, touch and nearly coincide; scores that tie."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 600, 400)
    intervals = np.unique(np.stack([first, first + np.exp(rng.uniform(0, 5.7, 400)).astype(int)], axis=1), axis=0)
    return event_rule.Events(intervals, rng.integers(0, 12, len(intervals)) / 12)


@pytest.mark.parametrize("iou", (0.3, NMS_IOU, 0.9))
@pytest.mark.parametrize("seed", range(3))
def test_overlapping_pairs_are_all_there_once(seed, iou):
    intervals = random_events(seed).intervals
    expected = [
        (i, j)
        for i in range(len(intervals))
        for j in (i + 1 + np.flatnonzero(interval_iou(intervals[i], intervals[i + 1 :]) > iou)).tolist()
    ]
    assert expected and sorted(map(tuple, overlapping_pairs(intervals, iou).tolist())) == expected


@pytest.mark.parametrize("iou", (0.3, NMS_IOU, 0.9))
@pytest.mark.parametrize("seed", range(3))
def test_suppression_in_rounds_equals_one_event_after_the_other(seed, iou):
    intervals, scores = events = random_events(seed)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        kept.append(order[0])
        order = order[1:][interval_iou(intervals[order[0]], intervals[order[1:]]) <= iou]
    assert 1 < len(kept) < len(scores)
    np.testing.assert_array_equal(suppress(events, iou).intervals, intervals[sorted(kept)])
    np.testing.assert_array_equal(suppress(events, iou).scores, scores[sorted(kept)])


def test_proposals_of_many_videos_are_those_of_each():
    """Also where one video ends and the next begins inside an event, and for a video of one frame."""
    curves, rates = [v.p_A for v in noisy_videos(6)] + [np.ones(7), np.ones(1), np.ones(9)], np.linspace(2, 9, 12)
    video_idx, events = propose_events(curves, rates)
    assert set(video_idx) == set(range(12))
    for v, (p, fps) in enumerate(zip(curves, rates)):
        expected = sorted(slow_proposals(p.astype(float), fps))
        assert [tuple(interval) for interval in events.intervals[video_idx == v].tolist()] == [
            (s, e) for s, e, _ in expected
        ]
        np.testing.assert_allclose(events.scores[video_idx == v], [score for *_, score in expected])


@pytest.mark.parametrize("seed", range(8))
def test_a_perfect_oracle_scores_exactly_one(seed):
    """Also with events of a single frame, neighbours of other classes and gaps of a single frame."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice([-1, -1, 0, 1, 2], 40 * (i + 1)) for i in range(4)] + [
        np.repeat([-1, 0, -1], 50),
        np.full(30, -1),
    ]
    result = event_map(oracle(rows, 4), 30.0, CLASSES)
    assert all(result[key] == 1 for key in ("mAP", *(f"mAP@{iou}" for iou in IOUS)))


def test_event_map_without_anomalies_is_absent_and_without_detections_zero():
    normal = oracle([np.full(20, -1)], 4)
    assert event_map(normal, FPS, CLASSES)["mAP"] is None
    blind = [
        SimpleNamespace(p_A=v.p_A, p_class=0 * v.p_class, labels=v.labels) for v in oracle([np.repeat([-1, 1], 9)], 4)
    ]
    assert event_map(blind, FPS, CLASSES)["mAP"] == 0


def test_event_map_reads_the_rate_of_each_video():
    p = np.repeat([1.0, 0, 1], (8, 2, 8))[:, None]
    video = SimpleNamespace(p_A=p[:, 0], p_class=p, labels=np.zeros(18, int))
    merged, apart = (len(propose_events([p[:, 0]], [fps])[0]) for fps in (2, 1))
    assert (merged, apart) == (3, 2)
    # The halves (score 1) overlap the truth by 8 / 18; both together (score 16 / 18) are the truth, where the gap lasts
    # 1 s.
    assert event_map([video, video], 2, ("fire",))["mAP@0.5"] == pytest.approx(2 / 6)
    assert event_map([video, video], (2, 1), ("fire",))["mAP@0.5"] == pytest.approx(1 / 5 / 2)


def test_each_truth_is_found_once_and_by_the_larger_overlap():
    truths = [np.array([[0, 10], [12, 20]]), np.zeros((0, 2), int)]
    detections = np.array([[0, 10], [1, 10], [8, 20], [0, 10]])
    assert match_events([0, 0, 0, 1], detections, truths, 0.5).tolist() == [True, False, True, False]
    assert match_events([0], np.array([[0, 5]]), truths, 0.5).tolist() == [True]  # IoU of exactly the limit
    assert truths[0].tolist() == [[0, 10], [12, 20]]  # not changed


def test_detections_of_equal_scores_are_one_point_of_the_curve_in_either_order():
    for hits in ([True, False, True], [False, True, True]):
        assert average_precision(np.array(hits), np.array([0.9, 0.9, 0.4]), 2) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)


def overlapping(seed: int) -> list[SimpleNamespace]:
    """Videos whose frames show up to three classes at once."""
    rng, videos = np.random.default_rng(seed), noisy_videos(seed)
    for i, v in enumerate(videos):
        masks = v.labels[:, None] == np.arange(len(CLASSES))
        for c in (0, 1, 2) if i % 4 == 1 else ():
            start, end = sorted(rng.choice(len(masks), 2, replace=False))
            masks[start:end, c] = True
        v.labels = masks
    assert max(v.labels.sum(axis=1).max() for v in videos) == 3
    return videos


def all_numbers(videos) -> dict:
    p_A, p_class, labels = (np.concatenate([getattr(v, name) for v in videos]) for name in ("p_A", "p_class", "labels"))
    return {
        "frames": paper_metrics.metrics(p_A, p_class, labels, CLASSES),
        "intervals": bootstrap_metrics(videos, CLASSES, num_draws=50),
        "events": event_map(videos, FPS, CLASSES),
        "operation": operating_points(videos, FPS, 0.5),
        "vadclip": [vadclip_map(videos, CLASSES, normal_segments=normal) for normal in (False, True)],
    }


def test_masks_of_classes_give_what_labels_give():
    videos = noisy_videos(3)
    expected = all_numbers(videos)
    for v in videos:
        v.labels = v.labels[:, None] == np.arange(len(CLASSES))
    assert all_numbers(videos) == expected


@pytest.mark.parametrize("c", range(3))
def test_each_class_of_frames_that_show_several_is_measured_by_itself(c):
    videos = overlapping(5)
    found = all_numbers(videos)
    alone = [SimpleNamespace(**{**vars(v), "labels": np.where(v.labels[:, c], c, -1)}) for v in videos]
    expected = all_numbers(alone)
    for name in ("frames", "intervals", "events"):
        assert found[name]["per_class"][CLASSES[c]] == expected[name]["per_class"][CLASSES[c]]


def test_vadclips_map_is_the_mean_of_its_classes_where_these_overlap():
    videos, kinds = overlapping(5), range(len(CLASSES))
    alone = [[SimpleNamespace(**{**vars(v), "labels": np.where(v.labels[:, c], c, -1)}) for v in videos] for c in kinds]
    of_class = [vadclip_map(v, CLASSES, normal_segments=False)["mAP"] for v in alone]  # the other classes have no truth
    assert vadclip_map(videos, CLASSES, normal_segments=False)["mAP"] == pytest.approx(sum(of_class))


def test_any_class_makes_a_frame_anomalous():
    videos = overlapping(5)
    alone = [SimpleNamespace(**{**vars(v), "labels": np.where(v.labels.any(axis=1), 0, -1)}) for v in videos]
    found, expected = all_numbers(videos), all_numbers(alone)
    assert found["operation"] == expected["operation"]
    assert (
        found["frames"]["AUC"] == expected["frames"]["AUC"] and found["intervals"]["AP"] == expected["intervals"]["AP"]
    )


# VadCLIP


def slow_vadclip(p) -> list[tuple[int, int, float]]:
    limit = max(p) - 0.6 * (max(p) - min(p))
    top = sorted(p, reverse=True)[: len(p) // 16]
    found, start = [], None
    for i in range(len(p) + 1):
        if i < len(p) and p[i] > limit:
            start = i if start is None else start
        elif start is not None:
            if i - start >= 2:
                found.append((start, i, max(p[start:i]) + 0.7 * sum(top) / len(top)))
            start = None
    return found


def test_vadclip_map_equals_the_slow_reference():
    videos = noisy_videos(7)
    classes = [slow_map(videos, c, lambda v: slow_vadclip(v.p_class[:, c].astype(float)), False) for c in range(3)]
    expected = np.sum(classes, axis=0) / 5  # "riot" without truth and normal count as 0
    result = vadclip_map(videos, CLASSES, normal_segments=False)
    np.testing.assert_allclose([result[f"mAP@{iou}"] for iou in IOUS], expected, atol=1e-12)
    assert result["mAP"] == pytest.approx(expected.mean()) and expected.min() > 0
    whole = [SimpleNamespace(labels=np.where((v.labels < 0).all(), 3, -1) + 0 * v.labels, p_A=v.p_A) for v in videos]
    normal = slow_map(whole, 3, lambda v: slow_vadclip((1 - v.p_A).astype(float)), False)
    assert normal[0] > 0
    result = vadclip_map(videos, CLASSES, normal_segments=True)
    np.testing.assert_allclose([result[f"mAP@{iou}"] for iou in IOUS], expected + np.array(normal) / 5, atol=1e-12)


def test_a_perfect_oracle_scores_13_of_14_in_the_published_evaluation_of_ucf_crime():
    rows = [np.repeat([-1, c, -1], 32) for c in range(13)] + [np.repeat([-1, 3, -1, 3], 20), np.full(64, -1)]
    assert vadclip_map(oracle(rows, 13), tuple(range(13)), normal_segments=False)["mAP"] == pytest.approx(13 / 14)
    xd = [np.repeat([-1, c, -1], 32) for c in range(6)] + [np.full(64, -1)]
    assert vadclip_map(oracle(xd, 6), tuple(range(6)), normal_segments=True)["mAP"] == pytest.approx(6 / 7)
    videos = oracle(xd, 6)
    videos[-1].p_A[0] = 1  # a normal video whose score moves is found nearly from end to end
    videos[-1].p_A[1:] = 0
    videos[:-1] = [
        SimpleNamespace(p_A=np.ones(96, np.float32), p_class=v.p_class, labels=v.labels) for v in videos[:-1]
    ]
    assert vadclip_map(videos, tuple(range(6)), normal_segments=True)["mAP"] == pytest.approx(1)


def test_vadclip_ranks_equal_scores_by_the_order_of_the_videos():
    p = np.repeat([0.0, 1.0, 0.0], 20)[:, None]
    found, missed = (
        SimpleNamespace(p_A=p[:, 0], p_class=p, labels=np.where(p[:, 0] == good, 0, -1)) for good in (1, 2)
    )
    assert vadclip_map([found, missed], ("fire",), normal_segments=False)["mAP"] == pytest.approx(1 / 2)
    assert vadclip_map([missed, found], ("fire",), normal_segments=False)["mAP"] == pytest.approx(1 / 4)


def test_vadclip_drops_runs_of_one_frame():
    assert vadclip_events(np.array([1, 0, 1, 1, 0] + [0] * 30)).intervals.tolist() == [[2, 4]]


# Operating points


def normal_videos(peaks, seconds: int = 60, fps: int = 1, width: int = 2) -> list:
    """Normal videos at 1 frame per second with one bump each, of the given height."""
    videos = []
    for peak in peaks:
        p = np.full(seconds * fps, 0.01)
        p[20 : 20 + width] = peak
        videos.append(SimpleNamespace(p_A=p, p_class=None, labels=np.full(len(p), -1)))
    return videos


def test_false_alarms_are_counted_per_hour_of_normal_video():
    videos = normal_videos([0.9, 0.6, 0.3], seconds=1200)  # an hour in all
    p, rates = [v.p_A for v in videos], np.ones(3)
    assert [false_alarm_rate(p, rates, t) for t in (0.95, 0.9, 0.5, 0.1)] == pytest.approx([0, 1, 2, 3])
    assert false_alarm_rate(p, 2 * rates, 0.5) == pytest.approx(4)  # half the time
    points = operating_points(videos, 1, 0.5)
    assert points["false_alarms_per_hour"] == pytest.approx(2) and points["normal_hours"] == pytest.approx(1)
    assert [points[key] for key in ("F1", "event_recall", "recall_at_1_false_alarm_per_hour", "EER")] == [None] * 4


def test_the_quiet_threshold_is_the_lowest_with_one_false_alarm_per_hour_at_and_above_it():
    videos = normal_videos([0.9, 0.6, 0.3], seconds=1200)
    assert quiet_threshold([v.p_A for v in videos], np.ones(3)) == 0.9
    assert quiet_threshold([v.p_A for v in videos[:2]], np.ones(2)) == np.nextafter(0.9, 1)  # 40 minutes: none at all
    long = normal_videos([0.9, 0.6, 0.3], seconds=2400)
    assert quiet_threshold([v.p_A for v in long], np.ones(3)) == 0.6
    merging = np.full(3600, 0.01)  # at 0.01 all of it is a single alarm, at 0.6 there are two
    merging[[20, 21, 90, 91]] = 0.9, 0.9, 0.6, 0.6
    assert quiet_threshold([merging], np.ones(1)) == 0.9
    p = [v.p_A for v in noisy_videos(4) if (v.labels < 0).all()]
    rates = np.full(len(p), 0.01)  # hours long
    chosen = quiet_threshold(p, rates)
    above = [t for t in np.unique(np.concatenate(p).astype(float)) if t >= chosen]
    assert above and all(false_alarm_rate(p, rates, t) <= 1 for t in above)


def test_the_threshold_comes_from_the_normal_training_videos_alone():
    videos = normal_videos([0.9, 0.6, 0.3], seconds=1200)
    loud = normal_videos([0.99] * 5)
    assert choose_threshold(videos + loud, [-1] * 3 + [2] * 5, 1) == 0.9
    assert choose_threshold(loud, [0] * 5, 1) == 0.5  # no normal footage
    assert choose_threshold(normal_videos([1.0, 1.0]), [-1, -1], 1) == 1  # never above a probability
    with pytest.raises(ValueError, match="shorter"):
        choose_threshold(videos, [-1], 1)


def test_operating_points_of_a_small_case_by_hand():
    normal = normal_videos([0.8], seconds=3600)
    labels = np.repeat([-1, 0, -1, 1, -1], 10)
    p = np.zeros(50)
    p[8:15], p[34:37] = 0.9, 0.7
    videos = [*normal, SimpleNamespace(p_A=p, p_class=None, labels=labels)]
    points = operating_points(videos, 1, 0.85)
    assert points["event_recall"] == 0.5 and points["events"] == 2 and points["false_alarms_per_hour"] == 0
    assert points["F1"] == pytest.approx(2 * 5 / (7 + 20)) and points["threshold"] == 0.85
    assert points["normal_alarmed"] == 0 and points["balanced_accuracy"] == 1
    assert points["recall_at_1_false_alarm_per_hour"] == 1  # at 0.01 and above the bump is the only alarm
    assert operating_points(videos, 1, 0.9)["F1"] == points["F1"]  # a frame at the threshold is over it
    more = operating_points([*normal_videos([0.8, 0.75], seconds=1800), videos[1]], 1, 0.85)
    assert more["recall_at_1_false_alarm_per_hour"] == 0.5
    louder = operating_points([*normal_videos([0.8, 0.75], seconds=1800), videos[1]], 1, 0.78)
    assert louder["normal_alarmed"] == 0.5 and louder["balanced_accuracy"] == 0.75
    assert louder["best_balanced_accuracy"] == 1  # at 0.85
    odd = operating_points([*normal_videos([0.8, 0.95], seconds=1800), videos[1], videos[1]], 1, 0.99)
    assert (odd["balanced_accuracy"], odd["best_balanced_accuracy"]) == (0.5, 0.75)  # of 0.99, and of 0.85
    no_normal = operating_points(videos[1:], 1, 0.85)
    assert no_normal["false_alarms_per_hour"] is no_normal["recall_at_1_false_alarm_per_hour"] is None
    assert no_normal["normal_alarmed"] is no_normal["balanced_accuracy"] is None
    assert no_normal["best_balanced_accuracy"] is None


@pytest.mark.parametrize("decimals", (1, 9))
def test_equal_error_rate_lies_where_the_roc_curve_meets_the_falling_diagonal(decimals):
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    p = np.round(rng.random(300) + 0.4 * positive, decimals)
    fpr, tpr, _ = roc_curve(positive, p, drop_intermediate=False)
    i = np.argmax(fpr >= 1 - tpr)  # first point past the crossing
    share = (1 - tpr[i - 1] - fpr[i - 1]) / (fpr[i] - fpr[i - 1] + tpr[i] - tpr[i - 1])
    assert equal_error_rate(p, positive) == pytest.approx(fpr[i - 1] + share * (fpr[i] - fpr[i - 1]))
    assert equal_error_rate(positive.astype(float), positive) == 0 and equal_error_rate(np.zeros(300), positive) == 0.5
    assert equal_error_rate(p[positive], positive[positive]) is None
