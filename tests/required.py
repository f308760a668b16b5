"""Servers that some tests speak to: without one they are skipped on a developer's machine, and fail where CI is set."""

import os

import pytest


def need(found: bool, missing: str) -> None:
    """Go on if the server is installed; `.ci/run` says in CI_WITHOUT_SERVERS that it could not be."""
    if found:
        return
    if os.environ.get("CI") and not os.environ.get("CI_WITHOUT_SERVERS"):
        pytest.fail(missing)
    pytest.skip(missing)
