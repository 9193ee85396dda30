"""Cameras watched for months: events with pictures and clips, messages that arrive, a page to look at.

    python watch.py watch.toml            # until SIGTERM or Ctrl-C; SIGHUP reads the file again
    python watch.py --check watch.toml    # is the file right, and does the checkpoint fit?
    python watch.py export-labels watch.toml --out videos   # clips that were marked right or wrong, for train.py

watch.example.toml shows all settings; docs/watch.md tells of messages, the page, and of running it as a service. It
needs requirements-watch.txt besides requirements.txt. One camera without all this: predict.py --live.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import argparse
from importlib.util import find_spec
from pathlib import Path

from videoanomaly.runtime.console import InputError, Parser, count, run_script
from videoanomaly.runtime.memory import keep_freed_memory

EXPORT = "export-labels"
PACKAGES = ("paho", "prometheus_client", "starlette", "uvicorn")  # of requirements-watch.txt


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("command", nargs="?", choices=(EXPORT,), metavar=EXPORT, help="copy marked clips into folders by label")
    add("settings", type=Path, metavar="WATCH.toml", help="file of settings")
    add("--check", action="store_true", help="look at the file and the checkpoint, and stop")
    add("--out", type=Path, help=f"with {EXPORT}: folder of videos by label")
    return check_args(parser.parse_args(argv))


def check_args(args: argparse.Namespace) -> argparse.Namespace:
    if (args.command == EXPORT) != (args.out is not None):
        raise InputError(f"--out and {EXPORT} go together")
    if args.check and args.command:
        raise InputError(f"--check looks at the file alone, found {EXPORT} besides")
    return args


def check_packages() -> None:
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        expected = "expected: pip install -r requirements-watch.txt"
        raise InputError(f"found no package {', '.join(missing)}, {expected}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; of a service that was asked to stop 128 and the number of the signal."""
    keep_freed_memory()
    args = parse_args(argv)
    check_packages()
    from videoanomaly.prediction.api import Recogniser
    from videoanomaly.runtime.run_folder import lock_folder
    from videoanomaly.runtime.signals import hangups
    from videoanomaly.watching.label_export import export_labels
    from videoanomaly.watching.plans import find_sources, make_plans
    from videoanomaly.watching.station import Station
    from videoanomaly.watching.store.event_store import EventStore
    from videoanomaly.watching.watch_settings import read_settings

    settings = read_settings(args.settings)
    if args.command == EXPORT:
        export_labels(EventStore(Path(settings.folder)), args.out)
        return 0
    with hangups() as reloads:  # one that comes meanwhile is not the end
        find_sources(settings)  # what is wrong there shows before the checkpoint is read
        given = {"clip": settings.clip, "encoder": settings.encoder, "device": settings.device, "batch": settings.batch}
        recogniser = Recogniser.load(settings.checkpoint, **given, precision=settings.precision)
        if args.check:
            make_plans(settings, recogniser)
            assert recogniser.encoder, "it was read"
            print(f"{args.settings}: {count(len(settings.cameras), 'camera')}, {recogniser}")
            return 0
        with lock_folder(Path(settings.folder), f"{args.settings}: folder"):
            return Station(settings, recogniser).run(reloads)


if __name__ == "__main__":
    run_script(main)
