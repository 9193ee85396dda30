"""The page as an app, and the thread that serves it."""

import asyncio
import errno
import logging
import os
import socket
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from videoanomaly.runtime.console import InputError, note
from videoanomaly.watching.board import Board
from videoanomaly.watching.store.database import StoreError
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import WatchSettings
from videoanomaly.watching.web.event_filter import FilterError
from videoanomaly.watching.web.markup import markup
from videoanomaly.watching.web.monitoring import Gauges, Health, make_registry
from videoanomaly.watching.web.page_guard import Guard, wants_page
from videoanomaly.watching.web.page_routes import ROUTES
from videoanomaly.watching.web.page_state import PageState, html_page
from videoanomaly.watching.web.page_updates import Hub
from videoanomaly.watching.web.sessions import Sessions, read_key

MOST_CONNECTIONS = 256
CLOSING = 0.4  # seconds that answers in progress have when the page stops
Tell = Callable[[str], None]


class Failures:
    """Tells of errors that nobody expected, each place once; their texts may hold anything, so they are not shown."""

    def __init__(self, tell: Tell):
        self.tell, self.told = tell, set[str]()

    def __call__(self, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1:] or [traceback.FrameSummary("?", 0, "?")]
        text = f"{type(error).__name__} at {Path(last[0].filename).name}:{last[0].lineno}"
        text = str(error) if isinstance(error, StoreError) else text
        if text not in self.told and len(self.told) < 100:
            self.told.add(text)
            self.tell(f"page: {text}")


def make_app(
    board: Board,
    store: EventStore,
    settings: WatchSettings,
    classes: Iterable[str] = (),
    *,
    gauges: Gauges = dict,
    tell: Tell = note,
) -> Guard:
    """The page as an ASGI app; `page` of it is what a reload changes.

    Args:
        classes: That the model knows.
        gauges: Further numbers for /metrics by name.
        tell: Takes one line.
    Raises:
        InputError: If the key of its sessions cannot be kept in the store's folder.
    """
    failures, sessions = Failures(tell), Sessions(read_key(store.folder))
    page = PageState(
        board,
        store,
        settings,
        tuple(classes),
        sessions,
        Hub(failures),
        Health(board),
        make_registry(board, store, gauges),
    )

    def failed(request: Request, error: Exception) -> Response:
        failures(error)
        return answer(request, 500, "Something went wrong here; the log of watch.py has a line on it")

    def full(request: Request, error: Exception) -> Response:
        failures(error)
        return answer(request, 503, "The database cannot be read or written now")

    handlers: dict[Any, Any] = {
        HTTPException: lambda request, error: answer(request, error.status_code, error.detail, error.headers),
        FilterError: lambda request, error: answer(request, 400, str(error)),
        StoreError: full,
        Exception: failed,
    }
    app = Starlette(routes=ROUTES, exception_handlers=handlers)
    app.state.page = page
    return Guard(app, page)


def answer(request: Request, status: int, text: str, headers: Any = None) -> Response:
    """What went wrong, as a page for browsers."""
    if not wants_page(request):
        return PlainTextResponse(f"{text}\n", status, headers)
    body = markup('<h2>{{text}}</h2><p><a href="/">All cameras and events</a></p>', text=text)
    response = html_page(request, text, body, status=status)
    response.headers.update(headers or {})
    return response


def listen(settings: WatchSettings) -> socket.socket:
    """A socket at the address of [page].

    Raises:
        InputError: If it cannot be had.
    """
    page = settings.page
    where = f"{settings.path}, [page]"
    try:
        found = socket.getaddrinfo(page.host, page.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise InputError(f"{where}: found the host {page.host}, expected an address of this machine") from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let others take the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(100)
    except OSError as error:
        sock.close()
        wrong = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"{where}: port {page.port} of {page.host} {wrong}, expected a free one") from None
    return sock


class PageServer:
    """Serves the page from a thread of its own, until `stop`.

    Args: As of `make_app`.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self, board: Board, store: EventStore, settings: WatchSettings, classes: Iterable[str] = (), **more: Any
    ):
        self.board, self.store, self.settings, self.classes, self.more = board, store, settings, tuple(classes), more
        self.port = settings.page.port
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """From its return on the page answers.

        Raises:
            InputError: If the port is in use, or the like.
        """
        self.run_on(listen(self.settings))

    def run_on(self, sock: socket.socket) -> None:
        try:
            self.app = make_app(self.board, self.store, self.settings, self.classes, **self.more)
        except BaseException:
            sock.close()
            raise
        self.port = sock.getsockname()[1]
        logging.getLogger("uvicorn").propagate = False
        config = uvicorn.Config(
            self.app,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL + 1,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # addresses and schemes are never taken from what a client writes
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=CLOSING,  # pyright: ignore[reportArgumentType]  (given to asyncio.wait_for)
        )
        self.server = uvicorn.Server(config)
        self.is_running = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(sock,), name="page", daemon=True)
        self.thread.start()
        self.is_running.wait(10.0)

    def serve(self, sock: socket.socket) -> None:
        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            self.loop.set_exception_handler(lambda _, context: failures(context.get("exception") or OSError()))
            self.is_running.set()
            await self.server.serve([sock])

        failures = self.app.page.hub.tell
        asyncio.run(run())

    def stop(self) -> None:
        """Ends within a second, whoever is connected."""
        if self.thread is None:
            return
        self.server.should_exit = True
        self.loop.call_soon_threadsafe(self.app.page.hub.close)
        self.thread.join(5.0)
        self.thread = None

    def reload(self, settings: WatchSettings, classes: Iterable[str]) -> None:
        """Takes other settings; with another address it moves there.

        Raises:
            InputError: If that address cannot be had; then nothing has changed.
        """
        old, new = self.settings.page, settings.page
        moved = listen(settings) if (old.host, old.port) != (new.host, new.port) else None
        self.settings, self.classes = settings, tuple(classes)
        if moved:
            self.stop()
            self.run_on(moved)
        else:
            self.app.page.settings, self.app.page.classes = self.settings, self.classes
