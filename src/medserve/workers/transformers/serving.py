"""What the worker answers over HTTP: OpenAI's chat completions as they are written, and label scores, each cancelled
when the caller hangs up.

This thread parses and makes prompts; it never touches the network's numbers, so `/health` answers while the model
computes. Errors are `{"error": {"code": status, "type": our code, "message": ..., "param": ...}}`, in the middle of a
stream too.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import InvalidRequest, MedserveError, ModelError
from medserve.generation import LEAST_LOGPROB, Sampling
from medserve.threads import in_thread
from medserve.workers.transformers.decoding import Decoder
from medserve.workers.transformers.prompts import Beginning, Prompt, Prompts, stem
from medserve.workers.transformers.wishes import Emit, End, Failure, Scores, Spent, Ticket, Token, Wish

Event = Token | End | Scores | Failure
SAMPLED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def create_app(decoder: Decoder, prompts: Prompts, name: str) -> Starlette:
    """The application of one model."""
    service = _Service(decoder, prompts, name)
    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.complete, methods=["POST"]),
            Route("/v1/score", service.score, methods=["POST"]),
            Route("/tokenize", service.tokenize, methods=["POST"]),
        ]
    )


class _Service:
    def __init__(self, decoder: Decoder, prompts: Prompts, name: str) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._name = name

    async def health(self, _request: Request) -> Response:
        """That the worker is there, and how many answers it is writing."""
        return JSONResponse({"status": "ok", "answering": self._decoder.live})

    async def models(self, _request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def tokenize(self, request: Request) -> Response:
        """How many tokens a text takes in a prompt, its control tokens as mere text; or the ids of `messages`.

        Of messages the whole prompt is told, with null in place of a picture and the marks around it.
        """
        try:
            asked = await request.json()
            if "messages" in asked:
                return JSONResponse({"ids": await in_thread(self._read, asked)})
            return JSONResponse({"count": await in_thread(self._prompts.count, str(asked["content"]))})
        except MedserveError as error:
            return _refused(error)
        except (ValueError, KeyError, TypeError, AttributeError):
            return _refused(InvalidRequest("the body is no JSON with a text in `content`, or with messages"))

    async def complete(self, request: Request) -> Response:
        """An answer, as a stream of events or whole."""
        try:
            body = await request.json()
            wish = await in_thread(self._wish, body)
        except MedserveError as error:
            return _refused(error)
        except (ValueError, KeyError, TypeError, AttributeError):
            return _refused(InvalidRequest("the body is no chat completion"))
        if body.get("stream"):
            return StreamingResponse(self._stream(wish), media_type="text/event-stream")
        async with _until_hung_up(request) as gone:
            try:
                return JSONResponse(await self._whole(wish, gone))
            except MedserveError as error:
                return _refused(error)

    async def score(self, request: Request) -> Response:
        """log P of each label as the whole answer, its end of turn included."""
        try:
            body = await request.json()
            prompt, paths, banned = await in_thread(self._scoring, body)
        except MedserveError as error:
            return _refused(error)
        except (ValueError, KeyError, TypeError, AttributeError):
            return _refused(InvalidRequest("the body holds no messages and labels"))
        async with _until_hung_up(request) as gone:
            try:
                asked = partial(self._decoder.score, prompt, paths, banned=banned)
                async with aclosing(_events(asked, gone)) as events:
                    async for event in events:
                        if isinstance(event, Scores):
                            logprobs = [max(value, LEAST_LOGPROB) for value in event.logprobs]
                            return JSONResponse({"logprobs": logprobs, **_spent(event.spent)})
            except MedserveError as error:
                return _refused(error)
        return Response(status_code=499)  # nobody reads it

    def _read(self, body: Mapping[str, Any]) -> list[int | None]:
        """The ids of a prompt, each picture with its two marks as one None."""
        prompt = self._prompts.prompt(*_begun(body))
        ids: list[int | None] = list(prompt.ids)
        for picture in reversed(prompt.pictures):
            ids[picture.start - 1 : picture.start + prompt.image_tokens + 1] = [None]
        return ids

    # --- what is asked ---------------------------------------------------------------------------------------------

    def _wish(self, body: Mapping[str, Any]) -> Wish:
        messages, beginning = _begun(body)
        top = body.get("top_logprobs", 0) if body.get("logprobs") else None
        return Wish(
            self._prompts.prompt(messages, beginning),
            int(body["max_tokens"]),
            Sampling(**{name: body[name] for name in SAMPLED if name in body}),
            tuple(body.get("stop", ())),
            self._grammar(body),
            self._banned(body),
            top,
        )

    def _grammar(self, body: Mapping[str, Any]) -> str | None:
        wanted, choices = body.get("response_format"), (body.get("structured_outputs") or {}).get("choice")
        if wanted is not None and wanted["type"] == "json_schema":
            return self._decoder.grammars.schema(wanted["json_schema"]["schema"])
        return self._decoder.grammars.choices(choices) if choices else None

    def _scoring(self, body: Mapping[str, Any]) -> tuple[Prompt, list[tuple[int, ...]], tuple[int, ...]]:
        messages, beginning = _begun(body)
        prompt = self._prompts.prompt(messages, stem(beginning))
        return prompt, [self._prompts.label(beginning, label) for label in body["labels"]], self._banned(body)

    def _banned(self, body: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids of the tokens that must not be said; those that the vocabulary lacks never are."""
        known = map(self._prompts.known, body.get("banned_tokens", ()))
        return tuple(token for token in known if token is not None)

    # --- what is said ----------------------------------------------------------------------------------------------

    async def _stream(self, wish: Wish) -> AsyncIterator[bytes]:
        """The events of OpenAI's stream. Starlette closes it when the caller hangs up, which cancels the answer."""
        try:
            async with aclosing(_events(lambda emit: self._decoder.submit(wish, emit))) as events:
                async for event in events:
                    yield _sse(self._chunk(event))
        except MedserveError as error:
            yield _sse({"error": _told(error)})
        yield b"data: [DONE]\n\n"

    async def _whole(self, wish: Wish, gone: asyncio.Event) -> dict[str, Any]:
        text, last, logprobs = "", {}, []
        async with aclosing(_events(lambda emit: self._decoder.submit(wish, emit), gone)) as events:
            async for event in events:
                last = self._chunk(event)
                said = last["choices"][0]
                text += said["delta"]["content"]
                logprobs += said.get("logprobs", {}).get("content", [])
        choice = {**(last.get("choices") or [{}])[0], "message": {"role": "assistant", "content": text}}
        choice.pop("delta", None)
        if wish.top_logprobs is not None:
            choice["logprobs"] = {"content": logprobs}
        return {**last, "object": "chat.completion", "choices": [choice]}

    def _chunk(self, event: Event) -> dict[str, Any]:
        assert isinstance(event, Token | End)  # noqa: S101 - what an answer consists of
        choice: dict[str, Any] = {"index": 0, "delta": {"content": event.text}, "finish_reason": None}
        spent: dict[str, Any] = {}
        if isinstance(event, End):
            choice["finish_reason"], spent = event.finish, _spent(event.spent)
        elif event.logprob is not None:
            choice["logprobs"] = {"content": [_logprob(event)]}
        return {"object": "chat.completion.chunk", "model": self._name, "choices": [choice], **spent}


def _begun(body: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], Beginning]:
    """The turns, and what the answer is made to begin with: the last message where it is one to be continued."""
    messages = body["messages"]
    if not body.get("continue_final_message"):
        return messages, Beginning()
    return messages[:-1], Beginning(messages[-1]["content"], raw=bool(body.get("raw_prefix")))


async def _events(submit: Callable[[Emit], Ticket], gone: asyncio.Event | None = None) -> AsyncGenerator[Event, None]:
    """What the decoder says of one request, up to its end; leaving it, or `gone`, cancels the request.

    Raises MedserveError when the request fails.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def emit(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(queue.put_nowait, event)

    ticket = submit(emit)
    leaving = asyncio.create_task(_cancelled(ticket, gone)) if gone is not None else None
    try:
        while True:
            event = await queue.get()
            if isinstance(event, Failure):
                raise event.error
            yield event
            if isinstance(event, End | Scores):
                return
    finally:
        ticket.cancel()
        if leaving is not None:
            leaving.cancel()


async def _cancelled(ticket: Ticket, gone: asyncio.Event) -> None:
    await gone.wait()
    ticket.cancel()


@asynccontextmanager
async def _until_hung_up(request: Request) -> AsyncIterator[asyncio.Event]:
    """Is set when the caller of a request that is not streamed hangs up."""
    gone = asyncio.Event()

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    listener = asyncio.create_task(listen())
    try:
        yield gone
    finally:
        listener.cancel()


def _sse(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _spent(spent: Spent) -> dict[str, Any]:
    details = {"cached_tokens": spent.cached, "image_tokens": spent.image, "encodes": spent.encodes}
    return {
        "usage": {
            "prompt_tokens": spent.prompt,
            "completion_tokens": spent.completion,
            "total_tokens": spent.prompt + spent.completion,
            "prompt_tokens_details": details,
        },
        "timings": {
            "prompt_ms": spent.prompt_seconds * 1000,
            "predicted_ms": spent.completion_seconds * 1000,
            "cache_n": spent.cached,
        },
    }


def _logprob(token: Token) -> dict[str, Any]:
    top = [{"token": other.piece, "logprob": other.logprob} for other in token.top]
    return {"token": token.piece, "logprob": token.logprob, "top_logprobs": top}


def _told(error: MedserveError) -> dict[str, Any]:
    return {"code": _status(error), "type": error.code, "message": error.message, "param": error.param}


def _refused(error: MedserveError) -> Response:
    return JSONResponse({"error": _told(error)}, _status(error))


def _status(error: MedserveError) -> int:
    return 400 if isinstance(error, InvalidRequest) else 503 if isinstance(error, ModelError) else 500
