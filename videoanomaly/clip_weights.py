"""CLIP for a script: one-line errors, and the weights that are expected, wherever they lie."""

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath

import clip_model
from videoanomaly.runtime.console import InputError

DEFAULT_CLIP = "ViT-B/16"
PROJECT = Path(__file__).parents[1]
SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}  # of weights
TOLD = 5  # files that an error names


def load_clip(name: str, *, message: str = "{}", device: str = "cpu") -> clip_model.CLIP:
    """The CLIP of that name or file.

    Args:
        message: Of the error, with {} for what is wrong.
    Raises:
        InputError: If there are no such weights.
    """
    try:
        return clip_model.load(name, device)
    except ValueError as error:
        raise InputError(message.format(error)) from None


def load_prompts_clip(name: str, directions: str, encoder: dict | None) -> tuple[dict, str | None]:
    """A system's arguments that bring CLIP in where the directions need it, and its hash; it made the features.

    Args:
        directions: As in the config; free ones need no CLIP.
        encoder: What meta.json tells of the features' encoder; None where it is not known.
    """
    if directions == "direct":
        return {}, None
    clip = load_clip(name)
    made_by = encoder["weights_sha256"] if encoder else None
    if encoder and made_by and made_by != clip_model.weights_hash(clip.visual):
        raise InputError(
            f"--clip {name}: its image tower did not make the features, {encoder['encoder']} did; expected "
            "the same CLIP for pictures and prompts, or --directions direct"
        )
    return {"clip": clip, "tokenize": clip_model.tokenize}, clip_model.weights_hash(clip)


def load_training_clip(ckpt: str, name: str | None, checkpoint: dict) -> clip_model.CLIP:
    """The CLIP whose text tower the training used: `name`, else where `find_clip` finds it."""
    needs, expected = f"{ckpt}: --classes and --explain need the CLIP of the training, ", checkpoint.get("clip_sha256")
    if not expected:
        raise InputError(f"{needs}the checkpoint does not tell which")
    if not name:
        return find_clip(ckpt, checkpoint, expected, image_tower=False)
    clip = load_clip(name, message=needs + "found none ({})")
    if (found := clip_model.weights_hash(clip)) != expected:
        raise InputError(f"{name}: is another CLIP than that of {ckpt} (weights_sha256 {found}, expected {expected})")
    return clip


def find_clip(ckpt: str, checkpoint: dict, expected: str | None, *, image_tower: bool) -> clip_model.CLIP:
    """The CLIP of a training, known by the hash of its weights wherever it lies: see `candidates`.

    Args:
        ckpt: The checkpoint's file.
        expected: The hash, of the image tower or of the whole.
    Raises:
        InputError: If it is nowhere; its one line tells what was looked for, and what was passed over and why.
    """
    name = checkpoint["settings"].get("clip") or DEFAULT_CLIP
    made_by = (checkpoint["encoder"] or {"encoder": name})["encoder"].removeprefix("clip ")
    names, passed = [name, *([made_by] if made_by in clip_model.available_models() else [])], []
    for place in candidates(Path(ckpt), names, checkpoint.get("clip_bytes"), made_by if image_tower else name):
        try:
            clip = clip_model.load(place)
        except ValueError as error:
            passed.append(str(error) if str(place) in str(error) else f"{place}: {error}")
            continue
        found = clip_model.weights_hash(clip.visual if image_tower else clip)
        if found == expected:
            return clip
        passed.append(f"{place}: another CLIP, weights_sha256 {found}")
    passed[TOLD:] = [f"{len(passed) - TOLD} more"] if len(passed) > TOLD else []
    part = "whose image tower has" if image_tower else "with"
    raise InputError(
        f"{ckpt}: found no CLIP {part} weights_sha256 {expected}, neither {name!a:.200} (from here, from the folders "
        f"above the checkpoint, from {PROJECT}), nor a file of that name or clip.pt beside the checkpoint, nor one in "
        f"the weights' cache {cache_folder() or '(no home folder)'}; passed over: {'; '.join(passed) or 'nothing'}; "
        "give --clip FILE"
    )


def candidates(ckpt: Path, names: list[str], size: int | None, fetched: str) -> Iterator[Path | str]:
    """Where a CLIP may lie, likeliest first, each file once: the path as the training was given it, from here or from a
    folder above the checkpoint; a file of that name, or clip.pt, beside the checkpoint or in the weights' cache; in all
    these places files of its size, whatever their names, or where that is not known all weights of the cache.

    Args:
        names: As the training was given them, paths or of published models.
        size: Of the file, bytes.
        fetched: The last candidate, if it is a published model, which `load` fetches.
    """
    cache, given, last, seen = cache_folder(), [], {}, set()
    for name in names:
        is_published = name in clip_model.available_models()
        last[clip_model.file_name(name) if is_published else PureWindowsPath(name).name] = None  # either system's paths
        if not is_published:
            given += [folder / name for folder in (Path(), *ckpt.resolve().parents, PROJECT)]
    folders = [ckpt.parent, *([cache] if cache else [])]
    named = [folder / name for folder in folders for name in (*last, "clip.pt")]
    searched = [*dict.fromkeys([*(path.parent for path in given), *folders])] if size else folders[1:]
    for path in itertools.chain(given, named, (path for folder in searched for path in weights_in(folder, size))):
        is_there = os.path.isfile(path) or os.path.isdir(path)  # no pipe, which would keep us waiting
        if is_there and (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            yield path
    if fetched in clip_model.available_models():
        yield fetched


def weights_in(folder: Path, size: int | None) -> list[Path]:
    """Files of a folder that may hold weights, of that size if it is known; none where it cannot be read."""
    with suppress(OSError):
        found = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
        return [path for path in found if size is None or path.stat().st_size == size]
    return []


def cache_folder() -> Path | None:
    """The weights' cache; None for a user without a home."""
    with suppress(ValueError):
        return clip_model.cached_file(DEFAULT_CLIP).parent


def file_size(name: str) -> int | None:
    """Of the file that a CLIP was loaded from, bytes; None of a folder."""
    path = clip_model.cached_file(name) if name in clip_model.available_models() else Path(name)
    return path.stat().st_size if path.is_file() else None
