"""Who may see and change what on the page of watch.py: each rule is tried by breaking it."""

import http.client
import re
import socket
import stat
import time

import pytest

from tests.watched import TOKEN, Client, add_clip, add_event, jpeg, make_board, serving, settings_of
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web import page_guard, sessions
from videoanomaly.watching.web.page_routes import ROUTES
from videoanomaly.watching.web.sessions import Attempts, Sessions, read_key

EVENT = "[event]"
READABLE = ["/", "/events/[event]", "/events/[event]/snapshot.jpg", "/events/[event]/thumbnail.jpg"]
READABLE += [
    "/events/[event]/clip.mp4",
    "/static/page.css",
    "/static/page.js",
    "/metrics",
    "/api/cameras",
    "/api/events",
]
READABLE += ["/api/events/[event]", "/updates", "/nowhere"]
CHANGES = {"star": {"starred": "1"}, "comment": {"comment": "x"}, "mark": {"mark": "right"}}


class Open:
    """A store with an event, and a page on it without a token."""

    def __init__(self, folder, token=None, **page):
        self.store = EventStore(folder)
        self.id = add_event(self.store)
        self.store.set_snapshot(self.id, jpeg())
        self.clip = add_clip(self.store, self.id, bytes(range(256)) * 40)
        self.board, self.settings = make_board("door"), settings_of(folder, token, **page)

    def told(self) -> tuple:
        event = self.store.event(self.id)
        assert event
        return event["starred"], event["comment"], event["mark"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    found = Open(tmp_path_factory.mktemp("open"))
    with serving(found.board, found.store, found.settings) as server:
        found.server = server
        yield found


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    found = Open(tmp_path_factory.mktemp("locked"), TOKEN)
    with serving(found.board, found.store, found.settings) as server:
        found.server = server
        yield found


@pytest.fixture(autouse=True)
def forgotten(request):
    """Wrong tokens of one test do not slow down the next."""
    yield
    if "locked" in request.fixturenames:
        request.getfixturevalue("locked").server.app.attempts.wrong.clear()


# ---- headers


def check_headers(answer) -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == policy["script-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"https?:|\*", answer.headers["content-security-policy"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] in ("no-store", "private, no-cache")


def test_every_answer_carries_the_headers_also_when_it_refuses_or_fails(opened, locked, monkeypatch):
    for world in (opened, locked):
        client = Client(world.server.port)
        for path in READABLE:
            if path != "/updates":
                check_headers(client.get(path.replace(EVENT, world.id)))
        check_headers(client.get("/", host="evil.example"))
        check_headers(client.post("/", {}))
    told = []
    monkeypatch.setattr(opened.server.app.page.health, "look", lambda *_: 1 / 0)
    monkeypatch.setattr(opened.server.app.page.hub.tell, "tell", told.append)
    for accept in ("text/html", "*/*"):
        answer = Client(opened.server.port).get("/healthz", accept=accept)
        assert answer.status == 500 and "division" not in answer.text
        check_headers(answer)
    assert len(told) == 1 and told[0].startswith("page: ZeroDivisionError at test_page_guard.py:")


def test_no_page_has_inline_scripts_styles_or_handlers(opened):
    client = Client(opened.server.port)
    for path in ("/", f"/events/{opened.id}"):
        text = client.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! src=\"/static/)", text)
        assert not re.search(r"(src|href|action)=\"(?!/|data:image/svg|#)", text)


# ---- host names


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "", "[::1", "a b"]
)
def test_another_host_name_is_refused_so_that_no_site_can_rebind_its_own(opened, host):
    for path in ("/", "/healthz", "/api/events"):
        answer = Client(opened.server.port).get(path, host=host)
        assert answer.status in (400, 421) and "door" not in answer.text


def test_own_names_and_addresses_in_numbers_are_taken(tmp_path):
    store = EventStore(tmp_path)
    settings = settings_of(tmp_path, TOKEN, "https://watch.example.org/cameras", host="0.0.0.0")
    own = socket.gethostname()
    with serving(make_board("door"), store, settings) as server:
        for host in ("localhost", "LOCALHOST:9", "192.168.0.7:8080", "[::1]:80", "[fe80::1]", "watch.example.org", own):
            assert Client(server.port).get("/healthz", host=host).status == 200, host
        assert Client(server.port).get("/healthz", host="example.org").status == 421


# ---- forged forms


def test_a_form_of_our_own_page_is_taken(opened):
    client = Client(opened.server.port)
    token = client.form_token()
    for action, fields in CHANGES.items():
        answer = client.post(f"/events/{opened.id}/{action}", fields | {"token": token})
        assert (answer.status, answer.headers["location"]) == (303, f"/events/{opened.id}")
    assert opened.told() == (True, "x", "right")
    for action, fields in {"star": {}, "comment": {}, "mark": {}}.items():
        client.post(f"/events/{opened.id}/{action}", fields | {"token": token}, sec_fetch_site="same-origin")
    assert opened.told() == (False, "", None)


def test_a_form_is_taken_under_the_name_that_a_proxy_gives_the_page(tmp_path):
    world = Open(tmp_path)
    settings = settings_of(tmp_path, page_url="https://Watch.example.org/")
    with serving(world.board, world.store, settings) as server:
        client = Client(server.port)
        path, fields = f"/events/{world.id}/star", {"starred": "1", "token": client.form_token()}
        assert client.post(path, fields, origin="https://watch.example.org").status == 303
        assert client.post(path, fields, origin="https://example.org").status == 403


@pytest.mark.parametrize("world", ["opened", "locked"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": None},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
        {"origin": None, "sec_fetch_site": "cross-site"},
        {"token": ""},
        {"token": "0" * 64},
        {"token": "of another"},
        {"cookie": ""},
        {"cookie": "of another"},
        {"content_type": "text/plain"},
        {"content_type": "application/json"},
    ],
)
def test_what_another_site_could_send_changes_nothing(request, world, wrong):
    world = request.getfixturevalue(world)
    client, other = Client(world.server.port), Client(world.server.port)
    for one in (client, other):
        if world.settings.page.token:
            one.post("/login", {"token": TOKEN})
    fields, headers = {"token": client.form_token()}, {k: v for k, v in wrong.items() if k != "token"}
    other_token = other.form_token()
    if "token" in wrong:
        fields["token"] = other_token if wrong["token"] == "of another" else wrong["token"]
    if headers.get("cookie") == "of another":
        headers["cookie"] = "; ".join(f"{k}={v}" for k, v in other.cookies.items())
    for action, given in CHANGES.items():
        answer = client.post(f"/events/{world.id}/{action}", given | fields, **headers)
        assert answer.status in (401, 403, 415), wrong
    assert world.told() == (False, "", None)
    client.post(f"/events/{world.id}/star", {"token": client.form_token(), "starred": ""})  # all was right but for that


def test_reading_changes_nothing_whatever_the_method(opened):
    client = Client(opened.server.port)
    client.get("/")
    before, version = opened.store.event(opened.id), opened.store.version
    for route in ROUTES:
        path = route.path.replace("{id}", opened.id).replace("{name}", "page.js")
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
            if path == "/updates" and method == "GET":
                continue  # it does not end
            query = "?starred=1&comment=x&mark=right&token=" + client.form_token()
            answer = client.ask(method, path + query, origin=f"http://{client.host}")
            assert answer.status in (200, 303, 400, 403, 404, 405, 415)
    assert opened.store.event(opened.id) == before and opened.store.version == version


# ---- the token


def test_without_the_token_only_the_health_is_told(locked):
    client = Client(locked.server.port)
    assert client.get("/healthz").status == 200
    for path in [*READABLE, "/login", "/logout"]:
        answer = client.get(path.replace(EVENT, locked.id))
        assert answer.status == 401 and 'name="token"' in answer.text and "door" not in answer.text
        assert client.get(path.replace(EVENT, locked.id), accept="*/*").status == 401
        assert client.ask("HEAD", path.replace(EVENT, locked.id)).status == 401
    for action, fields in CHANGES.items():
        assert client.post(f"/events/{locked.id}/{action}", fields).status == 401
    assert client.post("/healthz", {}).status in (403, 405)
    assert locked.told() == (False, "", None) and not client.cookies


def test_the_login_gives_a_session_that_is_not_the_token_and_leads_on(locked):
    client = Client(locked.server.port)
    target = f"/events/{locked.id}"
    assert f'name="target" value="{target}"' in client.get(target).text
    answer = client.post("/login", {"token": TOKEN, "target": target})
    assert (answer.status, answer.headers["location"]) == (303, target)
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie and {"HttpOnly", "SameSite=Strict", "Path=/"} <= {p.strip() for p in cookie.split(";")}
    assert "Secure" not in cookie
    assert client.get("/").status == client.get("/metrics").status == 200
    assert (
        "Secure"
        in Client(locked.server.port)
        .post("/login", {"token": TOKEN}, origin=f"https://{client.host}")
        .headers["set-cookie"]
    )
    token = client.form_token()
    assert client.post("/logout", {}).status == 403
    answer = client.post("/logout", {"token": token})
    assert answer.status == 303 and "Max-Age=0" in answer.headers["set-cookie"]
    assert client.get("/").status == 401


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nSet-Cookie: b=c", "x", ""]
)
def test_the_login_leads_to_no_other_site(locked, target):
    answer = Client(locked.server.port).post("/login", {"token": TOKEN, "target": target})
    assert (answer.status, answer.headers["location"]) == (303, "/") and "b=c" not in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1] + "0",
        lambda c: "9" + c,
        lambda c: c + "0",
        lambda c: "",
        lambda c: "..",
        lambda c: "é.a.b",
        lambda c: c.replace(".", ""),
    ],
)
def test_a_cookie_that_we_did_not_make_opens_nothing(locked, change):
    client = Client(locked.server.port)
    client.post("/login", {"token": TOKEN})
    ((name, value),) = client.cookies.items()
    while value.endswith("0"):
        client.post("/login", {"token": TOKEN})
        value = client.cookies[name]
    assert client.get("/").status == 200
    client.cookies[name] = change(value).encode().decode("latin-1")
    assert client.get("/").status == 401


def test_sessions_end_with_their_time_and_with_the_token(tmp_path, monkeypatch):
    made = Sessions(read_key(tmp_path))
    session = made.issue("one")
    assert made.is_valid(session, "one") and not made.is_valid(session, "two") and not made.is_valid(session, None)
    assert not Sessions(b"x" * 32).is_valid(session, "one")
    assert Sessions(read_key(tmp_path)).is_valid(session, "one")  # after a restart
    assert stat.S_IMODE((tmp_path / "page.key").stat().st_mode) == 0o600
    now = time.time()
    monkeypatch.setattr(sessions.time, "time", lambda: now + sessions.LIFETIME + 1)
    assert not made.is_valid(session, "one")


def test_a_bearer_header_lets_programs_read_and_write(locked):
    client = Client(locked.server.port)
    bearer = {"authorization": f"Bearer {TOKEN}", "accept": "*/*"}
    for path in READABLE:
        if path not in ("/updates", "/nowhere"):
            assert client.get(path.replace(EVENT, locked.id), **bearer).status == 200, path
    answer = client.post(f"/events/{locked.id}/star", {"starred": "1"}, origin=None, **bearer)
    assert answer.status == 303 and locked.told()[0] and not client.cookies
    client.post(f"/events/{locked.id}/star", {}, origin=None, **bearer)
    for wrong in (f"Bearer {TOKEN}x", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}", "Bearer \xe9"):
        assert client.get("/api/events", authorization=wrong, accept="*/*").status in (401, 429)


def test_wrong_tokens_are_slowed_down_also_for_whoever_guesses_right_then(locked):
    client = Client(locked.server.port)
    statuses = [client.post("/login", {"token": f"wrong {i}"}).status for i in range(8)]
    assert statuses == [401] * sessions.FREE_ATTEMPTS + [429] * 3
    answer = client.post("/login", {"token": TOKEN})
    assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1 and "set-cookie" not in answer.headers
    assert client.get("/metrics", authorization=f"Bearer {TOKEN}").status == 429


def test_each_wrong_token_costs_twice_the_wait_of_the_one_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now[0])
    attempts, waits = Attempts(), []
    for _ in range(14):
        attempts.failed("2001:db8::1")
        waits.append(attempts.wait("2001:db8::ffff"))  # of the same network
        now[0] += waits[-1]
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert attempts.wait("2001:db8:0:1::1") == attempts.wait("::ffff:10.0.0.1") == 0
    attempts.succeeded("2001:db8::2")
    assert attempts.wait("2001:db8::1") == 0
    for i in range(3000):
        attempts.failed(f"10.0.{i // 256}.{i % 256}")
    assert len(attempts.wrong) == sessions.MOST_ADDRESSES


def test_a_link_on_another_site_leads_to_the_page_and_not_to_the_login(locked):
    client = Client(locked.server.port)
    path = f"/events/{locked.id}?a=1"
    answer = client.get(path, sec_fetch_site="cross-site")  # the browser keeps a strict cookie back
    assert answer.status == 200 and f'http-equiv="refresh" content="0;url={path}"' in answer.text
    assert client.get(path, sec_fetch_site="same-origin").status == 401


# ---- sizes and odd requests


def test_a_large_form_is_refused_before_it_is_read(opened):
    client = Client(opened.server.port)
    token = client.form_token()
    path, size = f"/events/{opened.id}/comment", page_guard.MOST_BYTES
    connection = http.client.HTTPConnection("127.0.0.1", opened.server.port, timeout=20)
    cookie = "; ".join(f"{k}={v}" for k, v in client.cookies.items())
    for chunked in (False, True):
        connection.putrequest("POST", path, skip_host=True)
        headers = {"host": client.host, "origin": f"http://{client.host}", "cookie": cookie}
        headers |= {"content-type": page_guard.FORM}
        headers |= {"transfer-encoding": "chunked"} if chunked else {"content-length": str(10**12)}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        if chunked:
            connection.send(b"%x\r\n" % (size + 9) + f"token={token}&comment=".encode().ljust(size + 9, b"x") + b"\r\n")
        answer = connection.getresponse()
        assert answer.status == 413
        connection.close()
    assert client.post(path, {"token": token, "comment": "é" * 3000}).status == 400
    assert client.post(path, {str(i): "x" for i in range(50)}).status == 400
    assert opened.told()[1] == ""


@pytest.mark.parametrize("body", [b"\xff\xfe", b"comment=%ff", b"%", b"a" * 1000])
def test_a_form_that_is_no_text_is_refused(opened, body):
    client = Client(opened.server.port)
    client.form_token()
    own = {"content_type": page_guard.FORM, "origin": f"http://{client.host}"}
    assert client.ask("POST", f"/events/{opened.id}/comment", body, **own).status in (400, 403)


def test_a_form_that_never_comes_is_given_up(opened, monkeypatch):
    monkeypatch.setattr(page_guard, "PATIENCE", 0.2)
    client = Client(opened.server.port)
    client.form_token()
    connection = http.client.HTTPConnection("127.0.0.1", opened.server.port, timeout=20)
    cookie = "; ".join(f"{k}={v}" for k, v in client.cookies.items())
    headers = {
        "host": client.host,
        "origin": f"http://{client.host}",
        "cookie": cookie,
        "content-type": page_guard.FORM,
    }
    connection.request("POST", f"/events/{opened.id}/star", headers=headers | {"content-length": "100"})
    assert connection.getresponse().status == 408


@pytest.mark.parametrize(
    "path",
    [
        "/static/../page.py",
        "/static/..%2fpage.py",
        "/static/%2e%2e/page.py",
        "/static/page.html",
        "/static//etc/passwd",
        "/events/../../watch.db",
        "/events/..%2f..%2fwatch.db/clip.mp4",
        "/events/%2e%2e/clip.mp4",
        "//evil.example/",
        "/clips/x.mp4",
        "/events/%00/clip.mp4",
    ],
)
def test_no_path_leads_to_another_file(opened, path):
    answer = Client(opened.server.port).get(path)
    assert answer.status == 404 and b"SQLite" not in answer.body and b"import" not in answer.body


@pytest.mark.parametrize("name", ["../watch.db", "/etc/hostname", "link.mp4", "", ".", "gone.mp4"])
def test_a_clip_outside_of_the_clips_is_not_sent_whatever_the_database_says(tmp_path, name):
    world = Open(tmp_path)
    (world.store.clips / "link.mp4").symlink_to(tmp_path / "watch.db")
    world.store.set_clip(world.id, name, 10)
    with serving(world.board, world.store, world.settings) as server:
        assert Client(server.port).get(f"/events/{world.id}/clip.mp4").status == 404
        add_clip(world.store, world.id, b"0123456789", "below/door.mp4")
        assert Client(server.port).get(f"/events/{world.id}/clip.mp4").body == b"0123456789"
