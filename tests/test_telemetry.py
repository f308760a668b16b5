"""The log says where an error happened and never what it was about."""

import asyncio
import gc
import json
import logging
import subprocess
import sys

import pytest
import structlog

from medserve import telemetry


@pytest.mark.parametrize("library", [False, True], ids=["our own log", "a library's log"])
def test_an_error_is_logged_without_its_words(capsys: pytest.CaptureFixture[str], library: bool) -> None:
    """Its kind and its place are enough; its words may quote a prompt or a file's name."""
    telemetry.configure("info")
    try:
        raise ValueError("Mustermann")
    except ValueError:
        if library:
            logging.getLogger("library").exception("it failed")
        else:
            structlog.get_logger().exception("it failed")
    line = capsys.readouterr().err

    assert "ValueError" == json.loads(line)["error"]
    assert json.loads(line)["at"].startswith("test_telemetry.py:")
    assert "Mustermann" not in line
    assert "Traceback" not in line


def test_a_librarys_words_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """They may quote what the library was given; its name and the place in its code lead to them."""
    telemetry.configure("info")
    logging.getLogger("library").warning("cannot read %s", "Mustermann")
    logging.getLogger("library").error("cannot read Mustermann")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    assert [("library.spoke", "library", "warning"), ("library.spoke", "library", "error")] == [
        (line["event"], line["library"], line["level"]) for line in lines
    ]
    assert all(line["said_at"].startswith("test_telemetry.py:") for line in lines)
    assert "Mustermann" not in json.dumps(lines)


def test_the_servers_own_warnings_keep_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    """They are constant texts, and say what is wrong with a connection."""
    telemetry.configure("info")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")

    assert "Invalid HTTP request received." == json.loads(capsys.readouterr().err)["event"]


def test_a_task_that_nobody_waits_for_fails_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncio's own line would show the exception inside the task."""
    telemetry.configure("info")

    async def fail() -> None:
        raise ValueError("Mustermann")

    async def forget() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(forget())
    written = capsys.readouterr().err
    (told,) = [json.loads(line) for line in written.splitlines() if '"asyncio"' in line]

    assert ("library.spoke", "ValueError") == (told["event"], told["error"])
    assert "Mustermann" not in written


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Below it nothing is written."""
    telemetry.configure("error")
    structlog.get_logger().warning("nothing of note")

    assert "" == capsys.readouterr().err


def test_a_process_that_ends_in_an_error_does_not_print_its_words() -> None:
    """Python's own farewell would hold them, and lines of the code."""
    program = (
        "from medserve import telemetry\n"
        "telemetry.configure('info'); telemetry.guard_process()\n"
        "raise ValueError('Mustermann')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert 1 == ended.returncode
    assert ("process.failed", "ValueError") == (json.loads(ended.stderr)["event"], json.loads(ended.stderr)["error"])
    assert "Mustermann" not in ended.stdout + ended.stderr
