"""News of the page of watch.py by server-sent events, and how it starts and stops."""

import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.places import ROOT
from tests.watched import (
    CLASSES,
    TOKEN,
    Client,
    Listener,
    add_clip,
    add_event,
    make_board,
    make_world,
    serving,
    settings_of,
    until,
)
from videoanomaly.runtime.console import InputError
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web import page_routes, page_updates
from videoanomaly.watching.web.page import PageServer


@pytest.fixture
def world(tmp_path):
    with make_world(tmp_path) as found:
        yield found


# ---- news


def news_of(listener: Listener, number: int) -> dict:
    until(lambda: len(listener.messages) > number)
    return json.loads(listener.messages[number])


def test_news_hold_only_what_changed_at_most_once_a_second_and_nothing_else(world):
    world.client.get("/")
    first = add_event(world.store)
    listener = Listener(world.client)
    assert listener.answer.headers["content-type"].startswith("text/event-stream")
    begin = news_of(listener, 0)
    assert begin["cameras"]["order"] == ["door", "yard"] and begin["events"]["order"] == [first]
    second = add_event(world.store, start=1e9 + 9)
    third = add_event(world.store, start=1e9 + 19)
    news = news_of(listener, 1)
    assert news["events"]["order"] == [third, second, first] and news["events"]["html"].keys() == {third, second}
    assert news.keys() == {"events"}
    for i in range(40):  # of many changes in a second one message is made
        world.board.scored("door", [i / 100], 0.1)
        time.sleep(0.01)
    news = news_of(listener, 2)
    assert news.keys() == {"parts"} and news["parts"]["html"].keys() <= {"facts-door", "strip-door"}
    until(lambda: "p_A <b>0.39" in listener.messages[-1])
    world.store.set_star(second, True)
    until(lambda: second in listener.messages[-1])
    assert json.loads(listener.messages[-1])["events"]["html"].keys() == {second}
    gaps = np.diff(listener.times)
    assert gaps.min() > 0.5 * page_updates.INTERVAL  # a busy machine may read one late
    listener.close()


def test_a_viewer_that_joins_others_has_no_two_messages_in_a_second_either(world):
    world.client.get("/")
    listeners = []
    for i in range(4):  # at other moments of the second that all share
        listeners.append(Listener(world.client))
        until(lambda: listeners[-1].messages)
        world.board.set("door", detail=f"change {i}")
        time.sleep(0.3 * page_updates.INTERVAL)
    until(lambda: all(len(listener.messages) > 1 for listener in listeners))
    assert (
        min(np.diff(listener.times).min() for listener in listeners) > 0.5 * page_updates.INTERVAL
    )  # a busy machine may read one late
    for listener in listeners:
        listener.close()


def test_nothing_is_made_while_nothing_changes_or_nobody_looks(world, monkeypatch):
    made = []
    real = page_routes.cameras_view
    monkeypatch.setattr(page_routes, "cameras_view", lambda board: made.append(1) or real(board))
    monkeypatch.setattr(page_updates, "INTERVAL", 0.05)
    monkeypatch.setattr(page_routes, "STRIP_STEP", 10**12)
    looks, pause = [], page_updates.Hub.pause
    monkeypatch.setattr(page_updates.Hub, "pause", lambda hub: looks.append(1) or pause(hub))
    world.client.get("/")
    made.clear()
    hub = world.server.app.page.hub
    listeners = [Listener(world.client) for _ in range(5)]
    until(lambda: all(listener.messages for listener in listeners))
    assert len(made) <= 5 and hub.num_viewers == 5 and len(hub.feeds) == 2
    count = len(made)
    looks.clear()
    until(lambda: len(looks) > 10)
    assert len(made) == count and [len(listener.messages) for listener in listeners] == [1] * 5
    world.board.set("door", state="away")
    until(lambda: all(len(listener.messages) == 2 for listener in listeners))
    assert len(made) == count + 1  # once for all
    for listener in listeners:
        listener.close()
    world.board.set("door", state="connected")
    until(lambda: hub.num_viewers == 0 and hub.ticking.done())
    assert not hub.feeds


def test_news_of_an_event_and_of_a_filter_are_their_own(world):
    world.client.get("/")
    id, other = add_event(world.store, "door"), add_event(world.store, "yard")
    listeners = [Listener(world.client, f"/updates?{query}") for query in (f"event={id}", "camera=door", "starred=1")]
    page, door, starred = listeners
    assert [list(news_of(one, 0).get("events", {}).get("order", ["-"])) for one in listeners] == [["-"], [id], []]
    world.store.set_star(other, True)
    assert news_of(starred, 1)["events"]["order"] == [other]
    world.store.set_star(other, False)
    assert news_of(starred, 2)["events"] == {"html": {}, "order": []}
    world.store.set_comment(id, "new")
    assert set(news_of(page, 1)["parts"]["html"]) == {"comment"}
    until(lambda: len(door.messages) == 2)
    assert json.loads(door.messages[1]).keys() == {"events"}
    for listener in listeners:
        listener.close()


def test_too_many_viewers_are_refused(world, monkeypatch):
    monkeypatch.setattr(page_routes, "MOST_VIEWERS", 2)
    world.client.get("/")
    listeners = [Listener(world.client) for _ in range(2)]
    until(lambda: all(listener.messages for listener in listeners))
    answer = world.client.get("/updates")
    assert answer.status == 503 and answer.headers["retry-after"] == "30"
    for listener in listeners:
        listener.close()


def test_a_failing_store_is_told_once_and_the_news_go_on(tmp_path, monkeypatch):
    told, store = [], EventStore(tmp_path)
    monkeypatch.setattr(page_updates, "INTERVAL", 0.05)
    with serving(make_board("door"), store, settings_of(tmp_path), tell=told.append) as server:
        client = Client(server.port)
        client.get("/")
        listener = Listener(client)
        until(lambda: listener.messages)
        real = store.events
        monkeypatch.setattr(store, "events", lambda **_: 1 / 0)
        id = add_event(store)
        until(lambda: told)
        monkeypatch.setattr(store, "events", real)
        until(lambda: id in listener.messages[-1])
        assert len(told) == 1 and "ZeroDivisionError" in told[0]
        listener.close()


# ---- starting and stopping


def test_a_port_in_use_is_told_in_one_line(tmp_path, world):
    server = PageServer(world.board, world.store, settings_of(tmp_path, port=world.server.port))
    with pytest.raises(
        InputError, match=rf"watch.toml, \[page\]: port {world.server.port} of 127.0.0.1 is in use, expected"
    ):
        server.start()
    server.stop()
    server = PageServer(world.board, world.store, settings_of(tmp_path, host="no.such.host.invalid", token=TOKEN))
    with pytest.raises(InputError, match=r"found the host no.such.host.invalid, expected an address of this machine"):
        server.start()
    assert world.client.get("/healthz").status == 200


def test_it_stops_while_pages_are_open_and_a_clip_is_not_read_and_starts_again(tmp_path):
    board, store = make_board("door"), EventStore(tmp_path)
    id = add_event(store)
    add_clip(store, id, b"x" * 50_000_000)
    server = PageServer(board, store, settings_of(tmp_path), CLASSES)
    server.start()
    port, client = server.port, Client(server.port)
    client.get("/")
    listeners = [Listener(client) for _ in range(3)]
    until(lambda: all(listener.messages for listener in listeners))
    slow, silent, news = (socket.create_connection(("127.0.0.1", port)) for _ in range(3))
    slow.sendall(f"GET /events/{id}/clip.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    news.sendall(b"GET /updates HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    received = slow.recv(100) and news.recv(100)
    thread, begun = server.thread, time.monotonic()
    server.stop()
    assert thread and not thread.is_alive() and time.monotonic() - begun < 3  # it would wait for 5 s
    while part := news.recv(2**20):
        received += part
    assert received.endswith(b"\r\n0\r\n\r\n")  # news end in good order
    for listener in listeners:
        listener.join(5)
        assert not listener.is_alive()
    with pytest.raises(OSError):
        client.get("/healthz")
    server.stop()
    again = PageServer(board, store, settings_of(tmp_path, port=port))
    again.start()
    assert client.get("/").status == 200
    again.stop()
    for connection in (slow, silent, news):
        connection.close()


NOISY = """
import socket, sys
from pathlib import Path
from tests.watched import Client, add_clip, add_event, make_board, serving, settings_of
from videoanomaly.watching.store.event_store import EventStore

folder = Path(sys.argv[1])
store = EventStore(folder)
id = add_event(store)
add_clip(store, id, b"x" * 50_000_000)
with serving(make_board("door"), store, settings_of(folder)) as server:
    for path in ("/", "/nowhere", "/?since=x"):
        Client(server.port).get(path)
    with socket.create_connection(("127.0.0.1", server.port)) as odd:
        odd.sendall(b"this is no HTTP\\r\\n\\r\\n")
        odd.recv(1000)
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.sendall(f"GET /events/{id}/clip.mp4 HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n".encode())
    slow.recv(100)
"""


def test_nothing_is_printed_whatever_is_asked_and_cut_off(tmp_path):
    command = [sys.executable, "-c", NOISY, str(tmp_path)]  # a Python of its own, whose end may print, too
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reload_takes_another_token_and_another_address(tmp_path):
    board, store = make_board("door"), EventStore(tmp_path)
    with serving(board, store, settings_of(tmp_path)) as server:
        client = Client(server.port)
        assert client.get("/").status == 200
        server.reload(settings_of(tmp_path, TOKEN), ["flood"])
        assert client.get("/").status == 401
        client.post("/login", {"token": TOKEN})
        assert '<option value="flood">' in client.get("/").text
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(InputError, match="is in use"):
                server.reload(settings_of(tmp_path, TOKEN, port=taken.getsockname()[1]), [])
            assert client.get("/").status == 200
            free = taken.getsockname()[1]
        server.reload(settings_of(tmp_path, TOKEN, port=free), CLASSES)
        assert server.port == free
        moved = Client(free)
        moved.cookies = client.cookies
        assert moved.get("/").status == 200  # the session goes on
        with pytest.raises(OSError):
            client.get("/healthz")
