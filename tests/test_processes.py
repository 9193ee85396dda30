"""Tests of training by several processes: two gloo processes, of torchrun or begun as it does, against one process."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import train
from tests.children import Ranks
from tests.places import ROOT, torchrun
from tests.synthetic import arguments, write_dataset
from videoanomaly.data.features import FeatureFolder
from videoanomaly.runtime.console import InputError

WITHOUT_EFFECT = (
    "temporal_model.body.non_local.2.out."  # MTN: a bias right before a batch normalisation has no gradient but noise
)


def twenty_steps(dataset: Path, out: Path, *options: str) -> list[str]:
    """Arguments of train.py: 8 normal and 8 abnormal videos in batches of 8."""
    return arguments(dataset, out, "--epochs", "10", "--lr", "1e-4", *options)


def state_of(out: Path) -> dict:
    checkpoint = torch.load(out / "last.pt", weights_only=True)
    model = {
        k: v
        for k, v in checkpoint["model"].items()
        if k not in (WITHOUT_EFFECT + "0.bias", WITHOUT_EFFECT + "1.running_mean")
    }
    return model | {"threshold": torch.tensor(checkpoint["threshold"])}


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


LEAVING = """
import os, time
from videoanomaly.runtime.processes import process_group
from videoanomaly.runtime.torchrun import is_main
with process_group("cpu"):
    if is_main():
        time.sleep(1)
        os.write(1, f"last: {time.monotonic()}\\n".encode())  # in one piece, not among the words of the other
os.write(1, f"left: {time.monotonic()}\\n".encode())
"""


@pytest.mark.slow
def test_all_processes_leave_the_group_together(tmp_path, monkeypatch):
    """One that ended right after its last exchange could be aborted by a thread of gloo that still frees a tensor."""
    (tmp_path / "script.py").write_text(LEAVING)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    printed = torchrun(str(tmp_path / "script.py")).communicate(timeout=300)[0]
    last, left = ([float(x) for x in re.findall(rf"{word}: (\S+)", printed)] for word in ("last", "left"))
    assert len(left) == 2 and min(left) >= last[0], printed


@pytest.mark.parametrize(
    "start, options",
    [
        pytest.param(torchrun, (), marks=pytest.mark.slow),
        (Ranks, ("--temporal-input", "both", "--variant", "released", "--selection", "magnitude")),
        pytest.param(torchrun, ("--temporal", "mtn"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(dataset, tmp_path, start, options):
    """Batch normalisation, selection of segments, smoothness across videos and the prototype see the whole batch."""
    run = start("train.py", *twenty_steps(dataset, tmp_path / "two", *options))
    train.main(twenty_steps(dataset, tmp_path / "one", *options))
    printed = run.communicate(timeout=300)[0]
    assert run.returncode == 0, printed
    assert printed.count("epoch 10/10") == 1 and printed.count("next: python evaluate.py") == 1
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert one["batch_norm.num_batches_tracked"] == 20
    assert_close(two, one)
    assert (tmp_path / "two/log.jsonl").read_text().count("\n") == 10


@pytest.mark.slow
def test_a_killed_worker_starts_all_again_from_the_last_checkpoint(dataset, tmp_path):
    script = (ROOT / "train.py", *twenty_steps(dataset, tmp_path / "two", "--epochs", "60"))
    run = torchrun(*map(str, script), options=("--max-restarts", "3"))
    while not (tmp_path / "two/last.pt").exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.01)
    workers = [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)
    printed = run.communicate(timeout=300)[0]
    assert run.returncode == 0, printed
    assert printed.count("custom: 8 abnormal and 8 normal videos") >= 2  # it did start again
    train.main(twenty_steps(dataset, tmp_path / "one", "--epochs", "60"))
    assert_close(state_of(tmp_path / "two"), state_of(tmp_path / "one"))


@pytest.mark.slow
def test_input_errors_of_several_processes_are_told_once(dataset, tmp_path):
    run = torchrun("train.py", *twenty_steps(tmp_path / "none", tmp_path / "two"))
    printed = run.communicate(timeout=300)[0]
    assert run.returncode and printed.count("error: ") == 1 and "none" in printed
    assert not (tmp_path / "two").exists()


def test_an_error_in_one_process_is_raised_in_all(dataset, tmp_path):
    """The second process finds a value that is no number in its share of the features, the first has none."""
    broken = write_dataset(tmp_path / "data")
    path = FeatureFolder(broken).paths("train01")[0]
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x00\x7c")  # float16 infinity
    run = Ranks("train.py", *twenty_steps(broken, tmp_path / "two"))
    printed = run.communicate(timeout=300)[0]
    assert run.returncode and printed.count("error: ") == 1 and "train01: found features that are infinite" in printed


def test_a_batch_that_cannot_be_shared_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="--batch-size 8: expected a multiple of 6, twice the processes"):
        train.main(twenty_steps(dataset, tmp_path / "three"))
