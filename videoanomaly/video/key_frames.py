"""Pictures out of video files, for timelines."""
import sys
from pathlib import Path

import av
import numpy as np

from av.video.reformatter import VideoReformatter
from videoanomaly.data.features import VIDEO_SUFFIXES
from videoanomaly.video.decoding import BROKEN, decode, to_image, video_stream


def pictures_of(folder: str, name: str, p_A: np.ndarray, num_pictures: int = 6) -> list:
    """(frame number, PIL image) of the highest score in each of six equal stretches of a video, if its file is there."""
    path = next((p for p in (Path(folder, name + suffix) for suffix in sorted(VIDEO_SUFFIXES)) if p.is_file()), None)
    if path is None:
        return []
    borders = np.linspace(0, len(p_A), num_pictures + 1).astype(int)
    wanted = {int(a + p_A[a:b].argmax()) for a, b in zip(borders[:-1], borders[1:]) if b > a}
    pictures = []
    try:
        with av.open(str(path)) as container:
            reformatter = VideoReformatter()
            for i, frame in enumerate(decode(video_stream(container))):
                if i in wanted:
                    pictures.append((i, to_image(frame, reformatter)))
    except BROKEN as error:
        print(f"no key frames of {path}: {error}", file=sys.stderr)
    return pictures
