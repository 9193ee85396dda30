"""Posts JSON to a URL from a thread of its own: whatever the receiver does, the caller never waits for it.

Addresses carry secrets (user:password@, tokens in queries and paths), so notes never name the webhook's.
"""

import base64
import io
import json
import os
import socket
import string
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from errno import ETIMEDOUT
from http.client import HTTPMessage, HTTPResponse
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from videoanomaly.runtime.addresses import WEBHOOKS, check_address
from videoanomaly.runtime.console import InputError, note

TIMEOUT = 5.0  # seconds for a whole attempt, whatever the receiver sends, and however slowly
DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
MAX_WAITING = 100  # events; the oldest goes first
CLOSING = 5.0  # seconds that the end of the program waits for the last events


def is_told(count: int) -> bool:
    """The 1st, the 10th and every 100th time."""
    return count in (1, 10) or count % 100 == 0


def note_sparingly(count: int, text: str) -> None:
    if is_told(count):
        note(f"webhook: {text}: {count} so far")


class TimedReader(io.RawIOBase):
    """What a socket receives, until the time is over; `remaining` gives the seconds that are left, or raises."""

    def __init__(self, sock: socket.socket, remaining: Callable[[], float]):
        self.sock, self.file, self.remaining = sock, sock.makefile("rb", buffering=0), remaining

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self.sock.settimeout(self.remaining())
        return self.file.readinto(buffer)

    def close(self) -> None:
        self.file.close()
        super().close()


class Timed(urllib.request.AbstractHTTPHandler):
    """Connects, sends and reads within the seconds that are left."""

    remaining: Callable[[], float]

    def do_open(self, http_class: Any, req: urllib.request.Request, **how: Any) -> HTTPResponse:
        """As its parent's; the connection's responses, also those of a proxy, are read in time."""

        def respond(sock: socket.socket, *given: Any, **named: Any) -> HTTPResponse:
            response = HTTPResponse(sock, *given, **named)
            response.fp.close()
            response.fp = io.BufferedReader(TimedReader(sock, self.remaining))
            return response

        def connect(host: str, **named: Any) -> Any:
            connection = http_class(host, **named)
            connection.response_class = respond
            return connection

        req.timeout = self.remaining()
        return super().do_open(connect, req, **how)


class TimedHTTP(Timed, urllib.request.HTTPHandler):
    """http://"""


class TimedHTTPS(Timed, urllib.request.HTTPSHandler):
    """https://"""


class NearRedirects(urllib.request.HTTPRedirectHandler):
    """Follows 307 and 308, which post again, on the same host, from https to https alone; others are errors."""

    max_redirections = max_repeats = 3

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The request to post to `newurl`; None: an error."""
        fp.close()  # of the body nothing is read, it may have no end
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        schemes = ("https",) if old.scheme == "https" else ("http", "https")
        if code not in (307, 308) or new.scheme not in schemes or new.hostname != old.hostname:
            return None
        return urllib.request.Request(newurl, req.data, req.headers)  # without the password


def make_request(url: str, option: str = "--webhook") -> tuple[str, dict[str, str]]:
    """The URL without user and password, and the header that carries them instead.

    Raises:
        InputError: If it is not an http or https URL; it names the option, not the URL.
    """
    try:
        parts = urlsplit(check_address(option, url, WEBHOOKS))
    except InputError:
        raise
    except ValueError:  # whose text has the host; odd letters that stand for / or @
        raise InputError(f"{option}: found an address with odd letters in the host, expected others") from None
    user, at, host = parts.netloc.rpartition("@")
    headers = {"Authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if at else {}
    path, query = (quote(part, string.punctuation) for part in (parts.path, parts.query))
    return parts._replace(netloc=host, path=path, query=query, fragment="").geturl(), headers


def reason_of(error: Exception) -> str:
    """Why an attempt failed; not the error's own text, which may hold the URL."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP status {error.code}" + ", a redirect that is not followed" * (300 <= error.code < 400)
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__


class Poster:
    """Posts JSON to one URL, one attempt at a time.

    Args:
        url: http or https, user:password@ included if need be.
        option: That gave it.
        secret_headers: Sent to this URL, but to none that it redirects to.
    Raises:
        InputError: If the URL is none of these.
    """

    def __init__(self, url: str, option: str = "--webhook", secret_headers: Mapping[str, str] = MappingProxyType({})):
        self.url, own = make_request(url, option)
        self.secret_headers = {**own, **secret_headers}
        handlers = TimedHTTP(), TimedHTTPS()
        for handler in handlers:
            handler.remaining = self.remaining
        self.opener, self.until = urllib.request.build_opener(NearRedirects, *handlers), 0.0

    def send(self, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """One attempt of TIMEOUT seconds; an exception if it fails, see `reason_of`."""
        self.until = time.monotonic() + TIMEOUT
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url, body, headers, method="POST")
        for name, value in self.secret_headers.items():
            request.add_unredirected_header(name, value)
        self.opener.open(request).close()

    def remaining(self) -> float:
        """Seconds that are left of the attempt; a TimeoutError if there are none."""
        if (seconds := self.until - time.monotonic()) <= 0:
            raise TimeoutError(ETIMEDOUT, os.strerror(ETIMEDOUT))
        return seconds


class Webhook(Poster):
    """A queue of events and the thread that posts them, each up to 5 times; what fails for good is noted and left out.

    Args:
        url: http or https, user:password@ included if need be.
    Raises:
        InputError: If the URL is none of these.
    """

    def __init__(self, url: str):
        super().__init__(url)
        self.waiting: deque[dict] = deque()
        self.changed = threading.Condition()
        self.closing, self.num_dropped, self.num_failed = False, 0, 0
        self.thread = threading.Thread(target=self.work, daemon=True)  # a receiver that hangs does not keep the program
        self.thread.start()

    def post(self, event: dict) -> None:
        """Puts the event into the queue, at once."""
        with self.changed:
            if len(self.waiting) == MAX_WAITING:
                self.waiting.popleft()
                self.num_dropped += 1
                note_sparingly(self.num_dropped, "too slow, oldest events dropped")
            self.waiting.append(event)
            self.changed.notify()

    def close(self) -> None:
        """Waits a few seconds for what is in the queue; each event now has one attempt."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(CLOSING)
        if self.thread.is_alive() or self.waiting:
            note(f"webhook: {len(self.waiting) + self.thread.is_alive()} events were not delivered")

    def work(self) -> None:
        """Posts what is in the queue until it is empty and closed."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closing)
                if not self.waiting:
                    return
                event = self.waiting.popleft()
            if reason := self.deliver(json.dumps(event).encode()):
                self.num_failed += 1
                note_sparingly(self.num_failed, f"events not delivered ({reason})")

    def deliver(self, body: bytes) -> str | None:
        """Tries up to 5 times; what was wrong the last time, None if it was taken."""
        for delay in (*DELAYS, None):
            try:
                self.send(body)
                return None
            except Exception as error:
                reason, code = reason_of(error), getattr(error, "code", 500)
                is_final = code < 500 and code not in (408, 429)
            if is_final or delay is None or self.closing:
                return reason
            self.pause(delay)

    def pause(self, seconds: float) -> None:
        """Waits so long, or until the queue is closed."""
        until = time.monotonic() + seconds
        with self.changed:
            self.changed.wait_for(lambda: self.closing or time.monotonic() >= until, seconds)
