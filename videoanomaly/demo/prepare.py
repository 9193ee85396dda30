"""What `train.py --dataset demo` trains on: rendered videos, the demo's CLIP, its features of them, each made once."""

import os
import subprocess
import sys
from pathlib import Path

from videoanomaly.demo.train_clip import unpack
from videoanomaly.demo.world import write_world
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.processes import same_for_all
from videoanomaly.runtime.run_folder import command
from videoanomaly.runtime.torchrun import is_main

ROOT = Path(__file__).parents[2]
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def clip_path(root: str | Path) -> Path:
    return Path(root, "clip.pt")


def write_dataset(root: str | Path, clip: str | Path, device: str) -> None:
    """Renders the videos, unpacks the demo's CLIP and extracts the features of `clip`, as far as they are not there.

    Args:
        root: Folder of the videos and lists; the features come into its subfolder.
        clip: CLIP weights, a name or a file: `clip_path(root)` is the demo's own.
        device: Of the extraction, which runs in a process of its own, as a user would start it.
    Raises:
        InputError: If the folder holds something else, or the extraction fails, which has then said why.
    """
    print(f"demo: videos of a rendered world in {root}; the first time takes about a minute and a half", flush=True)
    write_world(root)
    unpack(clip_path(root))
    script, features = "extract_features.py", Path(root, "features")
    words = ["--videos", str(root), "--out", str(features), "--clip", str(clip), "--stride", "2"]
    print(command(script, *words), flush=True)
    alone = {name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}
    done = subprocess.run([sys.executable, ROOT / script, *words, "--device", device], env=alone)
    if done.returncode:
        raise InputError(f"{root}: the features of the demo's videos could not be extracted, see above")


def prepare(root: str, clip: str, device: str) -> None:
    """See `write_dataset`; of several processes one does it for all."""
    same_for_all(lambda: is_main() and write_dataset(root, clip, device))
