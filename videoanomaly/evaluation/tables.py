"""Tables of an evaluation: for the screen, and as CSV and Markdown files.

`results` is everywhere what evaluate.py writes to metrics.json: metrics in [0, 1], None where a value does not exist.
"""

import csv
import html
import io
import statistics

from videoanomaly.operating_curve import OperatingCurve
from videoanomaly.runtime.console import as_text
from videoanomaly.runtime.files import csv_cell

HEADLINE = ("AUC", "AP", "mAUC", "mAP")


def percent(value: float | None, interval: list[float] | None = None) -> str:
    """A metric in per cent, its 95% interval in brackets."""
    if value is None:
        return "absent"
    return f"{100 * value:.2f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def align(rows: list[list[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right."""
    rows = [[as_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


def headline_rows(results: dict) -> list[list[str]]:
    """The system with its intervals, then the simple rules, which may know no classes."""
    rows = [["", *HEADLINE]]
    system = results.get("system", "anomalyclip").replace("anomalyclip", "AnomalyCLIP")
    for name, values in ({system: results} | results["rules"]).items():
        intervals = values.get("intervals", {})
        rows.append([name, *(percent(values[key], intervals.get(key)) if key in values else "" for key in HEADLINE)])
    return rows


def class_rows(results: dict) -> list[list[str]]:
    """Each class with what lies behind its numbers."""
    rows = [["class", "AUC", "AP", "event mAP", "videos", "frames"]]
    for name, values in results["per_class"].items():
        intervals = results["intervals"]["per_class"][name]
        rows.append(
            [
                name,
                percent(values["AUC"], intervals["AUC"]),
                percent(values["AP"], intervals["AP"]),
                percent(results["events"]["per_class"][name]["AP"]),
                f"{intervals['videos']:,}",
                f"{values['frames']:,}",
            ]
        )
    normal = results["frames"] - results["anomalous_frames"]
    return [*rows, ["(normal frames)", "", "", "", "", f"{normal:,}"]]


def operation_rows(results: dict) -> list[list[str]]:
    """What an operator needs to know, at the threshold that the training videos gave; and what held-out folds of them
    promised there, if the training had any.
    """
    values, promised = results["operation"], results.get("promised")
    rows = [
        ["events and operation", ""],
        ["event mAP at IoU 0.1 to 0.5", percent(results["events"]["mAP"])],
        *([["the same as VadCLIP computes it", percent(results["vadclip"]["mAP"])]] if "vadclip" in results else []),
        *([name.replace("_", " "), "absent" if value is None else f"{value:.3f}"] for name, value in values.items()),
    ]
    if not promised:
        return rows
    beside = {name.replace("_", " "): promise(promised, name) for name in promised if name in values}
    return [[*row, beside.get(row[0], "promised" * (i == 0))] for i, row in enumerate(rows)]


def promise(promised: dict, name: str) -> str:
    """A value of `OperatingCurve.at` with its interval, if it has one."""
    value, interval = promised[name], promised.get(f"{name}_interval")
    behind = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return "absent" if value is None else f"{value:.3f}{behind}"


def threshold_rows(curve: OperatingCurve) -> list[list[str]]:
    """What five thresholds do to videos that the model has not seen; the default one is marked."""
    titles = ("threshold", "false alarms/h", "normal alarmed", "abnormal found", "right class", "balanced accuracy")
    rows, best = [[*titles]], curve.best_threshold()
    for row in curve.rows():
        low, high = row["false_alarms_per_hour_interval"] or (0, 0)
        rate = row["false_alarms_per_hour"]
        cells = ["absent" if rate is None else f"{rate:.1f} [{low:.1f}, {high:.1f}]"]
        cells += [percent(row[name], row[f"{name}_interval"]) for name in ("normal_alarmed", "found", "named")]
        mark = "  default" if row["threshold"] == best else ""
        rows.append([f"{row['threshold']:.4f}{mark}", *cells, percent(row["balanced_accuracy"])])
    return rows


def summary(results: dict) -> str:
    """All tables of one checkpoint for the screen."""
    return "\n\n".join(align(rows) for rows in (headline_rows(results), class_rows(results), operation_rows(results)))


def all_rows(runs: dict[str, dict]) -> list[list[list[str]]]:
    """The tables of all runs, and with several the one that compares them."""
    tables = [make(results) for results in runs.values() for make in (headline_rows, class_rows, operation_rows)]
    return [run_rows(runs), *tables] if len(runs) > 1 else tables


def flatten(results: dict, prefix: str = "") -> dict[str, float | int | None]:
    """Numbers of nested results by path, "per_class.Arson.AUC"; intervals become .low and .high."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat |= {f"{prefix}{key}.low": value[0], f"{prefix}{key}.high": value[1]}
        elif not isinstance(value, str):
            flat[prefix + key] = value
    return flat


def mean_sd(values: list[float], pattern: str = ".2f") -> str:
    """Mean and, of several, standard deviation; nothing of none."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):{pattern}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{pattern}}{deviation}"


def run_rows(runs: dict[str, dict]) -> list[list[str]]:
    """Several runs, one a row, then mean and standard deviation."""
    rows = [["run", *HEADLINE, "event mAP"]]
    values = {name: [r[key] for key in HEADLINE] + [r["events"]["mAP"]] for name, r in runs.items()}
    rows += [[name, *map(percent, row)] for name, row in values.items()]
    means = [mean_sd([100 * v for v in column if v is not None]) or "absent" for column in zip(*values.values())]
    return [*rows, ["mean", *means]]


def to_csv(runs: dict[str, dict]) -> str:
    """metric,RUN,RUN..., every number of every run, in [0, 1]; an empty cell where a value does not exist."""
    flat = {name: flatten(results) for name, results in runs.items()}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["metric", *map(csv_cell, flat)])
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        writer.writerow([csv_cell(key), *("" if values.get(key) is None else values[key] for values in flat.values())])
    return file.getvalue()


def escape_markdown(cell: str) -> str:
    """A name as it is: no end of a cell or a line, no HTML."""
    return html.escape(as_text(cell), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def to_markdown(tables: list[list[list[str]]]) -> str:
    """Tables of cells as Markdown, first row the header."""
    lines = []
    for rows in tables:
        for i, row in enumerate(rows):
            lines.append("| " + " | ".join(escape_markdown(cell) for cell in row) + " |")
            lines += ["|---" * len(row) + "|"] * (i == 0)
        lines.append("")
    return "\n".join(lines)
