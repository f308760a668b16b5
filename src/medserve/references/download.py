"""One answer of one server, streamed within limits of size and time; redirects, proxies and encodings are not used."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from medserve.errors import ImageTooLarge, InvalidRequest, SourceFailed
from medserve.threads import in_thread

CONNECT_SECONDS = 10.0
PIECE = 2**20
"""Bytes that are written to disk at once."""


class Allowance:
    """Bytes that may still come, over all references of a request."""

    def __init__(self, size: int) -> None:
        self.size = self.left = size

    def take(self, count: int) -> None:
        """Use up `count` bytes; raises ImageTooLarge."""
        self.left -= count
        if self.left < 0:
            raise ImageTooLarge(f"what is fetched has more than {self.size} bytes (limits.body_bytes)", param="images")


@asynccontextmanager
async def answer(
    url: httpx.URL,
    headers: Mapping[str, str],
    *,
    seconds: float,
    extensions: Mapping[str, Any] | None = None,
    ca: Path | None = None,
) -> AsyncIterator[httpx.Response]:
    """The server's answer, if it is 200; all of it must be read within `seconds`.

    Raises SourceFailed, or InvalidRequest where there is no such thing; both name no address.
    """
    try:
        async with asyncio.timeout(seconds), await in_thread(_client, ca) as client:
            wanted = {"Accept-Encoding": "identity", "User-Agent": "medserve", **headers}
            request = client.build_request("GET", url, headers=wanted, extensions=dict(extensions or {}))
            response = await client.send(request, stream=True)
            try:
                _check(response)
                yield response
            finally:
                await response.aclose()
    except (TimeoutError, httpx.TimeoutException):
        raise SourceFailed("the server with the pictures did not answer in time", param="images") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        raise SourceFailed("the server with the pictures cannot be reached or broke off", param="images") from None


async def pieces(response: httpx.Response, allowance: Allowance) -> AsyncIterator[bytes]:
    """The body in pieces of PIECE bytes, as it is sent and counted as it comes."""
    declared = response.headers.get("Content-Length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > allowance.left:
        allowance.take(int(declared))
    held = bytearray()
    async for piece in response.aiter_raw():
        allowance.take(len(piece))
        held += piece
        if len(held) >= PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _client(ca: Path | None) -> httpx.AsyncClient:
    """A client that trusts `ca`, else whom all programs here trust. Reading the certificates blocks."""
    try:
        verify = ssl.create_default_context(cafile=ca) if ca else True
    except OSError:
        raise SourceFailed("the certificates of `ca` in the settings cannot be read", param="images") from None
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    return httpx.AsyncClient(verify=verify, timeout=timeout, trust_env=False, follow_redirects=False)


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status in (404, 410):
        raise InvalidRequest("the server with the pictures has nothing there", param="images")
    if status in (401, 403):
        raise SourceFailed("the server with the pictures refuses the credentials, or wants some", param="images")
    if 300 <= status < 400:
        raise SourceFailed("the server with the pictures sends elsewhere; redirects are not followed", param="images")
    if status != httpx.codes.OK:
        raise SourceFailed(f"the server with the pictures answered with status {status}", param="images")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceFailed(
            "the server with the pictures packed its answer although it was asked not to", param="images"
        )
