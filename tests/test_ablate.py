"""Tests of ablate.py and paper_tables.py, of evaluate.py's --projections, and of what plots.py draws for them."""

import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import ablate
import evaluate
import train
from tests import children
from tests.places import ROOT, SHARED
from tests.synthetic import SMALL, run, write_dataset
from videoanomaly import plots, settings as settings_
from videoanomaly.data.annotations import VideoLists
from videoanomaly.data.features import FeatureFolder
from videoanomaly.evaluation import projections
from videoanomaly.evaluation.paper_tables import TABLES
from videoanomaly.runtime.console import InputError

ABLATIONS = [name for name, table in TABLES.items() if not table.compares]

# In the place of train.py: notes its starts, and obeys the orders in the folder of the data set
TRAIN = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
out, orders = Path(value("--out")), Path(value("--root"), "orders.json")
with open(out.parent / "starts.txt", "a") as file:
    file.write(out.name + " " + json.dumps(words) + "\\n")
order = json.loads(orders.read_text()).get(out.name) if orders.exists() else None
if order == "fail":
    sys.exit("error: no such thing | here")
if order == "hang":
    (out.parent / "hangs").touch()
    time.sleep(60)
out.mkdir(exist_ok=True)
(out / "training.json").write_text('{"segment rows": 4, "parameters": 1234, "training seconds": 4.0}')
auc = 0.8 + len(value("--temporal")) / 100 + int(value("--seed")) / 1000
(out / "last.pt").write_text(str(auc))
"""
# In the place of evaluate.py
EVALUATE = """
import json, sys
from pathlib import Path
ckpt = Path(sys.argv[sys.argv.index("--ckpt") + 1])
auc = float(ckpt.read_text())
assert sys.argv[sys.argv.index("--device") + 1] == "cpu"
(ckpt.parent / "eval").mkdir(exist_ok=True)
results = {"AUC": auc, "AP": 0.5, "mAUC": auc / 2, "mAP": None, "events": {"mAP": 0.25}, "operation": {}}
(ckpt.parent / "eval" / "metrics.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def fake(dataset, tmp_path, monkeypatch):
    """A function that runs Table 10 with the scripts above, and one that gives orders by the names of folders."""
    scripts, orders = tmp_path / "scripts", dataset / "orders.json"
    scripts.mkdir()
    for name, text in (("train.py", TRAIN), ("evaluate.py", EVALUATE)):
        (scripts / name).write_text(text)
    monkeypatch.setattr(ablate, "HERE", scripts)
    monkeypatch.setattr(ablate, "run_check", train.main)  # what the process would say
    orders.unlink(missing_ok=True)

    def call(*options, table="10"):
        rest = [] if "--" in options else ["--"]
        return ablate.main(
            [
                "--table",
                table,
                "--dataset",
                "custom",
                "--root",
                str(dataset),
                "--out",
                str(tmp_path / "out"),
                *options,
                *rest,
                "--device",
                "cpu",
            ]
        )

    yield (
        call,
        lambda **names: orders.write_text(
            json.dumps({name.replace("__", "-"): order for name, order in names.items()})
        ),
    )
    orders.unlink(missing_ok=True)


def starts(out: Path) -> list[str]:
    return [line.split(" ")[0] for line in (out / "starts.txt").read_text().splitlines()]


def read_csv(out: Path) -> dict[str, dict[str, str]]:
    return {row["row"]: row for row in csv.DictReader((out / "table.csv").open())}


# ---- the tables ----


def test_the_papers_numbers_are_copied_right():
    numbers = {name: {row.label: row.paper for row in table.rows} for name, table in TABLES.items()}
    assert numbers["1"]["RTFM"] == (97.21, 81.60) and numbers["1"]["SSRL, first stage"] == (97.98, 93.61)
    assert numbers["1"]["VadCLIP"] == (None, None) and numbers["1"]["Sultani et al."] == (86.30, None)
    assert numbers["2"]["ActionCLIP"] == (82.30, 87.72) and numbers["2"]["Sultani et al."] == (77.92, None)
    assert numbers["3"]["S3R"] == (80.26, 36.06) and numbers["3"]["CLIP, zero-shot"] == (27.21, 21.32)
    assert numbers["7"]["frozen, engineered prompts"] == (84.66, 81.35) and numbers["8"]["16"] == (85.82, 90.65)
    assert numbers["9"]["S, CLIP - m, feature magnitude"] == (84.92, 89.82) and numbers["10"]["MLP"] == (74.86, 84.46)
    assert numbers["11"]["512, 1 layer"] == (85.51, 89.28) and numbers["12"]["L_N^DIR"] == (85.91, 87.26)
    assert numbers["13"]["L_A-, L_N+"] == (45.23, 69.57) and numbers["14"]["L_A^DIR, L_N+^DIR"] == (86.17, 90.53)
    assert numbers["15"]["ViT-B/16, S(x)"] == (84.44, 86.78) and numbers["D.16"]["L_A^DIR"] == (97.95, 96.35)
    assert numbers["D.17"]["L_N^DIR"] == (78.69, 48.03)
    final = {"ucfcrime": (86.36, 90.66), "shanghaitech": (98.07, 96.46), "xdviolence": (78.51, 49.41)}
    for name, table in TABLES.items():
        assert final[table.dataset] in numbers[name].values(), name
        assert table.metrics == (("AP", "mAP") if table.dataset == "xdviolence" else ("AUC", "mAUC"))


@pytest.mark.skipif(not (SHARED / "paper.md").exists(), reason="the paper's text is not there")
def test_every_number_stands_in_the_papers_text():
    """Of comparisons in the line of the table that names the system, of ablations somewhere, side by side."""
    text = (SHARED / "paper.md").read_text()
    for name, table in TABLES.items():
        number = "2" if name == "recipe" else name  # whose row of AnomalyCLIP it repeats
        whole = text.split(f"\nTable {number}:")[1].split("\nTable ")[0] if table.compares else text
        for row in table.rows:
            pair = ["" if number is None else f"{number:.2f}" for number in row.paper]
            system = row.label.partition(",")[0] if table.compares else ""
            lines = [
                line for line in whole.splitlines() if line.endswith("\t" + "\t".join(pair)) and f"\t{system}" in line
            ]
            assert lines or row.paper == (None, None), (name, row)


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_rows_options_give_a_config_of_its_own_and_one_is_the_papers_final(name, tmp_path):
    table, configs = TABLES[name], {}
    for row in table.rows:
        if not row.missing:
            options = row.options.format(temporal_features="i3d").split()
            given = ["--dataset", table.dataset, "--root", "x", "--out", str(tmp_path / "x"), *options]
            settings, _ = train.parse_args(given)
            dim = 2048 if settings.temporal_features else None
            configs[row.label] = settings_.make_config(settings, ("a", "b"), 512, dim)
    assert all(list(configs.values()).count(config) == 1 for config in configs.values())
    settings, _ = train.parse_args(["--dataset", table.dataset, "--root", "x", "--out", str(tmp_path / "x")])
    preset = settings_.make_config(settings, ("a", "b"), 512, None)
    numbers = {row.label: row.paper for row in table.rows}
    final = [label for label, config in configs.items() if config == preset]
    assert [numbers[label] for label in final] == [
        next(r.paper for r in TABLES["2"].rows if r.label == "AnomalyCLIP")
        if table.dataset == "ucfcrime"
        else table.rows[-1].paper
    ]


def test_rows_switch_on_what_their_label_says():
    def config(name, label):
        row = next(row for row in TABLES[name].rows if row.label == label)
        settings, _ = train.parse_args(["--dataset", "ucfcrime", "--root", "x", *row.options.split()])
        return settings_.make_config(settings, ("a",), 512, None)

    weights = config("12", "L_N^DIR")
    assert (weights.lambda_dir_abnormal, weights.lambda_dir_normal, weights.lambda_top_abnormal) == (0, 1, 1)
    weights = config("13", "L_A+, L_N+")
    assert (weights.lambda_top_abnormal, weights.lambda_bottom_abnormal, weights.lambda_top_normal) == (1, 0, 1)
    weights = config("14", "L_A^DIR, L_N+^DIR")
    assert (weights.lambda_dir_normal, weights.lambda_dir_top_normal, weights.lambda_dir_bottom_abnormal) == (0, 1, 0)
    assert config("9", "S, CLIP - m, feature magnitude").selection == "magnitude"
    assert config("9", "cosine, CLIP, cosine").likelihood == "cosine"


def test_folders_of_rows_differ():
    for table in TABLES.values():
        names = [ablate.slug(row.label) for row in table.rows]
        assert len(set(names)) == len(names)
        assert all(name.replace("-", "").replace("_", "").isalnum() for name in names)


def test_the_systems_are_asked_for_by_name():
    expected = "clip-zeroshot actionclip sultani rtfm s3r ssrl mgfn ur-dmu vadclip anomalyclip".split()
    assert all([row.options for row in TABLES[name].rows] == [f"--model {n}" for n in expected] for name in "123")


# ---- input ----


def test_a_system_takes_of_the_options_for_all_rows_those_that_it_has_a_use_for():
    argv = [
        "--table",
        "1",
        "--dataset",
        "custom",
        "--root",
        "x",
        "--",
        "--directions",
        "direct",
        "--embed-dim",
        "32",
        "--batch-size",
        "8",
        "--no-shared-ctx",
        "--lambdas",
        "sparse=1",
        "smooth=2",
        "--num-frames",
        "4",
        "--epochs",
        "3",
    ]
    args = ablate.parse_args(argv)
    rows = {row.model: ablate.row_options(row, args) for row in TABLES["1"].rows}
    assert rows["anomalyclip"] == ["--model", "anomalyclip", *argv[7:]]
    shared = ["--batch-size", "8", "--num-frames", "4"]
    assert rows["rtfm"] == ["--model", "rtfm", "--directions", "direct", *shared, "--epochs", "3"]
    assert rows["clip-zeroshot"] == ["--model", "clip-zeroshot", *shared]
    assert all(options[options.index("--num-frames") + 1] == "4" for options in rows.values())
    settings = {"directions": "direct"}
    assert [row.model for row in TABLES["1"].rows if ablate.why_missing(row, args, settings)] == [
        "clip-zeroshot",
        "ssrl",
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--directions", "direct"],
        ["--directions=frozen"],
        ["--directions", "finetune"],
        ["--directions", "engineered"],
        ["--num-segments", "4", "--topk", "2"],
        ["--num-segments", "2", "--topk", "1"],
    ],
)
def test_each_row_of_a_comparison_can_be_run_with_the_options_that_anomalyclip_takes(tmp_path, options):
    args = ablate.parse_args(
        ["--table", "1", "--dataset", "custom", "--root", "x", "--out", str(tmp_path), "--", *options]
    )
    for row in TABLES["1"].rows:
        of_row, _ = train.parse_args(
            [*ablate.data_options(args), *ablate.row_options(row, args), "--out", str(tmp_path / "run")]
        )
        own = ablate.row_options(row, args)[2:]  # behind --model NAME
        config = settings_.make_config(of_row, ("fire", "fall"), 64, None)
        for name, value in re.findall(r"--(\S+)[ =](\S+)", " ".join(own)):
            assert str(getattr(config, name.replace("-", "_"))) == value, row.model
        assert row.model != "anomalyclip" or own == options


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
        (["--temporal-features", "x"], "--temporal-features: is for Table 15"),
        (["--features", "nothing"], "nothing"),
        (["--", "--temporal", "mlp"], "--temporal behind --: the rows of Table 10 set it"),
        (["--", "--seed=3"], "--seed behind --: ablate.py sets it"),
        (["--", "--model", "rtfm"], "--model behind --: ablate.py sets it"),
        (["--", "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["--", "--lr", "0"], "--lr 0.0: expected a positive number"),
        (["--", "--topk", "0"], "topk must be at least 1"),
    ],
)
def test_wrong_input_is_told_before_any_work(fake, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        fake[0](*options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "table, options", [("1", ["--embed", "32"]), ("7", ["--direction", "frozen"]), ("12", ["--lambda", "sparse=1"])]
)
def test_abbreviated_options_which_would_undo_the_rows_are_refused(fake, tmp_path, table, options):
    with pytest.raises(InputError, match=f"unrecognized arguments: {' '.join(options)}"):
        fake[0]("--", *options, table=table)
    assert not (tmp_path / "out").exists()


def test_wrong_input_ends_the_script_with_one_line_and_status_2(tmp_path):
    command = [str(ROOT / "ablate.py"), "--table", "7", "--dataset", "custom", "--out", str(tmp_path / "out")]
    result = children.run(*command)
    assert (result.returncode, result.stderr) == (
        2,
        "error: --root is missing: expected the folder with the lists of --dataset custom\n",
    )


def test_results_of_other_settings_are_not_mixed(fake, tmp_path):
    fake[0]("--seeds", "1")
    with pytest.raises(InputError, match="settings.json: found lr = 0.0005, expected 0.1 as given now"):
        fake[0]("--seeds", "1", "--", "--lr", "0.1")
    with pytest.raises(InputError, match="settings.json: found table = 10, expected 9 as given now"):
        fake[0]("--seeds", "1", table="9")
    fake[0]("--seeds", "1", "--", "--workers", "1")  # which changes no result
    (tmp_path / "out" / "settings.json").write_text("[")
    with pytest.raises(InputError, match="settings.json: is damaged"):
        fake[0]("--seeds", "1")
    assert len(starts(tmp_path / "out")) == 5


# ---- runs ----


def test_each_row_runs_with_each_seed_once_and_is_not_run_again(fake, tmp_path):
    out = tmp_path / "out"
    assert fake[0]("--seeds", "2") is None
    rows = [ablate.slug(row.label) for row in TABLES["10"].rows]
    assert starts(out) == [f"{row}-{seed}" for seed in range(2) for row in rows]  # all rows before a second seed
    words = json.loads((out / "starts.txt").read_text().splitlines()[6].partition(" ")[2])
    assert words[words.index("--temporal") + 1] == "short" and words[words.index("--seed") + 1] == "1"
    assert {"--resume", "--no-evaluate"} <= set(words) and words[words.index("--device") + 1] == "cpu"
    table = (out / "table.md").read_bytes()
    assert fake[0]("--seeds", "2") is None
    assert len(starts(out)) == 10 and (out / "table.md").read_bytes() == table
    (out / "mlp-1" / "eval" / "metrics.json").unlink()
    (out / "mlp-1" / "eval").rmdir()
    fake[0]("--seeds", "3")
    assert starts(out)[10:] == ["mlp-1", *(f"{row}-2" for row in rows)]


def test_a_damaged_result_is_told_before_the_work_goes_on(fake, tmp_path):
    out = tmp_path / "out"
    fake[0]("--seeds", "1")
    for name, text in (
        ("eval/metrics.json", "{"),
        ("eval/metrics.json", '{"AUC": 0.5}'),
        ("eval/metrics.json", "[]"),
        ("training.json", '{"parameters": 1'),
    ):
        whole = (out / "mlp-0" / name).read_text()
        (out / "mlp-0" / name).write_text(text)
        with pytest.raises(InputError, match=rf"mlp-0/{name}: is damaged \(.*delete .*mlp-0 to run it again"):
            fake[0]("--seeds", "2")
        assert len(starts(out)) == 5, text
        (out / "mlp-0" / name).write_text(whole)
    assert fake[0]("--seeds", "1") is None


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
@pytest.mark.parametrize("folder", ["mlp-0", "mlp-0/eval"])
def test_a_run_that_outlived_its_ablate_is_waited_for(fake, tmp_path, folder):
    call, _ = fake
    place = tmp_path / "out" / folder
    place.mkdir(parents=True)
    lock = "import fcntl, sys; fcntl.lockf(file := open(sys.argv[1], 'w'), fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{lock}; sys.stdin.read()", str(place / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(
            InputError, match=f"{folder}: found another run at work in this folder, expected none; wait"
        ):
            call("--seeds", "1")
        other.stdin.close()
    assert not (tmp_path / "out" / "starts.txt").exists()
    assert call("--seeds", "1") is None


def test_a_failing_row_shows_its_error_and_the_others_go_on(fake, tmp_path, capsys):
    call, order = fake
    order(**{"mlp__0": "fail"})
    assert call("--seeds", "2", "--jobs", "3") == 1
    assert "MLP, seed 0: failed: error: no such thing | here" in capsys.readouterr().err
    out, rows = tmp_path / "out", read_csv(tmp_path / "out")
    assert rows["MLP"]["seeds"] == "1" and rows["MLP"]["note"] == "seed 0 failed: error: no such thing | here"
    assert all(row["seeds"] == "2" and row["note"] == "" for label, row in rows.items() if label != "MLP")
    assert "seed 0 failed: error: no such thing \\| here |" in (out / "table.md").read_text()
    order()
    assert call("--seeds", "2") is None
    assert starts(out)[10:] == ["mlp-0"] and read_csv(out)["MLP"]["seeds"] == "2"


def test_a_signal_stops_all_runs_and_the_same_command_goes_on(fake, tmp_path, dataset):
    call, order = fake
    order(**{"transformer__short__term__0": "hang"})
    program = (
        f"import ablate, pathlib, sys, train; ablate.HERE = pathlib.Path({str(ablate.HERE)!r})\n"
        "ablate.run_check = train.main\n"
        "sys.exit(ablate.main(sys.argv[1:]))"
    )
    command = [
        "--table",
        "10",
        "--dataset",
        "custom",
        "--root",
        str(dataset),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "1",
    ]
    process = children.Child("-c", program, *command, "--", "--device", "cpu")
    while not (tmp_path / "out" / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "stopped; the same command goes on" in text
    out = tmp_path / "out"
    assert starts(out) == ["mlp-0", "transformer-short-term-0"]
    notes = [row["note"] for row in read_csv(out).values()]
    assert notes == ["", *["seed 0 is not finished"] * 4]
    order()
    assert call("--seeds", "1") is None
    assert starts(out)[2:] == [
        "transformer-short-term-0",
        "transformer-long-term-0",
        "mtn-long-term-0",
        "axial-transformer-short-and-long-term-0",
    ]


def test_runs_at_a_time_share_the_cores_or_take_a_gpu_each_in_turn(monkeypatch):
    args = ablate.parse_args(["--table", "7", "--dataset", "demo", "--jobs", "5"])
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert ablate.places(args, {"device": "cpu"}) == [{"OMP_NUM_THREADS": "2"}] * 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in ablate.places(args, {"device": None})] == [
        "0",
        "1",
        "0",
        "1",
        "0",
    ]
    args = args._replace(jobs=None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in ablate.places(args, {"device": None})] == ["4", "6", "7"]
    assert ablate.places(args, {"device": "cuda:1"}) == [{}]


@pytest.mark.slow
def test_a_killed_run_of_train_py_goes_on_and_its_numbers_are_those_of_its_evaluation(dataset, tmp_path):
    """With the real train.py, on a table whose rows all run without CLIP; the one for I3D has no features."""
    out, options = tmp_path / "out", ["--directions", "direct", *SMALL, "--epochs", "3"]
    before = run(dataset, out / "vit-b-16-s-x-0", "--epochs", "3", "--temporal-input", "similarity")
    path = out / "vit-b-16-s-x-0" / "last.pt"
    log = out / "vit-b-16-s-x-0" / "log.jsonl"
    torch.save(
        before | {"epoch": 2} | {k: v for k, v in before.items() if k == "begun"}, path
    )  # as if killed before its last
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    assert (
        ablate.main(
            [
                "--table",
                "15",
                "--dataset",
                "custom",
                "--root",
                str(dataset),
                "--out",
                str(out),
                "--seeds",
                "1",
                "--jobs",
                "2",
                "--",
                *options,
            ]
        )
        is None
    )
    assert len(log.read_text().splitlines()) == 3
    assert (out / "vit-b-16-s-x-0.log").read_text().count("epoch 3/3") == 1
    assert "epoch 1/3" not in (out / "vit-b-16-s-x-0.log").read_text()
    rows = read_csv(out)
    for label, folder in (("ViT-B/16, S(x)", "vit-b-16-s-x-0"), ("ViT-B/16, ViT-B/16", "vit-b-16-vit-b-16-0")):
        results = json.loads((out / folder / "eval" / "metrics.json").read_text())
        for name in ("AUC", "mAP"):
            assert float(rows[label][name]) == pytest.approx(100 * results[name], abs=1e-4)
        trainable = torch.load(out / folder / "last.pt", weights_only=True)["model"]
        assert 1000 < int(rows[label]["parameters"]) < sum(v.numel() for v in trainable.values())
        assert rows[label]["segment rows"] == "4" and rows[label]["training seconds"].isdigit()
    assert rows["I3D-RGB, I3D-RGB"]["note"].startswith("not available: I3D's features are wider")
    assert rows["ViT-B/16, I3D-RGB"]["note"] == "not available: needs --temporal-features, a folder of I3D features"


def test_rows_about_context_vectors_are_left_out_without_prompts(fake, tmp_path):
    assert fake[0]("--seeds", "1", "--", "--directions", "direct", table="8") is None
    notes = {row["note"] for row in read_csv(tmp_path / "out").values()}
    assert notes == {"not available: --directions direct has no context vectors"}


# ---- what is written ----


def test_markdown_and_csv_hold_mean_spread_and_the_papers_numbers(fake, tmp_path):
    fake[0]("--seeds", "3")
    values = [83.0, 83.1, 83.2]  # 80 + letters of "mlp" + seed / 10
    row = read_csv(tmp_path / "out")["MLP"]
    assert float(row["AUC"]) == pytest.approx(83.1) and float(row["AUC sd"]) == pytest.approx(statistics.stdev(values))
    assert (row["AUC paper"], row["mAUC paper"], row["AP paper"]) == ("74.86", "84.46", "")
    assert (row["mAP"], row["mAP sd"], float(row["event mAP"])) == ("", "", 25)
    assert (row["segment rows"], row["parameters"], row["training seconds"]) == ("4", "1234", "4")
    assert row["options"] == "--temporal mlp" and row["seeds"] == "3"
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[0].startswith(
        "Table 10 of the paper, Temporal model: ours on custom, the paper's numbers of ucfcrime. Per "
    )
    assert lines[2] == "|  | AUC | AUC, paper | mAUC | mAUC, paper | seeds | note |"
    assert lines[4] == "| MLP | 83.10 ± 0.10 | 74.86 | 41.55 ± 0.05 | 84.46 | 3 |  |"
    assert len(lines) == 4 + 5


def test_a_comparison_has_events_size_and_time(fake, tmp_path, dataset):
    """The script in train.py's place knows no --temporal here, and fails; one result is put in its place."""
    folder = tmp_path / "out" / "rtfm-0"
    (folder / "eval").mkdir(parents=True)
    operation = {"event_recall": 0.5, "false_alarms_per_hour": 12.5, "normal_alarmed": None, "balanced_accuracy": 0.7}
    results = {"AUC": 0.9, "AP": 0.5, "mAUC": 0.75, "mAP": 0.5, "events": {"mAP": 0.25}, "operation": operation}
    (folder / "eval" / "metrics.json").write_text(json.dumps(results))
    took = {"segment rows": 8, "parameters": 24_700_000, "training seconds": 61.25}
    (folder / "training.json").write_text(json.dumps(took))
    assert fake[0]("--seeds", "1", table="2") == 1
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "In the paper all but CLIP, ActionCLIP and AnomalyCLIP see I3D's features." in lines[0]
    assert "Segment rows are feature rows: for all systems as many as `-- --num-frames N`" in lines[0]
    assert lines[2] == (
        "|  | AUC | AUC, paper | mAUC | mAUC, paper | event mAP | event recall | false alarms/h | normal alarmed "
        "| balanced accuracy | segment rows | parameters | training seconds | seeds | note |"
    )
    assert (
        "| RTFM | 90.00 | 84.03 | 75.00 | 84.86 | 25.00 | 50.00 | 12.50 |  | 70.00 | 8 | 24,700,000 | 61.2 | 1 |  |"
        in lines
    )
    assert (
        "| SSRL, first stage |  | 87.43 |  | 88.88 |  |  |  |  |  |  |  |  | 0 | not available: on these features it "
        "is RTFM, and its numbers the same |"
    ) in lines
    assert (
        "| VadCLIP |  |  |  |  |  |  |  |  |  |  |  |  | 0 | seed 0 failed: ValueError: '--temporal' is not in list |"
        in lines
    )


def test_the_pictures_show_the_tables_values(fake, tmp_path, monkeypatch):
    figures, real = {}, plots.save

    def keep(figure, path):
        figures[path.name] = figure
        real(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    fake[0]("--seeds", "2")
    panels = figures["table.png"].axes
    assert [axes.get_xlabel() for axes in panels] == ["AUC, %", "mAUC, %"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [row.label for row in TABLES["10"].rows]
    letters = [len(row.options.split()[1]) for row in TABLES["10"].rows]
    assert [bar.get_width() for bar in panels[0].patches] == pytest.approx([80.05 + n for n in letters])
    marks = next(line for line in panels[1].lines if line.get_marker() == "D")
    assert marks.get_xdata().tolist() == [row.paper[1] for row in TABLES["10"].rows]
    assert marks.get_ydata().tolist() == [0, 1, 2, 3, 4]
    recognition = figures["recognition.png"].axes
    assert [axes.get_xlabel() for axes in recognition] == ["mAUC, %", "mAP, %"]
    assert len(recognition[0].patches) == 5 and not recognition[1].patches  # there is no mAP
    for name in figures:
        assert matplotlib.image.imread(tmp_path / "out" / name).std() > 0.05


# ---- projections (Fig. 2a) ----


@pytest.mark.parametrize("options", [(), ("--likelihood", "cosine")])
def test_projections_equal_a_direct_computation(tmp_path, options, monkeypatch):
    root = write_dataset(tmp_path / "data", frames_per_feature=2)
    run(root, tmp_path / "run", "--epochs", "2", *options)
    drawn = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: None)  # the other pictures
    monkeypatch.setattr(
        plots,
        "projections",
        lambda path, before, after, truth, classes: drawn.update(
            before=before, after=after, truth=truth, classes=classes
        ),
    )
    evaluate.main(
        [
            "--ckpt",
            str(tmp_path / "run" / "last.pt"),
            "--device",
            "cpu",
            "--timelines",
            "0",
            "--bootstrap",
            "2",
            "--projections",
        ]
    )
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    m, d = (checkpoint["model"][name].double() for name in ("prototype", "directions"))
    text = d if options else m + d
    folder, before, after = FeatureFolder(str(root)), [], []
    for video in VideoLists.from_plain(checkpoint["lists"]).test:
        for i in range(folder.num_frames(video.name)):
            x = torch.from_numpy(np.asarray(folder.open(video.name)[i // 2, 0], np.float64))
            before.append([float(x @ t / t.norm()) for t in text])
            after.append([float((x - m) @ (t - m) / (t - m).norm()) for t in text])
    np.testing.assert_allclose(drawn["before"], before, atol=1e-4)
    np.testing.assert_allclose(drawn["after"], after, atol=1e-4)
    scores = np.load(tmp_path / "run" / "eval" / "scores.npz")
    assert len(drawn["truth"]) == sum(len(scores[name]) for name in scores if name.endswith("p_A"))
    assert {*map(tuple, drawn["truth"].tolist())} == {(False, False), (True, False), (False, True)}
    assert list(drawn["classes"]) == ["fire", "fall"]


def test_lengths_along_directions_are_means_over_crops_and_do_not_depend_on_their_length():
    rows = np.array([[[3.0, 1.0], [5.0, 3.0]]], np.float16)  # (N, crops, D)
    longest, lengths = projections.lengths_along(rows, np.array([1.0, 0.0]), np.array([[7.0, 0.0], [0.0, -0.1]]))
    np.testing.assert_allclose(lengths, [[3.0, -2.0]])
    assert longest == [3.0]


def test_the_picture_of_projections_has_a_row_per_class_and_tells_how_far_groups_are_apart(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat([-1, 0, 1], 200)
    before = rng.normal(size=(600, 3))
    truth = labels[:, None] == np.arange(3)
    after = before + 20 * truth
    figures, real = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (figures.append(figure), real(figure, path)))
    plots.projections(tmp_path / "p.png", before, after, truth, ("fire", "fall", "absent"))
    panels = np.array(figures[0].axes).reshape(3, 2)
    assert [axes.get_title() for axes in panels[0]] == ["before re-centring", "after re-centring"]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["fire", "fall", "absent"]
    texts = [[text.get_text() for text in axes.texts] for axes in panels.flat]
    assert texts[1] == texts[3] == ["AUC 100.0"] and texts[4] == texts[5] == []
    assert 40 < float(texts[0][0].split()[1]) < 60
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["normal frames", "all abnormal frames", "abnormal frames of this class"]
    assert matplotlib.image.imread(tmp_path / "p.png").std() > 0.05
