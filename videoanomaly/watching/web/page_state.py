"""What the routes of the page share, and what most of them do with a request."""

from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from videoanomaly.watching.board import Board
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import WatchSettings
from videoanomaly.watching.web.markup import Html
from videoanomaly.watching.web.monitoring import Health
from videoanomaly.watching.web.page_frame import frame
from videoanomaly.watching.web.page_updates import Hub
from videoanomaly.watching.web.sessions import Sessions


@dataclass
class PageState:
    """What the routes share; settings and classes are others after a reload."""

    board: Board
    store: EventStore
    settings: WatchSettings
    classes: tuple[str, ...]
    sessions: Sessions
    hub: Hub
    health: Health
    registry: CollectorRegistry


def of_page(request: Request) -> PageState:
    return request.app.state.page


def html_page(request: Request, title: str, body: Html, updates: str = "", status: int = 200) -> Response:
    page, caller = of_page(request), request.state.caller
    token = page.sessions.form_token(caller.session)
    may_log_out = bool(page.settings.page.token and caller.session)
    return HTMLResponse(frame(title, body, updates=updates, form_token=token, may_log_out=may_log_out), status)


def found_event(request: Request) -> dict[str, Any]:
    """The event of the address; 404 if it is gone."""
    event = of_page(request).store.event(request.path_params["id"])
    if event is None:
        raise HTTPException(404, "This event is gone, or never was")
    return event
