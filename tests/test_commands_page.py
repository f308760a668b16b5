"""docs/commands.md is the commands' own help; `make docs` writes it again."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from medserve.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
NAMES = (
    "run",
    "inspect",
    "deidentify",
    "export",
    "leaflet",
    "evaluate",
    "verify",
    "replay",
    "serve",
    "pull",
    "rm",
    "ls",
    "ps",
    "load",
    "stop",
    "workflow new",
    "workflow check",
    "workflow show",
    "jobs ls",
    "jobs show",
    "jobs cancel",
    "schemas add",
    "schemas ls",
    "schemas show",
    "schemas rm",
    "keys add",
    "keys ls",
    "keys revoke",
    "doctor",
)
HEAD = """# Commands

Written by `make docs` from the commands' own help.

Exit codes: 0 done, 1 unexpected failure, a replay that differs or a build that did not pass, 2 bad input or usage, 3
the model or its engine failed, 4 (with `--strict`) a report needs review, 130 stopped by Ctrl-C. Reports go to standard
output, everything else to standard error.
Settings come from `MEDSERVE_...` variables or from a TOML file named by `MEDSERVE_CONFIG`.
"""


def written() -> str:
    """The page as it should be."""
    sections = [HEAD]
    for name in NAMES:
        command: Any = get_command(app)
        with ExitStack() as stack:
            context = stack.enter_context(command.make_context("medserve", ["ls"], resilient_parsing=True))
            for part in name.split():
                command = command.get_command(context, part)
                inner = command.make_context(part, [], parent=context, resilient_parsing=True)
                context = stack.enter_context(inner)
            sections.append(f"## medserve {name}\n\n```\n{context.get_help()}\n```\n")
    return "\n".join(sections)


def test_the_page_of_commands_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a command runs `make docs`."""
    monkeypatch.setenv("COLUMNS", "100")

    assert written() == PAGE.read_text(encoding="utf-8"), "run: make docs"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
    sys.exit(0)
