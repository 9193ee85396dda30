"""How much of an archive is encoded, and where: the share that was asked for, spent on what stands out most.

A gap lies between two frames of the first look; frames and rows inside it are known only once it is filled.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from videoanomaly.runtime.console import InputError

USUAL = 0.05  # of the rows that a full pass would encode
FIRST_SHARE = 0.85  # of the budget that the first look may take
FOUND = 0.3  # of the threshold: what is less likely than that waits for events that are found to be filled
DENSEST = 1.5  # seconds between two frames of the first look, at least


def read_budget(budget: str | None, seconds_per_hour: float | None) -> float:
    """The share of the rows to encode, in (0, 1], out of `5%`, or of seconds of each hour.

    Raises:
        InputError: If it is none.
    """
    if None not in (budget, seconds_per_hour):
        raise InputError("--budget and --seconds-per-hour both say how much is encoded: expected one of them")
    if seconds_per_hour is not None:
        if not 0 < seconds_per_hour <= 3600:
            raise InputError(f"--seconds-per-hour {seconds_per_hour}: expected a number above 0, at most 3600")
        return seconds_per_hour / 3600
    text = f"{USUAL:.0%}" if budget is None else budget
    try:
        share = float(text.strip().removesuffix("%")) / 100 if text.strip().endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"--budget {text}: expected a percentage above 0%, at most 100%, such as 5%")
    return share


def first_distance(budget: float, stride: int, rate: float) -> float:
    """Seconds between two frames of the first look, of a video with so many frames/s of which every n-th is encoded."""
    return max(stride / rate / (budget * FIRST_SHARE), DENSEST)


class Gaps(NamedTuple):
    """Of a video, G of them, ascending."""

    ends: np.ndarray  # (G, 2) frames, the first behind the frame that was looked at, half-open
    costs: np.ndarray  # (G,) rows that filling one costs
    values: np.ndarray  # (G,) how much it stands out: the highest p_A in it and at its ends


def priorities(values: np.ndarray, threshold: float) -> np.ndarray:
    """What to fill first, of the highest p_A of gaps, (G,): the nearest below the threshold, which may hide an event.
    Those that reach it have one anyway; they come after what is nearer than a third.
    """
    return np.where(values >= threshold, values * threshold * FOUND, values)


def choose(gaps: Mapping[str, Gaps], num_rows: float) -> dict[str, np.ndarray]:
    """Which gaps to fill with at most so many rows: those that stand out most, over all videos; (G,) bool of each.

    A gap that is too long for what is left is passed over, the next one that fits is taken.
    """
    names = sorted(gaps)
    costs = np.concatenate([gaps[name].costs for name in names] or [np.zeros(0, int)])
    values = np.concatenate([gaps[name].values for name in names] or [np.zeros(0)])
    order, chosen, left = np.argsort(-values, kind="stable"), np.zeros(len(costs), bool), num_rows
    order = order[costs[order] > 0]
    while len(order):
        fits = np.cumsum(costs[order]) <= left
        num = len(order) if fits.all() else int(fits.argmin())
        chosen[order[:num]] = True
        left -= costs[order[:num]].sum()
        order = order[num:][costs[order[num:]] <= left]
    ends = np.cumsum([len(gaps[name].costs) for name in names])[:-1]
    return dict(zip(names, np.split(chosen, ends))) if names else {}
