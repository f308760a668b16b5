"""Closed by default: who gets in, who does not, and what every answer carries."""

import asyncio
import gc
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import Any

import httpx
import openai
import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from medserve import engines, keys, telemetry
from medserve.api import create_app, limits, server
from medserve.api.door import OPEN, request_id, shown
from medserve.engines import Capabilities
from medserve.imaging.preprocess import VisionInput
from medserve.keys import Scope
from medserve.settings import Limits, ModelSpec, Settings
from tests.api.conftest import Slow
from tests.commands import command
from tests.loops import watched
from tests.serving import serving, until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
UNKNOWN = (
    "/none",
    "/.env",
    "/v1",
    "//livez",
    "/livez/",
    "/LIVEZ",
    "/readyz/x",
    "/static/x",
)
CHAT: dict[str, Any] = {"model": "slow", "messages": [{"role": "user", "content": "hello"}]}
PAGE = "https://pages.example.org"
UUID = "7b0c7f4e-2c33-4f0e-9a51-0d9a4f0e7c11"


def settings_of(home: Path, **given: Any) -> Settings:
    """Settings whose only model is loaded when it is asked."""
    return Settings(home=home, preload=False, models=(ModelSpec(name="slow"),), **given)


async def made(settings: Settings, name: str = "clinic", *scopes: Scope, **limits: Any) -> str:
    """A new key."""
    async with keys.opened(settings) as kept:
        return (await kept.add(name, scopes or (Scope.USE,), **limits))[1]


def bearer(secret: str) -> dict[str, str]:
    """The header that shows a key."""
    return {"Authorization": f"Bearer {secret}"}


@asynccontextmanager
async def inside(
    settings: Settings, base: str = "http://127.0.0.1"
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The application, and a client that calls it without a network."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=base) as client:
        yield app, client


@asynccontextmanager
async def listening(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, engine: Slow | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """The application behind its own server on a free port of loopback, with `engine` for its model."""
    slow = engine or Slow()
    slow.capabilities = Capabilities(context=4096, vision=VisionInput(64), sight_test=False)

    async def start(_model: ModelSpec, _settings: Settings) -> Slow:
        return slow

    telemetry.configure("critical")
    monkeypatch.setattr(engines, "find", lambda _name: start)
    running = uvicorn.Server(server.config(settings, create_app(settings)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(running.serve(sockets=[listener]))
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as client:
                yield client
        finally:
            running.should_exit = True
            await task


def walked(routes: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every path of a table of routes with its methods: routers and mounted applications too."""
    for route in routes:
        if inner := getattr(route, "original_router", None):
            yield from walked(inner.routes, prefix + getattr(route.include_context, "prefix", ""))
            continue
        path = prefix + re.sub(r"{[^}]*}", "x", route.path)
        yield path, set(getattr(route, "methods", None) or {"GET"})
        if mounted := getattr(route, "routes", None):
            yield from walked(mounted, path)
            yield f"{path}/anything", {"GET"}


# --- who gets in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"host": "0.0.0.0"}, {"host": "0.0.0.0", "open_to_network": True}])  # noqa: S104
async def test_without_a_key_nothing_answers_but_the_probes(tmp_path: Path, given: dict[str, Any]) -> None:
    """Systems 001 and 004 were deployed with --allow-unauthenticated: here every route there is asks for a key.

    Found in the table of routes, with every method, and for what is no route at all.
    """
    settings = settings_of(tmp_path, **given)
    await made(settings)
    async with inside(settings) as (app, client):
        routes = list(walked(app.routes))
        assert {path for path in app.openapi()["paths"] if "{" not in path} <= {path for path, _ in routes}
        for path in {path for path, _ in routes} | set(UNKNOWN):
            for method in METHODS:
                answer = await client.request(method, f"http://127.0.0.1{path}")
                if path in OPEN and method in {"GET", "HEAD"}:
                    assert answer.status_code != 401, (method, path)
                    continue
                assert 401 == answer.status_code, (method, path)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                if method != "HEAD":
                    assert "authentication_error" == answer.json()["error"]["type"]
                    assert "invalid_api_key" == answer.json()["error"]["code"]


async def test_every_route_asks_what_a_key_may(tmp_path: Path) -> None:
    """A key for metrics opens the metrics, and no route of anybody has forgotten to ask."""
    settings = settings_of(tmp_path)
    secret = await made(settings, "prometheus", Scope.METRICS)
    free = {"/metrics"} | OPEN
    async with inside(settings) as (app, client):
        for path, methods in walked(app.routes):
            for method in methods if path not in free else ():
                answer = await client.request(method, path, headers=bearer(secret))
                assert 403 == answer.status_code, (method, path)
                assert "insufficient_scope" in answer.headers["www-authenticate"]
                if method != "HEAD":
                    assert "insufficient_scope" == answer.json()["error"]["code"]


@asynccontextmanager
async def frozen() -> AsyncIterator[None]:
    """What there is by now is not searched for garbage again, as the server has it once it has started."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def test_the_first_look_at_all_routes_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The document takes long to make, once; that is not done where requests are answered."""
    async with inside(settings_of(tmp_path)) as (_, client), frozen(), watched() as holds:
        began = process_time()
        answer = await client.get("/openapi.json")
        took = process_time() - began

    assert "/v1/chat/completions" in answer.json()["paths"]
    assert holds.longest < took / 3


async def test_the_document_says_how_keys_are_shown(tmp_path: Path) -> None:
    """In both ways, or none where there are no keys; and that probes need none."""
    async with inside(settings_of(tmp_path)) as (app, _):
        document = app.openapi()
    ways = document["components"]["securitySchemes"]

    assert {("http", "bearer"), ("apiKey", "X-API-Key")} == {
        (way["type"], way.get("scheme") or way["name"]) for way in ways.values()
    }
    assert [*({way: []} for way in ways), {}] == document["security"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert (path in OPEN) == (operation.get("security") == [])


async def test_a_network_without_keys_is_closed_unless_that_was_said(tmp_path: Path) -> None:
    """Defect 002-6: also when the application is started by another server than `medserve serve`."""
    for told, status in ((False, 401), (True, 200)):
        async with inside(settings_of(tmp_path, host="0.0.0.0", open_to_network=told)) as (_, client):  # noqa: S104
            assert status == (await client.get("/v1/workflows")).status_code
            assert 200 == (await client.get("/livez")).status_code


async def test_a_machine_of_ones_own_needs_no_key(tmp_path: Path) -> None:
    """And whatever an SDK sends as one is ignored then."""
    async with inside(settings_of(tmp_path)) as (_, client):
        for headers in ({}, bearer("EMPTY"), {"X-API-Key": "x"}):
            assert 200 == (await client.get("/v1/workflows", headers=headers)).status_code


async def test_a_key_is_shown_in_either_of_two_ways(tmp_path: Path) -> None:
    """As OpenAI's clients do and as others do; never in the address, which logs and histories keep."""
    settings = settings_of(tmp_path)
    secret = await made(settings)
    async with inside(settings) as (_, client):
        right = [
            bearer(secret),
            {"Authorization": f"bearer   {secret} "},
            {"X-API-Key": secret},
            {"X-API-Key": secret, "Authorization": "Basic cHJveHk6cHJveHk="},
        ]
        for headers in right:
            assert 200 == (await client.get("/v1/workflows", headers=headers)).status_code
        for headers in ({"Authorization": secret}, {"Authorization": f"Basic {secret}"}, {"Cookie": f"key={secret}"}):
            assert 401 == (await client.get("/v1/workflows", headers=headers)).status_code
        assert 401 == (await client.get("/v1/workflows", params={"key": secret, "api_key": secret})).status_code


def test_two_headers_of_one_name_are_no_key() -> None:
    """A proxy may read the first where the service reads the last."""
    assert b"" == shown([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")])
    assert b"" == shown([(b"x-api-key", b"a"), (b"x-api-key", b"a")])
    assert None is shown([(b"accept", b"*/*")])


async def test_a_key_is_asked_for_before_a_byte_is_read(tmp_path: Path) -> None:
    """Whoever has no key costs no memory."""
    settings = settings_of(tmp_path)
    await made(settings)
    statuses: list[int] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 401))

    async with inside(settings) as (app, _):
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"1000000000")]
        scope = {"type": "http", "query_string": b"", "client": ("127.0.0.1", 1), "headers": headers}
        for path in ("/v1/chat/completions", "/v1/../livez", "/livez/../v1/models", "/livez\0", "/livez?", ""):
            for method in ("POST", "GET"):
                await app({**scope, "method": method, "path": path}, receive, send)

    assert {401} == set(statuses)


async def test_guessing_slows_down_and_never_says_more(tmp_path: Path) -> None:
    """Ten wrong keys, then 429 with the time to wait; a right key is let in though none came from there before.

    Behind one proxy all have one address, and after a restart of the service all are new.
    """
    settings = settings_of(tmp_path)
    secret = await made(settings)
    async with inside(settings) as (_, client):
        answers = [await client.get("/v1/workflows", headers=bearer(f"ms-{n}")) for n in range(12)]
        again = await client.get("/v1/workflows", headers=bearer(secret))

    assert [401] * 10 + [429] * 2 == [answer.status_code for answer in answers]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 6
    assert 200 == again.status_code
    assert not any("ms-" in answer.text for answer in answers)


async def test_a_key_that_was_revoked_is_no_guess(tmp_path: Path) -> None:
    """A client that was forgotten goes on asking for weeks: it is told why each time, and never to come again."""
    settings = settings_of(tmp_path)
    secret = await made(settings)
    async with keys.opened(settings) as kept:
        await kept.revoke("clinic")
    async with inside(settings) as (_, client):
        answers = [await client.get("/v1/workflows", headers=bearer(secret)) for _ in range(12)]

    assert [401] * 12 == [answer.status_code for answer in answers]
    assert "revoked" in answers[-1].json()["error"]["message"]


async def test_the_official_client_knows_each_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each raises the error that the `openai` client has for it."""
    settings = settings_of(tmp_path)
    use = await made(settings, per_minute=2)
    metrics = await made(settings, "prometheus", Scope.METRICS)
    async with listening(settings, monkeypatch, Slow(pieces=1)) as client:

        async def ask(secret: str) -> str:
            base = f"{client.base_url}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key=secret, max_retries=0) as asking:
                answer = await asking.chat.completions.create(**CHAT)
                return str(answer.choices[0].message.content)

        with pytest.raises(openai.AuthenticationError) as wrong:
            await ask("ms-wrong")
        with pytest.raises(openai.PermissionDeniedError) as narrow:
            await ask(metrics)
        assert ["so", "so"] == [(await ask(use)).strip() for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as often:
            await ask(use)

    codes = [error.value.code for error in (wrong, narrow, often)]
    assert ["invalid_api_key", "insufficient_scope", "rate_limit_exceeded"] == codes
    assert wrong.value.request_id
    assert 1 <= int(often.value.response.headers["retry-after"]) <= 30


async def test_a_containers_secret_closes_the_door(tmp_path: Path) -> None:
    """Without any key in the database."""
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    async with inside(settings_of(tmp_path / "home", admin_key_file=file)) as (_, client):
        shown = await client.get("/v1/workflows", headers=bearer("0123456789abcdef0123456789abcdef"))
        assert [401, 200] == [(await client.get("/v1/workflows")).status_code, shown.status_code]


# --- limits of a key -----------------------------------------------------------------------------------------------


async def test_a_key_has_so_many_requests_a_minute(tmp_path: Path) -> None:
    """The headers count down as OpenAI's do; beyond the last the answer says truly when to come again."""
    settings = settings_of(tmp_path)
    secret = await made(settings, per_minute=30)
    async with inside(settings) as (_, client):
        answers = [await client.get("/v1/workflows", headers=bearer(secret)) for _ in range(31)]
        refused = answers[-1]
        assert [200] * 30 + [429] == [answer.status_code for answer in answers]
        assert "29" == answers[0].headers["x-ratelimit-remaining-requests"]
        assert ("30", "0") == (
            refused.headers["x-ratelimit-limit-requests"],
            refused.headers["x-ratelimit-remaining-requests"],
        )
        assert re.fullmatch(r"(\d+m)?[\d.]+m?s", refused.headers["x-ratelimit-reset-requests"])
        assert "rate_limit_exceeded" == refused.json()["error"]["code"]

        await asyncio.sleep(int(refused.headers["retry-after"]))
        assert 200 == (await client.get("/v1/workflows", headers=bearer(secret))).status_code


async def test_every_request_that_came_in_counts(tmp_path: Path) -> None:
    """Also one that its scope, the router or a body then refuses: trying what a key may is work as well."""
    settings = settings_of(tmp_path)
    secret = await made(settings, per_minute=30)
    async with inside(settings) as (_, client):
        client.headers.update(bearer(secret))
        answers = [
            await client.delete("/v1/models/slow"),
            await client.get("/none"),
            await client.post("/v1/chat/completions", json={}),
        ]

    assert [403, 404, 400] == [answer.status_code for answer in answers]
    assert ["29", "28", "27"] == [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]


async def test_a_stream_holds_its_place_until_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at once means one, however long it takes; a client that leaves gives its place back."""
    settings = settings_of(tmp_path)
    secret = await made(settings, at_once=1)
    async with listening(settings, monkeypatch, Slow(pieces=100_000)) as client:
        client.headers.update(bearer(secret))
        async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream:
            assert 200 == stream.status_code
            await anext(stream.aiter_bytes())
            refused = await client.get("/v1/models")
            assert 429 == refused.status_code
            assert "retry-after" in refused.headers
            assert 200 == (await client.get("/livez")).status_code
        began = perf_counter()
        while (await client.get("/v1/models")).status_code == 429:
            assert perf_counter() - began < 2
            await asyncio.sleep(0.02)


# --- what every answer carries -------------------------------------------------------------------------------------


@given(st.one_of(st.none(), st.binary(max_size=80), st.from_regex(rb"[A-Za-z0-9._-]{1,64}", fullmatch=True)))
def test_a_request_id_is_clean_whatever_was_sent(given: bytes | None) -> None:
    """It is written to logs and headers: a clean one is kept, anything else is replaced."""
    made = request_id(given)

    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", made)
    clean = given is not None and re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", given)
    assert (made.encode() == given) == bool(clean)


async def test_every_answer_carries_its_id_and_the_careful_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Successes, every kind of refusal, bugs, and streams."""
    settings = settings_of(tmp_path, limits=Limits(body_bytes=1000))
    secret = await made(settings)
    own = bearer(secret)
    async with listening(settings, monkeypatch, Slow(pieces=2)) as client:
        answers = [
            await client.get("/livez"),
            await client.get("/v1/workflows"),
            await client.get("/v1/workflows", headers=own),
            await client.get("/none", headers=own),
            await client.put("/v1/workflows", headers=own),
            await client.get("/", headers={"Host": "evil.example.org"}),
            await client.get("/", headers={"Origin": "https://evil.example.org"}),
            await client.post("/v1/chat/completions", headers=own, content="x" * 2000),
            await client.post("/v1/chat/completions", headers=own, json={**CHAT, "stream": True}),
            await client.get("/docs", headers=own),
        ]
    assert [200, 401, 200, 404, 405, 421, 403, 413, 200, 200] == [
        answer.status_code if answer.status_code != 415 else 413 for answer in answers
    ]
    for answer in answers:
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "nosniff" == answer.headers["x-content-type-options"]
        assert "no-referrer" == answer.headers["referrer-policy"]
        assert "DENY" == answer.headers["x-frame-options"]
        assert "no-store" == answer.headers["cache-control"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "camera=()" in answer.headers["permissions-policy"]
        assert "strict-transport-security" not in answer.headers
        assert "server" not in answer.headers
    assert len(answers) == len({answer.headers["x-request-id"] for answer in answers})


async def test_a_callers_own_id_comes_back_and_stands_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not clean is replaced; one that may be a name stands in the log as its digest."""
    bound: list[Any] = []

    def noting(_folder: Path) -> dict[str, Any]:
        bound.append(structlog.contextvars.get_contextvars())
        return {}

    monkeypatch.setattr("medserve.api.routes.workflows.workflows.workflows", noting)
    async with inside(settings_of(tmp_path)) as (_, client):
        kept = await client.get("/v1/workflows", headers={"X-Request-Id": "order-17.b"})
        dirty = await client.get("/v1/workflows", headers={"X-Request-Id": "a b{}"})
        own = await client.get("/v1/workflows", headers={"X-Request-Id": UUID})

    assert "order-17.b" == kept.headers["x-request-id"]
    assert sha256(b"order-17.b").hexdigest()[:32] == bound[0]["request_id"]
    assert dirty.headers["x-request-id"] == bound[1]["request_id"]
    assert "a b{}" != dirty.headers["x-request-id"]
    assert UUID == own.headers["x-request-id"] == bound[2]["request_id"]


async def test_a_bug_is_answered_with_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that a caller can quote to whoever reads the log."""

    def broken(_folder: Path) -> Any:
        raise RuntimeError("a bug")

    telemetry.configure("critical")
    monkeypatch.setattr("medserve.api.routes.workflows.workflows.workflows", broken)
    async with inside(settings_of(tmp_path)) as (_, client):
        answer = await client.get("/v1/workflows", headers={"X-Request-Id": "order-17"})

    assert (500, "order-17", "no-store") == (
        answer.status_code,
        answer.headers["x-request-id"],
        answer.headers["cache-control"],
    )


async def test_browsers_are_told_of_tls_only_where_there_is_some(tmp_path: Path) -> None:
    """Told wrongly, a browser would never come back."""
    async with inside(settings_of(tmp_path, tls_in_front=True)) as (_, client):
        assert "max-age=31536000" == (await client.get("/livez")).headers["strict-transport-security"]


# --- pages of other origins ----------------------------------------------------------------------------------------


async def test_no_page_of_another_origin_is_answered(tmp_path: Path) -> None:
    """Systems 001 and 004 allowed every origin, with credentials: here none gets a header that lets it read."""
    settings = settings_of(tmp_path)
    async with inside(settings) as (_, client):
        for origin in ("https://evil.example.org", "null", "http://127.0.0.1.evil.example.org"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            posted = await client.post("/v1/chat/completions", headers={"Origin": origin}, json=CHAT)
            preflight = await client.options("/v1/chat/completions", headers=asked)
            for answer in (posted, preflight):
                assert 403 == answer.status_code
                assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_named_page_may_call(tmp_path: Path) -> None:
    """Its preflight needs no key, since browsers send none; its requests do, and errors can be read by it too."""
    settings = settings_of(tmp_path, origins=(PAGE,))
    secret = await made(settings)
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    async with inside(settings) as (_, client):
        preflight = await client.options("/v1/chat/completions", headers=asked)
        without = await client.get("/v1/workflows", headers={"Origin": PAGE})
        with_key = await client.get("/v1/workflows", headers={"Origin": PAGE, **bearer(secret)})
        other = await client.options("/v1/workflows", headers={**asked, "Origin": "https://evil.example.org"})
        read = await client.get("/v1/workflows", headers={"Origin": "https://evil.example.org", **bearer(secret)})

    assert [200, 401, 200] == [answer.status_code for answer in (preflight, without, with_key)]
    for answer in (preflight, without, with_key):
        assert PAGE == answer.headers["access-control-allow-origin"]
        assert "access-control-allow-credentials" not in answer.headers
        assert "x-request-id" in answer.headers
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    assert "x-request-id" in with_key.headers["access-control-expose-headers"].lower()
    assert [400, 403] == [other.status_code, read.status_code]
    assert not any("access-control-allow-origin" in answer.headers for answer in (other, read))


async def test_on_a_network_a_service_answers_its_own_pages_only(tmp_path: Path) -> None:
    """It goes by any name, and a page is its own when it came from that name."""
    settings = settings_of(tmp_path, host="0.0.0.0", origins=(PAGE,))  # noqa: S104
    secret = await made(settings)
    async with inside(settings, "http://medserve.hospital.example:8080") as (_, client):
        client.headers.update(bearer(secret))
        own = "http://medserve.hospital.example:8080"
        for origin, status in ((own, 200), (PAGE, 200), ("http://medserve.hospital.example", 403), ("null", 403)):
            assert status == (await client.get("/v1/workflows", headers={"Origin": origin})).status_code


@pytest.mark.parametrize("origin", ["*", "https://*.example.org", "pages.example.org", "https://a.example/", "null"])
def test_no_setting_allows_every_page(origin: str) -> None:
    """Systems 001 and 004 had `*` with credentials."""
    with pytest.raises(ValueError, match="an origin is named in full"):
        Settings(origins=(origin,))


# --- requests that never end ---------------------------------------------------------------------------------------


def raw(client: httpx.AsyncClient) -> tuple[str, int]:
    """Where the service listens."""
    assert client.base_url.port is not None
    return client.base_url.host, client.base_url.port


async def trickle(writer: asyncio.StreamWriter, piece: bytes, seconds: float) -> None:
    """Send a piece again and again, until nobody takes it any more."""
    with suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(seconds)


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """What is sent until the connection ends, and how long that took."""
    began = monotonic()
    got = b""
    with suppress(ConnectionError):
        while piece := await asyncio.wait_for(reader.read(65536), 20):
            got += piece
    return got, monotonic() - began


async def conversation(client: httpx.AsyncClient, first: bytes, piece: bytes, pause: float) -> tuple[bytes, float]:
    """Send `first`, then `piece` again and again; the answer and when the connection ended."""
    reader, writer = await asyncio.open_connection(*raw(client))
    writer.write(first)
    sending = asyncio.create_task(trickle(writer, piece, pause))
    try:
        return await answered(reader)
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


async def test_a_body_that_trickles_in_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not hold a connection for ever."""
    settings = settings_of(tmp_path, limits=Limits(request_seconds=0.4))
    async with listening(settings, monkeypatch) as client:
        got, seconds = await conversation(client, POST + b"content-length: 100000\r\n\r\n{", b" ", 0.02)

    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in got
    assert 0.3 < seconds < 3


async def test_a_long_answer_is_not_taken_for_a_slow_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts until the body is there, and no longer."""
    settings = settings_of(tmp_path, limits=Limits(request_seconds=0.2))
    async with listening(settings, monkeypatch, Slow(pieces=60)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)

    assert 200 == answer.status_code
    assert answer.elapsed.total_seconds() > 0.3


async def test_a_head_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the time that it takes nor by its size, nor when nothing is sent at all."""
    monkeypatch.setattr(server.Bounded, "head_seconds", 0.4)
    async with listening(settings_of(tmp_path), monkeypatch) as client:
        slow, slow_seconds = await conversation(client, b"GET /livez HTTP/1.1\r\nx: ", b"x", 0.02)
        silent, silent_seconds = await conversation(client, b"", b"", 0.1)
        large, _ = await conversation(client, b"GET /livez HTTP/1.1\r\nx: ", b"x" * 10_000, 0)
        many, _ = await conversation(client, b"GET /livez HTTP/1.1\r\n", b"a: b\r\n" * 1000, 0)
        assert 200 == (await client.get("/livez")).status_code

    assert slow.startswith(b"HTTP/1.1 408 ")
    assert silent.startswith(b"HTTP/1.1 408 ")
    assert 0.3 < slow_seconds < 3
    assert 0.3 < silent_seconds < 3
    assert large.startswith(b"HTTP/1.1 431 ") or large == b""  # an answer may be lost while bytes are on their way
    assert many.startswith(b"HTTP/1.1 431 ") or many == b""


async def test_whoever_was_refused_cannot_go_on_sending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal can be read, what comes after it is dropped, and then the connection is closed."""
    monkeypatch.setattr(server.Bounded, "linger_seconds", 0.4)
    settings = settings_of(tmp_path)
    await made(settings)
    async with listening(settings, monkeypatch) as client:
        got, seconds = await conversation(client, POST + b"content-length: 100000000\r\n\r\n", b" " * 10, 0.02)
        whole = await client.post("/v1/chat/completions", content=b" " * 5_000_000)
        again = await client.get("/livez")

    assert got.startswith(b"HTTP/1.1 401 ")
    assert 0.3 < seconds < 3
    assert [401, 200] == [whole.status_code, again.status_code]


async def test_an_answer_that_nobody_reads_gives_its_slot_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks and never reads holds no place for ever."""
    monkeypatch.setattr(limits, "STALLED_SECONDS", 0.5)
    engine = Slow(pieces=1_000_000, between=0.0)
    body = json.dumps({**CHAT, "stream": True}).encode()
    async with listening(settings_of(tmp_path), monkeypatch, engine) as client:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(raw(client))
            connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
            for wanted in (1, 0):
                began = monotonic()
                while engine.running != wanted:
                    assert monotonic() - began < 20
                    await asyncio.sleep(0.02)
    assert 0 == engine.finished


async def test_a_connection_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What guards against endless requests gets in nobody's way: many on one connection, with bodies and without."""
    async with listening(settings_of(tmp_path), monkeypatch, Slow(pieces=1)) as client:
        statuses = []
        for _ in range(10):
            statuses += [
                (await client.get("/livez")).status_code,
                (await client.post("/v1/chat/completions", json=CHAT)).status_code,
            ]

    assert {200} == set(statuses)


async def test_an_address_is_believed_from_named_proxies_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise whoever guesses keys would name a new address each time."""
    for proxies, status in (((), 429), (("127.0.0.1",), 401)):
        settings = settings_of(tmp_path, proxies=proxies)
        await made(settings, f"proxies-{len(proxies)}")
        async with listening(settings, monkeypatch) as client:
            addresses = [{"X-Forwarded-For": f"10.0.0.{number}"} for number in range(12)]
            answers = [await client.get("/v1/workflows", headers={**a, **bearer("ms-wrong")}) for a in addresses]
        assert status == answers[-1].status_code


async def test_a_crowd_of_values_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight megabytes of numbers took a minute and 5 GB when each of them was found to be wrong."""
    crowds = [
        b'{"messages":[' + b"1," * (4 << 20) + b"1]}",
        b'{"messages":[' + b"[]," * 30_000 + b"[]]}",
        b'{"a":' * 30_000,
        b"{" + b",".join(b'"k%d":1' % number for number in range(30_000)) + b"}",
    ]
    async with listening(settings_of(tmp_path), monkeypatch) as client:
        for crowd in crowds:
            began = perf_counter()
            answer = await client.post(
                "/v1/chat/completions", content=crowd, headers={"Content-Type": "application/json"}
            )
            assert 400 == answer.status_code
            assert "20000 values" in answer.json()["error"]["message"]
            assert perf_counter() - began < 3


async def test_signs_inside_of_a_text_are_no_crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table as text is a prompt like any other, with quotation marks and backslashes too."""
    table = '1, 2, [3] {4} "x, y" \\ \n' * 3000
    async with listening(settings_of(tmp_path), monkeypatch, Slow(pieces=1)) as client:
        body = {"model": "slow", "messages": [{"role": "user", "content": table}]}
        answer = await client.post("/v1/chat/completions", json=body)

    assert "values in lists" not in answer.text
    assert answer.status_code in {200, 400}  # it may be longer than the model's context


# --- as it is used -------------------------------------------------------------------------------------------------


def scripted(folder: Path) -> dict[str, str]:
    """The environment of a service whose home is in `folder`, with a model that is loaded in no time."""
    config = folder / "medserve.toml"
    config.write_text('[[models]]\nname = "script"\nengine = "scripted"\nreplies = ["Round."]\n')
    return {"MEDSERVE_HOME": str(folder / "home"), "MEDSERVE_CONFIG": str(config)}


def status(url: str, secret: str = "") -> int:
    """How the service answers with a key."""
    return httpx.get(f"{url}/v1/workflows", headers=bearer(secret) if secret else {}, trust_env=False).status_code


def test_a_running_service_sees_keys_come_and_go(tmp_path: Path) -> None:
    """Open on loopback, closed by the first key within seconds, and closed to it within five once it is revoked."""
    home = tmp_path / "home"
    with serving(environment=scripted(tmp_path)) as service:
        assert 200 == status(service.url)
        added = command("keys", "add", "clinic", "--per-minute", "6000", MEDSERVE_HOME=str(home))
        secret = added.out.strip()
        assert re.fullmatch(r"ms-[A-Za-z0-9_-]{43}", secret)
        assert until(lambda: status(service.url) == 401, 5)
        assert until(lambda: status(service.url, secret) == 200, 5)

        asked = command("ps", "--url", service.url, MEDSERVE_HOME=str(home))
        shown = command("ps", "--url", service.url, MEDSERVE_HOME=str(home), MEDSERVE_KEY=secret)
        assert (2, True) == (asked.code, "MEDSERVE_KEY" in asked.err)
        assert (0, True) == (shown.code, "script" in shown.out)

        assert 0 == command("keys", "revoke", "clinic", MEDSERVE_HOME=str(home)).code
        began = monotonic()
        assert until(lambda: status(service.url, secret) == 401, 5)
        assert monotonic() - began < 5
        assert 401 == status(service.url)
        assert secret.encode() not in service.log

    listed = command("keys", "ls", "--json", MEDSERVE_HOME=str(home))
    facts = json.loads(listed.out)
    assert ("clinic", "revoked", ["use"], 6000) == tuple(facts[n] for n in ("name", "state", "scopes", "per_minute"))
    assert facts["last_used"] is not None
    assert "digest" not in facts
    assert secret not in listed.out


def test_a_service_for_other_machines_needs_a_key_or_plain_words(tmp_path: Path) -> None:
    """System 003 and the others listened everywhere: here that is refused with the next step, until there is a key."""
    home = tmp_path / "home"
    refused = command("serve", "--host", "0.0.0.0", "--port", "0", MEDSERVE_HOME=str(home))  # noqa: S104
    revoked = [command("keys", order, "old", MEDSERVE_HOME=str(home)) for order in ("add", "revoke")]
    still = command("serve", "--host", "0.0.0.0", "--port", "0", MEDSERVE_HOME=str(home))  # noqa: S104
    for answer in (refused, still):
        assert 2 == answer.code
        assert "medserve keys add" in answer.err
        assert "--open-to-network" in answer.err
    assert [0, 0] == [answer.code for answer in revoked]

    secret = command("keys", "add", "clinic", MEDSERVE_HOME=str(home)).out.strip()
    with serving("--host", "0.0.0.0", environment=scripted(tmp_path)) as service:  # noqa: S104
        assert [401, 200] == [status(service.url), status(service.url, secret)]


def test_what_cannot_be_a_key_is_one_line_and_code_2(tmp_path: Path) -> None:
    """Each refusal names what there is instead."""
    home = tmp_path / "home"
    tries = {
        ("add", "clinic", "--scope", "root"): "use, metrics, admin",
        ("add", "clinic", "--expires", "soon"): "90d",
        ("add", "clinic", "--expires", "9999999999d"): "90d",
        ("add", "a b"): "letters, digits",
        ("revoke", "nobody"): "keys ls",
        ("revoke", "nobody", "--forget"): "keys ls",
    }
    for arguments, words in tries.items():
        answer = command("keys", *arguments, MEDSERVE_HOME=str(home))
        assert (2, "") == (answer.code, answer.out)
        assert words in answer.err
        assert 1 == len(answer.err.strip().splitlines())


def test_keys_are_listed_for_people(tmp_path: Path) -> None:
    """A table with what each may, and JSON with the same when a key is made."""
    home = tmp_path / "home"
    as_json = command(
        "keys", "add", "batch", "--scope", "use", "--scope", "metrics", "--at-once", "4", "--expires", "90d", "--json",
        MEDSERVE_HOME=str(home),
    )  # fmt: skip
    made = json.loads(as_json.out)
    listed = command("keys", "ls", MEDSERVE_HOME=str(home)).out

    assert made["key"].startswith("ms-")
    assert (["metrics", "use"], 4, "valid") == (made["scopes"], made["at_once"], made["state"])
    assert re.search(r"batch +valid +metrics,use +- +4 ", listed)
    assert made["key"] not in listed
