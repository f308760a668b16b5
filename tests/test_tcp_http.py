"""HTTP to one server elsewhere: what is sent, to whom, how often, and every way in which the other side may fail."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from medserve import addresses, tcp_http
from medserve.tcp_http import TcpClient
from tests.engines.servers import listening, read

HEAD = b"HTTP/1.1 200 OK\r\n"
SHORT = HEAD + b"content-length: 2\r\n\r\nok"
STREAM = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


MADE: list[TcpClient] = []


@pytest.fixture(autouse=True)
async def closed(anyio_backend: str) -> AsyncIterator[None]:
    """No client keeps a connection beyond its test."""
    yield
    while MADE:
        await MADE.pop().aclose()


def client(port: int, path: str = "", *, scheme: str = "http", host: str = "127.0.0.1", **how: Any) -> TcpClient:
    MADE.append(TcpClient(addresses.parsed(f"{scheme}://{host}:{port}{path}"), **how))
    return MADE[-1]


class Saying:
    """A server that answers every request with the same bytes; the connections it had and what was asked."""

    def __init__(self, answer: bytes, *, closes: bool = False, more: bytes = b"") -> None:
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], object]] = []
        self._answer, self._closes, self._more = answer, closes, more

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            request = await read(reader)
            self.requests.append((f"{request.method} {request.path}", request.headers, request.body))
            writer.write(self._answer)
            await writer.drain()
            if self._more:
                await asyncio.sleep(0.01)
                writer.write(self._more)
                await writer.drain()
            if self._closes:
                return


async def until(true: Callable[[], object]) -> None:
    """Wait until it holds; the test fails where it never does."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never held")


async def test_a_connection_is_used_again() -> None:
    """Three requests need one, below the path of the address; each says that it wants no packing."""
    server = Saying(SHORT)
    async with listening(server.serve) as port:
        asking = client(port, "/models")
        answers = [await asking.post("/v1/tokenize", json={"content": "ä"}) for _ in range(3)]

    assert [(200, b"ok")] * 3 == [(answer.status_code, answer.content) for answer in answers]
    assert 1 == server.connections
    asked, headers, body = server.requests[0]
    assert ("POST /models/v1/tokenize", {"content": "ä"}) == (asked, body)
    assert (f"127.0.0.1:{port}", "identity") == (headers["host"], headers["accept-encoding"])


async def test_leaving_early_hangs_up() -> None:
    """Which is what stops a model; the connection is not used again."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        await reader.read()
        gone.set()

    async with listening(serve) as port:
        asking = client(port)
        async with asking.stream("GET", "/") as answer:
            assert b"ok" == await anext(answer.aiter_bytes())
        async with asyncio.timeout(2):
            await gone.wait()
        assert not asking._free


async def test_a_promise_that_was_broken_is_not_believed_again() -> None:
    """A server that says nothing of closing, and closes after each stream, is asked on new connections from then on."""
    server = Saying(STREAM, closes=True)
    async with listening(server.serve) as port:
        asking = client(port)
        await asking.get("/")
        await until(lambda: asking._streams_close)
        for _ in range(5):
            assert b"ok" == (await asking.get("/")).content
        assert not asking._free

    assert 6 == server.connections == len(server.requests)


async def test_what_the_server_has_closed_is_closed_here_too() -> None:
    """At once, and not when somebody asks again: a burst of questions leaves no files open."""
    asked, over = asyncio.Semaphore(0), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        asked.release()
        await over.wait()
        writer.write(SHORT)
        await writer.drain()
        await asyncio.sleep(0.05)

    async with listening(serve) as port:
        asking = client(port)
        questions = [asyncio.create_task(asking.get("/")) for _ in range(8)]
        for _ in questions:
            await asked.acquire()
        over.set()
        await asyncio.gather(*questions)
        kept = [free.writer.transport for free in asking._free]
        await until(lambda: all(transport.is_closing() for transport in kept))

    assert 8 == len(kept)
    assert not asking._free
    assert not asking._streams_close  # it said nothing of keeping a stream's


async def test_what_was_said_unasked_is_never_taken_for_an_answer() -> None:
    """A server that says why it closes an idle connection: its words are not the answer to the next request."""
    server = Saying(SHORT, more=b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 4\r\n\r\nlate")
    async with listening(server.serve) as port:
        asking = client(port)
        assert b"ok" == (await asking.get("/")).content
        await until(lambda: asking._free[0].wire.came)
        assert (200, b"ok") == ((answer := await asking.get("/")).status_code, answer.content)

    assert 2 == server.connections


async def test_connecting_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent then, so that even a generation may be: a server that comes in time is found."""
    monkeypatch.setattr(tcp_http, "PAUSES", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        await client(port).get("/")

    asked = asyncio.create_task(client(port).get("/"))
    await asyncio.sleep(0.05)
    server = Saying(SHORT, closes=True)
    async with listening(server.serve, port):
        assert b"ok" == (await asked).content
    assert 1 == len(server.requests)


async def test_a_request_that_was_sent_is_not_sent_again() -> None:
    """A server that takes it and hangs up has perhaps begun with it."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal asked
        await read(reader)
        asked += 1

    async with listening(serve) as port:
        with pytest.raises(httpx.RemoteProtocolError):
            await client(port).post("/", json={})

    assert 1 == asked


async def test_a_refusal_before_all_was_sent_is_heard() -> None:
    """A server need not read four megabytes to say that the key is wrong."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(60)

    async with listening(serve) as port, asyncio.timeout(30):
        answer = await client(port).post("/", json={"picture": "x" * 2**22})

    assert (401, b"no") == (answer.status_code, answer.content)


async def test_a_body_may_end_with_its_connection() -> None:
    """As RFC 9112 allows, for answers without a length and not in chunks."""
    async with listening(Saying(HEAD + b"\r\nall of it", closes=True).serve) as port:
        assert b"all of it" == (await client(port).get("/")).content


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        HEAD + b"content-length: 10\r\n\r\nok",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nok",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
        HEAD + b"x: " + b"y" * 2**19,
        b"HTTP/1.1 103 Early\r\n\r\n" * 2**14,
        b"HTTP/1.1 101 Other\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=[
        "nothing",
        "half a head",
        "half a body",
        "half a chunk",
        "no HTTP",
        "packed",
        "no end of the head",
        "always soon",
        "another protocol",
    ],
)
async def test_what_is_no_whole_answer_is_an_error(answer: bytes) -> None:
    """Half an answer is never taken for a whole one, nor a packed one for text."""
    async with listening(Saying(answer, closes=True).serve) as port:
        with pytest.raises(httpx.TransportError):
            await client(port).get("/")


@pytest.mark.parametrize("soon", [b"100 Continue", b"103 Early Hints"])
async def test_that_an_answer_will_come_is_not_the_answer(soon: bytes) -> None:
    """A server or a proxy may say so first, unasked (RFC 9110, 15.2); the connection is used again."""
    server = Saying(b"HTTP/1.1 " + soon + b"\r\ncontent-encoding: gzip\r\n\r\n" + SHORT)
    async with listening(server.serve) as port:
        asking = client(port)
        answers = [await asking.get("/") for _ in range(2)]

    assert [(200, b"ok")] * 2 == [(answer.status_code, answer.content) for answer in answers]
    assert 1 == server.connections


async def test_an_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted whole is read up to a limit and no further."""
    monkeypatch.setattr("medserve.unix_http.MOST_WHOLE_BYTES", 2**16)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(HEAD + b"\r\n")
        while True:
            writer.write(b"x" * 2**14)
            await writer.drain()

    async with listening(serve) as port:
        with pytest.raises(httpx.RemoteProtocolError, match="no end"):
            await client(port).get("/")


async def test_a_redirect_is_an_answer_like_another() -> None:
    """It is not followed, so that what identifies us goes to nobody else."""

    async def shown() -> dict[str, str]:
        return {"authorization": "Bearer secret"}

    other, here = Saying(SHORT), Saying(b"")
    async with listening(other.serve) as elsewhere, listening(here.serve) as port:
        here._answer = b"HTTP/1.1 307 No\r\nlocation: http://127.0.0.1:%d/\r\ncontent-length: 0\r\n\r\n" % elsewhere
        asking = client(port, showing=shown)
        answer = await asking.post("/", json={})

    assert 307 == answer.status_code
    assert "Bearer secret" == here.requests[0][1]["authorization"]
    assert [] == other.requests


async def test_a_closed_client_asks_nothing() -> None:
    """And has no connection left."""
    async with listening(Saying(SHORT).serve) as port:
        asking = client(port)
        await asking.get("/")
        await asking.aclose()
        assert asking.is_closed
        with pytest.raises(httpx.ConnectError, match="closed"):
            await asking.get("/")


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody has signed but itself, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@asynccontextmanager
async def secure(certificate: Path) -> AsyncIterator[tuple[int, Saying]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    server = Saying(SHORT)
    async with listening(server.serve, ssl=context) as port:
        yield port, server


async def test_a_server_whose_certificate_is_trusted_is_asked(certificate: Path) -> None:
    """By the name that the certificate was made for."""
    trusted = ssl.create_default_context(cafile=certificate / "certificate.pem")
    async with secure(certificate) as (port, server):
        asking = client(port, scheme="https", host="localhost", context=trusted)
        assert b"ok" == (await asking.get("/")).content
        assert b"ok" == (await asking.get("/")).content

    assert 1 == server.connections


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_another_certificate_is_refused_before_anything_is_said(certificate: Path, host: str) -> None:
    """One that nobody trusts, and one that is trusted for another name; and neither is tried again."""
    trusted = httpx.create_ssl_context(trust_env=False)
    if host != "localhost":
        trusted = ssl.create_default_context(cafile=certificate / "certificate.pem")
    async with secure(certificate) as (port, server):
        with pytest.raises(httpx.ConnectError) as refused:
            await client(port, scheme="https", host=host, context=trusted).get("/")

    assert isinstance(refused.value.__cause__, ssl.SSLCertVerificationError)
    assert [] == server.requests
