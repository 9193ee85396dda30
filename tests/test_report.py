"""Tests of report.py and its pages: what goes in, and what Chromium makes of it (skipped without Chromium and
selenium).
"""

import base64
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import predict
from tests.videos import BLUE, RED, write_clip
from videoanomaly.event_rule import cut_events
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction import report, report_index
from videoanomaly.prediction.events import find_events
from videoanomaly.video import key_frames

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


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
    import io

    from PIL import Image

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
    assert page.texts[0] == name and page.texts.count("Confidence") == 1
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
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    )
    if not (binary and driver):
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


@pytest.fixture(scope="module")
def clip_page(planted, tmp_path_factory) -> Path:
    """Two events, 2 to 3.6 s and 5.6 to 7.2 s, the second of which ends at threshold 0.9 and more."""
    root = tmp_path_factory.mktemp("page")
    video = write_clip(root / "two events.mp4", 240, [(50, 90, RED), (140, 180, BLUE)])
    predict.main([*planted.options, str(video), "--out", str(root / "out"), "--threshold", "0.5"])
    return root / "out" / "report.html"


def load(browser, path: Path, width: int = 1200, dark: bool = False) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("browser")  # what a page before has left
    browser.get(path.as_uri())
    wait(browser, "!data.source || !video || video.readyState >= 2")


def wait(browser, condition: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return !!({condition})"):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


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
