"""The page of watch.py in Chromium: news without reload, keys, local times, clips, and all of it without scripts."""

import pytest

from tests.chromium import chromium, dress, press, wait
from tests.videos import RED, write_clip
from tests.watched import TOKEN, add_event, jpeg, make_board, make_world, serving, settings_of, until
from videoanomaly.watching.store.event_store import EventStore

TAB, ENTER = "\ue004", "\ue007"
BERLIN = {"timezoneId": "Europe/Berlin"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def world(tmp_path):
    with make_world(tmp_path) as found:
        found.url = f"http://127.0.0.1:{found.server.port}"
        yield found


def add_playable(store: EventStore, **more) -> str:
    id = add_event(store, **more)
    clip = write_clip(store.clips / f"{id}.mp4", 100, [(50, 75, RED)])
    store.set_clip(id, clip.name, clip.stat().st_size)
    store.set_snapshot(id, jpeg())
    return id


def open_page(browser, url: str, width: int = 1280, dark: bool = False) -> None:
    dress(browser, width, dark)
    browser.get(url)
    wait(browser, "document.readyState === 'complete'")


def listens(browser) -> None:
    wait(browser, "source && source.readyState === 1")


def event_of(world, id: str) -> dict:
    event = world.store.event(id)
    assert event
    return event


def test_pages_load_without_errors_or_other_addresses_at_every_width_and_theme(browser, world):
    ids = [add_playable(world.store, start=1e9 + i, name="a_class_with_a_rather_long_name_" * 2) for i in range(3)]
    world.store.set_comment(ids[0], "w" * 300)
    world.board.set("door", state="away", detail="a" * 200)
    for path in ("/", f"/events/{ids[0]}", "/nowhere"):
        for width in (1280, 380):
            for dark in (False, True):
                open_page(browser, world.url + path, width, dark)
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
                assert len(loaded) >= 2 and all(address.startswith(world.url) for address in loaded)
                assert [one for one in browser.get_log("browser") if "/nowhere" not in one["message"]] == []
                back = "rgb(17, 20, 23)" if dark else "rgb(246, 246, 243)"
                assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == back


def test_news_come_without_a_reload_and_keep_the_focus(browser, world):
    first = add_event(world.store)
    open_page(browser, world.url)
    listens(browser)
    browser.execute_script("window.same = true; document.querySelector('.event .star').focus()")
    second = add_event(world.store, "yard", start=1e9 + 9, name="theft", is_open=True)
    wait(browser, "document.querySelectorAll('.event').length === 2")
    order = "return [...document.querySelectorAll('.event')].map(row => row.dataset.key)"
    assert browser.execute_script(order) == [second, first]
    world.store.set_star(first, True)
    wait(browser, f"document.querySelector('[data-key=\"{first}\"] .star').getAttribute('aria-pressed') === 'true'")
    focused = "const at = document.activeElement; return [at.closest('li')?.dataset.key, at.dataset.focus]"
    assert browser.execute_script(focused) == [first, "star"]
    world.board.set("door", state="away", detail="it <b>burns</b>")
    wait(browser, "document.querySelector('#facts-door .state').textContent.includes('(it <b>burns</b>)')")
    assert "2 cameras, 1 connected" in browser.execute_script("return document.querySelector('#summary').textContent")
    world.board.remove("yard")
    wait(browser, "document.querySelectorAll('.camera').length === 1")
    assert browser.execute_script("return window.same") and browser.get_log("browser") == []


def test_marks_are_saved_by_a_click_or_a_key_without_a_reload(browser, world):
    ids = [add_event(world.store, start=1e9 + i) for i in range(3)][::-1]
    open_page(browser, world.url)
    browser.execute_script("window.same = true; document.querySelector('.event .star').click()")
    until(lambda: event_of(world, ids[0])["starred"])
    focus = "return document.activeElement.closest('li')?.dataset.key"
    for key, row in (("j", 0), ("j", 1), ("j", 2), ("j", 2), ("k", 1)):
        press(browser, key)
        assert browser.execute_script(focus) == ids[row]
    for key, name, value in (
        ("r", "mark", "right"),
        ("w", "mark", "wrong"),
        ("w", "mark", None),
        ("s", "starred", True),
    ):
        press(browser, key)
        until(lambda: event_of(world, ids[1])[name] == value)
        wait(browser, "document.getElementById('told').textContent === 'Saved'")
        assert browser.execute_script(focus) == ids[1]
    pressed = f"document.querySelector('[data-key=\"{ids[1]}\"] .star').getAttribute('aria-pressed') === 'true'"
    wait(browser, pressed)
    assert browser.execute_script("return window.same")
    press(browser, ENTER)
    wait(browser, f"location.pathname === '/events/{ids[1]}'")
    assert browser.get_log("browser") == []


def test_a_comment_and_a_label_are_typed_and_not_lost_when_news_come(browser, world):
    id = add_event(world.store, is_open=True)
    open_page(browser, f"{world.url}/events/{id}")
    listens(browser)
    browser.execute_script("window.same = true; document.getElementById('text').focus()")
    press(browser, "half a sen")
    world.store.set_comment(id, "of somebody else")
    world.store.set_star(id, True)
    wait(browser, "document.querySelector('#marks .star').getAttribute('aria-pressed') === 'true'")
    press(browser, "tence", TAB, ENTER)
    until(lambda: event_of(world, id)["comment"] == "half a sentence")
    wait(browser, "document.getElementById('text').defaultValue === 'half a sentence'")
    assert browser.execute_script("return document.activeElement.dataset.focus") == "save"
    world.store.set_comment(id, "of a third one")
    wait(browser, "document.getElementById('text').value === 'of a third one'")
    browser.execute_script(
        "document.querySelector('[name=label]').value = 'theft'; document.querySelector('#label button').click()"
    )
    until(lambda: (event_of(world, id)["mark"], event_of(world, id)["label"]) == ("wrong", "theft"))
    wait(browser, "document.querySelector('#marks').textContent.includes('marked wrong: theft')")
    browser.execute_script(
        "document.querySelector('[name=new_label]').value = 'a/b'; document.querySelector('#label button').click()"
    )
    wait(browser, "document.getElementById('told').textContent.startsWith('A class has up to 60 letters')")
    assert browser.execute_script("return window.same")


def test_a_clip_plays_and_is_sought_in(browser, world):
    id = add_playable(world.store)
    open_page(browser, f"{world.url}/events/{id}")
    wait(browser, "document.getElementById('clip').readyState >= 1")
    assert browser.execute_script("return document.getElementById('clip').duration") == pytest.approx(4.0, abs=0.1)
    browser.execute_script(
        "const clip = document.getElementById('clip'); clip.muted = true; clip.currentTime = 2; clip.play()"
    )
    wait(browser, "document.getElementById('clip').currentTime > 2.3")
    assert browser.execute_script("return document.getElementById('unplayable').hidden")
    (world.store.clips / f"{id}.mp4").write_bytes(b"no video" * 100)
    open_page(browser, f"{world.url}/events/{id}")
    wait(browser, "!document.getElementById('unplayable').hidden")


def test_times_are_the_viewers_and_filters_are_in_them(browser, world):
    early, late = add_event(world.store, start=1e9), add_event(world.store, start=1e9 + 7200)
    browser.execute_cdp_cmd("Emulation.setTimezoneOverride", BERLIN)
    try:
        open_page(browser, world.url)
        row = f"document.querySelector('[data-key=\"{early}\"] time')"
        assert browser.execute_script(f"return {row}.textContent") == "2001-09-09 03:46:40"
        assert browser.execute_script(f"return {row}.title") == "2001-09-09 01:46:40 UTC"
        assert (
            browser.execute_script("return document.getElementById('zone').textContent")
            == "Times are in Europe/Berlin."
        )
        browser.execute_script(
            "const { since } = document.getElementById('filter'); since.value = '2001-09-09T05:00'; "
            "since.form.requestSubmit()"
        )
        wait(
            browser,
            "location.search === '?since=2001-09-09T03%3A00' && document.querySelectorAll('.event').length === 1",
        )
        assert browser.execute_script("return document.getElementById('filter').since.value") == "2001-09-09T05:00"
        assert browser.execute_script("return document.querySelector('.event').dataset.key") == late
    finally:
        browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


def test_everything_can_be_read_filtered_and_marked_where_scripts_are_off(browser, world):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    def find(selector: str):
        return browser.find_element(By.CSS_SELECTOR, selector)

    first, second = add_event(world.store, "door"), add_event(world.store, "yard", name="theft")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        dress(browser)
        browser.get(world.url)
        assert "2001-09-09 01:46:40 UTC" in find("#events").text and "Times are in UTC" in find("footer").text
        Select(find("[name=camera]")).select_by_value("yard")
        find("#filter button").click()
        until(lambda: "camera=yard" in browser.current_url)
        assert [row.get_attribute("data-key") for row in browser.find_elements(By.CSS_SELECTOR, ".event")] == [second]
        find(".event .star").click()
        until(lambda: event_of(world, second)["starred"])
        until(lambda: find(".event .star").get_attribute("aria-pressed") == "true")
        assert "camera=yard" in browser.current_url  # back where it was
        find(".event .class a").click()
        until(lambda: browser.current_url.endswith(f"/events/{second}"))
        find("#text").send_keys("seen")
        find("#comment button").click()
        until(lambda: event_of(world, second)["comment"] == "seen")
        Select(find("[name=label]")).select_by_value("fall_down")
        find("#label button").click()
        until(lambda: event_of(world, second)["label"] == "fall_down")
        assert not event_of(world, first)["mark"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_keys_reach_all_that_can_be_done_and_the_focus_is_seen(browser, world):
    add_event(world.store)
    open_page(browser, world.url)
    listens(browser)
    reached, seen = [], []
    look = """const at = document.activeElement, style = getComputedStyle(at), after = getComputedStyle(at, "::after");
      return [at.name || at.dataset.focus || at.tagName + at.textContent,
              [style, after].some(s => s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1)]"""
    for _ in range(40):
        press(browser, TAB)
        name, is_seen = browser.execute_script(look)
        reached.append(name)
        seen.append(is_seen or name in ("since", "until"))  # whose parts are marked by the browser
        if "BODY" in name:
            break
    for name in (
        "ACameras and events",
        "Adoor",
        "camera",
        "class",
        "since",
        "until",
        "mark",
        "text",
        "starred",
        "BUTTONShow",
        "open",
    ):
        assert name in reached, name
    assert reached.index("open") < reached.index("starred", reached.index("open")) and all(
        seen[: reached.index("open") + 4]
    )


def test_a_link_from_elsewhere_and_the_login_lead_to_the_event(browser, tmp_path):
    from selenium.webdriver.common.by import By

    store = EventStore(tmp_path)
    id = add_event(store)
    elsewhere = tmp_path / "elsewhere.html"
    with serving(make_board("door"), store, settings_of(tmp_path, TOKEN)) as server:
        elsewhere.write_text(f'<a id="a" href="http://127.0.0.1:{server.port}/events/{id}">go</a>')
        open_page(browser, elsewhere.as_uri())
        browser.find_element(By.ID, "a").click()
        until(lambda: browser.find_elements(By.NAME, "token"))
        browser.find_element(By.NAME, "token").send_keys("wrong", ENTER)
        until(lambda: browser.find_elements(By.CSS_SELECTOR, "[role=alert]"))
        assert (
            browser.execute_script("return getComputedStyle(document.querySelector('main')).maxWidth") != "none"
        )  # styled
        browser.find_element(By.NAME, "token").send_keys(TOKEN, ENTER)
        until(lambda: browser.find_elements(By.ID, "title"))
        assert browser.current_url.endswith(f"/events/{id}")
        open_page(browser, elsewhere.as_uri())
        browser.find_element(By.ID, "a").click()  # a strict cookie is kept back, and comes with the second request
        until(lambda: browser.find_elements(By.ID, "title"))
        assert browser.current_url.endswith(f"/events/{id}")
        browser.find_element(By.CSS_SELECTOR, "[formaction='/logout']").click()
        until(lambda: browser.find_elements(By.CSS_SELECTOR, ".login"))


def test_a_page_finds_the_service_again_after_a_restart(browser, tmp_path):
    board, store = make_board("door"), EventStore(tmp_path)
    with serving(board, store, settings_of(tmp_path)) as server:
        open_page(browser, f"http://127.0.0.1:{server.port}")
        listens(browser)
    wait(browser, "document.getElementById('told').textContent === 'Not connected; trying again'")
    id = add_event(store)
    with serving(board, store, settings_of(tmp_path, port=server.port)):
        wait(browser, f"document.querySelector('.event')?.dataset.key === '{id}'")
        wait(browser, "document.getElementById('told').textContent === ''")
        browser.execute_script("document.querySelector('.event .star').click()")  # the session goes on, too
        until(lambda: (store.event(id) or {})["starred"])
        browser.get("about:blank")
