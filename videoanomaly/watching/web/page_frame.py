"""What all pages have around them, the pages of those who are not let in, and small parts of forms."""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from videoanomaly.watching.web.markup import Fragment, Html, joined, markup, shown_name

STATIC = Path(__file__).parent / "static"
View = dict[str, dict[str, Fragment]]  # by list, or "parts" of a page: pieces by name, in their order


@cache
def static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def options(values: Iterable[str], chosen: Iterable[str], empty: str = "") -> Html:
    """The options of a select, with an empty one first where it has a name; what is chosen is among them."""
    chosen = list(chosen)
    names = {"": empty} if empty else {}
    names |= {value: shown_name(value) for value in (*values, *chosen)}
    return joined(
        markup(
            '<option value="{{value}}"{{selected}}>{{name}}</option>',
            value=value,
            selected=Html(" selected" if value in chosen else ""),
            name=name,
        )
        for value, name in names.items()
    )


def icon(name: str) -> Html:
    return markup('<svg class="icon" aria-hidden="true"><use href="#{{name}}"/></svg>', name=name)


def frame(title: str, body: Html, *, updates: str = "", form_token: str = "", may_log_out: bool = False) -> Html:
    """A whole page.

    Args:
        updates: The address of its updates.
        form_token: That its forms send along.
        may_log_out: Whether there is a token to log out from.
    """
    log_out = Html('<button form="post" formaction="/logout" class="quiet">Log out</button>') if may_log_out else None
    template = static("page.html")
    return markup(template, title=title, body=body, updates=updates, form_token=form_token, log_out=log_out)


def login_page(target: str, text: str) -> tuple[Html, str]:
    """The form that asks for the token, which needs no other file, and the hash of its style for the CSP.

    Args:
        target: Where to go then, a path of ours.
        text: What was wrong.
    """
    style = static("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = markup(
        static("login.html"),
        style=Html(style),
        target=target,
        text=markup('<p role="alert">{{text}}</p>', text=text) if text else None,
    )
    return page, f"'sha256-{digest}'"


def waiting_page(target: str) -> Html:
    """Asks for the page once more: a link on another site led here, and the browser kept our cookie back."""
    return markup(static("waiting.html"), target=target)
