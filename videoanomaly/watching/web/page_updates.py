"""News for open pages by server-sent events: each viewer gets the pieces that changed, once a second at most.

What several viewers look at is made once for all of them, and only after something has changed; while nobody looks,
nothing runs. A viewer that reads slowly gets fewer messages, never a queue of them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from videoanomaly.watching.web.page_frame import View

INTERVAL = 1.0  # seconds between two messages to a viewer
QUIET = 15.0  # seconds after which a viewer hears that the connection is alive
MOST_VIEWERS = 64
Render = Callable[[], View]
Seen = dict[str, dict[str, str]]  # stamps of the pieces that a viewer has


@dataclass
class Feed:
    """What some viewers look at."""

    version: Callable[[], object]  # another value where the view may be another
    render: Render
    viewers: int = 0
    made_of: object = None  # the version of `view`
    view: View = field(default_factory=dict)

    async def refresh(self) -> bool:
        """Makes the view anew if it may be another; whether it did."""
        if (version := self.version()) == self.made_of:
            return False
        self.view = await asyncio.to_thread(self.render)
        self.made_of = version
        return True


def changes(view: View, seen: Seen) -> dict[str, dict]:
    """What a viewer lacks, as page.js takes it; `seen` is brought up to date."""
    news = {}
    for name, pieces in view.items():
        known = seen.get(name, {})
        html = {key: piece.html for key, piece in pieces.items() if known.get(key) != piece.stamp}
        order = list(pieces) if name not in seen or list(pieces) != list(known) else None
        if html or order is not None:
            news[name] = {"html": html} | ({"order": order} if order is not None else {})
        seen[name] = {key: piece.stamp for key, piece in pieces.items()}
    return news


class Hub:
    """All feeds and viewers of one event loop.

    Args:
        tell: Takes a note on what failed.
    """

    def __init__(self, tell: Callable[[Exception], None]):
        self.feeds: dict[str, Feed] = {}
        self.num_viewers = 0
        self.changed, self.closed = asyncio.Event(), asyncio.Event()
        self.tell = tell
        self.ticking: asyncio.Task | None = None

    def close(self) -> None:
        """Ends all messages; in the thread of the loop."""
        self.closed.set()
        self.changed.set()

    async def messages(self, feeds: dict[str, Feed]) -> AsyncIterator[str]:
        """To one viewer, as text/event-stream, until it goes or the hub is closed.

        Args:
            feeds: By a name that is the same where they show the same; one that others look at already is taken.
        """
        mine, seen = [self.join(name, feed) for name, feed in feeds.items()], {}
        self.num_viewers += 1
        try:
            yield "retry: 3000\n\n"
            for feed in mine:
                await feed.refresh()
            while not self.closed.is_set():
                changed = self.changed  # taken first: what changes from here on is not missed
                found: dict[str, dict] = {}
                for feed in mine:
                    for name, news in changes(feed.view, seen.setdefault(id(feed), {})).items():
                        found[name] = merged(found.get(name), news)
                if found:
                    yield f"data: {json.dumps(found, ensure_ascii=False)}\n\n"
                    await self.pause()
                if not await happens(changed, QUIET):
                    yield ":\n\n"
        finally:
            self.num_viewers -= 1
            self.leave(feeds)

    async def pause(self) -> None:
        await happens(self.closed, INTERVAL)

    def join(self, name: str, feed: Feed) -> Feed:
        feed = self.feeds.setdefault(name, feed)
        feed.viewers += 1
        if self.ticking is None or self.ticking.done():
            self.ticking = asyncio.get_running_loop().create_task(self.tick())
        return feed

    def leave(self, names: dict[str, Feed]) -> None:
        for name in names:
            self.feeds[name].viewers -= 1
            if not self.feeds[name].viewers:
                del self.feeds[name]

    async def tick(self) -> None:
        """Looks once a second for what changed, as long as there are viewers."""
        while self.feeds and not self.closed.is_set():
            await self.pause()
            try:
                is_new = [await feed.refresh() for feed in list(self.feeds.values())]
            except Exception as error:  # such as of a disk that cannot be read now; tried again
                self.tell(error)
                continue
            if any(is_new):
                self.changed.set()
                if not self.closed.is_set():
                    self.changed = asyncio.Event()


def merged(one: dict | None, other: dict) -> dict:
    """News on one list from two feeds; lists with an order come from one feed alone."""
    return other if one is None else {**one, **other, "html": one["html"] | other["html"]}


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does within so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
