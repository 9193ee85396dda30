"""Who was let in: sessions as cookies that only this service can have made, tokens of forms, attempts slowed down.

Nothing is stored for a session. Its cookie holds when it ends and a keyed hash, which another token makes worthless.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
import time
from collections import OrderedDict
from pathlib import Path

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically

LIFETIME = 30 * 86400  # seconds of a session
KEY_BYTES = 32
FREE_ATTEMPTS = 5  # wrong tokens of an address before it has to wait
LONGEST_WAIT = 60.0  # seconds
MOST_ADDRESSES = 1000  # that are remembered


def read_key(folder: Path) -> bytes:
    """The key of all hashes, kept in a file that only its owner reads, so that sessions outlast a restart.

    Raises:
        InputError: If it cannot be read or made.
    """
    path = folder / "page.key"

    def write(file) -> None:
        os.chmod(file.name, 0o600)
        file.write(secrets.token_bytes(KEY_BYTES))

    try:
        if not path.exists() or len(path.read_bytes()) != KEY_BYTES:
            write_atomically(path, write)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be used ({error.strerror or error}), expected a file of ours") from None


class Sessions:
    """Makes and checks cookies and tokens of forms.

    Args:
        key: Of all hashes.
    """

    def __init__(self, key: bytes):
        self.key = key
        # a browser sends a machine's cookies to all of its ports: two services there have two names
        self.cookie = f"watch_{hashlib.sha256(key).hexdigest()[:8]}"

    def sign(self, *words: str) -> str:
        return hmac.new(self.key, "\n".join(words).encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def issue(self, token: str | None) -> str:
        """A new session; without a token for anybody who asks."""
        content = f"{int(time.time()) + LIFETIME}.{secrets.token_hex(16)}"
        return f"{content}.{self.sign('session', content, token or '')}"

    def is_valid(self, session: str, token: str | None) -> bool:
        """Whether it was made here for the present token, and has not ended."""
        content, _, signature = session.rpartition(".")
        if not same(signature, self.sign("session", content, token or "")):
            return False
        return int(content.partition(".")[0]) > time.time()

    def form_token(self, session: str) -> str:
        """What the forms of a session send along, and no other site knows."""
        return self.sign("form", session) if session else ""


def same(given: str, expected: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


class Attempts:
    """Wrong tokens by the address they came from: after a few each costs twice the wait of the one before."""

    def __init__(self):
        self.wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many; until when to wait

    def wait(self, address: str) -> float:
        """Seconds until the address may try again."""
        return max(self.wrong.get(network(address), (0, 0.0))[1] - time.monotonic(), 0.0)

    def failed(self, address: str) -> None:
        key = network(address)
        count = self.wrong.pop(key, (0, 0.0))[0] + 1
        wait = min(2.0 ** (count - FREE_ATTEMPTS), LONGEST_WAIT) if count >= FREE_ATTEMPTS else 0.0
        self.wrong[key] = count, time.monotonic() + wait
        while len(self.wrong) > MOST_ADDRESSES:
            self.wrong.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self.wrong.pop(network(address), None)


def network(address: str) -> str:
    """What one client has: an IPv4 address, or 64 bits of IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6:
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return address
