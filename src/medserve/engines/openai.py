"""A model behind a server that somebody else runs: asked for nothing that it was not seen to honour.

Before the first question the server is probed (`medserve.probing`), and asked afterwards in the manner that it was seen
to understand. What it does not honour is refused by name. A question that may be repeated without harm, a count or a
probe, is repeated while the server is busy, loading or just gone; a generation never, once anything of it was sent.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from medserve import thinking
from medserve.engines import SERVER, Capabilities, Outlook, refuse_unused
from medserve.engines._chat import OpenAIEngine
from medserve.engines._chat.piece import Piece
from medserve.engines._parity import certified
from medserve.engines._server import connected, fingerprint
from medserve.engines._server.patience import patiently
from medserve.engines._server.served import Served, Tokeniser, chosen, context_of, introduced, plain, usable
from medserve.errors import ContextOverflow, EngineError, MedserveError, NotSupported, ServerLost
from medserve.generation import Finish, GenerationRequest
from medserve.imaging import raster
from medserve.imaging.preprocess import VisionInput
from medserve.planning import SLACK, estimated
from medserve.probing import look
from medserve.probing.manner import Manner
from medserve.probing.trial import Found, Heard
from medserve.process import Progress, tell
from medserve.settings import DEMO, ModelSpec, Settings
from medserve.tcp_http import TcpClient
from medserve.threads import in_thread

DRAWINGS = (DEMO / "sight-a.png", DEMO / "sight-b.png")
PROBE_SECONDS = 120.0
"""How long one probe may take: a large model on a processor needs most of a minute to look at a picture."""
MOST_PIECES = 10_000
"""Events in the answer to a probe, which asks for at most 64 tokens."""


async def start(model: ModelSpec, settings: Settings) -> "Attached":
    """The server at the model's `url`, once it is known what it can do; raises ModelFailed with what to mend."""
    refuse_unused(model, *SERVER)
    client = connected(model)
    try:
        with usable(model):
            return await _attached(model, client, settings)
    except BaseException:
        await client.aclose()
        raise


async def examine(model: ModelSpec, settings: Settings) -> Outlook:
    """What its server says of the model; what that can do is probed when it is loaded. See `Examine`."""
    refuse_unused(model, *SERVER)
    return Outlook((await introduced(model)).words)


async def _attached(model: ModelSpec, client: TcpClient, settings: Settings) -> "Attached":
    until = asyncio.get_running_loop().time() + settings.limits.load_seconds
    tell(Progress("asking the server what it serves"))
    served = await chosen(client, model, until)
    tokeniser = Tokeniser(client, served.name)
    able = Capabilities(model.context)
    seconds = min(PROBE_SECONDS, settings.limits.answer_seconds)

    async def ask(request: GenerationRequest, manner: Manner, **more: Any) -> Heard:
        trial = Attached(model, client, able, Found(manner), seconds=seconds, served=served.name, more=more)
        return await patiently(lambda: trial.heard(request), until)

    async def context() -> int | None:
        nonlocal served, able
        served = await chosen(client, model, until)  # medserve tells more of a model that is loaded
        able = replace(able, vision=VisionInput(served.side, model.resample))
        return served.context or await context_of(client, served.name)

    first, second = [await raster.read(await in_thread(path.read_bytes), settings.limits) for path in DRAWINGS]
    found = await look(ask, (first, second), assumed=model.context, context=context, token=tokeniser.token)
    able = _capabilities(model, served, found)
    if found.image_tokens:  # whether pictures are read as the model was trained to is for `medserve verify` to say
        able, refusal = await certified(able, settings)
        found = replace(found, unseeing=refusal)
    return Attached(model, client, able, found, seconds=settings.limits.answer_seconds, served=served.name)


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
