"""What tests of the page look at: a store with events, a board with cameras, and a client that speaks plain HTTP."""

import http.client
import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from videoanomaly.watching.board import Board, CameraStatus
from videoanomaly.watching.store.event_store import EventStore, NewEvent, Progress
from videoanomaly.watching.watch_settings import Messages, Page, WatchSettings
from videoanomaly.watching.web.page import PageServer

CLASSES = ("fire", "fall_down", "theft")
TOKEN = "a-token-of-the-tests"


def jpeg(grey: int = 90, size: tuple[int, int] = (640, 360)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, grey).save(file, "JPEG")
    return file.getvalue()


def progress(end: float, name: str = "fire", peak: float = 0.8, curve: np.ndarray | None = None) -> Progress:
    curve = np.array([0.1, 0.2, peak, 0.3], np.float32) if curve is None else curve
    others = [kind for kind in CLASSES if kind != name][:2]
    classes = [{"class": name, "p_class": 0.7}, *({"class": kind, "p_class": 0.1} for kind in others)]
    return Progress(end, classes, 0.55, peak, end - 1, curve, end - 4, 1.0)


def add_event(
    store: EventStore,
    camera: str = "door",
    start: float = 1e9,
    name: str = "fire",
    *,
    is_open: bool = False,
    length=4.0,
) -> str:
    """An event of a few seconds."""
    state = progress(start + length, name)
    id = store.begin(NewEvent(camera, start, state, "ab" * 32, 0.5, "chosen by hand"))
    if not is_open:
        store.end(id, state)
    return id


def add_clip(store: EventStore, id: str, content: bytes, name: str | None = None) -> Path:
    path = store.clips / (name or f"{id}.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    store.set_clip(id, path.relative_to(store.clips).as_posix(), len(content))
    return path


def make_board(*names: str, **values: Any) -> Board:
    """Connected cameras with a picture of this moment."""
    board = Board()
    for name in names:
        fields = {"state": "connected", "last_frame": time.time(), "threshold": 0.5} | values
        board.add(CameraStatus(name, "rtsp://camera/", **fields))
    return board


def settings_of(folder: Path, token: str | None = None, page_url: str = "", **page: Any) -> WatchSettings:
    page = {"port": 0} | page
    return WatchSettings(
        folder / "watch.toml",
        "last.pt",
        str(folder),
        page=Page(token=token, **page),
        messages=Messages(page_url=page_url),
    )


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # by names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """A browser without a window: cookies, the headers that browsers send, no redirects, no scripts."""

    def __init__(self, port: int, host: str = ""):
        self.port, self.host, self.cookies = port, host or f"127.0.0.1:{port}", dict[str, str]()

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str | None) -> Answer:
        """Headers with _ for -; None leaves one out."""
        given = {"host": self.host, "accept": "text/html"} | {k.replace("_", "-"): v for k, v in headers.items()}
        if self.cookies:
            given = {"cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} | given
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = {name: value for name, value in given.items() if value is not None}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()
        if set_cookie := found.headers.get("set-cookie"):
            name, _, value = set_cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return found

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, fields: dict[str, str], **headers: str | None) -> Answer:
        """As a form of our own page would."""
        own = {"content_type": "application/x-www-form-urlencoded", "origin": f"http://{self.host}"}
        return self.ask("POST", path, urlencode(fields), **own | headers)

    def form_token(self, path: str = "/") -> str:
        return re.findall(r'name="token" value="(\w+)"', self.get(path).text)[0]


@contextmanager
def serving(board: Board, store: EventStore, settings: WatchSettings, **more: Any) -> Iterator[PageServer]:
    server = PageServer(board, store, settings, CLASSES, **more)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def until(condition, seconds: float = 20.0):
    """What a condition gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


class Listener(threading.Thread):
    """Follows /updates; the messages, and the times at which they came."""

    def __init__(self, client: Client, path: str = "/updates"):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        self.connection.request(
            "GET",
            path,
            headers={"host": client.host, "cookie": "; ".join(f"{k}={v}" for k, v in client.cookies.items())},
        )
        self.answer = self.connection.getresponse()
        self.messages: list[str] = []
        self.times: list[float] = []
        self.start()

    def close(self) -> None:
        """Goes away, as a browser's tab does."""
        with suppress(OSError):
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(5)
        self.connection.close()

    def run(self) -> None:
        try:
            while line := self.answer.readline():
                if line.startswith(b"data: "):
                    self.messages.append(line[6:].decode())
                    self.times.append(time.monotonic())
        except (OSError, ValueError, AttributeError):
            return


class World:
    """A page on two cameras, and a client of it."""

    def __init__(self, folder: Path, server: PageServer, board: Board, store: EventStore):
        self.folder, self.server, self.board, self.store = folder, server, board, store
        self.client = Client(server.port)

    def keys(self, query: str = "") -> list[str]:
        return re.findall(r'data-key="([0-9a-f-]{36})"', self.client.get(f"/{query}").text)

    def post(self, id: str, action: str, **fields: str) -> Answer:
        return self.client.post(f"/events/{id}/{action}", fields | {"token": self.client.form_token()})


@contextmanager
def make_world(folder: Path) -> Iterator[World]:
    """Its page without a token."""
    board, store = make_board("door", "yard"), EventStore(folder)
    with serving(board, store, settings_of(folder)) as server:
        yield World(folder, server, board, store)
