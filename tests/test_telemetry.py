"""The log says where an error happened and never what it was about."""

import json
import logging

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

    assert ("it failed", "ValueError") == (json.loads(line)["event"], json.loads(line)["error"])
    assert json.loads(line)["at"].startswith("test_telemetry.py:")
    assert "Mustermann" not in line
    assert "Traceback" not in line


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Below it nothing is written."""
    telemetry.configure("error")
    structlog.get_logger().warning("nothing of note")

    assert "" == capsys.readouterr().err
