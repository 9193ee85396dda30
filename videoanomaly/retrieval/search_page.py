"""search.html: what a search found, with pictures where the videos are at hand; one file, no script, no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from videoanomaly.data.features import FeatureFolder
from videoanomaly.prediction.report import fill
from videoanomaly.retrieval.moments import Moment
from videoanomaly.runtime.console import as_text
from videoanomaly.video.decoding import BROKEN
from videoanomaly.video.frame_clock import clock
from videoanomaly.video.key_frames import find_video, read_frames

SIDE = 320  # pixels of a picture
PAGE = Path(__file__).with_name("search.html")
CARD = """<li><a href="{{link}}">{{picture}}</a><span><b>{{score}}</b> {{time}}</span>\
<span class="name">{{name}}</span></li>"""


def pictures(folder: FeatureFolder, videos: Path, moments: Sequence[Moment]) -> dict[Moment, bytes]:
    """JPEGs of the moments whose videos can be read, each video opened once."""
    found: dict[Moment, bytes] = {}
    for name in sorted({moment.name for moment in moments}):
        wanted = {moment.row * folder.frames_per_feature: moment for moment in moments if moment.name == name}
        times = np.arange(max(wanted) + 1) / folder.frame_rate(name)
        if path := find_video(str(videos), name):
            try:
                for number, image in read_frames(path, sorted(wanted), times):
                    found[wanted[number]] = to_jpeg(image)
            except BROKEN:
                pass
    return found


def to_jpeg(image: Image.Image) -> bytes:
    image.thumbnail((SIDE, SIDE))
    image.save(file := io.BytesIO(), "JPEG", quality=80)
    return file.getvalue()


def card(moment: Moment, videos: Path | None, jpeg: bytes | None) -> str:
    path = find_video(str(videos), moment.name) if videos else None
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
    shown = f'<img src="{source}" alt="">' if jpeg else '<span class="none">no picture</span>'
    link = f"{quote(str(path.resolve()))}#t={moment.time:.1f}" if path and path.is_file() else "#"
    known = {"link": link, "picture": shown, "score": f"{moment.score:.3f}", "time": clock(moment.time)[:-4]}
    return fill(CARD, known | {"name": html.escape(as_text(moment.name))})


def page(found: Mapping[str, Sequence[Moment]], folder: FeatureFolder, videos: Path | None, note: str) -> str:
    """The page of several texts and their moments, best first; `note` says how they were ranked."""
    parts = []
    for text, moments in found.items():
        jpegs = pictures(folder, videos, moments) if videos else {}
        cards = "\n".join(card(moment, videos, jpegs.get(moment)) for moment in moments)
        parts.append(f"<h2>{html.escape(as_text(text))}</h2>\n<ol>{cards}</ol>")
    return fill(PAGE.read_text(encoding="utf-8"), {"note": html.escape(note), "parts": "\n".join(parts)})
