"""At which threshold events begin, and the sentence that tells where it comes from."""

from videoanomaly.operating_curve import OperatingCurve
from videoanomaly.runtime.console import InputError, note

GIVEN = "given as --threshold"
BEST = "highest balanced accuracy by video on held-out folds of the training videos"
QUIET = "at most one false alarm per hour on held-out folds of the normal training videos"
STORED = "stored in the checkpoint by its training"
SEEN = "at most one false alarm per hour on training videos, which the model has seen"
NONE = "0.5, since the checkpoint holds none"
OTHERWISE_CUT = "; counted there with the default --hysteresis, --merge-gap and --min-length"


def stored_curve(checkpoint: dict) -> OperatingCurve | None:
    """What training measured on held-out folds, if it did."""
    plain = checkpoint.get("operating_curve")
    return OperatingCurve.from_plain(plain) if plain else None


def choose_threshold(
    name: str, checkpoint: dict, curve: OperatingCurve | None, threshold: float | None, rate: float | None
) -> tuple[float, str]:
    """The threshold, and the rule that gave it.

    Args:
        name: Of the checkpoint, for messages. curve: Its `stored_curve`.
        threshold, rate: As given on the command line, one of them at most; rate is in false alarms per hour.
    Raises:
        InputError: If the checkpoint cannot tell of a rate.
    """
    if threshold is not None:
        return threshold, GIVEN
    if rate is not None:
        return threshold_of_rate(name, curve, rate)
    stored = checkpoint.get("threshold") or None
    if stored is None:
        return 0.5, NONE
    if curve is None:
        return stored, SEEN
    if stored != curve.best_threshold():
        return stored, STORED
    return stored, BEST if curve.num_abnormal else QUIET


def threshold_of_rate(name: str, curve: OperatingCurve | None, rate: float) -> tuple[float, str]:
    """The lowest threshold with at most so many false alarms per hour; of a rate too low to be told, the lowest with
    none, which is said.
    """
    option = f"--false-alarms-per-hour {rate:g}"
    if curve is None or not curve.normal_hours:
        reason = "was not measured on held-out videos" if curve is None else "was measured without normal videos"
        raise InputError(f"{option}: {name} {reason}, expected one of train.py --folds 5 (or give --threshold)")
    threshold = curve.threshold_at(rate)
    if threshold is None:
        least = curve.false_alarms.min() / curve.normal_hours
        raise InputError(f"{option}: found at least {least:.3g} per hour at every threshold on held-out folds")
    if rate >= curve.lowest_rate:
        return threshold, f"at most {rate:g} false alarms per hour on held-out folds"
    footage = f"{curve.normal_hours:.2g} h of normal video on held-out folds"
    note(
        f"{option}: {footage} cannot tell less than {curve.lowest_rate:.2g} per hour; going on with {threshold:.4g}, "
        "the lowest threshold without any false alarm there"
    )
    return threshold, f"no false alarm in {footage}, which cannot tell {rate:g} per hour"
