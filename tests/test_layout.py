"""Where things stand and who may import whom: docs/files.md as a test. All imports are read, late ones included."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.places import ROOT

MODEL = {"anomalyclip", "clip_model"}
SCRIPTS = {"train", "evaluate", "extract_features", "predict", "ablate", "watch", "search"}
PROGRAMS = {
    "benchmarks.__main__",
    "benchmarks.development",
    "benchmarks.many_cameras",
    "benchmarks.watching",
    "videoanomaly.demo.train_clip",
}  # run with -m, besides tests.fuzz
# room -> rooms of ours it may import from, besides itself; a room is a folder of the package, or one of its files
RUNTIME = {"runtime"}
SYSTEMS = MODEL | {"data", "runtime"}
WEIGHTS = SYSTEMS | {"systems", "winograd", "clip_weights"}
RESULTS = WEIGHTS | {"weights", "video", "event_rule", "operating_curve", "frame_scores", "fonts", "plots", "settings"}
MAY_IMPORT = {
    "anomalyclip": set(),
    "clip_model": set(),
    "videoanomaly": {
        "prediction"
    },  # for type checkers; `from videoanomaly import Recogniser` imports it when asked for
    "winograd": {"anomalyclip"},
    "clip_weights": {"clip_model", "runtime"},
    "runtime": set(),
    **dict.fromkeys(("data", "event_rule", "frame_scores", "fonts"), RUNTIME),
    "operating_curve": RUNTIME | {"event_rule"},
    "plots": RUNTIME | {"fonts", "operating_curve"},
    "video": {"data", "clip_weights", "clip_model", "runtime"},
    "systems": SYSTEMS,
    **dict.fromkeys(("weights", "settings"), WEIGHTS),
    **dict.fromkeys(("evaluation", "prediction"), RESULTS),
    "training": RESULTS | {"evaluation"},
    "archives": RESULTS | {"prediction"},
    "live": {"video", "event_rule", "operating_curve", "runtime", "anomalyclip"},
    "retrieval": {"data", "video", "clip_weights", "clip_model", "prediction", "runtime"},
    "watching": {"live", "prediction", "video", "event_rule", "operating_curve", "runtime", "anomalyclip"},
    "demo": MODEL | RUNTIME,
}
MAY_IMPORT |= dict.fromkeys(SCRIPTS | {"benchmarks"}, set(MAY_IMPORT))
LATE = {"sklearn", "resource", "torch.utils.tensorboard"}  # slow; missing on Windows; not always installed
SMALL = {  # modules under 40 lines, with the reason to stand alone
    "videoanomaly.video.luma": "files and cameras compare pictures alike",
    "videoanomaly.runtime.systemd": "what systemd is told stands nowhere else",
    "videoanomaly.runtime.torchrun": "torchrun's variables are read nowhere else",
    "videoanomaly.systems.ssrl": "a file for each system",
}
FILES_OF_ROOT = (
    "requirements.txt requirements-dev.txt pyproject.toml README.md CONTRIBUTING.md LICENSE bpe_merges.txt.gz"
)
ROOT_ENTRIES = SCRIPTS | MODEL | {*FILES_OF_ROOT.split(), "bpe_merges.LICENSE", ".gitignore", ".ci", "test_anomalyclip"}
ROOT_ENTRIES |= {"videoanomaly", "benchmarks", "tests", "docs"}
ROOT_ENTRIES |= {"watch.example.toml", "requirements-watch.txt", "deploy"}


@cache
def modules() -> dict[str, Path]:
    """Every module of ours but the tests, by its name."""
    paths = [ROOT / f"{name}.py" for name in SCRIPTS | MODEL]
    paths += [path for folder in ("videoanomaly", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[tuple[str, str]]:
    """(module, name that it gives) of an import statement; a module itself gives ""."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        return [(w, "") if w in modules() else (str(node.module), a.name) for w, a in zip(whole, node.names)]
    return []


@cache
def imports(name: str) -> list[tuple[str, str]]:
    return [found for node in ast.walk(tree(name)) for found in imported(node)]


def room(name: str) -> str:
    """The folder of the package, or the file, that a module stands in."""
    first, *rest = name.split(".")
    return rest[0] if first == "videoanomaly" and rest else first


def of_ours(name: str) -> bool:
    return name in modules() or name.split(".")[0] in ("videoanomaly", "benchmarks", "tests", *SCRIPTS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_its_room_may(name):
    own = room(name)
    rooms = {room(module) for module, _ in imports(name) if of_ours(module)} - {own, "videoanomaly"}
    assert rooms <= MAY_IMPORT.get(own, set())


def test_no_import_leads_back_to_where_it_began():
    left = {name: {m for m, _ in imports(name) if m in modules()} for name in modules()}
    left["videoanomaly"] = set()  # imports nothing of ours by itself: see the next test
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_the_package_reads_no_slow_library_before_it_is_asked_for_something():
    code = "import sys, videoanomaly; print(*{'torch', 'numpy', 'videoanomaly.prediction'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_no_name_with_an_underscore_is_imported():
    found = {
        (name, given)
        for name in modules()
        for module, given in imports(name)
        if of_ours(module) and given[:1] == "_" and given != "__version__"
    }
    assert not found


def test_train_begins_without_the_libraries_that_few_trainings_need():
    code = "import sys, train; print(*{'sklearn', 'torchvision', 'scipy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def late_imports(name: str) -> list[ast.AST]:
    inner = [n for n in ast.walk(tree(name)) if isinstance(n, ast.FunctionDef) for n in ast.walk(n)]
    return [node for node in inner if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("name", sorted(modules().keys() - MODEL))
def test_imports_stand_at_the_top_or_in_main_behind_parse_args(name):
    allowed: list[ast.AST] = []
    if name in SCRIPTS:
        main = next(node for node in tree(name).body if isinstance(node, ast.FunctionDef) and node.name == "main")
        parsed = next(i for i, node in enumerate(main.body) if "parse_args" in ast.dump(node))
        allowed = [n for n in main.body[parsed:] if isinstance(n, (ast.Import, ast.ImportFrom))]
        places = [main.body.index(n) for n in allowed]
        assert not places or places == list(range(places[0], places[0] + len(places))), "one block"
    late = {m for node in late_imports(name) if node not in allowed for m, _ in imported(node)}
    assert {m for m in late if not {m, m.split(".")[0]} & LATE} == set()


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_parsed_command_line_ends_in_the_script(name):
    may = {"parse_args", "check_args", "main"} if name in SCRIPTS | PROGRAMS else set()
    for function in ast.walk(tree(name)):
        if isinstance(function, ast.FunctionDef) and function.name not in may:
            given = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            arguments = [a.arg for a in given]
            assert "args" not in arguments, f"{function.name} takes a parsed command line"
            used = {n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in ast.walk(function)}
            assert not used & {"Namespace", "SimpleNamespace"}, function.name
    if name not in SCRIPTS | PROGRAMS:
        assert not {given for _, given in imports(name)} & {"Namespace", "SimpleNamespace"}


def test_scripts_are_started_never_imported():
    assert not [(name, module) for name in modules() for module, _ in imports(name) if module in SCRIPTS]


def test_no_test_module_imports_another():
    for path in sorted((ROOT / "tests").glob("*.py")):
        found = [m for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for m, _ in imported(n)]
        assert not [m for m in found if m.split(".")[-1].startswith("test_")], path.name


def test_packages_begin_with_a_docstring_and_nothing_else():
    for name, path in modules().items():
        if path.name == "__init__.py":
            doc, *rest = tree(name).body
            assert isinstance(doc, ast.Expr) and ast.get_docstring(tree(name)), name
            assert name == "videoanomaly" or not rest  # that one: is Python new enough, its version, and `Recogniser`


def test_small_modules_have_their_reasons():
    small = {
        name
        for name, path in modules().items()
        if path.name != "__init__.py" and len(path.read_text().splitlines()) < 40
    }
    assert small == SMALL.keys()


def test_no_two_modules_share_a_name():
    last = [name.split(".")[-1] for name in modules() if name.startswith("videoanomaly.")]
    assert len(set(last)) == len(last)


def test_the_root_holds_what_a_user_types_or_copies():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs git, which knows what belongs to the project")
    names = {line.partition("/")[0] for line in tracked.stdout.splitlines()}
    found = {name.removesuffix(".py") for name in names}
    assert found <= ROOT_ENTRIES
    assert len(found) <= 28


def defined(path: str) -> set[str]:
    """Functions and methods of a file, methods as Class.name."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        found |= {node.name} if isinstance(node, ast.FunctionDef) else set()
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_the_walks_of_the_documents_lead_through_functions_that_are_there_and_no_file_twice():
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").partition("## A walk")[2]
    walks = [re.findall(r"^\d+\. `([\w/]+\.py):([\w.]+)`", walk, re.M) for walk in text.split("\n**")[1:]]
    assert len(walks) == 2
    for walk in walks:
        assert 5 <= len(walk) <= 12
        files = [path for path, _ in walk if path not in ("train.py", "predict.py")]
        left = [path for path, after in zip(files, files[1:]) if path != after] + files[-1:]
        assert len(set(left)) == len(left)
        for path, name in walk:
            assert name in defined(path), f"{path}:{name}"


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_an_older_python_is_told_in_one_sentence(script):
    code = f"import sys; sys.version_info = (3, 10, 12); sys.version = '3.10.12 (main)'; import {script}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: found Python 3.10.12, expected 3.11 or later\n")


def test_scripts_have_the_length_of_a_story():
    for name, most in {"train": 350, "evaluate": 200, "predict": 300}.items():
        assert len(modules()[name].read_text().splitlines()) <= most, name
