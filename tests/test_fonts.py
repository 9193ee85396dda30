"""Tests of fonts.py, and of pictures that show names in all scripts, with and without a font that has the letters."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import fontManager, ttfFontProperty
from matplotlib.ft2font import FT2Font
from PIL import Image

from videoanomaly import fonts, plots
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction import annotated_video

pytestmark = pytest.mark.filterwarnings("error")
NAMES = {
    "Chinese": "事故 监控2",
    "Arabic": "حادث مروري 12",
    "Hebrew": "תאונה",
    "Hindi": "दुर्घटना",
    "Thai": "อุบัติเหตุ",
    "Korean": "사고",
    "combining": "Schla\u0308gerei Tre\u0323\u0302",
    "emoji": "\N{FIRE}\ufe0f \N{MAN}\u200d\N{FIRE ENGINE}",
    "formula": r"$\foo$",
    "one dollar": "5 $",
    "backslash dollar": r"a\$b$",
    "brackets": "^_{}%#&~",
    "underscore": "_hidden",
    "tab": "a\tb\u3000c\u00a0d",
    "controls": "a\nb\x1b[2J\u202e",
    "no text": "a\udcff\ud800",
    "private": "\ue000\U0010ffff",
    "long": "事" * 500,
    "longer": "m" * 500,
    "empty": "",
}
FOREIGN = sorted({letter for name in NAMES.values() for letter in name if ord(letter) > 0x900})


def made_font(path: Path, family: str, letters, has_ink: bool = True):
    """A font that has some letters, each a square of half its height, or nothing, as fonts of coloured pictures."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000)
    pen_of = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    pen = pen_of(None)
    if has_ink:
        pen.moveTo((0, 0)), pen.lineTo((0, 500)), pen.lineTo((500, 500)), pen.lineTo((500, 0)), pen.closePath()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):x}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return replace(ttfFontProperty(FT2Font(str(path))), fname=str(path))


@pytest.fixture
def only(monkeypatch):
    """Calls it with the fonts that the system has, besides matplotlib's own."""
    own = [entry for entry in fontManager.ttflist if Path(matplotlib.get_data_path()) in Path(entry.fname).parents]
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["sans-serif"])

    def set_fonts(*entries):
        monkeypatch.setattr(fontManager, "ttflist", [*own, *entries])
        fonts.helpers.cache_clear()

    set_fonts()
    yield set_fonts
    fonts.helpers.cache_clear()


@pytest.fixture
def foreign(only, tmp_path):
    only(made_font(tmp_path / "foreign.ttf", "Foreign Squares", FOREIGN))


def draw_all(folder: Path, name: str) -> None:
    """Every picture that shows names, in which this is that of a class, a video and a run."""
    rng, classes = np.random.default_rng(0), [name, f"{name}2"]
    p_class = rng.dirichlet(np.ones(2), 90)
    p_A, labels = rng.random(90), np.repeat([0, -1, 1], 30)
    truth = labels[:, None] == np.arange(len(classes))
    plots.roc_curves(folder / "a.png", p_A, p_class, truth, classes)
    plots.confusion_matrix(folder / "a.png", p_A, p_class, truth, classes)
    values = {c: {"AUC": 0.5} for c in classes}
    plots.class_bars(folder / "a.png", values, {c: {"AUC": [0.4, 0.6], "videos": 2} for c in classes}, "AUC")
    plots.row_bars(folder / "a.png", classes, {"mAUC": [[50.0], [60.0]]}, {}, title="t", paper_label="p")
    plots.projections(folder / "a.png", p_class, p_class, truth, classes)
    plots.timeline(folder / "a.png", name, p_A, p_class, truth, classes)


def panel(names) -> annotated_video.Panel:
    p_A = np.linspace(0, 1, 50, dtype=np.float32)
    p_class = p_A[:, None] * np.linspace(0.5, 0.3, len(names))
    event = {"start": 1.0, "end": 2.0, "start_frame": 20, "end_frame": 40, "class": names[0], "confidence": 0.5}
    return annotated_video.Panel(640, FrameScores(p_A, p_class, np.arange(50) / 25, 25.0), [event], names, 0.5)


def check_drawn(folder: Path, name: str) -> None:
    """A plot's text and a frame of a copy without a warning, and so without an empty box."""
    figure = plots.plt.figure()
    figure.text(0, 0, plots.label(name))
    plots.save(figure, folder / "a.png")
    whole = annotated_video.compose(Image.new("RGB", (640, 100)), panel([name, "Fire"]), (640, 100), 30)
    assert np.asarray(whole)[:100].max() > 200 or not name  # the event's name


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_every_kind_are_drawn_without_a_font_for_them(only, tmp_path, kind, caplog):
    check_drawn(tmp_path, NAMES[kind])
    assert not caplog.records


@pytest.mark.parametrize("kind", ["Chinese", "Korean", pytest.param("longer", marks=pytest.mark.slow)])
def test_every_picture_takes_them(only, tmp_path, kind, request):
    if kind == "Korean":
        request.getfixturevalue("foreign")
    draw_all(tmp_path, NAMES[kind])


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_every_kind_are_drawn_with_one(foreign, tmp_path, kind, caplog):
    check_drawn(tmp_path, NAMES[kind])
    assert not caplog.records


def test_letters_without_a_font_have_stand_ins(only):
    for name, shown in (
        ("事故 监控2", r"\u4e8b\u6545 \u76d1\u63a72"),
        ("\N{FIRE}\ufe0f\u200d!", "\\U0001f525\ufe0f\u200d!"),
        ("\U000e0100a", "a"),
        ("a\tb\u3000c", "a b c"),
        ("Schla\u0308gerei ß", "Schla\u0308gerei ß"),
        ("תאונה", "\u200eתאונה\u200e"),
        ("a\nb\udcff", "a\N{REPLACEMENT CHARACTER}b\\xff"),
        ("", ""),
    ):
        assert fonts.drawable(name) == shown
    assert fonts.drawable("事" * 50) == r"\u4e8b" * 6 + "…"
    assert fonts.drawable("m" * 40) == "m" * 40 and fonts.drawable("m" * 41) == "m" * 39 + "…"


def test_a_font_of_the_system_is_taken_where_it_has_the_letters(only, tmp_path):
    def font(number, family, letters, **changes):
        ink = changes.pop("has_ink", True)
        return replace(made_font(tmp_path / f"{number}.ttf", family, letters, ink), **changes)

    damaged = font(0, "A Damaged", "事故")
    Path(damaged.fname).write_bytes(b"no font")
    only(
        damaged,
        replace(font(1, "B Gone", "事故"), fname=str(tmp_path / "gone.ttf")),
        font(2, "C Colours", "事故", has_ink=False),
        font(3, "D Last Resort", "事故火"),
        font(4, "E Half", "事"),
        font(5, "F Slanted", "事故", style="italic"),
        font(6, "G Bold", "事故", weight=700),
        font(7, "H Serif", "事故"),
        font(8, "I Sans", "事故"),
        font(9, "J Other", "火"),
    )
    assert fonts.helpers(frozenset("事故 x")) == (("I Sans",), frozenset())
    assert fonts.helpers(frozenset("事故火水")) == (("I Sans", "J Other"), frozenset("水"))
    assert plots.label("事故火水") == r"事故火\u6c34"
    assert matplotlib.rcParams["font.family"] == ["sans-serif", "I Sans", "J Other"]


def test_the_made_font_shows_in_every_picture(only, tmp_path):
    entry = made_font(tmp_path / "foreign.ttf", "Filled Squares", "事故")
    found = []
    for entries in ((), (entry,)):
        only(*entries)
        plots.timeline(tmp_path / "t.png", "事故", np.zeros(9), np.zeros((9, 1)), np.zeros((9, 1), bool), ["事故"])
        with Image.open(tmp_path / "t.png") as picture:
            title = np.asarray(picture.convert("L"))[:40]
        found.append([(title < 50).sum(), np.asarray(fonts.draw(fonts.drawable("事故"), 20)[0]).mean() / 255])
    (boxes, box), (squares, square) = found
    assert squares != boxes and square > 0.6 > box


def ink(text: str) -> np.ndarray:
    """Of each column of a drawn text, from its first to its last."""
    columns = np.asarray(fonts.draw(text, 40)[0]).astype(float).sum(0)
    return columns[np.flatnonzero(columns)[0] : np.flatnonzero(columns)[-1] + 1]


def test_what_is_read_from_the_right_is_drawn_from_the_right(only):
    wide, narrow = ink("ש"), ink("ו")
    both = ink("שו")  # the first letter stands at the right
    assert both[-len(wide) :].sum() == pytest.approx(wide.sum(), rel=0.1)
    assert both[: len(narrow)].sum() == pytest.approx(narrow.sum(), rel=0.1)
    assert ink("سس").sum() < 1.9 * ink("س").sum()  # letters have other forms within a word
    name = fonts.drawable("שו")
    line = ink(f"{name} 1   {name} ||")  # numbers and further names behind it stay in the order of the line
    assert line[-len(ink("||")) :].sum() == pytest.approx(ink("||").sum(), rel=0.1)


def test_names_that_need_no_help_are_drawn_as_ever():
    for name in ("Fire", "Car_accident", "R&D <x>", r"C:\x"):
        assert fonts.drawable(name) == name and panel([name, "b"]).is_plain
    assert [plots.label(name) for name in ("a$b", "_a", "a_b")] == [r"a\$b", " _a", "a_b"]
