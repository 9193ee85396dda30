"""The settings of a training: what was given, else the system's own, else the data set's, else the config's."""

from dataclasses import fields

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from videoanomaly.runtime.console import InputError
from videoanomaly.systems.catalogue import DEFAULTS, SYSTEMS

SMALL_STEPS = (
    500  # of any of them on data sets that no paper has, which are small; on the demo their losses settle by then
)
SNIPPET = 16  # frames of a segment in the papers


def preset(args, settings: dict) -> dict:
    """Settings of a run with `args`, where it gives none: those of the data set, changed as the system needs.

    Raises:
        InputError: If something is given that the system has no use for.
    """
    if args.model == AnomalyCLIP.NAME:
        return settings
    system, defaults, small = SYSTEMS[args.model], DEFAULTS[args.model], is_small(args.dataset)
    unused = unused_options(args.model)
    for name in sorted(unused):
        if getattr(args, name, None) not in (None, []):
            raise InputError(f"--{name.replace('_', '-')}: found with --model {args.model}, which has no use for it")
    if args.directions not in (None, *system.DIRECTIONS):
        raise InputError(
            f"--directions {args.directions}: expected {' or '.join(system.DIRECTIONS)} with --model {args.model}"
        )
    own = {
        "lr": small and defaults.small_lr or defaults.lr,
        "epochs": None if small else defaults.epochs,
        "directions": system.DIRECTIONS[0],
        "num_frames": settings.get("num_frames", defaults.num_frames),
    }
    own |= {} if small else {"batch_size": defaults.batch_size, "num_segments": defaults.num_segments}
    own |= {"topk": 1} if "topk" in unused else {}  # which fits any number of segments
    return {name: value for name, value in settings.items() if name not in unused} | own


def unused_options(model: str) -> set[str]:
    """Names of settings of train.py that a system has no use for."""
    if model == AnomalyCLIP.NAME:
        return set()
    unused = {f.name for f in fields(AnomalyCLIPConfig)} - set(SYSTEMS[model].OPTIONS)
    unused |= {"lambdas", "temporal_features", "temporal_frames_per_feature"}
    unused |= {"clip"} if SYSTEMS[model].DIRECTIONS == ("direct",) else set()
    return unused | ({"epochs", "lr"} if DEFAULTS[model].steps == 0 else set())


def is_small(dataset: str) -> bool:
    return dataset in ("custom", "demo")


def complete(args, num_abnormal: int, num_normal: int, frames_per_feature: int) -> None:
    """Sets what follows from the data where nothing was given: rows of a segment, and epochs that take the system's
    steps.
    """
    defaults = DEFAULTS[args.model]
    if args.model == AnomalyCLIP.NAME:
        return
    if args.num_frames is None:
        args.num_frames = max(SNIPPET // frames_per_feature, 1)
    if args.epochs is None:
        steps = SMALL_STEPS if is_small(args.dataset) and defaults.steps != 0 else defaults.steps
        args.epochs = -(-steps // -(-max(num_abnormal, num_normal) // (args.batch_size // 2)))  # as BalancedBatches


SHAPE = ("classes", "feature_dim", "temporal_feature_dim")  # config fields that come from the data


def config_fields() -> list:
    from anomalyclip import AnomalyCLIPConfig

    return [f for f in fields(AnomalyCLIPConfig) if f.name not in SHAPE]


def make_config(args, classes, feature_dim: int, temporal_feature_dim: int | None):
    """The config of the data's sizes, the preset and what the user gave."""
    from anomalyclip import AnomalyCLIPConfig
    from videoanomaly.systems import catalogue

    names = {f.name for f in config_fields()}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    for text in args.lambdas:
        name, _, value = text.partition("=")
        if f"lambda_{name}" not in names:
            known = ", ".join(sorted(n.removeprefix("lambda_") for n in names if n.startswith("lambda_")))
            raise InputError(f"--lambdas {text}: found loss {name!r}, expected one of {known}")
        try:
            given[f"lambda_{name}"] = float(value)
        except ValueError:
            raise InputError(f"--lambdas {text}: found weight {value!r}, expected a number") from None
    try:
        config = AnomalyCLIPConfig(
            classes=classes, feature_dim=feature_dim, temporal_feature_dim=temporal_feature_dim, **given
        )
        if args.model in catalogue.SYSTEMS:
            catalogue.SYSTEMS[args.model].check(config)
    except ValueError as error:
        raise InputError(str(error)) from None
    if args.model == "anomalyclip" and config.num_segments < 2 * config.topk:  # which selects top and bottom ones
        raise InputError(f"--num-segments {config.num_segments}: expected at least {2 * config.topk}, twice --topk")
    return config
