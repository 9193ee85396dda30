"""Tests of runtime/: how scripts end, whatever goes wrong and wherever, what they print, and what they leave."""

import errno
import importlib
import io
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ablate
import train
from tests.children import server
from tests.places import ROOT
from tests.synthetic import arguments, equal, run, write_dataset
from tests.videos import write_video
from videoanomaly.data.sampling import SegmentDataset
from videoanomaly.runtime import files
from videoanomaly.runtime.console import InputError, Parser, count, differences, expand_home, run_script
from videoanomaly.runtime.memory import copies_that_fit, workers_that_fit
from videoanomaly.runtime.run_folder import command, given_command, resume_command
from videoanomaly.training import epochs

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


# ---- an error anywhere ends a script ----


def fail(error):
    def failing(*args, **kwargs):
        raise error

    return failing


def losses_that_are_no_numbers(training, batch):
    loss = sum(parameter.sum() for parameter in training.model.parameters() if parameter.requires_grad) * torch.nan
    return {"total": loss}


def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def in_worker(failing):
    """Gives samples in the script itself, which looks at one, too."""
    sample = SegmentDataset.__getitem__
    return lambda *args: failing() if torch.utils.data.get_worker_info() else sample(*args)


SAMPLE = SegmentDataset, "__getitem__"
BAD_FILE, BAD_DISK = InputError("x.npy: is gone"), OSError(5, "I/O error")
FAULTS = {  # where, what, and with which status and last line the script ends
    "full disk": (os, "fsync", fail(OSError(errno.ENOSPC, "No space left on device")), 1, "No space left on device)"),
    "no number": (epochs, "batch_losses", losses_that_are_no_numbers, 1, "failed: the loss became nan in this epoch"),
    "assert in the loop": (train, "report", fail(AssertionError("a bug")), 1, "AssertionError: a bug"),
    "error in a step": (epochs, "batch_losses", fail(RuntimeError("out of memory")), 1, "RuntimeError: out of memory"),
    "bad file": (*SAMPLE, fail(BAD_FILE), 2, "error: x.npy: is gone"),
    "bad file in a worker": (*SAMPLE, in_worker(fail(BAD_FILE)), 2, "error: x.npy: is gone"),
    "disk of a worker": (*SAMPLE, in_worker(fail(BAD_DISK)), 1, "failed: [Errno 5] I/O error"),
    "bug in a worker": (*SAMPLE, in_worker(fail(KeyError("x"))), 1, "KeyError: 'x'"),
    "worker killed": (*SAMPLE, in_worker(killed), 1, "DataLoader worker (pid"),
}


def train_with(fault: str, argv: list[str], errors: str, start: str) -> None:
    """In a child process: train.py with a fault, its workers started in one of Python's ways."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method(start, force=True)
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(errors, "w")
    owner, name, replacement, *_ = FAULTS[fault]
    setattr(owner, name, replacement)
    run_script(lambda: train.main(argv))


@pytest.fixture(scope="module")
def children():
    """Processes that are forked from one which has torch imported."""
    return server()


CASES = [(fault, workers, "fork") for fault in FAULTS for workers in "02" if workers == "2" or "worker" not in fault]
# Python 3.14 starts them so; they know nothing of what a test has put in place
CASES += [pytest.param("assert in the loop", "1", start, marks=pytest.mark.slow) for start in ("forkserver", "spawn")]


@needs_posix
@pytest.mark.parametrize("fault, workers, start", CASES)
def test_an_error_anywhere_ends_training_with_its_line_and_status(dataset, tmp_path, children, fault, workers, start):
    argv = arguments(dataset, tmp_path / "run", "--epochs", "2", "--workers", workers)
    child = children.Process(target=train_with, args=(fault, argv, str(tmp_path / "errors"), start))
    child.start()
    child.join(60)
    hangs = child.is_alive()
    child.kill()
    *_, status, line = FAULTS[fault]
    assert not hangs and child.exitcode == status
    assert line in (tmp_path / "errors").read_text().rstrip().splitlines()[-1]


# ---- the console ----


def shell(command: str, program: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program as a script in a shell's command line, where it is called $RUN."""
    code = f"from videoanomaly.runtime.console import *\ndef main():\n    {program}\nrun_script(main)"
    variables = os.environ | {"PYTHONPATH": str(ROOT), "RUN": code, "PY": sys.executable} | environment
    command = command.replace("RUN", '"$PY" -c "$RUN"')
    return subprocess.run(["bash", "-c", command], capture_output=True, env=variables)


@pytest.mark.parametrize("encoding", ("ascii", "cp1252", "latin-1:strict", "utf-8"))
def test_letters_that_a_console_lacks_are_shown_by_their_numbers(encoding):
    program = "print('вход 监控 \\udcff'); note('ä 监'); raise InputError('вход')"
    done = shell("RUN", program, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    if encoding == "utf-8":
        assert done.stdout.decode() == "вход 监控 \\udcff\n" and done.stderr.decode() == "ä 监\nerror: вход\n"
    else:
        assert done.stdout == rb"\u0432\u0445\u043e\u0434 \u76d1\u63a7 \udcff" + b"\n"
        assert done.stderr.endswith(rb"\u76d1" + b"\n" + rb"error: \u0432\u0445\u043e\u0434" + b"\n")


@needs_posix
@pytest.mark.parametrize(
    "command, program, out, err, status",
    [
        ("RUN >&-", "print('a'); note('b'); return 3", "", "b\n", 3),
        ("RUN 2>&-", "print('a'); note('b'); print('c', file=sys.stderr)", "a\n", "", 0),
        ("RUN >&- 2>&-", "print('a'); note('b'); raise InputError('c')", "", "", 2),
        ("RUN | head -1; exit ${PIPESTATUS[0]}", "[print(i) for i in range(10**6)]", "0\n", "", 141),
        ("RUN | true; exit ${PIPESTATUS[0]}", "time.sleep(0.1); print('a')", "", "", 141),
        ("RUN | true; exit ${PIPESTATUS[0]}", "time.sleep(0.1); print('a', flush=True)", "", "", 141),
        ("(RUN 2>&1 >&3 | true; exit ${PIPESTATUS[0]}) 3>&1", "time.sleep(0.1); raise InputError('c')", "", "", 2),
        ("RUN > /dev/full", "print('a')", "", "failed: [Errno 28] No space left on device\n", 1),
        ("RUN", "os.kill(os.getpid(), 15)", "", "stopped\n", 143),
        ("RUN", "os.kill(os.getpid(), 2)", "", "stopped\n", 130),
    ],
)
def test_whatever_becomes_of_the_output_a_script_ends_quietly_with_its_status(command, program, out, err, status):
    done = shell(command, program)
    assert (done.stdout.decode(), done.stderr.decode(), done.returncode) == (out, err, status)


# ---- files ----


class FullDisk(io.FileIO):
    """Takes so many bytes."""

    size = 1000

    def write(self, data):
        if self.tell() + len(data) > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save({"a": torch.zeros(10**6)}, file),
        lambda file: np.save(file, np.zeros(10**6)),
        lambda file: np.save(file, np.zeros((10**3, 10**3), order="F")),
        lambda file: np.savez(file, a=np.zeros(10**6)),
        lambda file: np.savez_compressed(file, a=np.random.default_rng(0).normal(size=10**5)),
        lambda file: Image.fromarray(np.zeros((10**3, 10**3), np.uint8)).save(file, "bmp"),
        lambda file: file.write(bytes(10**6)),
    ],
)
def test_a_full_disk_is_told_by_the_systems_own_words(tmp_path, monkeypatch, write):
    monkeypatch.setattr(files, "open", lambda path, mode: io.BufferedRandom(FullDisk(path, mode)), raising=False)
    with pytest.raises(OSError, match=r"x: cannot be written \(No space left on device\)$"):
        files.write_atomically(tmp_path / "x", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["train", "evaluate", "predict", "extract_features", "ablate"])
def test_a_full_disk_ends_any_script_with_one_line(tmp_path, planted, monkeypatch, capsys, script):
    out, data = tmp_path / "out", str(planted.root / "data")
    features = sorted(planted.features.glob("*.npy"))
    command = {
        "train": arguments(planted.root / "data", out, "--epochs", "1"),
        "evaluate": ["--ckpt", planted.checkpoint, "--out", str(out), "--device", "cpu"],
        "predict": ["--ckpt", planted.checkpoint, "--out", str(out), "--device", "cpu", "--features", str(features[0])],
        "extract_features": ["--videos", str(tmp_path), "--out", str(out), *planted.options[2:]],
        "ablate": ["--table", "10", "--dataset", "custom", "--root", data, "--out", str(out)],
    }
    write_video(tmp_path / "v.mp4", num_frames=4)
    monkeypatch.setattr(ablate, "check_input", lambda options: {})
    monkeypatch.setattr(files, "open", lambda path, mode: io.BufferedRandom(FullDisk(path, mode)), raising=False)
    monkeypatch.setattr(FullDisk, "size", 0)
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: importlib.import_module(script).main(command[script]))
    line = capsys.readouterr().err
    assert exit_.value.code == 1 and re.fullmatch(r"failed: .*: cannot be written \(No space left on device\)\n", line)
    assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size]


@needs_posix
def test_a_pipe_is_written_into_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomically(tmp_path / "pipe", lambda file: file.write(b"new"))
    assert os.read(reader, 10) == b"new" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_arrays_are_written_as_numpy_does(tmp_path):
    for i, array in enumerate((np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 4)))):
        np.save(tmp_path / f"{i}.npy", array)
        files.write_atomically(tmp_path / "ours", lambda file, array=array: np.save(file, array))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / f"{i}.npy").read_bytes()


@needs_posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.ENOSYS, errno.EBADF])
@pytest.mark.parametrize("function", ["open", "fsync"])
def test_a_folder_that_cannot_be_synchronised_keeps_the_file(tmp_path, monkeypatch, code, function):
    real = getattr(os, function)

    def refuse(target, *rest):
        path = Path(os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target)
        return real(target, *rest) if not path.is_dir() else fail(OSError(code, os.strerror(code)))()

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, function, refuse)
    files.write_atomically(tmp_path / "x", lambda file: file.write(b"new"))
    assert (tmp_path / "x").read_bytes() == b"new" and len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_cannot_be_synchronised_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(OSError, match=r"x: cannot be written \(Input/output error\)"):
        files.write_atomically(tmp_path / "x", lambda file: file.write(b"new"))
    assert not list(tmp_path.iterdir())


# ---- command lines ----


def test_a_tilde_is_the_home_folder_wherever_a_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser("")
    for name, options in (("--out", {"type": Path}), ("--ckpt", {"nargs": "+"}), ("--encoder", {}), ("videos", {})):
        parser.add_argument(name, **options)
    words = ["~/a b/~c.mp4", "--out=~/x=~", "--ckpt", "~", "a~/b", "~nobody-of-this-name/x", "--encoder", "~/e.py:E"]
    found = parser.parse_args(words)
    assert found.videos == f"{tmp_path}/a b/~c.mp4" and found.out == tmp_path / "x=~"
    assert found.ckpt == [str(tmp_path), "a~/b", "~nobody-of-this-name/x"] and found.encoder == f"{tmp_path}/e.py:E"


@needs_posix
def test_a_tilde_may_name_a_user_who_has_one(monkeypatch):
    import pwd

    user = pwd.getpwuid(os.getuid())
    assert expand_home(f"--out=~{user.pw_name}/x") == f"--out={user.pw_dir}/x"


@pytest.mark.parametrize("word", ["~", "~/x", "--out=~/x"])
def test_a_tilde_of_a_user_without_a_home_is_refused(monkeypatch, word):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(InputError, match=f"{word}: found no home folder of this user"):
        expand_home(word)


SCRIPTS = (
    "train",
    "evaluate",
    "predict",
    "extract_features",
    "ablate",
    "benchmarks.__main__",
    "videoanomaly.demo.train_clip",
)


@pytest.mark.parametrize("module", SCRIPTS)
def test_every_script_reads_its_command_line_by_the_same_parser(module, monkeypatch):
    seen = []
    monkeypatch.setattr(Parser, "parse_known_args", lambda *given: seen.append(1) or sys.exit())
    with pytest.raises(SystemExit):
        importlib.import_module(module).parse_args(["--help"])
    assert seen


@pytest.mark.parametrize("name", ["my run", "$HOME", 'a"b', "it's", "`id`;#*", "Ä监"])
def test_the_next_commands_can_be_pasted_into_a_shell(dataset, tmp_path, monkeypatch, capsys, name):
    made = train.DATASETS["custom"]._replace(is_made=True)
    monkeypatch.setitem(train.DATASETS, "custom", made)
    for function, value in {"prepare": None, "fit": (0, ""), "evaluate_checkpoint": None, "surest": "a b"}.items():
        monkeypatch.setattr(train, function, lambda *args, value=value, **kwargs: value)
    root, out = tmp_path / f"{name} root", tmp_path / name
    root.symlink_to(dataset)
    for options, expected in (
        ((), ["evaluate.py", "--ckpt", f"{out}/last.pt"]),
        (("--evaluate",), ["predict.py", "--ckpt", f"{out}/last.pt", f"{root}/a b.mp4", "--out", f"{out}/report"]),
    ):
        train.main(arguments(root, out, "--epochs", "1", *options))
        line = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
        words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout
        assert words.splitlines() == ["python", *expected]
    assert shlex.split(command("x.py", name, 1)) == ["python", "x.py", name, "1"]


@needs_posix
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_user_without_a_home_sees_no_word_of_it():
    code = "import os; from videoanomaly import plots; print(os.getuid(), os.path.expanduser('~'))"
    command = ["unshare", "--user", "--map-user=54321", "env", "-u", "HOME", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "54321 ~" not in done.stdout:
        pytest.skip("needs the right to change the user")
    assert done.stderr == ""


MANY = [f"class{i}" for i in range(50)]


@pytest.mark.parametrize(
    "given, told",
    [
        ("--epochs 1 --seed 3 --epochs 6", "--seed 3 --epochs 6"),
        ("--epochs=1 --epochs 6 --epochs=7", "--epochs=7"),
        ("--amp --seed 3 --no-amp", "--seed 3 --no-amp"),
        ("--lambdas a=1 b=2 --seed 3", "--lambdas a=1 b=2 --seed 3"),
        ("--lambdas a=1 b=2 --lambdas a=3", "--lambdas a=3"),
    ],
)
def test_a_told_command_has_each_option_once_as_it_was_given_last(given, told):
    assert given_command(given.split(), "--stride", 2) == f"python train.py {told} --stride 2"
    assert resume_command([*given.split(), "--resume"]) == f"python train.py {told} --resume"


def test_a_count_is_told_with_its_word():
    found = [count(number, "video") for number in (0, 1, 2, 1000)]
    assert found == ["0 videos", "1 video", "2 videos", "1,000 videos"]


@pytest.mark.parametrize(
    "found, expected, text",
    [
        (1, 2.5, "found x = 1, expected 2.5"),
        (None, "a", "found x = None, expected a"),
        ([*MANY, "Running"], [*MANY, "Fleeing"], "found x = Running, expected Fleeing"),
        (["b", *MANY, "a"], ["a", *MANY, "b"], "found x = b, a, expected a, b"),
        (MANY, ("Falling", *MANY), "found x = nothing, expected Falling"),
        ({"a": MANY, "b": 1}, {"a": MANY, "b": 2}, "found b = 1, expected 2"),
        (
            {"a": {"b": MANY}, "c": 1},
            {"a": {"b": MANY[1:]}},
            "found b = class0, expected nothing; found c = 1, expected None",
        ),
        ({"a": 1}, None, "found x = {'a': 1}, expected None"),
    ],
)
def test_of_two_settings_what_differs_alone_is_shown(found, expected, text):
    assert differences("x", found, expected) == text


# ---- shared memory ----


@pytest.mark.parametrize(
    "free, workers, processes, expected",
    [(600, 2, 1, 2), (599, 2, 1, 0), (599, 1, 1, 1), (600, 2, 2, 0), (0, 0, 1, 0), (10**6, 8, 8, 8)],
)
def test_workers_are_left_out_where_shared_memory_cannot_hold_their_batches(
    tmp_path, monkeypatch, capsys, free, workers, processes, expected
):
    status = types.SimpleNamespace(f_bavail=free, f_frsize=10**6)
    monkeypatch.setattr(os, "statvfs", lambda path: status if path == tmp_path else None)
    assert workers_that_fit(workers, 10**8, processes, folder=tmp_path) == expected
    line = capsys.readouterr().err
    assert (expected == workers) == (line == "")
    assert line == "" or line.count("\n") == 1 and "going on with --workers 0; Docker gives more by --shm-size" in line


def write_proc(folder: Path, peak: str, available: str) -> Path:
    (folder / "self").mkdir()
    (folder / "self" / "status").write_text(f"Name:\tpython\nVmPeak:\t  9000 kB\nVmHWM:\t  {peak}\nThreads:\t1\n")
    (folder / "meminfo").write_text(f"MemTotal:  64000 kB\nMemAvailable:  {available}\nHugePages_Total:  0\n")
    return folder


@pytest.mark.parametrize(
    "peak, available, expected",
    [
        ("1000 kB", "9000 kB", 4),
        ("1000 kB", "2999 kB", 2),
        ("1000 kB", "10 kB", 1),  # this process is there
        ("0 kB", "9000 kB", 4),
        ("much", "9000 kB", 4),
    ],
)
def test_copies_of_a_process_are_as_many_as_memory_has_room_for(tmp_path, peak, available, expected):
    assert copies_that_fit(4, write_proc(tmp_path, peak, available)) == expected
    assert copies_that_fit(4, tmp_path / "nowhere") == 4


def test_a_system_without_such_a_folder_has_no_such_limit(tmp_path):
    assert workers_that_fit(2, 10**15, folder=tmp_path / "none") == 2


def test_training_goes_on_without_workers_and_gives_the_same(dataset, tmp_path, monkeypatch, capsys):
    with_workers = run(dataset, tmp_path / "a", "--epochs", "1", "--workers", "1")
    monkeypatch.setattr(os, "statvfs", lambda path: types.SimpleNamespace(f_bavail=1, f_frsize=4096))
    without = run(dataset, tmp_path / "b", "--epochs", "1", "--workers", "1")
    assert "/dev/shm has 0 MB left, and 1 workers need" in capsys.readouterr().err
    assert equal(with_workers["model"], without["model"])
