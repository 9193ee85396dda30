"""Addresses of streams and webhooks: which can never be right, which are meant for a file, and what may be shown.

They hold passwords, tokens and keys, so no message shows more of one than `public_name` gives.
"""

import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from videoanomaly.runtime.console import InputError

# what FFmpeg reads of the network: from a server, or from whoever sends to a port of ours
STREAMS = tuple("rtsp rtsps satip rtmp rtmps rtmpe rtmpt rtmpte rtmpts http https ftp sftp mms mmsh mmst".split())
LISTENING = tuple("udp udplite rtp srtp tcp tls dtls srt rist".split())
WEBHOOKS = ("http", "https")
MEANT = re.compile(r"(?!file:)[a-z][a-z\d+.-]+:[/\\]|.*(:.*@|\?.*=)", re.I | re.S)  # a path makes one slash of two
SPLIT = re.compile(r"(?P<place>[^/?#]*)(?P<rest>.*)", re.S)
HOST = re.compile(r"(\[(?P<ipv6>[^\]]+)\]|(?P<name>[^:\[\]]*))(:(?P<port>[0-9]{1,5}))?")
PLAIN_URL = re.compile(
    r"(?P<scheme>[\w+.-]+)://([^/?#@\s]*@)?(?P<host>[^/?#@:\s\[\]]*|\[[\da-fA-F:.]+\])(?P<port>:\d+)?"
    r"(?P<path>/[^?#@\s]*)?([?#][^@\s]*)?"
)
HINT = "; in user and password write %23 for #, %2F for /, %3F for ?, %40 for @, %20 for a blank"


def public_name(url: str) -> str:
    """An address without user, password, query and fragment; the scheme alone where it is not clear what is which."""
    match = PLAIN_URL.fullmatch(url)
    if not match:
        scheme = re.match(r"([a-z][a-z\d+.-]*)://", url, re.I)
        return f"{scheme[1]}://..." if scheme else "..."
    path = re.sub("[^/]*[=;&].*", "...", match["path"] or "")  # some cameras take user=NAME&password=... there
    return f"{match['scheme']}://{match['host']}{match['port'] or ''}{path}"


def what_is_wrong(address: str, schemes: Collection[str], listening: Collection[str]) -> str | None:
    """Why nothing can ever come of an address, if that can be seen; see `check_address`."""
    scheme, slashes, behind = address.partition("://")
    parts = SPLIT.fullmatch(behind)
    assert parts, "everything matches"
    place, rest = parts.groups()
    host = HOST.fullmatch(place.rpartition("@")[2])
    if not slashes or scheme.lower() not in {*schemes, *listening}:
        return f"that does not begin with one of {' '.join(f'{known}://' for known in (*schemes, *listening))}"
    if " " in address or not address.isprintable():
        return "with a blank or a control character in it"
    before_at, at, _ = rest.partition("@")
    if at and "@" not in place and ("#" in before_at or re.match(r"[^:.\[]+:", place)):  # parts of a password
        return "with an @ behind a #, / or ?"
    if not host:
        return "whose port is no number, or whose IPv6 address has no [ ] around it"
    if host["port"] and not 0 < int(host["port"]) < 2**16:
        return "with a port that is not 1 to 65535"
    if scheme.lower() in listening and not host["port"]:
        return "without a port"
    if scheme.lower() in schemes and not (host["ipv6"] or host["name"]):
        return "without a host"
    try:
        ipaddress.IPv6Address((host["ipv6"] or "::").partition("%")[0])
    except ValueError:
        return "with something else than an IPv6 address in [ ]"
    return None


def check_address(option: str, address: str, schemes: Collection[str], listening: Collection[str] = ()) -> str:
    """The address with its scheme in lower case.

    Args:
        option: That gave it.
        address: SCHEME://USER:PASSWORD@HOST:PORT/PATH, of which only scheme and host are needed.
        schemes: Those that may be, in lower case.
        listening: Those where a port is needed, but no host.
    Raises:
        InputError: If nothing can ever come of it. It does not show the address.
    """
    if wrong := what_is_wrong(address, schemes, listening):
        raise InputError(f"{option}: found an address {wrong}, expected SCHEME://USER:PASSWORD@HOST:PORT/PATH{HINT}")
    scheme, slashes, behind = address.partition("://")
    return scheme.lower() + slashes + behind


def is_address(text: str | Path) -> bool:
    """Whether something is meant as an address, or has a password as addresses have; a file that is there is none."""
    return bool(MEANT.match(str(text))) and not os.path.exists(text)


def refuse_addresses(given: Mapping[str, object]) -> None:
    """Refuses addresses where files are expected.

    Args:
        given: What was given, a value or a list of them by the name of the option; only texts and paths are looked at.
    Raises:
        InputError: If one is an address; it shows no password.
    """
    for name, value in given.items():
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(text, (str, Path)) and is_address(text):
                shown = public_name(re.sub(r":[/\\]+", "://", str(text), count=1))
                raise InputError(
                    f"{name}: found the address {shown}, expected a file or folder; predict.py --live takes addresses"
                )
