"""Letters in pictures: fonts of this system that have them, else stand-ins that can be read, never an empty box.

matplotlib's own font, DejaVu Sans, has the alphabets of Europe, Arabic and Hebrew. What it lacks (Chinese, Devanagari,
emoji) other fonts may have; what none has is shown as Python would write it, such as \\u4e8b.
"""

import logging
import unicodedata
from functools import cache
from itertools import accumulate
from pathlib import Path

# isort: split
# ruff: noqa: E402

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it tells at length that it has no cache
import matplotlib
import numpy as np
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font, weight_dict
from matplotlib.ft2font import FT2Font
from PIL import Image

from videoanomaly.runtime.console import as_text

DEFAULT = "DejaVu Sans"
BOXES = ("last resort", "lastresort", "blank", "fallback sil")  # fonts that have a box, or nothing, for all letters
LONGEST = 40  # letters of a name; longer ones would leave no room for what a picture shows


def plainness(entry: FontEntry) -> tuple:
    """Sorts fonts: upright regular ones without serifs first."""
    weight = weight_dict.get(entry.weight, 400) if isinstance(entry.weight, str) else entry.weight
    return entry.style != "normal", abs(weight - 400), "sans" not in entry.name.lower(), entry.name, entry.fname


def system_fonts() -> list[FontEntry]:
    """Fonts that may help out, the plainest first; matplotlib's own ones are for formulas."""
    own = Path(matplotlib.get_data_path())
    entries = [entry for entry in fontManager.ttflist if own not in Path(entry.fname).parents]
    return sorted((e for e in entries if not any(box in e.name.lower() for box in BOXES)), key=plainness)


@cache
def letters_in(file: str, index: int, letters: frozenset[str]) -> frozenset[str]:
    """Those of the letters that a font has; fonts of coloured pictures have them without an outline."""
    try:
        font = FT2Font(file, face_index=index)
        found = [letter for letter in letters if font.get_char_index(ord(letter))]
        return frozenset(c for c in found if unicodedata.category(c)[0] in "CZM" or font.load_char(ord(c)).width)
    except (OSError, RuntimeError):  # the font is damaged, or gone
        return frozenset()


@cache
def helpers(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of fonts that have what DEFAULT lacks of some letters, as few as possible, and what none has."""
    path = findfont(FontProperties(family=DEFAULT))
    left, has, found = letters - letters_in(path.path, path.face_index, letters), {}, []
    for entry in system_fonts() if left else ():
        has.setdefault(entry.name, letters_in(entry.fname, entry.index, left))
        if has[entry.name] == left:
            break
    while left and has and has[best := max(has, key=lambda name: len(has[name] & left))] & left:
        found.append(best)
        left -= has[best]
    return tuple(found), left


def stand_in(letter: str) -> str:
    """What is shown of a letter without a font."""
    if letter.isspace():
        return " "
    is_seen = unicodedata.category(letter) != "Cf" and "VARIATION SELECTOR" not in unicodedata.name(letter, "")
    return letter.encode("ascii", "backslashreplace").decode() if is_seen else ""


def drawable(text: str, longest: int = LONGEST) -> str:
    """A text in letters that there are fonts for, cut off where it is too long."""
    text = as_text(text)
    missing = helpers(frozenset(text))[1]
    parts = [stand_in(letter) if letter in missing else letter for letter in text]
    if len("".join(parts)) > longest:
        parts = [part for part, end in zip(parts, accumulate(map(len, parts))) if end < longest] + ["…"]
    shown = "".join(parts)
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in shown):  # numbers behind it stay there
        return f"\N{LEFT-TO-RIGHT MARK}{shown}\N{LEFT-TO-RIGHT MARK}"
    return shown


def draw(text: str, size: float) -> tuple[Image.Image, float]:
    """A `drawable` text, black 0 to white 255, and the pixels from its top to the line that the letters stand on.

    Args:
        text: In any script and direction.
        size: Of the font, pixels.
    """
    families = (DEFAULT, *helpers(frozenset(text))[0])
    font = get_font([findfont(FontProperties(family=name)) for name in families])
    font.set_size(size, 72)
    font.set_text(text)
    font.draw_glyphs_to_bitmap()
    image = Image.fromarray(np.array(font.get_image()))
    return image, image.height - font.get_descent() / 64
