"""Tests of report.py and its pages: what goes in, and what Chromium makes of it (skipped without Chromium and
selenium).
"""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from tests.chromium import chromium, dress, press, wait
from tests.videos import BLUE, RED, write_clip
from videoanomaly.event_rule import cut_events
from videoanomaly.frame_scores import FrameScores
from videoanomaly.operating_curve import Watched, measure
from videoanomaly.prediction import report, report_index
from videoanomaly.prediction.events import find_events, to_csv
from videoanomaly.video import key_frames
from videoanomaly.video.frame_clock import clock


def make_page(folder: Path, p_A: np.ndarray, p_class: np.ndarray, classes, fps: float = 25.0, name: str = "v") -> Path:
    """A page without a video, threshold 0.5."""
    scores = FrameScores(p_A.astype(np.float32), p_class.astype(np.float32), np.arange(len(p_A)) / fps, fps)
    result = {"video": name, "fps": fps, "duration": scores.duration, "threshold": 0.5, "classes": list(classes)}
    result |= {"notes": ["<b>1 & 2</b>"], "jumps": [{"time": 2.0, "by": 100.0}, {"time": 5.0, "by": 50.0}]}
    result |= {"events": find_events(scores, classes, 0.5), "highest_p_A": float(p_A.max())}
    path = folder / "page.html"
    path.write_text(report.page(result, scores, None, [], folder, "last.pt"), encoding="utf-8")
    return path


def page_data(path: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


# ---- what goes in


def test_nothing_that_is_put_in_ends_the_data_or_is_filled_in_again(tmp_path):
    name = "</script><script>alert(1)</script>{{data}}<!--"
    text = make_page(tmp_path, np.zeros(9), np.zeros((9, 1)), [name], name=name).read_text()
    assert (
        text.count("<script>") == 1
        and text.count("</script>") == 2
        and "<!--" not in text.split("<body>")[1].split("{{")[0]
    )
    assert page_data(tmp_path / "page.html")["video"] == name
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;{{data}}&lt;!-- – anomaly report</title>" in text


def test_the_page_names_no_address_of_another_machine():
    for template in ("report.html", "report_index.html"):
        assert not re.search(r"https?:|//[a-z]+\.", (report.HERE / template).read_text().replace("-//W3C//", ""))


def test_scores_in_the_page_are_exact(tmp_path):
    p_A = np.random.default_rng(0).random(50).astype(np.float32)
    data = page_data(make_page(tmp_path, p_A.repeat(8)[:397], p_A.repeat(8)[:397, None], ["x"], 30.0))
    assert data["num_frames"] == 397 and data["spacing"] == 8
    assert np.array_equal(np.frombuffer(base64.b64decode(data["p_A"]), "<f4"), p_A)
    assert data["times"] == {"first": 0.0, "step": pytest.approx(1 / 30, rel=1e-12)}
    assert np.abs(np.frombuffer(base64.b64decode(data["p_class"]), "<u2") / 65535 - p_A).max() <= 1 / 65535


def test_bytes_of_a_long_video_sum_up_to_its_class_probabilities(monkeypatch):
    p_class = np.random.default_rng(0).dirichlet(np.ones(7), 2000).astype(np.float32)
    p_class[:600] *= 0.002  # less than half a byte can tell
    monkeypatch.setattr(report, "MOST_EXACT", 10)
    data = report.score_data(FrameScores(p_class.sum(axis=1), p_class, np.arange(2000) / 25, 25.0))
    stored = np.frombuffer(base64.b64decode(data["p_class"]), "u1").reshape(-1, 7) / data["p_class_levels"]
    for first, behind in ((0, 1), (0, 600), (17, 400), (600, 615), (3, 2000)):
        off = stored[first:behind].sum(axis=0) - p_class[first:behind].sum(axis=0)
        assert np.abs(off).max() <= 1.001 / 255


def test_a_large_video_is_linked_and_odd_names_survive(tmp_path, monkeypatch):
    video = write_clip(tmp_path / "in" / "a b#%?ü.mp4", 3)
    assert report.video_data(video, tmp_path)["src"].startswith("data:video/mp4;base64,")
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 10)
    data = report.video_data(video, tmp_path / "out" / "x")
    assert data["src"] == "../../in/a%20b%23%25%3F%C3%BC.mp4" and not data["embedded"] and data["codec"] == "h264"


def test_key_frames_are_the_frames_they_say(tmp_path):
    video = write_clip(tmp_path / "v.mp4", 600, [(300, 310, RED), (580, 600, BLUE)])
    p_A = np.zeros(600, np.float32)
    p_A[[305, 590]] = 1
    scores = FrameScores(p_A, p_A[:, None], np.arange(600) / 25, 25.0)
    pictures = key_frames.key_frames(video, scores.p_A, scores.times, [])
    assert len(pictures) == 10 and [p.time for p in pictures] == sorted(p.time for p in pictures)
    for picture in pictures:
        red, _, blue = np.asarray(Image.open(io.BytesIO(picture.jpeg))).mean((0, 1))
        expected = 1 if picture.time == 305 / 25 else -1 if picture.time == 590 / 25 else 0
        assert np.sign(red - blue) * (abs(red - blue) > 50) == expected
    (tmp_path / "w.mp4").write_bytes(b"no video")
    assert key_frames.key_frames(tmp_path / "w.mp4", scores.p_A, scores.times, []) == []


def test_key_frames_far_apart_are_sought(tmp_path):
    video = write_clip(tmp_path / "v.mkv", 400, [(350, 400, RED)], np.arange(400) * 0.5)
    scores = FrameScores(np.zeros(400, np.float32), np.zeros((400, 1), np.float32), np.arange(400) * 0.5, 2.0)
    pictures = key_frames.key_frames(video, scores.p_A, scores.times, [])
    assert [picture.time for picture in pictures] == [20.0 * i for i in range(10)]


def test_peaks_keep_every_peak():
    p = np.zeros(10007)
    p[[0, 5000, 10006]] = [0.3, 0.9, 0.5]
    high = report_index.peaks(p, 160)
    assert (
        len(high) == 160
        and sorted(high[high > 0]) == [0.3, 0.5, 0.9]
        and report_index.peaks(p[:3], 160).tolist() == [0.3, 0, 0]
    )


class Still(HTMLParser):
    """What a page shows where scripts are off: tags and texts, but for scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.ignored = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ignored = tag if tag in ("script", "style") else self.ignored

    def handle_endtag(self, tag):
        self.ignored = "" if tag == self.ignored else self.ignored

    def handle_data(self, data):
        self.texts += [data] if not self.ignored and data.strip() else []


@pytest.mark.parametrize(
    "name", ["fire", "事故", "</noscript><img src=x>", "<script>x</script>", "--> a|b", '"&amp;', "a_b"]
)
def test_a_page_shows_its_events_where_scripts_are_off(tmp_path, name):
    p_A = np.zeros(200)
    p_A[50:100], p_A[150:200] = 0.9, 0.8
    text = make_page(tmp_path, p_A, p_A[:, None], [name], name=name).read_text(encoding="utf-8")
    shown = text[text.index("<body>") :]
    shown = shown[shown.index("<noscript>") : shown.index("</noscript>")]
    page, label = Still(shown), name.replace("_", " ")
    assert page.texts[0] == name and page.texts.count("Confidence (mean p_A over the event, 0 to 1)") == 1
    cells = [data for data in page.texts if data != "\n"]
    assert cells[-6:] == ["00:00:02.0 – 00:00:04.0", label, "0.90", "00:00:06.0 – 00:00:08.0", label, "0.80"]
    assert not {"img", "script"} & set(page.tags) and text.count("</noscript>") == 2
    quiet = make_page(tmp_path, np.full(9, 0.25), np.zeros((9, 1)), [name]).read_text(encoding="utf-8")
    assert "<p>No events; the highest p_A is 0.25.</p>" in quiet


@pytest.mark.parametrize("name", ["fire", "事故", "</li><img src=x>", "--> a|b"])
def test_the_index_needs_no_scripts(tmp_path, name):
    event = {"class": name, "confidence": 0.9, "p_class": 0.8, "start": 2.0, "start_time": "00:00:02.000"}
    event |= {"end_time": "00:00:04.000"}
    result = {"video": name, "duration": 9.0, "events": [event], "highest_p_A": 0.9}
    text = report_index.index({"v": result}, {name: name}, tmp_path)
    page = Still(text)
    assert not {"noscript", "img"} & set(page.tags) and page.tags.count("script") == 1 and page.texts.count(name) == 5
    assert "00:00:02 – 00:00:04" in page.texts and "0.90" in page.texts and "at 00:00:02" in page.texts


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def clip_page(planted, tmp_path_factory) -> Path:
    """Two events, 2 to 3.6 s and 5.6 to 7.2 s, the second of which ends at threshold 0.9 and more."""
    root = tmp_path_factory.mktemp("page")
    video = write_clip(root / "two events.mp4", 240, [(50, 90, RED), (140, 180, BLUE)])
    predict.main([*planted.options, str(video), "--out", str(root / "out"), "--threshold", "0.5"])
    return root / "out" / "report.html"


def load(browser, path: Path, width: int = 1200, dark: bool = False) -> None:
    dress(browser, width, dark)
    browser.get(path.as_uri())
    wait(browser, "!data.source || !video || video.readyState >= 2")


def num_rows(browser) -> int:
    return browser.execute_script("return document.querySelectorAll('#rows tr').length")


def test_the_page_loads_without_errors_or_network_at_every_width_and_theme(browser, clip_page):
    for width in (1200, 380):
        for dark in (False, True):
            load(browser, clip_page, width, dark)
            assert num_rows(browser) == 2
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
            assert all(address.startswith("blob:") for address in loaded)
            assert browser.get_log("browser") == []
    assert browser.execute_script("return style('--back')") == "#111417"


def test_a_click_on_the_curve_seeks_and_the_playhead_follows_the_video(browser, clip_page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    load(browser, clip_page)
    plot = browser.find_element(By.ID, "plot")
    ActionChains(browser).move_to_element_with_offset(plot, plot.size["width"] // 4, 0).click().perform()
    assert browser.execute_script("return video.currentTime") == pytest.approx(0.75 * 9.6, abs=0.05)
    browser.execute_script("video.currentTime = 2.4")
    wait(browser, "Math.abs(parseFloat($('head').style.left) - 25) < 0.1 && !video.seeking")
    assert browser.execute_script("return $('rows').children[0].getAttribute('aria-current')") == "true"
    spoken = browser.execute_script("return $('plot').getAttribute('aria-valuetext')")
    assert spoken == "0:02.4, anomaly probability 1.00, event 1, fire"
    browser.execute_script("video.play()")
    wait(browser, "video.currentTime > 2.8 && parseFloat($('head').style.left) > 28")


def test_keys_go_through_the_events_and_play(browser, clip_page):
    load(browser, clip_page)
    starts = [event["start"] for event in json.loads((clip_page.parent / "events.json").read_text())["events"]]
    for key, expected in (("j", 0), ("j", 1), ("j", 1), ("k", 0), ("k", 0)):
        press(browser, key)
        assert browser.execute_script("return position") == pytest.approx(starts[expected], abs=2e-3)
        spoken = browser.execute_script("return $('live').textContent")
        assert spoken.startswith(f"Event {expected + 1} of 2: {('fire', 'fall')[expected]}")
    press(browser, " ")
    wait(browser, "!video.paused && video.currentTime > 2.2")
    press(browser, " ")
    wait(browser, "video.paused")
    browser.execute_script("$('plot').focus(); seek(5)")
    press(browser, "\ue014")  # arrow right
    assert browser.execute_script("return position") == pytest.approx(6, abs=0.01)
    browser.execute_script("$('rows').querySelectorAll('button')[1].focus()")
    press(browser, " ")  # on a button it presses that
    wait(browser, f"Math.abs(position - {starts[1]}) < 0.01")
    assert browser.execute_script("return video.paused")


def test_the_slider_recomputes_the_events_as_python_does(browser, tmp_path):
    rng = np.random.default_rng(2)
    p_A = np.clip(5 * np.convolve(rng.random(3000), np.ones(40) / 40, "same") - 2.2, 0, 0.98).astype(np.float32)
    p_class = (p_A[:, None] * rng.dirichlet(np.ones(5), 3000)).astype(np.float32)
    path, scores = (
        make_page(tmp_path, p_A, p_class, "abcde", 29.97),
        FrameScores(p_A, p_class, np.arange(3000) / 29.97, 29.97),
    )
    load(browser, path)
    counts = set()
    for threshold in (0.2, 0.35, 0.5, 0.65, 0.8, 0.99):
        browser.execute_script(f"$('threshold').value = {threshold}; $('threshold').dispatchEvent(new Event('input'))")
        expected = find_events(scores, tuple("abcde"), threshold)
        found = browser.execute_script(
            "return events.map(e => [e.first, e.behind, e.start, e.end, e.confidence, ...e.ranking.map(r => r.c)])"
        )
        assert [row[:2] for row in found] == [[e["start_frame"], e["end_frame"]] for e in expected]
        assert num_rows(browser) == len(expected)
        for row, event in zip(found, expected):
            assert row[2:5] == pytest.approx([event["start"], event["end"], event["confidence"]], abs=1e-6)
            assert ["abcde"[c] for c in row[5:]] == [event["class"], *(other["class"] for other in event["others"])]
        counts.add(len(expected))
    assert len(counts) > 3 and 0 in counts
    both = "return [1, 2, 4.5, 6].map(time => [inPlayer(time), fromPlayer(inPlayer(time))])"
    assert browser.execute_script(both) == [[1, 1], [102, 2], [104.5, 4.5], [156, 6]]
    assert browser.execute_script("return $('notes').textContent") == "<b>1 & 2</b>"
    assert browser.execute_script("return $('none').textContent").startswith(
        "None at this threshold. The highest p_A is 0."
    )
    browser.execute_script("$('reset').click()")
    assert num_rows(browser) == len(find_events(scores, tuple("abcde"), 0.5))


def test_the_rule_is_the_same_on_every_border(browser, tmp_path):
    load(browser, make_page(tmp_path, np.zeros(9), np.zeros((9, 1)), "x"))
    rng = np.random.default_rng(3)
    for _ in range(60):  # runs and gaps of about a second, values on the thresholds themselves
        fps = float(rng.choice([4.0, 5.0, 12.5, 29.97]))
        lengths = rng.choice([0, 1, round(fps) - 1, round(fps), round(fps) + 1], 30)
        p = np.repeat(rng.choice([0, 0.2, 0.25, 0.4, 0.5, 0.8], 30), np.maximum(lengths, 0)).astype(np.float32)
        high = float(rng.choice([0.4, 0.5, float(np.float32(0.4)), float(np.float32(0.8))]))
        script = "return cutEvents(new Float32Array(arguments[0]), arguments[1], arguments[2])"
        found = browser.execute_script(script, p.tolist(), fps, high)
        assert found == cut_events(p, fps, high=high).intervals.tolist()


def test_hostile_names_are_text(browser, tmp_path):
    name = "</script><img src=x onerror=document.title='hit'>\"'&{{data}}"
    load(browser, make_page(tmp_path, np.full(50, 0.9), np.full((50, 1), 0.9), [name], name=name))
    press(browser, "j")
    assert browser.execute_script("return document.title") == f"{name} – anomaly report"
    assert browser.execute_script("return $('name').textContent") == name
    assert name in browser.execute_script("return $('rows').textContent")
    assert (
        browser.execute_script("return document.querySelectorAll('img').length") == 0
        and browser.get_log("browser") == []
    )


@pytest.mark.parametrize("on", [True, False])
def test_the_table_for_readers_without_scripts_is_shown_to_them_alone(browser, clip_page, on):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not on})
    try:
        browser.get(clip_page.as_uri())
        shown = browser.find_element("css selector", "body").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert ("Scripts are switched off" in shown) != on and ("Threshold" in shown) == on and "fire" in shown


def test_scripts_that_are_not_the_pages_own_do_not_run(browser, clip_page):
    load(browser, clip_page)
    browser.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.hit = 1';"
        "document.body.append(script)"
    )
    assert browser.execute_script("return window.hit") is None


def test_a_codec_that_cannot_be_played_is_told_and_key_frames_stand_in(browser, planted, tmp_path):
    video = write_clip(tmp_path / "old.avi", 100, codec="mpeg4")
    predict.main([*planted.options, str(video), "--out", str(tmp_path / "out"), "--threshold", "0.5"])
    load(browser, tmp_path / "out" / "report.html")
    wait(browser, "$('notice').textContent")
    assert (
        browser.execute_script("return $('notice').textContent")
        == "This browser cannot play the video (mpeg4, .avi). Key frames are shown instead."
    )
    press(browser, "j")
    wait(browser, "picture.complete && picture.naturalWidth === 64")
    assert browser.execute_script(
        "const c = document.createElement('canvas').getContext('2d'); c.drawImage(picture, 0, 0);"
        "const [r, g, b] = c.getImageData(30, 30, 1, 1).data; return r > b + 30"
    )
    assert browser.execute_script("return picture.alt").startswith("Key frame at 0:02")


def test_a_linked_video_plays(browser, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 10)
    video = write_clip(tmp_path / "in" / "a b#%?.mp4", 60)
    predict.main([*planted.options, str(video), "--out", str(tmp_path / "out")])
    load(browser, tmp_path / "out" / "report.html")
    wait(browser, "video && video.readyState >= 2")
    assert browser.execute_script("return video.videoWidth") == 64 and browser.get_log("browser") == []


def test_a_peak_of_one_frame_in_hours_stays_visible(browser, tmp_path):
    p_A = np.full(400_000, 0.1, np.float32)
    p_A[123_456] = 1
    load(browser, make_page(tmp_path, p_A, p_A[:, None], ["x"]))
    assert (
        browser.execute_script("""const width = $('canvas').width, at = Math.round(width * 123456 / 400000);
        const pixels = $('canvas').getContext('2d').getImageData(at - 3, TOP + 3, 7, 1).data;
        return Math.min(...pixels.filter((_, i) => i % 4 === 0 && pixels[i + 3] > 100))""")
        < 120
    )


def long_page(folder: Path, **more) -> Path:
    """An hour at 10 frames/s, two events of 3 s 9 s apart, and nothing else; the second is surer."""
    p_A = np.full(36_000, 0.1)
    p_A[18_000:18_030], p_A[18_090:18_120] = 0.8, 0.9
    return make_page(folder, p_A, p_A[:, None], ["fire"], 10.0, **more)


def view(browser) -> list[float]:
    return browser.execute_script("return [view.from, view.from + view.span]")


def test_the_curve_zooms_and_moves_by_wheel_keys_buttons_and_drag(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    load(browser, long_page(tmp_path))
    plot = browser.find_element(By.ID, "plot")
    assert browser.execute_script("return $('whole').disabled") and view(browser) == [0, 3600]
    wheel = "$('plot').dispatchEvent(new WheelEvent('wheel', {{deltaY: {}, clientX: {}, cancelable: true, {}}}))"
    left, width = browser.execute_script("const b = $('plot').getBoundingClientRect(); return [b.left, b.width]")
    assert browser.execute_script("return " + wheel.format(100, left, ""))  # nothing to zoom out of: the page scrolls
    for _ in range(8):
        assert not browser.execute_script("return " + wheel.format(-300, left + width / 2, ""))
    first, behind = view(browser)
    assert behind - first == pytest.approx(3600 / 2**7.2, rel=0.01) and (first + behind) / 2 == pytest.approx(
        1800, abs=4
    )
    ActionChains(browser).drag_and_drop_by_offset(plot, int(width / 4), 0).perform()
    assert view(browser)[0] == pytest.approx(first - (behind - first) / 4, rel=0.01)
    assert browser.execute_script("return position") == 0  # a drag is no click
    before = view(browser)
    browser.execute_script("$('plot').focus()")
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    assert view(browser)[0] == pytest.approx(before[0] + (before[1] - before[0]) / 2)
    press(browser, "-")
    assert view(browser)[1] - view(browser)[0] == pytest.approx(2 * (before[1] - before[0]))
    press(browser, "0")
    assert view(browser) == [0, 3600]
    browser.execute_script("$('closer').click()")
    assert view(browser)[1] - view(browser)[0] == 1800
    browser.execute_script("$('whole').click(); for (let i = 0; i < 40; i++) zoom(0.5, 1234)")
    assert view(browser)[1] - view(browser)[0] == pytest.approx(2)  # twenty frames
    press(browser, "j")  # what is sought comes into view
    assert view(browser)[0] < 1800 < view(browser)[1]


def test_two_fingers_zoom_the_curve(browser, tmp_path):
    load(browser, long_page(tmp_path))
    script = """const at = (kind, pointerId, clientX) =>
            $('plot').dispatchEvent(new PointerEvent(kind, {pointerId, clientX}));
        $('plot').setPointerCapture = () => {};
        const box = $('plot').getBoundingClientRect(), middle = box.left + box.width / 2;
        at('pointerdown', 1, middle - 50); at('pointerdown', 2, middle + 50);
        at('pointermove', 1, middle - 100); at('pointermove', 2, middle + 100);
        at('pointerup', 1, middle - 100); at('pointerup', 2, middle + 100);"""
    browser.execute_script(script)
    first, behind = view(browser)
    assert behind - first == pytest.approx(1800) and (first + behind) / 2 == pytest.approx(1800, abs=1)
    assert browser.execute_script("return position") == 0


def test_an_event_of_less_than_a_pixel_is_hit_and_its_link_shows_it_wide(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    path = long_page(tmp_path)
    load(browser, path)
    plot = browser.find_element(By.ID, "plot")
    ActionChains(browser).move_to_element_with_offset(plot, 4, 0).click().perform()
    assert browser.execute_script("return position") == 1809  # the surer one of two under the hand
    ActionChains(browser).move_to_element_with_offset(plot, 60, 0).click().perform()
    assert browser.execute_script("return position") == pytest.approx(1800 + 3600 * 60 / plot.size["width"], abs=4)
    browser.execute_script("show(1795, 20)")
    aside = -int(3.5 / 20 * plot.size["width"])
    ActionChains(browser).move_to_element_with_offset(plot, aside, 0).click().perform()
    assert browser.execute_script("return position") == pytest.approx(1801.5, abs=0.1)
    browser.get("about:blank")
    browser.get(path.as_uri() + "#t=1809.000")
    assert browser.execute_script("return [position, widthOf(events[1]) > 40]") == [1809, True]
    assert browser.execute_script("return $('rows').children[1].getAttribute('aria-current')") == "true"


def test_the_pyramid_sums_what_the_frames_do(browser, tmp_path):
    rng = np.random.default_rng(4)
    p_A = rng.random(5000).repeat(3)[:14_999]
    load(
        browser, make_page(tmp_path, p_A, p_A[:, None] * rng.dirichlet(np.ones(4), 5000).repeat(3, 0)[:14_999], "abcd")
    )
    for first, behind in ((0, 14_999), (1, 2), (255, 8192), (16, 4112), (14_000, 14_999), (7, 300)):
        script = """let low = 2, high = -1, num = 0; overBlocks(arguments[0], arguments[1], (level, i) => {
            num++; low = Math.min(low, level.low[i]); high = Math.max(high, level.high[i]); });
            return [low, high, num, ...meanClasses(arguments[0], arguments[1])]"""
        low, high, num, *means = browser.execute_script(script, first, behind)
        part = p_A[first:behind].astype(np.float32)
        assert [low, high] == [part.min(), part.max()] and num <= 120
        assert sum(means) == pytest.approx(part.mean(), abs=1e-4)


def test_uneven_times_and_the_time_of_day_are_those_of_the_video(browser, tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 500)) + 0.25
    times[300:] += 4000.5
    scores = FrameScores(np.full(500, 0.9, np.float32), np.full((500, 1), 0.9, np.float32), times, 10.0)
    result = {"video": "v", "fps": 10.0, "duration": scores.duration, "threshold": 0.5, "classes": ["x"], "notes": []}
    result |= {"jumps": [], "events": [], "highest_p_A": 0.9, "start_wall": "2024-05-01T23:59:50.500000+02:00"}
    result |= {"start_wall_from": "the file's <name>"}
    path = tmp_path / "page.html"
    path.write_text(report.page(result, scores, None, [], tmp_path, "last.pt"), encoding="utf-8")
    load(browser, path)
    assert browser.execute_script("return [...times]") == pytest.approx(times.tolist(), abs=2e-6)
    told = browser.execute_script("return $('wall').textContent")
    assert told == "Begins 2024-05-01 23:59:50 (+02:00), told by the file's <name>"
    browser.execute_script("seek(10)")
    assert "2024-05-02 00:00:00" in browser.execute_script("return $('now').textContent")


def test_the_page_cuts_events_by_the_settings_of_the_run(browser, tmp_path):
    p_A = np.full(300, 0.05, np.float32)
    p_A[50:80], p_A[60], p_A[95:100], p_A[200:205] = 0.3, 0.9, 0.9, 0.9
    result = {"video": "v", "fps": 10.0, "duration": 30.0, "threshold": 0.8, "classes": ["x"], "notes": [], "jumps": []}
    result |= {"events": [], "highest_p_A": 0.9, "threshold_rule": "given as <b>--threshold</b>"}
    path, scores = tmp_path / "page.html", FrameScores(p_A, p_A[:, None], np.arange(300) / 10, 10.0)
    for low_share, gap, length in ((0.5, 1.0, 1.0), (0.3, 2.0, 0.4), (0.3, 1.0, 0.6)):
        settings = {"threshold": 0.8, "low_share": low_share, "merge_gap": gap, "min_length": length}
        page = report.page(result | {"event_settings": settings}, scores, None, [], tmp_path, "last.pt")
        path.write_text(page, encoding="utf-8")
        load(browser, path)
        expected = cut_events(p_A, 10.0, high=0.8, low=low_share * 0.8, merge_gap=gap, min_length=length)
        assert browser.execute_script("return events.map(e => [e.first, e.behind])") == expected.intervals.tolist()
    assert "Threshold 0.8: given as <b>--threshold</b>. " in browser.execute_script("return $('rule').textContent")


def watched_videos() -> list[Watched]:
    """Of an hour of normal video and four abnormal videos: every peak is another."""
    p = np.zeros((8, 9000))
    p[:, 500:600] = np.array([0.2, 0.3, 0.4, 0.62, 0.25, 0.5, 0.7, 0.8])[:, None]
    return [Watched(-1 if i < 4 else 0, row, row[:, None] * [0.9, 0.1], 10.0) for i, row in enumerate(p)]


@pytest.mark.parametrize("num", [8, 4, 0])
def test_the_threshold_tells_what_to_expect_of_it(browser, tmp_path, num):
    curve = measure(watched_videos()[8 - num :]) if num else None  # all, abnormal ones alone, unknown
    p_A = np.full(300, 0.1, np.float32)
    result = {
        "video": "v",
        "fps": 10.0,
        "duration": 30.0,
        "threshold": 0.45,
        "classes": ["x"],
        "notes": [],
        "jumps": [],
    }
    result |= {"events": [], "highest_p_A": 0.9}
    scores = FrameScores(p_A, p_A[:, None], np.arange(300) / 10, 10.0)
    path = tmp_path / "page.html"
    path.write_text(report.page(result, scores, None, [], tmp_path, "last.pt", curve), encoding="utf-8")
    load(browser, path)
    told = browser.execute_script("return $('expected').textContent")
    shown = browser.execute_script("return !$('chart').hasAttribute('hidden') && $('known').getAttribute('d').length")
    if not curve:
        assert "is unknown" in told and not shown
        return
    low, high = (f"{share:.0%}".replace("%", " %") for share in curve.at(0.45)["found_interval"])
    assert f"an alarm in 75 % of abnormal videos ({low} to {high}), with the right class in 75 %" in told
    assert f"on {num} training videos" in browser.execute_script("return $('origin').textContent")
    assert ("about 1 false alarms per hour of normal video (0.0" in told) == (num == 8) == bool(shown)
    assert ("unknown number of false alarms" in told) == (num == 4)
    before = browser.execute_script("return [$('here').getAttribute('cx'), $('here').getAttribute('cy')]")
    browser.execute_script("$('threshold').value = 0.75; $('threshold').dispatchEvent(new Event('input'))")
    told = browser.execute_script("return $('expected').textContent")
    assert "an alarm in 25 %" in told and ("no false alarms per hour of normal video (0 to " in told) == (num == 8)
    after = browser.execute_script("return [$('here').getAttribute('cx'), $('here').getAttribute('cy')]")
    assert not shown or float(after[0]) < float(before[0]) and float(after[1]) > float(before[1])
    assert browser.get_log("browser") == []


def many_results(num: int) -> dict[str, dict]:
    """`num` events of six videos in two folders, one of them without any."""
    results = {}
    for v in range(6):
        name, events = f"cam{v % 2}/<v>{v}", []
        for i in range(num // 5 if v else 0):
            start, wall = i * 10.0, f"2024-05-0{v}T10:{i // 6 % 60:02d}:{i * 10 % 60:02d}+02:00"
            times = {"start": start, "end": start + 2, "start_time": clock(start), "end_time": clock(start + 2)}
            frames = {"start_frame": i * 100, "end_frame": i * 100 + 20, "start_wall": wall, "end_wall": None}
            named = {"class": ("a_<b>", "fall")[i % 2], "p_class": 0.5, "confidence": 0.4 + (i * 7 + v) % 600 / 1000}
            events.append(times | frames | named | {"others": []})
        damage = [{"start": 1.0}] if v == 1 else []
        results[name] = {"video": name, "duration": 9e3, "events": events, "highest_p_A": 0.9, "damage": damage}
    return results


def shown_rows(browser) -> list[list[str]]:
    return browser.execute_script("return [...$('rows').rows].map(r => [...r.cells].map(c => c.textContent))")


def test_the_index_filters_sorts_and_shows_more_where_it_is_asked_for(browser, tmp_path):
    page = tmp_path / "index.html"
    page.write_text(report_index.index(many_results(1000), {"broken": "<no> video"}, tmp_path), encoding="utf-8")
    browser.get(page.as_uri())
    rows = shown_rows(browser)
    assert len(rows) == 300 and [r[4] for r in rows] == sorted((r[4] for r in rows), reverse=True)
    assert browser.execute_script("return $('list').children.length") == 6
    for text in ("1,000 events; 6 videos, 5 with events, 1 not decoded wholly, 1 could not be read", "<no> video"):
        assert text in browser.execute_script("return document.querySelector('main').innerText")
    browser.execute_script("$('more').click()")
    assert len(shown_rows(browser)) == 600
    change = "for (const [k, v] of arguments[0]) form[k].value = v; form.dispatchEvent(new Event('input'))"
    browser.execute_script(change, [["class", "a <b>"], ["folder", "cam1"], ["order", "time"]])
    rows = shown_rows(browser)
    assert browser.execute_script("return $('count').textContent") == "300 of 1,000 events" and len(rows) == 300
    assert all(r[1].startswith("cam1/") and r[3].startswith("a <b>") for r in rows)
    walls = [r[2][-25:] for r in rows]
    assert walls == sorted(walls) and walls[0] == "2024-05-01 10:00:00+02:00"
    assert browser.execute_script("return [...$('list').children].filter(v => !v.hidden).length") == 3
    browser.execute_script("location.reload()")
    wait(browser, "typeof form === 'object' && form.folder.value === 'cam1' && $('rows').rows.length === 300")
    browser.execute_script(change, [["class", ""], ["folder", ""], ["text", "<V>3"], ["order", ""]])
    assert {r[1] for r in shown_rows(browser)} == {"cam1/<v>3"} and len(shown_rows(browser)) == 200
    browser.execute_script("more()")
    browser.execute_script(change, [["text", ""]])
    assert len(shown_rows(browser)) == 300
    browser.execute_script(change, [["text", "<V>3"]])
    for key, row in (("j", 0), ("j", 1), ("k", 0)):
        press(browser, key)
        assert browser.execute_script("return document.activeElement.closest('tr').rowIndex - 1") == row
    link = browser.execute_script("return document.activeElement.getAttribute('href')")
    assert link == "cam1/%3Cv%3E3/report.html#t=" + f"{float(link.partition('=')[2]):.3f}"
    assert browser.get_log("browser") == []


def test_events_of_all_videos_are_in_one_table(tmp_path):
    results = many_results(10) | {"=odd": many_results(10)["cam1/<v>3"] | {"video": "=odd", "path": "=odd/x.mp4"}}
    head, *rows = csv.reader(io.StringIO(report_index.combined_csv(results)))
    own = next(csv.reader([to_csv([])]))
    assert head == ["video", *own, "report"] and len(rows) == 12 and {len(row) for row in rows} == {len(head)}
    assert [row[0] for row in rows] == sorted(row[0] for row in rows) and rows[0][0] == "'=odd/x.mp4"
    assert rows[2][0] == "cam0/<v>2" and rows[2][-1] == "cam0/%3Cv%3E2/report.html#t=0.000"
    assert report_index.combined_csv({}) == ",".join(head) + "\n"


def test_each_of_the_surest_events_has_its_own_picture(tmp_path):
    def jpeg(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (64, 48), grey).save(file, "JPEG")
        return file.getvalue()

    events = [{"start": 10.0 * i, "end": 10.0 * i + 5, "confidence": (i * 7 % 15) / 15} for i in range(15)]
    pictures = [key_frames.KeyFrame(10.0 * i + 2, 0.9, jpeg(10 + 15 * i)) for i in range(15)]
    report_index.write_event_pictures(tmp_path, events, pictures[:-1])  # the video broke off
    shown = report_index.pictured(events)
    assert shown[-1] == 14
    sheet = np.asarray(Image.open(tmp_path / report_index.EVENT_PICTURES).convert("L"))
    width, height = report_index.TILE
    assert len(shown) == 12 and sheet.shape == (12 * height, width)
    assert np.abs(sheet[height // 2 :: height].mean(axis=1) - [10 + 15 * min(i, 13) for i in shown]).max() < 4
    report_index.write_event_pictures(tmp_path, [], pictures)
    assert not (tmp_path / report_index.EVENT_PICTURES).exists()


def test_the_index_opens_and_leads_to_the_pages(browser, planted, tmp_path):
    from selenium.webdriver.common.by import By

    for name in ("a #1.mp4", "b.mp4"):
        write_clip(tmp_path / "in" / name, 60, [(20, 50, RED)] if name.startswith("a") else [])
    predict.main([*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threshold", "0.5"])
    browser.get((tmp_path / "out" / "index.html").as_uri())
    wait(browser, "document.images.length === 3 && [...document.images].every(i => i.complete && i.naturalWidth)")
    assert browser.get_log("browser") == []
    start = json.loads((tmp_path / "out" / "a #1" / "events.json").read_text())["events"][0]["start"]
    browser.find_element(By.CSS_SELECTOR, "td a").click()
    wait(browser, "typeof data === 'object' && data.video === 'a #1' && video.readyState >= 2 && !video.seeking")
    assert browser.execute_script("return position") == pytest.approx(start, abs=2e-3)
    assert browser.execute_script("return video.currentTime") == pytest.approx(start, abs=5e-3)
    assert browser.execute_script("return $('rows').children[0].getAttribute('aria-current')") == "true"
