"""docs/commands.md is the commands' own help; `make docs` writes it again."""

import sys
from pathlib import Path

import pytest
from typer.main import get_command

from medserve.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
NAMES = ("run", "inspect", "deidentify", "replay", "serve", "ls", "ps", "doctor")
HEAD = """# Commands

Written by `make docs` from the commands' own help.

Exit codes: 0 done, 1 unexpected failure or a replay that differs, 2 bad input or usage, 3 the model or its engine
failed, 4 (with `--strict`) a report needs review. Reports go to standard output, everything else to standard error.
Settings come from `MEDSERVE_...` variables or from a TOML file named by `MEDSERVE_CONFIG`.
"""


def written() -> str:
    """The page as it should be."""
    group = get_command(app)
    sections = [HEAD]
    for name in NAMES:
        with group.make_context("medserve", ["ls"], resilient_parsing=True) as context:
            command = group.get_command(context, name)  # type: ignore[attr-defined]
            with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
                sections.append(f"## medserve {name}\n\n```\n{inner.get_help()}\n```\n")
    return "\n".join(sections)


def test_the_page_of_commands_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a command runs `make docs`."""
    monkeypatch.setenv("COLUMNS", "100")

    assert written() == PAGE.read_text(encoding="utf-8"), "run: make docs"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
    sys.exit(0)
