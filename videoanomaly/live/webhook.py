"""Posts JSON to a URL from a thread of its own: whatever the receiver does, the caller never waits for it.

Addresses carry secrets (user:password@, tokens in queries and paths), so notes never name the webhook's; `public_name`
gives what may be shown of another.
"""

import base64
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import unquote, urlsplit

from videoanomaly.runtime.console import InputError, note

TIMEOUT = 5.0  # seconds, for each wait within a request
DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
MAX_WAITING = 100  # events; the oldest goes first
CLOSING = 5.0  # seconds that the end of the program waits for the last events
PLAIN_URL = re.compile(
    r"(?P<scheme>[\w+.-]+)://([^/?#@\s]*@)?(?P<host>[^/?#@:\s\[\]]*|\[[\da-fA-F:.]+\])(?P<port>:\d+)?"
    r"(?P<path>/[^?#@\s]*)?([?#][^@\s]*)?"
)


def public_name(url: str) -> str:
    """An address without user, password, query and fragment; the scheme alone where it is not clear what is which."""
    match = PLAIN_URL.fullmatch(url)
    if not match:
        return f"{url.partition('://')[0]}://..."
    return f"{match['scheme']}://{match['host']}{match['port'] or ''}{match['path'] or ''}"


def note_sparingly(count: int, text: str) -> None:
    """The 1st, the 10th and every 100th time."""
    if count in (1, 10) or count % 100 == 0:
        note(f"webhook: {text}: {count} so far")


class SameMethodRedirects(urllib.request.HTTPRedirectHandler):
    """Follows 307 and 308, which post again; after others nothing would be posted, so they are errors."""

    max_redirections = max_repeats = 3

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The request to post to `newurl`; None: an error."""
        if code not in (307, 308) or not newurl.startswith(("http://", "https://")):
            return None
        return urllib.request.Request(newurl, req.data, req.headers)  # without the password, it may be another host

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not follow it by itself


def make_request(url: str) -> tuple[str, dict[str, str]]:
    """The URL without user and password, and the header that carries them instead.

    Raises:
        InputError: If it is not an http or https URL.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True) and url.isprintable()
    except ValueError:
        valid = False
    if not valid or " " in url:
        raise InputError("--webhook: found no address with http:// or https:// and a host, expected one")  # never shown
    user, at, host = parts.netloc.rpartition("@")
    headers = {"Authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if at else {}
    return parts._replace(netloc=host, fragment="").geturl(), headers


class Webhook:
    """A queue of events and the thread that posts them, each up to 5 times; what fails for good is noted and left out.

    Args:
        url: http or https, user:password@ included if need be.
    Raises:
        InputError: If the URL is none of these.
    """

    def __init__(self, url: str):
        self.url, self.secret_headers = make_request(url)
        self.opener = urllib.request.build_opener(SameMethodRedirects)
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
            except urllib.error.HTTPError as error:
                error.close()
                reason, is_final = f"HTTP status {error.code}", error.code < 500 and error.code not in (408, 429)
            except (OSError, HTTPException, ValueError) as error:  # the text may hold the URL
                cause = getattr(error, "reason", error)
                reason, is_final = getattr(cause, "strerror", None) or type(cause).__name__, False
            if is_final or delay is None or self.closing:
                return reason
            self.pause(delay)

    def send(self, body: bytes) -> None:
        """One attempt; OSError, HTTPException or ValueError if it fails."""
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"}, method="POST")
        for name, value in self.secret_headers.items():
            request.add_unredirected_header(name, value)
        self.opener.open(request, timeout=TIMEOUT).close()

    def pause(self, seconds: float) -> None:
        """Waits so long, or until the queue is closed."""
        until = time.monotonic() + seconds
        with self.changed:
            self.changed.wait_for(lambda: self.closing or time.monotonic() >= until, seconds)
