"""Every test runs without the user's settings and without a network: only loopback and unix sockets answer."""

import ipaddress
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from medserve.engines import llama_cpp
from medserve.engines.llama_cpp import LlamaCpp
from medserve.settings import DEMO_MODEL, Settings, settings

DERMOSCOPY = Path(__file__).parent / "data" / "dermoscopy"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No MEDSERVE_... variable, proxy or home directory of the user reaches a test, and no settings outlive one."""
    for name in list(os.environ):
        if name.startswith("MEDSERVE_") or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))
    settings.cache_clear()
    yield
    settings.cache_clear()
    structlog.reset_defaults()  # a log that was sent to a test's own standard error ends with the test


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[LlamaCpp]:
    """The demonstration model on the real engine, loaded once for the tests of a file."""
    engine = await llama_cpp.start(DEMO_MODEL, Settings())
    yield engine
    await engine.close()


@pytest.fixture
def dermoscopy() -> Path:
    """A real dermoscopic photograph (CC0): a melanoma confirmed by histopathology, 722 x 542."""
    return DERMOSCOPY / "ISIC_0000166.jpg"


def _is_local(host: object) -> bool:
    if host in {None, "", b"", "localhost", b"localhost"}:
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _only_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, because it also sees what a library does deep inside."""
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise PermissionError(f"a test tried to connect to {address[0]!r}; tests use loopback only")
    if event == "socket.getaddrinfo" and not _is_local(arguments[0]):
        raise PermissionError(f"a test tried to look up {arguments[0]!r}; tests use loopback only")


sys.addaudithook(_only_loopback)
