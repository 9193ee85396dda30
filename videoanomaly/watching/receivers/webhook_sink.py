"""Messages to an http(s) address: one POST each, with a key by which the receiver knows one that it has already."""

import json
import urllib.error
from typing import Any

from videoanomaly.live.webhook import Poster, reason_of
from videoanomaly.runtime.console import InputError
from videoanomaly.watching.receivers.outbox import NotDelivered
from videoanomaly.watching.watch_settings import WebhookSettings

REFUSED = (400, 413, 415, 422)  # statuses about the message itself; with others the receiver may yet be put right


class WebhookSink:
    """A `Sink`; see there.

    Args:
        settings: Its URL, and its token, which goes to that URL alone.
    Raises:
        InputError: If the URL or the token can never be right; it shows neither.
    """

    def __init__(self, settings: WebhookSettings):
        self.name = f"webhook.{settings.name}"
        headers = {}
        if settings.token is not None:
            if not settings.token.isascii() or not settings.token.isprintable() or not settings.token.strip():
                raise InputError(f"[{self.name}]: token: expected printable ASCII characters")
            headers["Authorization"] = f"Bearer {settings.token}"
        self.poster = Poster(settings.url, f"[{self.name}]: url", headers)

    def start(self) -> None:
        """There is nothing to open."""

    def on_return(self) -> None:
        """Nobody tells that a receiver is there again."""

    def send(self, message: dict[str, Any], key: str) -> None:
        try:
            self.poster.send(json.dumps(message).encode(), {"Idempotency-Key": key})
        except Exception as error:
            is_final = isinstance(error, urllib.error.HTTPError) and error.code in REFUSED
            raise NotDelivered(reason_of(error), is_final) from None  # the error's text may hold the URL

    def close(self) -> None:
        """Nothing is kept open."""
