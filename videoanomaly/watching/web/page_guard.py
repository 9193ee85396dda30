"""What stands between the network and the page: host names, the token, forgery of forms, sizes, headers.

Every request passes here, so that no route can forget it. `/healthz` alone needs no token.
"""

import asyncio
import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from videoanomaly.watching.watch_settings import WatchSettings
from videoanomaly.watching.web.page_frame import login_page, waiting_page
from videoanomaly.watching.web.page_state import PageState
from videoanomaly.watching.web.sessions import LIFETIME, Attempts, same

MOST_BYTES = 64 * 1024  # of a form
MOST_FIELDS = 20
PATIENCE = 10.0  # seconds for a form to arrive
OPEN_PATH = "/healthz"
FORM = "application/x-www-form-urlencoded"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with "no-referrer" forms would come from the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, text: str, **headers: str):
        super().__init__(text)
        self.response = PlainTextResponse(f"{text}\n", status, {k.replace("_", "-"): v for k, v in headers.items()})


class Caller(NamedTuple):
    """Who asks, for the routes."""

    session: str = ""
    by_header: bool = False  # let in by a Bearer header: no browser sends it unasked, so nothing can be forged
    sets_cookie: bool = False  # of the session, new or ended, with the answer

    @property
    def is_let_in(self) -> bool:
        return bool(self.session or self.by_header)


class Guard:
    """Around the app.

    Args:
        page: Has the present settings.
    """

    def __init__(self, app: ASGIApp, page: PageState):
        self.app, self.page, self.sessions, self.attempts = app, page, page.sessions, Attempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # only http is served
            return
        request = Request(scope, receive)
        request.state.caller, request.state.form = Caller(), {}
        try:
            answer = await self.admit(request)
        except Refusal as refusal:
            answer = refusal.response
        except ClientDisconnect:
            return
        await (answer or self.app)(scope, receive, self.with_headers(request, send))

    async def admit(self, request: Request) -> Response | None:
        """An answer at once, or None: the routes have one."""
        settings = self.page.settings
        check_host(request, settings)
        if request.url.path == OPEN_PATH:
            return None
        token = settings.page.token
        caller = request.state.caller = self.identify(request, token)
        if request.method not in ("GET", "HEAD"):
            if not caller.by_header:
                check_origin(request, settings)
            request.state.form = await read_form(request)
            if request.url.path == "/login":
                return self.log_in(request, token)
            if not caller.by_header and not self.has_form_token(request) and (caller.session or not token):
                raise Refusal(403, "this form is out of date: load its page again")
        elif not caller.session and from_elsewhere(request) and wants_page(request):
            return HTMLResponse(waiting_page(own_path(request)))
        return None if caller.is_let_in or not token else self.ask(request)

    def identify(self, request: Request, token: str | None) -> Caller:
        """Whoever has shown the token, now or before; without a token everybody who has a browser is somebody."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if token and scheme.lower() == "bearer":
            self.check_token(request, given.strip(), token)
            return Caller(by_header=True)
        session = request.cookies.get(self.sessions.cookie, "")
        if session and self.sessions.is_valid(session, token):
            return Caller(session)
        may_begin = not token and request.method == "GET" and wants_page(request) and not from_elsewhere(request)
        return Caller(self.sessions.issue(None), sets_cookie=True) if may_begin else Caller()

    def check_token(self, request: Request, given: str, token: str) -> None:
        """Refuses a wrong one, and after some of them also a right one for a while."""
        address = request.client.host if request.client else ""
        if wait := self.attempts.wait(address):
            seconds = str(int(wait) + 1)
            raise Refusal(429, f"too many wrong tokens; try again in {seconds} s", Retry_After=seconds)
        if not same(given, token):
            self.attempts.failed(address)
            raise Refusal(401, "found another token than that of [page]", WWW_Authenticate="Bearer")
        self.attempts.succeeded(address)

    def log_in(self, request: Request, token: str | None) -> Response:
        """The session of whoever typed the token."""
        target = local_path(request.state.form.get("target", ""))
        if not token:
            return RedirectResponse(target, 303)
        try:
            self.check_token(request, request.state.form.get("token", ""), token)
        except Refusal as refusal:
            return login_answer(target, str(refusal), refusal.response)
        request.state.caller = Caller(self.sessions.issue(token), sets_cookie=True)
        return RedirectResponse(target, 303)

    def has_form_token(self, request: Request) -> bool:
        expected = self.sessions.form_token(request.state.caller.session)
        return bool(expected) and same(request.state.form.get("token", ""), expected)

    def ask(self, request: Request) -> Response:
        """For the token."""
        if not wants_page(request):
            raise Refusal(401, "expected a token: Authorization: Bearer TOKEN", WWW_Authenticate="Bearer")
        return login_answer(own_path(request), "", PlainTextResponse("", 401))

    def with_headers(self, request: Request, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if request.state.caller.sets_cookie:
                    headers.append("set-cookie", self.cookie(request, request.state.caller.session))
            await send(message)

        return sending

    def cookie(self, request: Request, session: str) -> str:
        """A header that sets it, or takes it away."""
        is_secure = request.headers.get("origin", "").startswith("https:")  # behind a proxy the browser alone knows
        age = LIFETIME if session else 0
        secure = "; Secure" if is_secure else ""
        return f"{self.sessions.cookie}={session}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"


def login_answer(target: str, text: str, refusal: Response) -> Response:
    """The login form, with the status and headers of a refusal."""
    page, style = login_page(target, text)
    policy = POLICY.replace("style-src 'self'", f"style-src {style}")
    kept = {name: refusal.headers[name] for name in ("retry-after", "www-authenticate") if name in refusal.headers}
    return HTMLResponse(page, refusal.status_code, kept | {"Content-Security-Policy": policy})


def wants_page(request: Request) -> bool:
    """Whether a person asks with a browser."""
    return request.method in ("GET", "POST") and "text/html" in request.headers.get("accept", "")


def from_elsewhere(request: Request) -> bool:
    """Whether a link on another site led here; cookies with SameSite=Strict are not sent then."""
    return request.headers.get("sec-fetch-site") == "cross-site"


def own_path(request: Request) -> str:
    """What was asked for, to go to once more."""
    return local_path(request.url.path + (f"?{request.url.query}" if request.url.query else ""))


def local_path(target: str) -> str:
    """A path of ours, to go to; what could lead elsewhere becomes the first page."""
    is_local = target.startswith("/") and target[1:2] not in ("/", "\\") and target.isprintable() and "\\" not in target
    return target if is_local and not target.startswith("/login") else "/"


def host_of(place: str) -> str:
    """Of HOST:PORT, in lower case, without the brackets of IPv6."""
    try:
        return (urlsplit(f"//{place}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def known_hosts(settings: WatchSettings) -> set[str]:
    """The names by which the page may be asked for, besides addresses in numbers."""
    names = {"localhost", settings.page.host.lower(), (urlsplit(settings.messages.page_url).hostname or "").lower()}
    if settings.page.host in ("0.0.0.0", "::"):
        own = socket.gethostname().lower()
        names |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
    return names - {""}


def check_host(request: Request, settings: WatchSettings) -> None:
    """Refuses names that are not ours: another site could have made its own name mean this machine (DNS rebinding)."""
    host = host_of(request.headers.get("host", ""))
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if host not in known_hosts(settings):
            raise Refusal(421, "found a host name that is not ours; [messages] page_url may name another") from None


def check_origin(request: Request, settings: WatchSettings) -> None:
    """Refuses what another site has sent; a proxy may have hidden the name by which browsers know ours."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    own = {request.headers.get("host", "").lower(), urlsplit(settings.messages.page_url).netloc.lower()} - {""}
    fits = origin is None or urlsplit(origin).netloc.lower() in own
    if not fits or site not in (None, "same-origin") or origin is None and site is None:
        raise Refusal(403, "found a form of another site, expected one of this page")


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, the last of each name."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Refusal(415, f"expected a form, {FORM}", Connection="close")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise Refusal(413, f"expected a form of at most {MOST_BYTES} bytes", Connection="close")
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Refusal(413, f"expected a form of at most {MOST_BYTES} bytes", Connection="close")
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"))
    except TimeoutError:
        raise Refusal(408, f"expected the form within {PATIENCE:g} s", Connection="close") from None
    except ValueError:
        raise Refusal(400, "found a form that cannot be read, expected UTF-8 text") from None
