"""What is found out before anything is begun or changed: whether settings can be followed, and how each camera is."""

from typing import NamedTuple

from videoanomaly.live.streams import Source, find_source
from videoanomaly.prediction.api import Recogniser
from videoanomaly.prediction.operating_point import choose_threshold
from videoanomaly.runtime.console import InputError, some_of
from videoanomaly.watching.receivers.mqtt_link import make_security
from videoanomaly.watching.receivers.webhook_sink import WebhookSink
from videoanomaly.watching.watch_settings import CameraSettings, WatchSettings, as_keys


class Plan(NamedTuple):
    """A camera that is to be watched."""

    settings: CameraSettings
    source: Source
    threshold: float
    rule: str  # that gave it


def find_sources(settings: WatchSettings) -> list[Source]:
    """How each camera is opened.

    Raises:
        InputError: If it is one of which nothing can ever come.
    """
    where = f"{settings.path}, [camera.{{}}]: url"
    return [find_source(camera.address, where.format(camera.name)) for camera in settings.cameras]


def make_plans(settings: WatchSettings, recogniser: Recogniser) -> dict[str, Plan]:
    """How cameras are watched, by name.

    Raises:
        InputError: If a camera, or a receiver of messages, can never be what the settings say.
    """
    for hook in settings.webhooks:
        WebhookSink(hook)
    if settings.mqtt:
        make_security(settings.mqtt)
    pairs = zip(settings.cameras, find_sources(settings))
    return {camera.name: make_plan(settings, camera, source, recogniser) for camera, source in pairs}


def make_plan(settings: WatchSettings, camera: CameraSettings, source: Source, recogniser: Recogniser) -> Plan:
    """Its threshold is its own, that of all cameras, or the checkpoint's."""
    where, loaded = f"{settings.path}, [camera.{camera.name}]", recogniser.loaded
    if unknown := [name for name in camera.classes if name not in recogniser.classes]:
        expected = f"expected some of {', '.join(recogniser.classes)}"
        raise InputError(f"{where}: classes: found {some_of(unknown)}, {expected}")
    has_own = camera.threshold is not None or camera.false_alarms_per_hour is not None
    own = camera if has_own else settings.events
    asked = (own.threshold, own.false_alarms_per_hour)
    try:
        return Plan(camera, source, *choose_threshold(settings.checkpoint, loaded.checkpoint, loaded.curve, *asked))
    except InputError as error:
        raise InputError(f"{where}: {as_keys(error)}") from None
