"""The tables of the paper (arXiv:2310.02835) that ablate.py runs: what each row asks of train.py, and the paper's
numbers.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of a table; None among the paper's numbers, in per cent, is a cell that the paper leaves empty."""

    label: str
    options: str  # of train.py; {temporal_features} stands for the folder given to ablate.py
    paper: tuple[float | None, float | None]
    missing: str = ""  # why train.py cannot do it

    @property
    def model(self) -> str:
        """What the row trains."""
        return self.options.partition("--model ")[2].partition(" ")[0] or "anomalyclip"


class Table(NamedTuple):
    """Its numbers are of one data set, by that one's two metrics."""

    title: str
    dataset: str
    rows: tuple[Row, ...]
    metrics: tuple[str, str] = ("AUC", "mAUC")
    compares: bool = False  # systems rather than variants of one: also events, size and time
    note: str = ""


def systems(papers: dict[str, tuple[float | None, float | None]]) -> tuple[Row, ...]:
    """A row for each system; those that the paper does not have, or not with both metrics, keep empty cells."""
    labels = {
        "clip-zeroshot": "CLIP, zero-shot",
        "actionclip": "ActionCLIP",
        "sultani": "Sultani et al.",
        "rtfm": "RTFM",
        "s3r": "S3R",
        "ssrl": "SSRL, first stage",
        "mgfn": "MGFN",
        "ur-dmu": "UR-DMU",
        "vadclip": "VadCLIP",
        "anomalyclip": "AnomalyCLIP",
    }
    missing = {"ssrl": "on these features it is RTFM, and its numbers the same"}
    return tuple(
        Row(label, f"--model {name}", papers.get(name, (None, None)), missing.get(name, ""))
        for name, label in labels.items()
    )


SEARCHED = {  # by benchmarks.development on the demo's development worlds, see docs/recipe.md
    "rtfm": " --lr 3e-3",
    "sultani": " --epochs 188",
}


def smoothed() -> tuple[Row, ...]:
    """Rows of systems whose scores are smoothed as those of `--recipe beyond` are; of these the paper has none."""
    return tuple(
        row._replace(
            label=f"{row.label}, smoothed", options=f"{row.options} --smoothing 0.5{SEARCHED.get(row.model, '')}"
        )
        for row in systems({})
    )


def selector_losses(
    neither: tuple[float, float], normal: tuple[float, float], abnormal: tuple[float, float], both: tuple[float, float]
) -> tuple[Row, ...]:
    """Tables 12, D.16 and D.17 from the paper's numbers: L_A^DIR is Eq. 7, L_N^DIR Eq. 10."""
    return (
        Row("neither", "--lambdas dir_abnormal=0 dir_normal=0", neither),
        Row("L_N^DIR", "--lambdas dir_abnormal=0 dir_normal=1", normal),
        Row("L_A^DIR", "--lambdas dir_abnormal=1 dir_normal=0", abnormal),
        Row("L_A^DIR, L_N^DIR", "--lambdas dir_abnormal=1 dir_normal=1", both),
    )


I3D = "In the paper all but CLIP, ActionCLIP and AnomalyCLIP see I3D's features. "
COMPARED = (
    "From event recall on at the default threshold: false alarms and alarmed videos are of normal videos alone. "
    "Segment rows are feature rows: for all systems as many as `-- --num-frames N` or the data set's preset says, else "
    "16 with AnomalyCLIP, 8 with ActionCLIP, those of 16 frames with the others. On these features SSRL's first stage "
    "is RTFM, and its numbers the same; the paper's are those of all its stages, which need features of patches. "
    "Training seconds are those of the epochs, without what comes before them (prototype, S3R's dictionary) and after "
    "(class head); runs at a time share the machine. "
)
TABLES = {
    "1": Table(
        "Systems",
        "shanghaitech",
        compares=True,
        note=I3D.replace(". ", ", Sultani et al. C3D's. "),
        rows=systems(
            {
                "clip-zeroshot": (49.17, 51.02),
                "actionclip": (96.36, 75.63),
                "sultani": (86.30, None),
                "rtfm": (97.21, 81.60),
                "s3r": (97.48, 87.88),
                "ssrl": (97.98, 93.61),
                "anomalyclip": (98.07, 96.46),
            }
        ),
    ),
    "2": Table(
        "Systems",
        "ucfcrime",
        compares=True,
        note=I3D,
        rows=systems(
            {
                "clip-zeroshot": (58.63, 74.28),
                "actionclip": (82.30, 87.72),
                "sultani": (77.92, None),
                "rtfm": (84.03, 84.86),
                "s3r": (85.99, 86.55),
                "ssrl": (87.43, 88.88),
                "mgfn": (86.98, None),
                "anomalyclip": (86.36, 90.66),
            }
        ),
    ),
    "3": Table(
        "Systems",
        "xdviolence",
        metrics=("AP", "mAP"),
        compares=True,
        note=I3D,
        rows=systems(
            {
                "clip-zeroshot": (27.21, 21.32),
                "actionclip": (61.01, 40.24),
                "rtfm": (77.81, 43.04),
                "s3r": (80.26, 36.06),
                "mgfn": (79.19, None),
                "anomalyclip": (78.51, 49.41),
            }
        ),
    ),
    "recipe": Table(
        "beyond the paper",
        "ucfcrime",
        compares=True,
        note="Smoothed: the probabilities of all, as those of the recipe. RTFM's rate and the epochs of Sultani et al. "
        "are those that the demo's development worlds liked best, the others have their papers' (docs/recipe.md). ",
        rows=(
            Row("AnomalyCLIP, recipe beyond", "--recipe beyond", (None, None)),
            Row("AnomalyCLIP", "", (86.36, 90.66)),
            *smoothed(),
        ),
    ),
    "7": Table(
        "Text encoder and directions",
        "ucfcrime",
        (
            Row("no text encoder, direct optimisation", "--directions direct", (84.98, 69.86)),
            Row("frozen, engineered prompts", "--directions engineered", (84.66, 81.35)),
            Row("frozen, CoOp", "--directions frozen", (85.88, 87.39)),
            Row("finetuning, CoOp", "--directions finetune", (86.36, 90.66)),
        ),
    ),
    "8": Table(
        "Context vectors",
        "ucfcrime",
        (
            Row("4", "--num-ctx 4 --no-shared-ctx", (86.16, 91.05)),
            Row("8", "--num-ctx 8 --no-shared-ctx", (86.36, 90.66)),
            Row("16", "--num-ctx 16 --no-shared-ctx", (85.82, 90.65)),
            Row("8, shared", "--num-ctx 8 --shared-ctx", (85.97, 90.01)),
        ),
    ),
    "9": Table(
        "Likelihood, features, MIL selection",
        "ucfcrime",
        (
            Row("cosine, CLIP, cosine", "--likelihood cosine --selection likelihood", (85.59, 83.69)),
            Row("S, CLIP - m, feature magnitude", "--likelihood projection --selection magnitude", (84.92, 89.82)),
            Row("S, CLIP - m, S", "--likelihood projection --selection likelihood", (86.36, 90.66)),
        ),
    ),
    "10": Table(
        "Temporal model",
        "ucfcrime",
        (
            Row("MLP", "--temporal mlp", (74.86, 84.46)),
            Row("Transformer, short-term", "--temporal short", (84.69, 88.38)),
            Row("Transformer, long-term", "--temporal long", (85.10, 89.29)),
            Row("MTN, long-term", "--temporal mtn", (82.71, 87.65)),
            Row("Axial Transformer, short- and long-term", "--temporal axial", (86.36, 90.66)),
        ),
    ),
    "11": Table(
        "Embedding size and layers of the Axial Transformer",
        "ucfcrime",
        (
            Row("64, 1 layer", "--temporal axial --embed-dim 64 --depth 1", (82.83, 90.10)),
            Row("128, 1 layer", "--temporal axial --embed-dim 128 --depth 1", (84.97, 90.53)),
            Row("256, 1 layer", "--temporal axial --embed-dim 256 --depth 1", (86.36, 90.66)),
            Row("512, 1 layer", "--temporal axial --embed-dim 512 --depth 1", (85.51, 89.28)),
            Row("256, 2 layers", "--temporal axial --embed-dim 256 --depth 2", (85.89, 89.67)),
            Row("256, 3 layers", "--temporal axial --embed-dim 256 --depth 3", (85.15, 88.14)),
        ),
    ),
    "12": Table(
        "Losses on the Selector model",
        "ucfcrime",
        selector_losses((85.89, 89.34), (85.91, 87.26), (86.46, 90.75), (86.36, 90.66)),
    ),
    "13": Table(
        "Losses on the aggregated outputs",
        "ucfcrime",
        (  # Eq. 8, 9 and 11
            Row("L_A-, L_N+", "--lambdas top_abnormal=0 bottom_abnormal=1 top_normal=1", (45.23, 69.57)),
            Row("L_A+, L_N+", "--lambdas top_abnormal=1 bottom_abnormal=0 top_normal=1", (84.50, 90.88)),
            Row("L_A+, L_A-", "--lambdas top_abnormal=1 bottom_abnormal=1 top_normal=0", (80.96, 86.10)),
            Row("L_A+, L_A-, L_N+", "--lambdas top_abnormal=1 bottom_abnormal=1 top_normal=1", (86.36, 90.66)),
        ),
    ),
    "14": Table(
        "Variants of the losses on the Selector model",
        "ucfcrime",
        (  # Eq. 7, 10, 16 and 15
            Row(
                "L_A^DIR, L_N^DIR, L_A-^DIR",
                "--lambdas dir_normal=1 dir_top_normal=0 dir_bottom_abnormal=1",
                (86.41, 88.29),
            ),
            Row("L_A^DIR, L_N+^DIR", "--lambdas dir_normal=0 dir_top_normal=1 dir_bottom_abnormal=0", (86.17, 90.53)),
            Row("L_A^DIR, L_N^DIR", "--lambdas dir_normal=1 dir_top_normal=0 dir_bottom_abnormal=0", (86.36, 90.66)),
        ),
    ),
    "15": Table(
        "Features of the Selector and of the Temporal model",
        "ucfcrime",
        (
            Row(
                "I3D-RGB, I3D-RGB",
                "",
                (65.05, 84.24),
                missing="I3D's features are wider than CLIP's text features, and the paper "
                "does not tell how it compared them",
            ),
            Row(
                "ViT-B/16, I3D-RGB", "--temporal-input features --temporal-features {temporal_features}", (78.11, 88.26)
            ),
            Row("ViT-B/16, S(x)", "--temporal-input similarity", (84.44, 86.78)),
            Row("ViT-B/16, ViT-B/16", "--temporal-input features", (86.36, 90.66)),
        ),
    ),
    "D.16": Table(
        "Losses on the Selector model",
        "shanghaitech",
        selector_losses((97.86, 95.92), (97.35, 96.00), (97.95, 96.35), (98.07, 96.46)),
    ),
    "D.17": Table(
        "Losses on the Selector model",
        "xdviolence",
        metrics=("AP", "mAP"),
        rows=selector_losses((77.45, 47.74), (78.69, 48.03), (78.16, 49.02), (78.51, 49.41)),
    ),
}
