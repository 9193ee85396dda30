"""What a file's packets tell of its frames, without decoding any: how many, when they are shown, which are key frames.

N frames of a video, in the order in which the file holds them unless it is said otherwise. Where the packets cannot be
trusted with that, the reason is told, and the file is to be decoded wholly.
"""

from array import array
from collections.abc import Iterator

import av
import numpy as np

from videoanomaly.runtime.console import duration
from videoanomaly.video.decoding import VideoFile

MOST_DISPLACED = 64  # frames between a frame's place in the file and its place in time: B-frames make it 16 at most
FARTHEST = 12.0  # seconds between key frames: cameras have 1 to 10, FFmpeg's encoders 10 by default


class Packets:
    """Collects what the packets of a file tell, one by one.

    Attributes:
        doubt: Why that is not to be trusted; empty as long as it is.
    """

    def __init__(self):
        self.stamps, self.keys, self.doubt = array("q"), bytearray(), ""

    def add(self, packet: av.Packet) -> None:
        if packet.pts is None:
            self.doubt = self.doubt or "frames have no time stamps"
        elif packet.is_corrupt or packet.is_discard:
            self.doubt = self.doubt or ("it is damaged" if packet.is_corrupt else "it holds frames that are not shown")
        else:
            self.stamps.append(packet.pts)
            self.keys.append(packet.is_keyframe)
            if len(self.keys) == 1 and not packet.is_keyframe:
                self.doubt = self.doubt or "it does not begin with a key frame"

    def times(self, file: VideoFile, distance: float) -> np.ndarray:
        """When the frames are shown, ascending, (N,) seconds; sets `doubt` where that is not sure.

        Args:
            file: Read to its end, so that its clock can be used.
            distance: Seconds between the key frames that are wanted.
        """
        stamps = np.array(self.stamps, np.int64)
        order = np.argsort(stamps, kind="stable")
        if len(stamps) and np.abs(order - np.arange(len(order))).max() > MOST_DISPLACED:
            self.doubt = self.doubt or "its time stamps jump"
        if (np.diff(stamps[order]) == 0).any():
            self.doubt = self.doubt or "frames share their time stamps"
        base = float(file.stream.time_base or 0)
        shown = np.array([file.clock(time) for time in (stamps[order] * base).tolist()])
        if not self.doubt:
            file.find_lost_tail()
            self.doubt = self.found_wrong(file)
        if not self.doubt:
            self.doubt = too_far(shown[np.frombuffer(self.keys, np.uint8)[order] > 0], shown, distance)
        return shown

    def found_wrong(self, file: VideoFile) -> str:
        if file.damage:
            return "it is damaged"
        if file.jumps or not file.may_seek:
            return "its time stamps jump"
        return "" if len(self.keys) else "no frame was found"


def too_far(keys: np.ndarray, shown: np.ndarray, distance: float) -> str:
    """Why key frames at these seconds do not do for a look every `distance` seconds; empty where they do."""
    gap = float(np.diff([*keys, shown[-1]]).max()) if len(keys) else 0.0
    return f"its key frames are up to {duration(gap)} apart" if gap > max(FARTHEST, 3 * distance) else ""


def needed(stamps: np.ndarray, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which packets to decode for some frames: for each from the key frame on that it depends on, (N,) bool.

    Args:
        stamps: Time stamps, (N,).
        keys: Which are key frames, (N,) bool, the first one among them.
        wanted: Places in the file, (W,).
    """
    heads = np.flatnonzero(keys)
    at = np.searchsorted(heads, wanted, side="right") - 1
    # a frame that stands behind a key frame but is shown before it depends on the one before, too
    at -= (stamps[wanted] < stamps[heads[at]]) & (at > 0)
    steps = np.zeros(len(stamps) + 1, int)
    np.add.at(steps, heads[at], 1)
    np.add.at(steps, wanted + 1, -1)
    return np.cumsum(steps)[:-1] > 0


def decode_needed(file: VideoFile, feed: np.ndarray) -> Iterator[av.VideoFrame]:
    """Yields the frames of some packets, (N,) bool, in runs that begin with a key frame; what cannot be decoded lacks.

    The whole file is read, which takes about a second for an hour, and no seek can go wrong.
    """
    context, i = file.stream.codec_context, -1
    for packet in file.packets():
        if not packet.size:
            continue
        i += 1
        if i >= len(feed) or not feed[i]:
            continue
        yield from decoded(context, packet)
        if i + 1 >= len(feed) or not feed[i + 1]:
            yield from finished(context)


def decoded(context: av.VideoCodecContext, packet: av.Packet) -> list[av.VideoFrame]:
    """Frames that a packet completes; none where it is damaged."""
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return []


def finished(context: av.VideoCodecContext) -> list[av.VideoFrame]:
    """Frames that the decoder still holds; afterwards it is ready for another key frame."""
    try:
        return context.decode(None)
    except av.FFmpegError:
        return []
    finally:
        context.flush_buffers()
