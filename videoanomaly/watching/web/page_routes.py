"""The routes of the page. Reading is GET; each change of the store is a POST that `page_guard` has let through."""

import hashlib
import io
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from videoanomaly.prediction.report import MEDIA_TYPES
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import check_inside
from videoanomaly.watching.board import STRIP_STEP
from videoanomaly.watching.label_export import as_label
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web.camera_views import cameras_view
from videoanomaly.watching.web.event_detail import LONGEST_COMMENT, event_body, event_view
from videoanomaly.watching.web.event_filter import EventFilter, read_filter
from videoanomaly.watching.web.event_list import event_row, events_view, filter_form, overview
from videoanomaly.watching.web.markup import utc
from videoanomaly.watching.web.monitoring import exposition
from videoanomaly.watching.web.page_frame import STATIC
from videoanomaly.watching.web.page_guard import Caller, local_path
from videoanomaly.watching.web.page_state import found_event, html_page, of_page
from videoanomaly.watching.web.page_updates import MOST_VIEWERS, Feed, changes

THUMBNAIL = (320, 180)  # pixels at most
STATIC_FILES = {"page.css": "text/css", "page.js": "text/javascript"}


def with_tag(request: Request, body: bytes, media_type: str, make: Callable[[bytes], bytes] = bytes) -> Response:
    """What `make` makes of a body, unless the browser has it: it asks each time, and hears that nothing changed."""
    digest = hashlib.sha256(body + make.__name__.encode()).hexdigest()[:24]
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(make(body), headers=headers, media_type=media_type)


# ---- pages


def wanted_events(request: Request) -> EventFilter:
    return read_filter(request.query_params.multi_items())


def show_overview(request: Request) -> Response:
    """Cameras and events."""
    page, wanted = of_page(request), wanted_events(request)
    cameras, events = cameras_view(page.board), events_view(page.store, wanted)
    form = filter_form(wanted, cameras["cameras"], page.classes)
    updates = f"/updates?{request.url.query}" if request.url.query else "/updates"
    return html_page(request, "Cameras and events", overview(cameras, events, form), updates)


def show_event(request: Request) -> Response:
    """One event."""
    page, event = of_page(request), found_event(request)
    older = page.store.events(before=event["id"], limit=1)
    body = event_body(event_view(page.store, event["id"], page.classes), older[0]["id"] if older else None)
    title = f"{event['class'].replace('_', ' ')}, {event['camera']}"
    return html_page(request, title, body, f"/updates?event={event['id']}")


async def show_updates(request: Request) -> Response:
    """News for a page as server-sent events; `event` names the one that it shows."""
    page, store = of_page(request), of_page(request).store
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    if page.hub.num_viewers >= MOST_VIEWERS:
        raise HTTPException(503, "Too many pages are open", {"Retry-After": "30"})
    if id := request.query_params.get("event", "")[:40]:
        feeds = {f"event {id}": Feed(lambda: store.version, lambda: event_view(store, id, page.classes))}
    else:
        wanted = wanted_events(request)
        feeds = {
            "cameras": Feed(
                lambda: (page.board.version, int(time.time() // STRIP_STEP)), lambda: cameras_view(page.board)
            ),
            f"events {wanted}": Feed(lambda: store.version, lambda: events_view(store, wanted)),
        }
    headers = {"X-Accel-Buffering": "no"}  # for proxies that would keep messages back
    return StreamingResponse(page.hub.messages(feeds), headers=headers, media_type="text/event-stream")


def send_static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC_FILES:
        raise HTTPException(404, "There is no such file")
    return with_tag(request, (STATIC / name).read_bytes(), STATIC_FILES[name])


# ---- pictures and clips


def thumbnail(jpeg: bytes) -> bytes:
    """A small one; the picture itself if it cannot be read."""
    try:
        image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
        image.draft("RGB", THUMBNAIL)
        image.thumbnail(THUMBNAIL)
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=80)
        return file.getvalue()
    except (OSError, ValueError, Image.DecompressionBombError):
        return jpeg


def send_snapshot(request: Request) -> Response:
    """The picture of the highest p_A, whole or small."""
    jpeg = of_page(request).store.snapshot(request.path_params["id"])
    if jpeg is None:
        raise HTTPException(404, "There is no such picture")
    return with_tag(request, jpeg, "image/jpeg", thumbnail if request.url.path.endswith("thumbnail.jpg") else bytes)


def send_clip(request: Request) -> Response:
    """The clip, or the parts of it that are asked for. Its name comes from the store, never from the address."""
    event, clips = found_event(request), of_page(request).store.clips
    path = clips / (event["clip"] or "")
    try:
        check_inside(path, clips)
    except InputError:
        raise HTTPException(404, "This clip is not where clips are") from None
    if not path.is_file():
        raise HTTPException(404, event["clip_note"] or "There is no clip")
    return FileResponse(
        path,
        headers={"Cache-Control": "private, no-cache"},
        media_type=MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
        filename=f"{event['camera']}_{utc(event['start']):%Y%m%dT%H%M%SZ}{path.suffix}",
        content_disposition_type="attachment" if request.query_params.get("download") else "inline",
    )


# ---- changes


def change(request: Request, make: Callable[[EventStore, str, dict[str, str]], None]) -> Response:
    """Changes an event as a form says. Scripts get the pieces that are others now, a browser goes back to its page."""
    page, id = of_page(request), request.path_params["id"]
    try:
        make(page.store, id, request.state.form)
    except KeyError:
        raise HTTPException(404, "This event is gone") from None
    if "application/json" not in request.headers.get("accept", ""):
        return RedirectResponse(page_before(request) or f"/events/{id}", 303)
    event = page.store.event(id)
    row = {"events": {"html": {id: event_row(event).html}}} if event else {}
    return JSONResponse(row | changes({"parts": event_view(page.store, id, page.classes)["parts"]}, {}))


def page_before(request: Request) -> str:
    """The page of ours on which the form stood; nothing if the browser does not tell."""
    before = urlsplit(request.headers.get("referer", ""))
    if before.netloc.lower() != request.headers.get("host", "").lower():
        return ""
    return local_path(before.path + (f"?{before.query}" if before.query else ""))


def change_star(request: Request) -> Response:
    return change(request, lambda store, id, form: store.set_star(id, bool(form.get("starred"))))


def change_comment(request: Request) -> Response:
    def make(store: EventStore, id: str, form: dict[str, str]) -> None:
        text = form.get("comment", "").replace("\r\n", "\n").strip()
        if len(text) > LONGEST_COMMENT:
            raise HTTPException(400, f"A comment may have {LONGEST_COMMENT} characters, this one has {len(text)}")
        store.set_comment(id, text)

    return change(request, make)


def change_mark(request: Request) -> Response:
    """Right, wrong with what it was instead, or neither."""

    def make(store: EventStore, id: str, form: dict[str, str]) -> None:
        mark, label = form.get("mark", ""), form.get("new_label", "").strip() or form.get("label", "")
        if mark not in ("", "right", "wrong"):
            raise HTTPException(400, "A mark is right or wrong")
        if mark == "wrong" and label and (label := as_label(label)) is None:
            raise HTTPException(400, "A class has up to 60 letters, digits, blanks, - and _, a letter or digit first")
        store.set_mark(id, mark or None, label or None if mark == "wrong" else None)

    return change(request, make)


def log_out(request: Request) -> Response:
    """The browser forgets its session."""
    request.state.caller = Caller(sets_cookie=True)
    return RedirectResponse("/", 303)


# ---- for programs


def send_health(request: Request) -> Response:
    page = of_page(request)
    status, found = page.health.look(page.settings.page.stale_after)
    return JSONResponse(found, status)


def send_metrics(request: Request) -> Response:
    body, media_type = exposition(of_page(request).registry, request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type})


def send_cameras(request: Request) -> Response:
    board = of_page(request).board
    return JSONResponse([camera | {"strip": board.strip(camera["name"])} for camera in board.snapshot()])


def send_events(request: Request) -> Response:
    return JSONResponse(of_page(request).store.events(**wanted_events(request).arguments()))


def send_event(request: Request) -> Response:
    return JSONResponse(found_event(request))


ROUTES = [
    Route("/", show_overview),
    Route("/login", lambda request: RedirectResponse("/", 303)),  # of a form that was left open
    Route("/logout", log_out, methods=["POST"]),
    Route("/updates", show_updates),
    Route("/static/{name}", send_static),
    Route("/events/{id}", show_event),
    Route("/events/{id}/snapshot.jpg", send_snapshot),
    Route("/events/{id}/thumbnail.jpg", send_snapshot),
    Route("/events/{id}/clip.mp4", send_clip),  # whatever the camera's format is
    Route("/events/{id}/star", change_star, methods=["POST"]),
    Route("/events/{id}/comment", change_comment, methods=["POST"]),
    Route("/events/{id}/mark", change_mark, methods=["POST"]),
    Route("/healthz", send_health),
    Route("/metrics", send_metrics),
    Route("/api/cameras", send_cameras),
    Route("/api/events", send_events),
    Route("/api/events/{id}", send_event),
]
