"""docs/extending.md: its system and its data set are added from outside as it says, trained and evaluated."""

import json
import re

import numpy as np
import pytest
import torch

import evaluate
import train
from tests.places import ROOT
from tests.synthetic import write_dataset
from videoanomaly.data.annotations import read_custom
from videoanomaly.data.datasets import DATASETS, Dataset
from videoanomaly.data.lists import READERS
from videoanomaly.systems.catalogue import SYSTEMS, from_dict

SMALL = "--num-segments 6 --num-frames 4 --topk 2 --batch-size 8 --workers 0 --device cpu".split()
TABLES = {"SYSTEMS": SYSTEMS, "READERS": READERS, "DATASETS": DATASETS}


def blocks(language: str) -> list[str]:
    """The fenced blocks of the document."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def added() -> list[str]:
    """The lines that the worked diff adds."""
    return [line[1:] for line in blocks("diff")[0].splitlines() if line.startswith("+")]


def test_the_worked_diff_has_at_most_15_lines():
    assert 1 <= len(blocks("diff")[0].splitlines()) <= 15


def test_a_system_and_a_data_set_are_added_by_the_recipe(tmp_path):
    for table in TABLES.values():
        for name in ("toy", "linear"):
            assert name not in table
    names = {**TABLES, "Dataset": Dataset, "read_custom": read_custom}
    for code in (blocks("python")[0], "\n".join(added())):
        exec(code, names)  # noqa: S102  (our own document)
    try:
        root = write_dataset(tmp_path / "data")
        (root / "lists").mkdir()
        for path in root.glob("*.txt"):
            path.rename(root / "lists" / path.name)
        run = tmp_path / "run"
        given = ["--dataset", "toy", "--root", str(root), "--model", "linear", "--out", str(run)]
        train.main([*given, *SMALL, "--epochs", "30", "--lr", "0.05"])
        checkpoint = torch.load(run / "last.pt", weights_only=True)
        assert checkpoint["system"] == "linear" and checkpoint["settings"]["dataset"] == "toy"
        losses = [json.loads(line)["losses"]["total"] for line in (run / "log.jsonl").read_text().splitlines()]
        assert np.isfinite(losses).all() and losses[-1] < losses[0]
        evaluate.main(["--ckpt", str(run / "last.pt"), "--device", "cpu", "--timelines", "0", "--bootstrap", "2"])
        results = json.loads((run / "eval" / "metrics.json").read_text())
        assert results["system"] == "linear" and results["AUC"] > 0.7  # chance: 0.5
    finally:
        for table in TABLES.values():
            table.pop("toy", None)
            table.pop("linear", None)
    with pytest.raises(ValueError, match="system is not one of this version: 'linear'"):
        from_dict(checkpoint)
