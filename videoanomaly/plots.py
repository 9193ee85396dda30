"""Pictures of an evaluation, drawn by matplotlib into PNG files.

Shapes: N frames, C anomaly classes; p_A (N,), p_class (N, C), truth (N, C), bool: the classes that a frame shows.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from videoanomaly import fonts
from videoanomaly.operating_curve import LADDER, OperatingCurve
from videoanomaly.runtime.files import write_atomically

# isort: split
# ruff: noqa: E402  (what matplotlib must know before the rest of it is imported)

import matplotlib

matplotlib.use("Agg")  # needs no screen
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text

# Okabe and Ito's colours, told apart by colour-blind people; more classes than colours change the line style
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
TRUTH = "#8C8C8C"
LONGEST_ROW, LONGEST_TITLE = 60, 100  # letters
Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]  # (positive, scores) -> x, y, area


def label(name: str, longest: int = fonts.LONGEST) -> str:
    """A name for matplotlib, which has the fonts for it from now on: no formula, and none that a legend leaves out."""
    text = fonts.drawable(name, longest)
    families = (*matplotlib.rcParams["font.family"], *fonts.helpers(frozenset(text))[0])
    matplotlib.rcParams["font.family"] = [*dict.fromkeys(families)]
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """As PNG, with the fonts that its names need; the figure is closed."""
    for text in figure.findobj(Text):  # some were made before the names were known
        text.set_fontfamily(matplotlib.rcParams["font.family"])  # pyright: ignore[reportAttributeAccessIssue]  (a Text)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)


def class_curves(
    path: Path,
    curve: Curve,
    p_A: np.ndarray,
    p_class: np.ndarray,
    truth: np.ndarray,
    classes: Sequence[str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """One line for anomalous against normal and one per class that occurs."""
    figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
    cases = [("any anomaly", truth.max(axis=1), p_A)]
    cases += [(label(name), truth[:, c], p_class[:, c]) for c, name in enumerate(classes)]
    cases = [case for case in cases if case[1].any() and not case[1].all()]
    looks = itertools.product(STYLES, COLOURS)
    for i, ((name, positive, scores), (style, colour)) in enumerate(zip(cases, itertools.cycle(looks))):
        x, y, area = curve(positive, scores)
        shown = visible(x, y)
        axes.plot(
            x[shown], y[shown], style, color=colour, lw=3 if i == 0 else 1.5, label=f"{label(name)}  {100 * area:.1f}"
        )
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)
    if cases:
        figure.legend(loc="outside right upper", title="area, %")
    save(figure, path)


def counts_at_levels(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts at each score of a positive frame from the highest: true positives, false ones above it and with it."""
    levels, gain = np.unique(scores[positive], return_counts=True)
    negatives = np.sort(scores[~positive])
    above, false = (len(negatives) - np.searchsorted(negatives, levels[::-1], side) for side in ("right", "left"))
    return gain[::-1].cumsum(), above, false


def roc_curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """False and true positive rates at all thresholds, corners alone, and the area below."""
    true, above, false = counts_at_levels(positive, scores)
    x = np.append(np.stack([above, false], axis=1), (~positive).sum()) / (~positive).sum()
    y = np.append(np.stack([np.append(0, true[:-1]), true], axis=1), true[-1]) / true[-1]
    return x, y, float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def pr_curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall and precision at each distinct score of a positive frame, and the average precision."""
    true, _, false = counts_at_levels(positive, scores)
    recall, precision = true / true[-1], true / (true + false)
    return recall, precision, float((np.diff(recall, prepend=0) * precision).sum())


def visible(x: np.ndarray, y: np.ndarray, steps: int = 2000) -> np.ndarray:
    """Which points of a curve in [0, 1]^2 a picture of so many dots shows: first and last in each, (points,) bool."""
    moves = np.diff(np.round(x * steps) * (steps + 1) + np.round(y * steps)) != 0
    return np.append(True, moves) | np.append(moves, True)


def roc_curves(path: Path, p_A: np.ndarray, p_class: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> None:
    """ROC curves by frame."""
    class_curves(
        path,
        roc_curve,
        p_A,
        p_class,
        truth,
        classes,
        title="ROC by frame, each class against all other frames",
        xlabel="false positive rate",
        ylabel="true positive rate",
    )


def pr_curves(path: Path, p_A: np.ndarray, p_class: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> None:
    """Precision over recall by frame."""
    class_curves(
        path,
        pr_curve,
        p_A,
        p_class,
        truth,
        classes,
        title="Precision and recall by frame, each class against all others",
        xlabel="recall",
        ylabel="precision",
    )


def class_bars(path: Path, per_class: dict[str, dict], intervals: dict[str, dict], key: str) -> None:
    """One bar per class that occurs, in per cent, with its 95% interval from the bootstrap over videos.

    Args:
        path: The file.
        per_class: By name, as `paper_metrics.metrics` gives it.
        intervals: By name, as `metrics.bootstrap_metrics` gives it.
        key: AUC or AP.
    """
    names = [name for name, values in per_class.items() if values[key] is not None]
    values = np.array([100 * per_class[name][key] for name in names])
    ends = [100 * np.array(intervals[name][key] or [per_class[name][key]] * 2) for name in names]
    ends = np.array(ends).reshape(-1, 2)
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.35 * max(len(names), 1)), layout="constrained")
    errors = np.maximum(np.stack([values - ends[:, 0], ends[:, 1] - values]), 0)
    axes.barh(range(len(names)), values, xerr=errors, color=COLOURS[5], ecolor="black", capsize=3)
    for y, (name, value) in enumerate(zip(names, values)):
        axes.text(1, y - 0.2, f"{value:.1f}  ({intervals[name]['videos']} videos)", va="center", fontsize=8)
    axes.set(
        xlabel=f"{key} by frame, %, with 95% interval",
        xlim=(0, 100),
        title=f"{key} of each class against all other frames",
    )
    axes.set_yticks(range(len(names)), map(label, names))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def row_bars(
    path: Path,
    labels: list[str],
    values: dict[str, list[list[float]]],
    paper: dict[str, Sequence[float | None]],
    *,
    title: str,
    paper_label: str,
) -> None:
    """A panel per metric, in it a bar per row of a table, in per cent.

    Args:
        labels: Of the rows.
        values: By metric the values of each row's seeds, of which mean and standard deviation are drawn; none: no bar.
        paper: By metric the paper's number of each row, drawn as a mark; None: no mark.
    """
    labels = [label(text, LONGEST_ROW) for text in labels]
    room = 3 + 0.14 * max(max(map(len, labels), default=0) - 40, 0)
    figure, panels = plt.subplots(
        1,
        len(values),
        figsize=(room + 3.5 * len(values), 1.6 + 0.4 * len(labels)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, metric in zip(panels[0], values):
        for y, seeds in enumerate(values[metric]):
            if seeds:
                deviation = np.std(seeds, ddof=1) if len(seeds) > 1 else None
                axes.barh(y, np.mean(seeds), xerr=deviation, color=COLOURS[5], capsize=3)
                axes.text(1, y - 0.2, f"{np.mean(seeds):.2f}", va="center", fontsize=8)
        marks = [(value, y) for y, value in enumerate(paper.get(metric, ())) if value is not None]
        if marks:
            axes.plot(*zip(*marks), "D", color=COLOURS[1], mfc="none", label=paper_label)
        axes.set(xlabel=f"{metric}, %", xlim=(0, 100), ylim=(len(labels) - 0.5, -0.5))
        axes.set_yticks(range(len(labels)), labels)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    if handles := max((axes.get_legend_handles_labels() for axes in panels[0]), key=lambda legend: len(legend[0]))[0]:
        figure.legend(handles=handles[:1], loc="outside lower right")
    save(figure, path)


def recognition_bars(path: Path, runs: dict[str, dict]) -> None:
    """mAUC and mAP of several checkpoints (Fig. 1 of the paper), a bar for each.

    Args:
        runs: What metrics.json holds, by checkpoint.
    """
    labels = [label(f"{results['system']}, {Path(ckpt).parent.name}") for ckpt, results in runs.items()]
    values = {
        metric: [[100 * results[metric]] if results[metric] is not None else [] for results in runs.values()]
        for metric in ("mAUC", "mAP")
    }
    row_bars(path, labels, values, {}, title="Recognition of classes", paper_label="")


def projections(path: Path, before: np.ndarray, after: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> None:
    """How far frames lie along each direction, from the origin of CLIP's space and from the prototype (Fig. 2a).

    Args:
        before: Lengths along the directions that start at the origin, (N, C).
        after: Lengths along those that start at the prototype, (N, C).
        truth: (N, C).
    """
    abnormal = truth.any(axis=1)
    figure, panels = plt.subplots(
        len(classes), 2, figsize=(9, 1 + 1.5 * len(classes)), sharex="col", squeeze=False, layout="constrained"
    )
    for column, (name, lengths) in enumerate({"before re-centring": before, "after re-centring": after}.items()):
        bins = np.linspace(lengths.min(), lengths.max(), 81)
        panels[0, column].set_title(name)
        panels[-1, column].set_xlabel("length along the direction")
        for c, axes in enumerate(panels[:, column]):
            draw_lengths(
                axes,
                bins,
                {
                    "normal frames": (lengths[~abnormal, c], TRUTH),
                    "all abnormal frames": (lengths[abnormal, c], COLOURS[0]),
                    "abnormal frames of this class": (lengths[truth[:, c], c], COLOURS[1]),
                },
            )
    for c, axes in enumerate(panels[:, 0]):
        axes.set_ylabel(label(classes[c]), rotation=0, ha="right")
    handles = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.suptitle("Projections of test frames on each direction; AUC: this class against normal frames")
    save(figure, path)


def draw_lengths(axes: Axes, bins: np.ndarray, groups: dict[str, tuple[np.ndarray, str]]) -> None:
    """Densities of {name: (lengths, colour)}, normal frames first and those of the direction's class last, if any."""
    for name, (lengths, colour) in groups.items():
        if len(lengths):
            axes.hist(
                lengths,
                bins.tolist(),
                density=True,
                histtype="stepfilled" if colour == TRUTH else "step",
                color=colour,
                alpha=0.5 if colour == TRUTH else 1,
                lw=1.5,
                label=name,
            )
    normal, *_, own = (lengths for lengths, _ in groups.values())
    if len(normal) and len(own):
        area = roc_curve(np.arange(len(normal) + len(own)) >= len(normal), np.concatenate([normal, own]))[2]
        axes.text(0.98, 0.95, f"AUC {100 * area:.1f}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.set_ymargin(0.25)  # room for the text
    axes.set_yticks([])


def reliability(path: Path, p_A: np.ndarray, truth: np.ndarray, num_bins: int = 10) -> None:
    """How often frames of a given p_A are anomalous, and how many there are; on the diagonal, as often as p_A says."""
    bins = np.minimum((p_A * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    filled = counts > 0
    abnormal = truth.any(axis=1)
    share, mean = (np.bincount(bins, weights, num_bins)[filled] / counts[filled] for weights in (abnormal, p_A))
    error = np.average(np.abs(share - mean), weights=counts[filled])
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(6, 6.5), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    axes.plot([0, 1], [0, 1], "--", color=TRUTH, label="calibrated")
    axes.plot(mean, share, "o-", color=COLOURS[0], label="this model")
    axes.set(
        ylabel="share of frames that are anomalous",
        xlim=(0, 1),
        ylim=(0, 1),
        title=f"Reliability of p_A by frame, expected calibration error {100 * error:.1f} %",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    below.bar((np.arange(num_bins) + 0.5) / num_bins, counts, width=0.9 / num_bins, color=COLOURS[5])
    below.set(xlabel="p_A", ylabel="frames", yscale="log", ylim=(0.5, None))
    save(figure, path)


def operating_curve(path: Path, curve: OperatingCurve) -> None:
    """Abnormal videos found against false alarms per hour, or without abnormal videos false alarms against thresholds;
    with intervals, and the default threshold marked.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    draw, rates, scale = (
        (draw_shares, axes.xaxis, axes.set_xscale) if curve.num_abnormal else (draw_rates, axes.yaxis, axes.set_yscale)
    )
    draw(axes, curve)
    most = float(curve.false_alarms.max()) * curve.lowest_rate if curve.normal_hours else 1.0
    steps = [rate for rate in LADDER if curve.lowest_rate <= rate <= most]
    scale("symlog", linthresh=steps[0] if steps else 1.0)  # rates below the first one cannot be told
    rates.set_ticks([], minor=True)
    rates.set_ticks([0, *steps], labels=[f"{rate:g}" for rate in (0, *steps)])
    rates.set_label_text("false alarms per hour of normal video")
    videos = f"{curve.num_normal} normal videos, {curve.normal_hours:.2g} h, and {curve.num_abnormal} abnormal ones"
    axes.set_title(f"{videos},\neach scored by a model that has not seen it; dots: default threshold", fontsize=10)
    axes.grid(alpha=0.3)
    save(figure, path)


def draw_shares(axes: Axes, curve: OperatingCurve) -> None:
    """Per cent of abnormal videos over the rates that `threshold_at` looks up."""
    rows, best = [curve.at(threshold) for threshold in curve.thresholds[::-1]], curve.at(curve.best_threshold())
    rate = np.maximum.accumulate([row["false_alarms_per_hour"] or 0 for row in rows])
    for name, text, colour in zip(("found", "named"), ("with an alarm", "with one of the right class"), COLOURS):
        low, high = 100 * np.array([row[f"{name}_interval"] for row in rows]).T
        axes.fill_between(rate, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        share = [100 * row[name] for row in rows]
        axes.plot(rate, share, color=colour, drawstyle="steps-post", label=text)
        axes.plot(best["false_alarms_per_hour"] or 0, 100 * best[name], "o", color=colour)
    axes.set(ylabel="abnormal videos, per cent", ylim=(0, 102), xlim=(0, None))
    axes.legend(loc="upper left")


def draw_rates(axes: Axes, curve: OperatingCurve) -> None:
    """False alarms per hour over thresholds."""
    rows, best = [curve.at(threshold) for threshold in curve.thresholds], curve.at(curve.best_threshold())
    low, high = np.array([row["false_alarms_per_hour_interval"] for row in rows]).T
    axes.fill_between(curve.thresholds, low, high, step="post", color=COLOURS[0], alpha=0.15, linewidth=0)
    rate = [row["false_alarms_per_hour"] for row in rows]
    axes.plot(curve.thresholds, rate, color=COLOURS[0], drawstyle="steps-post")
    axes.plot(best["threshold"], best["false_alarms_per_hour"], "o", color=COLOURS[0])
    axes.set(xlabel="threshold of p_A", ylim=(0, None))


def predicted_labels(p_A: np.ndarray, p_class: np.ndarray) -> np.ndarray:
    """-1 where p_A < 0.5, so that normal is likelier, else the likeliest class."""
    return np.where(p_A < 0.5, -1, p_class.argmax(axis=1))


def confusion_matrix(
    path: Path, p_A: np.ndarray, p_class: np.ndarray, truth: np.ndarray, classes: Sequence[str]
) -> None:
    """Rows are true, columns predicted labels; shades and numbers are per cent of the row."""
    names = ["Normal", *map(label, classes)]
    counts = np.zeros((len(names), len(names)), np.int64)
    frames, rows = np.nonzero(np.column_stack([~truth.any(axis=1), truth]))  # a frame of two classes is in two rows
    np.add.at(counts, (rows, predicted_labels(p_A, p_class)[frames] + 1), 1)
    totals = counts.sum(axis=1, keepdims=True)
    share = 100 * counts / np.maximum(totals, 1)
    size = 3.5 + 0.55 * len(names) + 0.14 * max(max(map(len, names)) - 24, 0)
    figure, axes = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share):
        if totals[row]:
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 55 else "black",
                fontsize=8,
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), [f"{name} ({n:,})" for name, n in zip(names, totals[:, 0])])
    axes.set(xlabel="predicted (Normal where p_A < 0.5)", ylabel="true (frames)", title="Confusion by frame")
    figure.colorbar(image, label="% of the true frames", shrink=0.8)
    save(figure, path)


def timeline(
    path: Path,
    name: str,
    p_A: np.ndarray,
    p_class: np.ndarray,
    truth: np.ndarray,
    classes: Sequence[str],
    pictures: Sequence[tuple[int, Image.Image]] = (),
) -> None:
    """p_A over the frames of a video, the truth shaded, predicted classes in a strip below, key frames above (Fig. 3).

    Args:
        path: The file.
        name: Of the video, for the title.
        p_A, p_class, truth: (N,), (N, C), (N, C).
        classes: C names.
        pictures: (frame number, picture), ascending.
    """
    figure = plt.figure(figsize=(9, 4.6 if pictures else 3.2), layout="constrained")
    ratios = (1.2, 3.2) if pictures else (1,)
    *top, bottom = figure.subfigures(len(ratios), 1, squeeze=False, height_ratios=ratios).flat
    for axes, (i, image) in zip(top[0].subplots(1, len(pictures), squeeze=False)[0] if pictures else (), pictures):
        axes.imshow(image)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"frame {i}", fontsize=8)
    axes, strip = bottom.subplots(2, 1, height_ratios=(6, 1), sharex=True)
    axes.plot(p_A, color=COLOURS[0], lw=1.5, label="p_A")
    for c in np.flatnonzero(truth.any(axis=0)).tolist():
        edges = np.flatnonzero(np.diff(np.pad(truth[:, c].astype(np.int8), 1)))
        for start, end in edges.reshape(-1, 2):
            axes.axvspan(start, end, color=TRUTH, alpha=0.35, lw=0, label=f"truth: {label(classes[c])}")
    axes.set(title=label(name, LONGEST_TITLE), ylabel="anomaly probability", ylim=(-0.02, 1.02), xlim=(0, len(truth)))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))  # one entry per label
    bottom.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    draw_strip(strip, predicted_labels(p_A, p_class), classes, bottom)
    strip.set(xlabel="frame", yticks=[], ylabel="class")
    save(figure, path)


def draw_strip(axes: Axes, predicted: np.ndarray, classes: Sequence[str], figure: FigureBase) -> None:
    """A band coloured by the predicted class, white where normal, with its own legend."""
    looks = list(itertools.product(("", "//", ".."), COLOURS))
    found = sorted(set(predicted[predicted >= 0]))
    for c in found:
        hatch, colour = looks[c % len(looks)]
        axes.fill_between(
            np.arange(len(predicted)),
            0,
            predicted == c,
            step="mid",
            color=colour,
            hatch=hatch,
            lw=0,
            edgecolor="white",
            label=label(classes[int(c)]),
        )
    axes.set_ylim(0, 1)
    if found:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right lower", fontsize=8, title="predicted")
