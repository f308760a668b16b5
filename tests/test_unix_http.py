"""HTTP to a process of our own: whole and streamed answers, and every way in which the other side may fail."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import process_time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.unix_http import NoSocket, UnixClient
from tests.loops import watched

HEAD = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def listening(path: Path, *pieces: bytes, pause: float = 0.0) -> AsyncIterator[list[bytes]]:
    """A server that sends these pieces to everybody and hangs up; what it was sent."""
    heard: list[bytes] = []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield heard
    finally:
        server.close()
        await asyncio.gather(*(task for task in serving if task is not None), return_exceptions=True)
        await asyncio.sleep(0.001)  # connections close a moment later


async def test_an_answer_is_read_whole(tmp_path: Path) -> None:
    """By its length; and the request says what it is, and that the connection ends with it."""
    answer = HEAD + b'content-length: 7\r\n\r\n{"a":1}'
    async with listening(tmp_path / "s", answer) as heard:
        got = await UnixClient(str(tmp_path / "s")).post("/tokenize", json={"content": "ä"})

    assert (200, {"a": 1}) == (got.status_code, got.json())
    assert heard[0].startswith(b"POST /tokenize HTTP/1.1\r\n")
    assert b"connection: close" in heard[0]
    assert b"content-type: application/json" in heard[0]


async def test_a_stream_gives_its_pieces_as_they_come(tmp_path: Path) -> None:
    """Not only when all are there."""
    chunks = [b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"0\r\n\r\n"]
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    client = UnixClient(str(tmp_path / "s"))
    async with (
        listening(tmp_path / "s", head, *chunks, pause=0.02),
        client.stream("POST", "/completion", json={}) as answer,
    ):
        pieces = [piece async for piece in answer.aiter_bytes()]

    assert [b"first", b"second"] == pieces


@given(body=st.binary(max_size=500), cuts=st.lists(st.integers(0, 600), max_size=6))
def test_however_an_answer_is_cut_on_its_way_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, cuts: list[int]
) -> None:
    """Heads, chunks and their sizes may come in any pieces."""
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:]) if part) + b"0\r\n\r\n"
    whole = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(places)]
    path = tmp_path_factory.mktemp("cut") / "s"

    async def asked() -> bytes:
        async with listening(path, *pieces, pause=0.0):
            return (await UnixClient(str(path)).get("/")).content

    assert body == asyncio.run(asked())


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200",
        HEAD + b"content-length: 7\r\n\r\n{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nfir",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "no HTTP"],
)
async def test_a_server_that_hangs_up_or_speaks_otherwise_is_told(tmp_path: Path, said: bytes) -> None:
    """Half an answer is never taken for a whole one."""
    async with listening(tmp_path / "s", said):
        with pytest.raises(httpx.TransportError):
            await UnixClient(str(tmp_path / "s")).get("/health")


async def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    """A missing socket, one that nobody listens at any more, and a client that was closed."""
    client = UnixClient(str(tmp_path / "s"))
    with pytest.raises(httpx.ConnectError):
        await client.get("/health")
    async with listening(tmp_path / "s"):
        pass
    with pytest.raises(httpx.ConnectError):
        await client.get("/health")
    await client.aclose()
    with pytest.raises(httpx.ConnectError, match="closed"):
        await client.get("/health")


async def test_a_full_queue_of_connections_is_waited_for(tmp_path: Path) -> None:
    """A unix socket refuses at once what a port would let wait."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        client = UnixClient(str(tmp_path / "s"))
        asked = [asyncio.create_task(client.get("/")) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asked)
        listener.setblocking(False)
        server = await asyncio.start_unix_server(_greet, sock=listener)
        answers = await asyncio.gather(*asked)
        server.close()

    assert {b"ok"} == {answer.content for answer in answers}


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD + b"content-length: 2\r\n\r\nok")
    await writer.drain()
    writer.close()


async def test_leaving_hangs_up(tmp_path: Path) -> None:
    """Whoever stops reading is known to have gone, which is what stops a model."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    async with UnixClient(str(tmp_path / "s")).stream("GET", "/") as answer:
        assert b"first" == await anext(answer.aiter_bytes())
    async with asyncio.timeout(1):
        await gone.wait()
    server.close()


async def test_a_request_full_of_pictures_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Making JSON of a hundred megabytes takes half a second in which nobody else would be answered."""
    body = {"prompt_string": "What is this?", "multimodal_data": ["QUJD" * 250_000] * 64}
    began = process_time()
    expected = json.dumps(body).encode()
    in_one_go = process_time() - began
    came = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(came) < size:
            came.extend(await reader.read(2**20))
        writer.write(HEAD + b"content-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    async with watched() as holds:
        answer = await UnixClient(str(tmp_path / "s")).post("/completion", json=body)
    server.close()

    assert b"ok" == answer.content
    assert expected == came
    assert holds.longest < in_one_go / 2


async def test_a_process_that_can_open_nothing_more_is_told_so(tmp_path: Path) -> None:
    """As any other connection that cannot be made: who watches a worker must not fall over it."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), usual[1]))
        try:
            with pytest.raises(NoSocket):
                await UnixClient(str(tmp_path / "s")).get("/health")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, usual)
