"""What a person sees on a terminal: words that command nothing there, and colours only where they are wanted."""

import os
import re

import typer

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """One line of text with its control characters written out (`\\x1b`), so that a terminal obeys none of them."""
    return _CONTROL_CHARACTER.sub(lambda found: repr(found[0])[1:-1], text)


def visible_lines(text: str) -> str:
    """Text of several lines, each of them made `visible`."""
    return "\n".join(map(visible, text.split("\n")))


def coloured() -> bool:
    """Whether a terminal may be sent colours: not if the user wants none (no-color.org), nor if it has none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def fault(words: object) -> None:
    """What went wrong, as one line of standard error, in red where that is a terminal."""
    typer.secho(visible(f"error: {words}"), fg="red", err=True, color=None if coloured() else False)
