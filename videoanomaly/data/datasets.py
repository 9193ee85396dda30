"""The data sets that train.py knows: what differs between them, as plain values."""

from typing import NamedTuple


class Dataset(NamedTuple):
    """One data set; a new one is an entry in DATASETS and, where its lists have a format of their own, a reader."""

    name: str
    lists: str  # the format of its annotation lists: a key of lists.READERS
    classes: tuple[str, ...] = ()  # with Normal, in the order of the authors' ids; none where the lists name them
    settings: dict = {}  # of train.py, where they differ from the config's defaults, which are those of UCF-Crime
    beyond: dict = {}  # and those that differ with --recipe beyond
    is_made: bool = False  # rendered where it is not there, with a CLIP of its own, clip.pt in its root
    is_own: bool = False  # folders of videos will do: they are encoded, and the sizes fit them
    is_small: bool = False  # as none that a paper has: the systems of others take fewer steps
    s3r_atoms: float = 0.5  # of S3R's dictionary, for each normal training video
    normal_segments: bool = False  # VadCLIP's mAP of events counts the normal segments of normal videos, too


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


SHANGHAITECH = names(
    "car, chasing, circuit, fall, fighting, hurdle, jumping, monocycle, normal, push, robbery, running, skateboard, "
    "step, stoop, throwing object, vaudeville, vehicle"
)
UCFCRIME = names(
    "Abuse, Arrest, Arson, Assault, Burglary, Explosion, Fighting, Normal, RoadAccidents, Robbery, Shooting, "
    "Shoplifting, Stealing, Vandalism"
)
XDVIOLENCE = names("Abuse, Car_accident, Explosion, Fighting, Normal, Riot, Shooting")
OF_SHANGHAITECH = {"depth": 2, "temporal_input": "both", "lr": 5e-4, "epochs": 100}  # here and below: App. A and B
OF_CUSTOM = {"lr": 5e-4, "epochs": 100, "folds": 5}  # as ShanghaiTech, the smallest of the three
OF_DEMO = {"lr": 1e-3, "epochs": 15, "batch_size": 32, "num_frames": 2, "embed_dim": 32, "folds": 3}
DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("shanghaitech", "shanghaitech", SHANGHAITECH, OF_SHANGHAITECH, s3r_atoms=0.9),
        Dataset("ucfcrime", "ucfcrime", UCFCRIME, {"lr": 1e-5, "epochs": 50}),
        Dataset(
            "xdviolence", "xdviolence", XDVIOLENCE, {"embed_dim": 128, "lr": 5e-6, "epochs": 50}, normal_segments=True
        ),
        Dataset("custom", "custom", settings=OF_CUSTOM, is_own=True, is_small=True),
        Dataset(
            "demo",
            "custom",
            settings=OF_DEMO | {"evaluate": True, "root": "runs/demo-data"},
            beyond={"epochs": 30},
            is_made=True,
            is_small=True,
        ),
    )
}
PUBLISHED = tuple(
    name for name, dataset in DATASETS.items() if dataset.classes
)  # of which the authors have checkpoints
