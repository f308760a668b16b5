"""Commands as people type them, run in this process: an interpreter for each takes longer than all that they do."""

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from medserve import cli
from medserve.settings import settings

DERMOSCOPY = (
    "dermoscopy",
    "round",
    "yes",
    "dots, streaks",
    "brown and tan",
    "The shape is consistent with the picture. The border is sharp and a small scale lies in the middle.",
    "NV",
)
"""The seven answers of a clean dermoscopy report."""


def scripted(folder: Path, *replies: str) -> Path:
    """A settings file whose model gives these answers, one after another."""
    config = folder / "medserve.toml"
    said = ", ".join(json.dumps(reply) for reply in replies)
    config.write_text(f'[[models]]\nname = "script"\nengine = "scripted"\nreplies = [{said}]\n', encoding="utf-8")
    return config


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def command(*arguments: str, **variables: str) -> Said:
    """Run `medserve` with these arguments and variables of the environment."""
    out, err = (TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["medserve", *arguments])
        for name, value in variables.items():
            patch.setenv(name, value)
        settings.cache_clear()
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    settings.cache_clear()
    return Said(code, _all(out), _all(err))


def _all(stream: TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
