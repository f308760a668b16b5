"""A model behind a server that somebody else runs: asked for nothing that it was not seen to honour.

Before the first question the server is probed (`medserve.probing`), and asked afterwards in the manner that it was seen
to understand. What it does not honour is refused by name. A question that may be repeated without harm, a count or a
probe, is repeated while the server is busy, loading or just gone; a generation never, once anything of it was sent.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import PurePath
from random import uniform
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from medserve import certificates, thinking
from medserve.engines import Capabilities
from medserve.engines._server import connected, fingerprint
from medserve.engines.openai import MEDGEMMA_SIDE, OpenAIEngine, Piece, refusal, timed
from medserve.errors import (
    ContextOverflow,
    EngineError,
    EngineTimeout,
    MedserveError,
    ModelBusy,
    ModelError,
    ModelFailed,
    ModelLoading,
    NotSupported,
    ServerLost,
)
from medserve.generation import Finish, GenerationRequest
from medserve.imaging import raster
from medserve.imaging.preprocess import VisionInput
from medserve.planning import SLACK, estimated
from medserve.probing import Found, Heard, Manner, look
from medserve.process import Progress, tell
from medserve.settings import DEMO, ModelSpec, Settings
from medserve.tcp_http import TcpClient
from medserve.threads import in_thread

DRAWINGS = (DEMO / "sight-a.png", DEMO / "sight-b.png")
PROBE_SECONDS = 120.0
"""How long one probe may take: a large model on a processor needs most of a minute to look at a picture."""
MOST_PIECES = 10_000
"""Events in the answer to a probe, which asks for at most 64 tokens."""
LOOK_SECONDS = 10.0
"""How long a server may take to tell something of itself."""
PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
LOST = 2
"""How often more a question is asked that the server has hung up on."""
MOST_CONTEXT = 131_072
"""No model of Gemma 3 has more, whatever a server says."""
NAMES = 20
"""Names of models that an error holds, and letters of who owns one."""
LONGEST_NAME = 256
"""A name that is longer, or cannot be printed, is none: it would stand in errors, logs and reports."""
MOST_SIDE = 4096

T = TypeVar("T")


async def attach(model: ModelSpec, settings: Settings) -> "Attached":
    """The server at the model's `url`, once it is known what it can do; raises ModelFailed with what to mend."""
    client = connected(model)
    try:
        return await _attached(model, client, settings)
    except ModelError:
        await client.aclose()
        raise
    except MedserveError as error:
        await client.aclose()
        raise unusable(model, error) from error
    except BaseException:
        await client.aclose()
        raise


async def _attached(model: ModelSpec, client: TcpClient, settings: Settings) -> "Attached":
    until = asyncio.get_running_loop().time() + settings.limits.load_seconds
    tell(Progress("asking the server what it serves"))
    served = await chosen(client, model, until)
    tokeniser = _Tokeniser(client, served.name)
    able = Capabilities(model.context)
    seconds = min(PROBE_SECONDS, settings.limits.answer_seconds)

    async def ask(request: GenerationRequest, manner: Manner, **more: Any) -> Heard:
        trial = Attached(model, client, able, Found(manner), seconds=seconds, served=served.name, more=more)
        return await patiently(lambda: trial.heard(request), until)

    async def context() -> int | None:
        nonlocal served, able
        served = await chosen(client, model, until)  # medserve tells more of a model that is loaded
        able = replace(able, vision=VisionInput(served.side, model.resample))
        return served.context or await _context(client, served.name)

    first, second = [await raster.read(await in_thread(path.read_bytes), settings.limits) for path in DRAWINGS]
    found = await look(ask, (first, second), assumed=model.context, context=context, token=tokeniser.token)
    able = _capabilities(model, served, found)
    if found.image_tokens:  # whether pictures are read as the model was trained to is for `medserve verify` to say
        parity = await in_thread(certificates.parity, settings.home, dict(able.facts))
        able = replace(
            able, facts=tuple(sorted((*able.facts, parity.fact))), vision=able.vision if not parity.refusal else None
        )
        found = replace(found, unseeing=parity.refusal)
    return Attached(model, client, able, found, seconds=settings.limits.answer_seconds, served=served.name)


def unusable(model: ModelSpec, error: MedserveError) -> ModelFailed:
    """Why a model behind a server cannot be loaded."""
    return ModelFailed(f"{model.name} cannot be used: {_reason(error)}", param="model")


def _reason(error: BaseException) -> str:
    """Why a server cannot be used, as far down as it is known."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "the certificate of its server is not trusted; name the authority that signed it as `ca`"
        if isinstance(cause, ssl.SSLError):
            return "its server does not speak TLS as it should; is the url one of http?"
        if isinstance(cause, socket.gaierror):
            return "the host in its url cannot be found"
        cause = cause.__cause__
    return error.message if isinstance(error, MedserveError) else type(error).__name__


async def patiently(work: Callable[[], Awaitable[T]], until: float) -> T:
    """What comes of a question that may be asked again: it is while the server is busy or loading, and twice when lost.

    The server's own time to wait is kept to; else it is waited longer and longer. `until` is a time of the loop.
    """
    for tried in count():
        try:
            return await work()
        except (ModelBusy, ModelLoading, ServerLost) as error:
            if isinstance(error, ServerLost) and tried >= LOST:
                raise
            pause = min(PAUSE_SECONDS * 2.0 ** min(tried, 10), LONGEST_PAUSE_SECONDS) * uniform(0.5, 1.5)  # noqa: S311
            pause = max(pause, error.retry_after or 0.0)
            if asyncio.get_running_loop().time() + pause > until:
                raise
            await asyncio.sleep(pause)
    raise AssertionError  # `count` has no end


# --- what a server tells of itself ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A model as its server lists it; `context` in tokens, None where that is not told.

    `side` is that of the pictures which the model takes, in pixels: only medserve tells it, of others it is MedGemma's.
    """

    name: str
    context: int | None = None
    owner: str = ""
    side: int = MEDGEMMA_SIDE


async def chosen(client: TcpClient, model: ModelSpec, until: float) -> Served:
    """The model named by `served`, else the one of our own name, else the only one that the server has."""
    said = await patiently(lambda: got(client, "/v1/models"), until)
    if said is None and model.served:  # a server that lists nothing may still know what it is asked for
        return Served(model.served)
    try:
        entries = {str(entry["id"]): entry for entry in said["data"] or ()}
    except (KeyError, TypeError):
        raise ModelFailed(f"no OpenAI-compatible server answers at the url of {model.name}; is it running?") from None
    listed: dict[str, dict[str, Any]] = {
        name: entry for name, entry in entries.items() if len(name) <= LONGEST_NAME and name.isprintable()
    }
    wanted = model.served or (model.name if model.name in listed or len(listed) != 1 else next(iter(listed)))
    if wanted not in listed:
        names = [plain(name) for name in listed]
        known = (", ".join(names[:NAMES]) or "none") + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")
        raise ModelFailed(
            f"the server at the url of {model.name} has no model of that name; it has: {known}; name one by `served`",
            param="served",
        )
    entry = listed[wanted]
    side = _number(entry, ("facts", "image_size")) or MEDGEMMA_SIDE
    return Served(wanted, _number(entry, *LISTED), str(entry.get("owned_by") or "")[:NAMES], min(side, MOST_SIDE))


LISTED = (("max_model_len",), ("meta", "n_ctx"), ("facts", "context"), ("loaded_context_length",))
"""Where servers list the context: vLLM and SGLang, newer llama-servers, medserve, LM Studio."""


async def _context(client: TcpClient, name: str) -> int | None:
    """The context of a model where its server does not list it; None where it says it nowhere."""
    ways: tuple[tuple[str, Callable[[Any], int | None]], ...] = (
        ("/props", lambda said: _number(said, ("default_generation_settings", "n_ctx"))),  # llama-server
        (f"/api/v0/models/{quote(name)}", lambda said: _number(said, ("loaded_context_length",))),  # LM Studio
        ("/api/ps", lambda said: _loaded(said, name)),  # Ollama
    )
    for path, read in ways:
        with suppress(MedserveError, httpx.HTTPError, LookupError, TypeError, AttributeError):
            if (context := read(await got(client, path))) is not None:
                return context
    return None


def _loaded(said: Any, name: str) -> int | None:
    entries = {entry["name"]: entry for entry in said["models"]}
    return _number(entries[name] if name in entries else entries[f"{name}:latest"], ("context_length",))


def _number(said: Any, *paths: tuple[str, ...]) -> int | None:
    """The first of these places that holds a number of tokens, which may be written as text."""
    for path in paths:
        place = said
        for name in path:
            place = place.get(name) if isinstance(place, Mapping) else None
        with suppress(TypeError, ValueError, OverflowError):
            if not isinstance(place, bool) and int(place) > 0:
                return min(int(place), MOST_CONTEXT)
    return None


async def got(client: TcpClient, path: str) -> Any:
    """What the server says there, None where it has no such page; raises MedserveError when it says nothing."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            answer = await client.get(path)
    except TimeoutError:
        raise EngineTimeout("the model's server did not answer in time; check that it runs") from None
    except httpx.TransportError as error:
        raise ServerLost("no server answers at its url; is it running?") from error
    return _said(answer.status_code, answer.content, answer.headers)


def _said(status: int, content: bytes, headers: Mapping[str, str]) -> Any:
    if status in (404, 405):
        return None
    if status != httpx.codes.OK:
        raise timed(refusal(status, content), headers)
    with suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


class _Tokeniser:
    """Asks a server for tokens in the words of llama-server and of vLLM, which SGLang shares."""

    def __init__(self, client: TcpClient, served: str) -> None:
        self._client = client
        self._served = served

    async def token(self, text: str) -> int | None:
        """The id of a text that is one token, control tokens included."""
        llama = {"content": text, "add_special": False, "parse_special": True}
        vllm = {"model": self._served, "prompt": text, "add_special_tokens": False}
        for body in (llama, vllm):
            with suppress(MedserveError, httpx.HTTPError, TimeoutError, LookupError, TypeError):
                async with asyncio.timeout(LOOK_SECONDS):
                    answer = await self._client.post("/tokenize", json=body)
                tokens = _said(answer.status_code, answer.content, answer.headers)["tokens"]
                if len(tokens) == 1 and isinstance(tokens[0], int):
                    return tokens[0]
        return None


def _capabilities(model: ModelSpec, served: Served, found: Found) -> Capabilities:
    able = found.abilities
    known = {"server": served.owner} if served.owner.isprintable() and served.owner else {}
    pictures = {"image_size": str(served.side), "image_tokens": str(found.image_tokens), "resample": model.resample}
    facts = {
        "engine": "openai",
        "weights": plain(served.name),
        "address_fingerprint": fingerprint(model),
        "context": str(found.context),
        **known,
        **(pictures if found.image_tokens else {}),
        **found.record,
    }
    return Capabilities(
        context=found.context,
        vision=VisionInput(served.side, model.resample) if found.image_tokens else None,
        image_tokens=found.image_tokens,
        schema="schema" in able,
        choices="choices" in able,
        logprobs="logprobs" in able,
        prefix="prefix" in able,
        thinking="thinking" in able,
        facts=tuple(sorted(facts.items())),
    )


def plain(name: str) -> str:
    """A model's name at its server; llama-server gives the path of a file, which is nobody's business."""
    return PurePath(name).name if name.startswith("/") else name.rpartition("\\")[2]


# --- the engine ----------------------------------------------------------------------------------------------------


class Attached(OpenAIEngine):
    """A model behind a server of somebody else's, asked in the manner that the server was seen to understand."""

    def __init__(
        self,
        model: ModelSpec,
        client: TcpClient,
        capabilities: Capabilities,
        found: Found,
        *,
        seconds: float,
        served: str,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, client, capabilities, seconds=seconds, served=served)
        self._found = found
        self._manner = found.manner
        self._more = more or {}

    async def heard(self, request: GenerationRequest) -> Heard:
        """The answer as it comes, whatever the model is thought to be able to; for probing."""
        pieces, known = [], Piece()
        async with aclosing(self._raw(request, self._deadline())) as coming:
            async for piece in coming:
                pieces.append(piece)
                known = known.plus(piece)
                if len(pieces) > MOST_PIECES:
                    raise EngineError("its server does not end an answer of a few tokens; check what listens there")
        return Heard(
            text="".join(piece.text for piece in pieces),
            thought="".join(piece.thinking for piece in pieces),
            logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
            finish=known.finish,
            prompt=known.prompt,
            completion=known.completion,
            cached=known.cached,
        )

    def check(self, request: GenerationRequest) -> None:
        """Refuse what the server was not seen to honour."""
        super().check(request)
        for name in self._manner.ignored(request):
            param = name.split()[0]
            raise NotSupported(f"the server behind {self.name} does not honour {name}; leave it out", param=param)
        if self._manner.cuts:
            self._check_length(request)

    def _check_length(self, request: GenerationRequest) -> None:
        """This server cuts what is too long and says nothing, so that what might be too long must not reach it."""
        texts = [part for message in request.messages for part in message.parts if isinstance(part, str)]
        words = sum(map(estimated, (*texts, request.prefix))) + SLACK * len(request.messages)
        tokens = words + len(request.images) * self.capabilities.image_tokens + request.max_tokens
        if tokens > self.capabilities.context:
            raise ContextOverflow(
                f"prompt and answer may take {tokens} tokens and the context of {self.name} holds "
                f"{self.capabilities.context}, beyond which its server cuts the prompt in silence; send fewer or "
                "shorter parts, or give the server a larger context",
                param="messages",
            )

    def _blind(self) -> MedserveError:
        reason = self._found.unseeing or "it was not seen to look at any"
        return NotSupported(f"{self.name} takes no images: {reason}", param="images")

    async def _lost(self) -> MedserveError:
        return ServerLost(f"the server behind {self.name} cannot be reached or hung up; check that it runs")

    async def _body(self, request: GenerationRequest) -> dict[str, Any]:
        return {**self._manner.worded(await super()._body(request), request), **self._more}

    async def _pieces(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        changes: list[Callable[[Piece], Piece]] = []
        if self._manner.echoes and (begun := thinking.beginning(request)):
            changes.append(_After(begun))
        if self._manner.choosing == "schema" and request.choices:
            changes.append(_OutOfJson())
        async with aclosing(self._raw(request, deadline)) as pieces:
            async for piece in pieces:
                changed = piece
                for change in changes:
                    changed = change(changed)
                yield changed

    async def _raw(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        """What the server says, in the form that every dialect has."""
        if not self._manner.whole:
            async with aclosing(super()._pieces(request, deadline)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        data = await super()._post(self.endpoint, await self._body(request), deadline)
        async with self._translated():
            said = [{**choice, "delta": choice.get("message")} for choice in data.get("choices") or ()]
            piece = self._piece({**data, "choices": said})
        yield piece

    async def _post(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """An answer that is only counted, so that it may be asked for again."""
        once = super()._post
        return await patiently(lambda: once(path, body, deadline), deadline)


class _After:
    """Takes away the forced beginning that a server says again."""

    def __init__(self, begun: str) -> None:
        self._begun = begun

    def __call__(self, piece: Piece) -> Piece:
        size = min(len(self._begun), len(piece.text))
        if piece.text[:size] != self._begun[:size]:
            raise EngineError("an answer did not begin as it was made to; ask again")
        self._begun = self._begun[size:]
        return replace(piece, text=piece.text[size:])


class _OutOfJson:
    """Takes the text out of a JSON string once it is whole; of one that was cut, what there is of it."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, piece: Piece) -> Piece:
        self._said += piece.text
        if piece.finish is None:
            return replace(piece, text="")
        if piece.finish is Finish.LENGTH:
            return replace(piece, text=self._said[1:])
        try:
            return replace(piece, text=str(json.loads(self._said)))
        except (ValueError, RecursionError):
            raise EngineError("an answer that had to be one of the choices was none; ask again") from None
