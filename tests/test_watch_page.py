"""The page of watch.py over HTTP: what it shows, finds, changes, sends on, and how it starts and stops."""

import html
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.watched import (
    Client,
    Listener,
    add_clip,
    add_event,
    jpeg,
    make_board,
    make_world,
    progress,
    serving,
    settings_of,
    until,
)
from videoanomaly.watching.board import CameraStatus
from videoanomaly.watching.store.event_store import EventStore, NewEvent
from videoanomaly.watching.web.event_filter import PAGE

ODD = "</p><script>alert(1)</script>\"'&amp;<img src=x onerror=alert(2)>{{token}}"


@pytest.fixture
def world(tmp_path):
    with make_world(tmp_path) as found:
        yield found


class Read(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.texts.append(data)


# ---- what it shows


def test_cameras_are_shown_with_state_time_rates_and_the_last_hour(world):
    world.board.set("yard", state="away", detail="connection refused", since=1e9)
    world.board.set("door", width=1280, height=720, codec="h264", rows_per_second=1.96, wanted_rows_per_second=2.0)
    now = time.time()
    for age, p_A in ((3500, 0.9), (1800, 0.2), (0, 0.4)):
        world.board.strips["door"].add(p_A, now - age)
    world.board.set("door", p_A=0.4)
    text = world.client.get("/").text
    door, yard = (
        text[text.index('data-key="door"') : text.index('data-key="yard"')],
        text[text.index('data-key="yard"') :],
    )
    assert "<b>connected</b>" in door and "2.0 of 2.0 rows/s · 1280×720 h264" in door and "p_A <b>0.40</b>" in door
    paths = dict(re.findall(r'<path class="(low|high)" d="(.*?)"', door))
    assert paths["low"].count("M") == 2 and paths["high"].count("v-36.0") == 1 and "at the" not in paths
    assert paths["low"].startswith(f"M{359 - 180}") and paths["low"].endswith("M359 40v-16.0")
    assert "highest p_A of the last hour: 0.90" in door
    assert "<b>away</b> since" in yard and "(connection refused)" in yard and "2001-09-09 01:46:40 UTC" in yard
    assert "p_A <b>–</b>" in yard and "2 cameras, 1 connected" in text


def test_events_are_listed_newest_first_with_what_is_known_of_them(world):
    first, second = (
        add_event(world.store, "door", 1e9, "fall_down"),
        add_event(world.store, "yard", 1e9 + 60, is_open=True),
    )
    world.store.set_snapshot(first, jpeg())
    world.store.set_comment(first, "the neighbour")
    world.store.set_mark(first, "wrong", "theft")
    text = world.client.get("/").text
    assert world.keys() == [second, first]
    now, then = (
        text[text.index(f'data-key="{second}"') : text.index(f'data-key="{first}"')],
        text[text.index(f'data-key="{first}"') :],
    )
    assert "still going on" in now and '<span class="now">now</span>' in now and "<img" not in now
    assert "fall down" in then and "2001-09-09 01:46:40 UTC" in then and ", 4 s" in then and "the neighbour" in then
    assert "marked wrong: theft" in then and f"/events/{first}/thumbnail.jpg" in then
    assert re.findall(r'aria-pressed="(\w+)" aria-label="(.*?)"', then) == [
        ("false", "Star"), ("false", "Right: fall down"), ("true", "Wrong: not fall down"),
    ]  # fmt: skip


def test_the_page_of_an_event_shows_clip_curve_classes_and_facts(world):
    older, id = add_event(world.store, start=9e8), add_event(world.store, start=1e9)
    world.store.set_snapshot(id, jpeg())
    assert "No clip" in world.client.get(f"/events/{id}").text
    world.store.set_clip(id, None, 0, "the disk was full")
    assert "No clip: the disk was full" in world.client.get(f"/events/{id}").text
    add_clip(world.store, id, b"x" * 123456)
    text = world.client.get(f"/events/{id}").text
    assert f'src="/events/{id}/clip.mp4"' in text and "(0.1 MB)" in text and f'href="/events/{older}"' in text
    line = re.findall(r'<polyline points="(.*?)"', text)[0].split()
    assert line == ["125.0,144.0", "375.0,128.0", "625.0,32.0", "875.0,112.0"]  # 0.1 0.2 0.8 0.3, 160 high
    assert 'd="M0 80.0h1000"' in text  # the threshold
    words = [word for word in map(str.strip, Read(text).texts) if word]
    bars = words[words.index("Classes (mean probability)") + 1 :][:6]
    assert bars == ["fire", "0.70", "fall down", "0.10", "theft", "0.10"]
    for fact in ("chosen by hand", "abababababababab", "0.55", "0.80 at"):
        assert fact in words
    gone = world.client.get("/events/0000")
    assert gone.status == 404 and "This event is gone" in gone.text


def test_a_long_curve_keeps_its_peaks(world):
    curve = np.zeros(1999, np.float32)
    curve[[0, 777, 1998]] = 0.5, 1.0, 0.25
    state = progress(1e9, curve=curve)
    id = world.store.begin(NewEvent("door", 1e9, state, "ab", 0.5, ""))
    points = re.findall(r'<polyline points="(.*?)"', world.client.get(f"/events/{id}").text)[0].split()
    heights = [float(point.partition(",")[2]) for point in points]
    assert len(points) == 400 and sorted(heights)[:4] == [0.0, 80.0, 120.0, 160.0]


def test_whatever_names_and_comments_hold_is_shown_as_it_is_and_never_run(tmp_path):
    store, board = EventStore(tmp_path), make_board()
    board.add(CameraStatus(ODD, "x", detail=ODD, codec=ODD, width=1))
    state = progress(1e9, ODD)
    id = store.begin(NewEvent(ODD, 1e9, state, ODD, 0.5, ODD))
    store.end(id, state, ODD)
    store.set_clip(id, None, 0, ODD)
    store.set_comment(id, ODD)
    store.set_mark(id, "wrong", ODD)
    with serving(board, store, settings_of(tmp_path)) as server:
        client = Client(server.port)
        for path in ("/", f"/events/{id}", "/?camera=" + "%3Cscript%3E&class=%22%3E%3Cscript%3E&text=%22%3E%3Cimg"):
            text = client.get(path).text
            page = Read(text)
            assert page.tags.count("script") == 1 and not [name for name in page.attributes if name.startswith("on")]
            assert page.tags.count("img") == 0 and "{{" not in text.replace("{{token}}", "")
        assert ODD in "".join(Read(client.get(f"/events/{id}").text).texts)
        client.get("/")
        listener = Listener(client)
        until(lambda: listener.messages)
        pieces = [text for news in json.loads(listener.messages[0]).values() for text in news["html"].values()]
        assert len(pieces) > 4 and not {"script", "img"} & set(Read("".join(pieces)).tags)
        listener.close()


# ---- finding


def test_filters_choose_by_camera_class_time_star_mark_and_comment(world):
    ids = [
        add_event(world.store, camera, 1e9 + 3600 * i, name)
        for i, (camera, name) in enumerate([("door", "fire"), ("yard", "fire"), ("door", "theft"), ("gate", "theft")])
    ]
    world.store.set_star(ids[1], True)
    world.store.set_mark(ids[2], "wrong", None)
    world.store.set_mark(ids[3], "right", None)
    world.store.set_comment(ids[0], "The Postman")

    def found(query: str) -> list[int]:
        return [ids.index(key) for key in world.keys(query)]

    assert found("") == [3, 2, 1, 0]
    assert (
        found("?camera=door") == [2, 0] and found("?camera=door&camera=gate") == [3, 2, 0] and found("?camera=x") == []
    )
    assert found("?class=theft") == [3, 2] and found("?class=theft&camera=door") == [2]
    assert found("?starred=1") == [1]
    assert found("?mark=right") == [3] and found("?mark=wrong") == [2] and found("?mark=none") == [1, 0]
    assert found("?text=postman") == [0] and found("?text=%25") == []
    assert found("?since=2001-09-09T03:46") == [3, 2] and found("?until=2001-09-09T03:00") == [1, 0]  # UTC
    assert found("?since=2001-09-09T03:46&until=2001-09-09T04:00") == [2]
    assert found("?since=2001-09-09T05:46%2B02:00") == [3, 2]
    assert found("?camera=&class=&since=&until=&mark=&text=") == [3, 2, 1, 0]  # as the form sends it
    text = world.client.get("/?camera=gate&class=theft&mark=right&since=2001-09-09T03:46&starred=1&text=a").text
    assert (
        text.count(" selected") == 3
        and 'value="2001-09-09T03:46"' in text
        and " checked" in text
        and 'value="a"' in text
    )
    assert "No event fits this filter" in text and '<a href="/#events">All events</a>' in text


@pytest.mark.parametrize(
    "query",
    [
        "since=yesterday",
        "until=1e99",
        "mark=good",
        "before=%27;--",
        "limit=0",
        "limit=x",
        "since=0001-01-01T00:00%2B23:00",
    ],
)
def test_a_filter_that_means_nothing_is_told_in_one_line(world, query):
    for path in ("/", "/api/events", "/updates"):
        answer = world.client.get(f"{path}?{query}", accept="*/*")
        assert answer.status == 400 and answer.text.count("\n") == 1
        assert answer.text.startswith(query.partition("=")[0] + ": expected")


def test_pages_of_the_list_follow_each_other(world):
    ids = [add_event(world.store, "door" if i % 2 else "yard", 1e9 + i) for i in range(2 * PAGE + 7)][::-1]
    seen, query = [], ""
    while query is not None:
        seen += world.keys(query)
        assert len(seen) <= len(ids)
        links = re.findall(r'<a href="/(\?[^"]*)#events" rel="next">', world.client.get(f"/{query}").text)
        query = html.unescape(links[0]) if links else None
    assert seen == ids
    (link,) = re.findall(r'<a href="/(\?[^"]*)#events" rel="next">', world.client.get("/?camera=door").text)
    assert world.keys(html.unescape(link)) == [id for i, id in enumerate(ids) if i % 2][PAGE:]


def test_many_events_take_hardly_longer_than_few(world):
    def seconds() -> float:
        begun = time.perf_counter()
        assert len(world.keys()) == PAGE
        return time.perf_counter() - begun

    for i in range(2 * PAGE):
        add_event(world.store, start=1e9 + i)
    few = min(seconds() for _ in range(9))
    with world.store.database.writing() as connection:  # as begin() would, in one go
        columns = [row["name"] for row in connection.execute("PRAGMA table_info(events)")]
        rest = ", ".join(column for column in columns if column != "id")
        connection.executemany(
            f"INSERT INTO events (id, {rest}) SELECT ?, {rest} FROM events LIMIT 1",
            [(f"00-{i:06}",) for i in range(10000)],
        )
    assert min(seconds() for _ in range(9)) < 3 * few


# ---- changing


def test_a_star_a_comment_and_marks_are_stored_and_taken_back(world):
    id = add_event(world.store)

    def told(*names: str) -> list:
        event = world.store.event(id)
        assert event
        return [event[name] for name in names]

    world.post(id, "star", starred="1")
    assert told("starred") == [True]
    world.post(id, "star", starred="")
    assert told("starred") == [False]
    world.post(id, "comment", comment=" two\r\nlines \r\n")
    assert told("comment") == ["two\nlines"]
    for fields, expected in (
        ({"mark": "right", "label": "theft"}, ["right", None]),
        ({"mark": "wrong"}, ["wrong", None]),
        ({"mark": "wrong", "label": "Normal", "new_label": ""}, ["wrong", "Normal"]),
        ({"mark": "wrong", "label": "Normal", "new_label": " Two  words "}, ["wrong", "Two_words"]),
        ({"mark": "", "label": "Normal"}, [None, None]),
    ):
        assert world.post(id, "mark", **fields).status == 303
        assert told("mark", "label") == expected
    for fields in (
        {"mark": "good"},
        *({"mark": "wrong", "new_label": n} for n in ("../x", "a/b", ".x", "test", "x" * 61, "a\0")),
    ):
        assert world.post(id, "mark", **fields).status == 400
    assert world.post("0000", "star", starred="1").status == 404
    assert told("mark", "label", "comment") == [None, None, "two\nlines"]


def test_a_browser_goes_back_to_the_page_of_the_form_and_a_script_gets_the_pieces(world):
    id = add_event(world.store)
    token = world.client.form_token()
    fields, path, own = {"token": token, "starred": "1"}, f"/events/{id}/star", f"http://{world.client.host}"
    for referer, place in (
        (f"{own}/?camera=door", "/?camera=door"),
        (f"{own}/events/{id}", f"/events/{id}"),
        ("http://evil.example/", f"/events/{id}"),
        (None, f"/events/{id}"),
    ):
        answer = world.client.post(path, fields, referer=referer)
        assert (answer.status, answer.headers["location"]) == (303, place)
    news = json.loads(world.client.post(path, fields, accept="application/json").body)
    assert 'class="mark star" aria-pressed="true"' in news["events"]["html"][id]
    assert 'aria-pressed="true"' in news["parts"]["html"]["marks"] and "token" not in json.dumps(news)


# ---- pictures and clips


def test_pictures_are_sent_small_and_whole_and_again_only_when_they_changed(world):
    id = add_event(world.store)
    assert world.client.get(f"/events/{id}/snapshot.jpg").status == 404
    picture = jpeg(90, (1920, 1080))
    world.store.set_snapshot(id, picture)
    whole, small = (world.client.get(f"/events/{id}/{name}.jpg") for name in ("snapshot", "thumbnail"))
    assert whole.body == picture and whole.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.body)).size == (320, 180) and len(small.body) < len(picture)
    for name, answer in (("snapshot", whole), ("thumbnail", small)):
        again = world.client.get(f"/events/{id}/{name}.jpg", if_none_match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
    assert whole.headers["etag"] != small.headers["etag"]
    world.store.set_snapshot(id, jpeg(50))
    assert world.client.get(f"/events/{id}/snapshot.jpg", if_none_match=whole.headers["etag"]).status == 200
    world.store.set_snapshot(id, b"no picture")
    assert world.client.get(f"/events/{id}/thumbnail.jpg").body == b"no picture"


def test_parts_of_a_clip_are_sent_as_they_are_asked_for(world):
    id, content = add_event(world.store), bytes(range(256)) * 1000
    assert world.client.get(f"/events/{id}/clip.mp4").status == 404
    add_clip(world.store, id, content)
    path, size = f"/events/{id}/clip.mp4", len(content)
    whole = world.client.get(path)
    assert whole.body == content and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes" and "inline" in whole.headers["content-disposition"]
    assert (
        'attachment; filename="door_20010909T014640Z.mp4"'
        in world.client.get(f"{path}?download=1").headers["content-disposition"]
    )
    for asked, first, behind in (
        ("0-99", 0, 100),
        ("1000-", 1000, size),
        ("-7", size - 7, size),
        ("5-999999999", 5, size),
    ):
        answer = world.client.get(path, range=f"bytes={asked}")
        assert answer.status == 206 and answer.body == content[first:behind]
        assert answer.headers["content-range"] == f"bytes {first}-{behind - 1}/{size}"
    assert world.client.get(path, range=f"bytes={size}-").status == 416
    assert world.client.get(path, range="bytes=0-9", if_range='"other"').body == content
    head = world.client.ask("HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(size))
    add_clip(world.store, id, content, "other.mkv")
    assert world.client.get(path).headers["content-type"] == "video/x-matroska"


# ---- for programs


def test_programs_read_cameras_and_events_as_json(world):
    ids = [add_event(world.store, camera) for camera in ("door", "yard")]
    cameras = json.loads(world.client.get("/api/cameras").body)
    assert [camera["name"] for camera in cameras] == ["door", "yard"] and len(cameras[0]["strip"]) == 360
    events = json.loads(world.client.get("/api/events?camera=yard&limit=5").body)
    assert [event["id"] for event in events] == ids[1:] and events[0]["classes"][0]["class"] == "fire"
    event = json.loads(world.client.get(f"/api/events/{ids[0]}").body)
    assert event["curve"] == pytest.approx([0.1, 0.2, 0.8, 0.3])
    assert world.client.get("/api/events/0").status == 404
