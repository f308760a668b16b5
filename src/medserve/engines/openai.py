"""One client for every server that streams answers over HTTP: nothing asked is dropped in silence, no error is untyped.

It speaks OpenAI's chat completions, which llama-server, vLLM, Ollama and many others understand. An engine with a
better way to ask the same server, as llama.cpp has, derives from `OpenAIEngine` and replaces the dialect: `endpoint`,
`_body` and `_piece`.
"""

import asyncio
import json
from base64 import b64decode
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from hashlib import sha256
from math import isnan
from time import time
from typing import Any

import httpx

from medserve import thinking, tracing
from medserve.engines import SERVER, Capabilities, refuse_unused
from medserve.errors import (
    ContextOverflow,
    EngineError,
    EngineTimeout,
    ImageTooLarge,
    InvalidRequest,
    MedserveError,
    ModelBusy,
    ModelLoading,
    NotSupported,
    ServerLost,
)
from medserve.generation import (
    Chunk,
    Finish,
    GenerationRequest,
    LabelScores,
    Message,
    Part,
    Result,
    Sampling,
    Timings,
    TokenLogprob,
    Usage,
)
from medserve.images import Image
from medserve.places import Pictures, Places
from medserve.settings import ModelSpec, Settings
from medserve.text import CLOSING, ThinkingSplitter, neutralise
from medserve.threads import in_thread
from medserve.unix_http import MOST_WHOLE_BYTES, Answer, Asking

CONNECT_SECONDS = 10.0
MEDGEMMA_SIDE = 896
"""Pixels a side of the pictures that MedGemma takes; servers do not say what their model takes."""
LONGEST_WAIT = 3600.0
"""Seconds; a server that says a longer time to wait is not believed."""
KEPT_COUNTS = 4096
MOST_LINE_BYTES = 2**24
"""More than any event that is wanted, one with all tokens of a prompt included."""
MOST_TOKENS = 2**40
"""A server that counts more does not count."""
END_SECONDS = 0.1
"""How long it is waited for the end of a stream that has said its last: it leaves a connection to be used again."""


async def start(model: ModelSpec, settings: Settings) -> "OpenAIEngine":
    """A server that somebody else runs, at the model's `url`; raises ModelFailed when it cannot be used, and why."""
    from medserve.engines._attached import attach  # it derives from the engine below

    refuse_unused(model, *SERVER)
    return await attach(model, settings)


@dataclass(frozen=True)
class Piece:
    """What one event of a stream says, whatever the dialect; numbers are None where it says nothing of them."""

    text: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    image: int | None = None
    encodes: int = 0
    timings: Timings | None = None

    def plus(self, later: "Piece") -> "Piece":
        """The counts known after a later event; text and log-probabilities are not kept."""
        return Piece(
            finish=later.finish or self.finish,
            prompt=_known(later.prompt, self.prompt),
            completion=_known(later.completion, self.completion),
            cached=_known(later.cached, self.cached),
            image=_known(later.image, self.image),
            encodes=self.encodes + later.encodes,
            timings=later.timings or self.timings,
        )


def _known(later: int | None, earlier: int | None) -> int | None:
    return earlier if later is None else later


class _Unopened:
    """Finds a closing mark of thinking that nothing opened: all that was said before it was thinking."""

    def __init__(self) -> None:
        self._held = ""

    def seen(self, text: str, thinking: str, *, last: bool = False) -> Chunk:
        """The chunk that more text and thinking make; what may be the beginning of a mark is kept for the next."""
        before, mark, after = (self._held + text).rpartition(CLOSING)
        longest = 0 if last else min(len(CLOSING) - 1, len(after))
        cut = next((size for size in range(longest, 0, -1) if after.endswith(CLOSING[:size])), 0)
        self._held = after[len(after) - cut :]
        return Chunk(
            after[: len(after) - cut],
            before.replace(CLOSING, "") + thinking if mark else thinking,
            rethought=bool(mark),
        )


class OpenAIEngine:
    """A model behind an HTTP server, asked in OpenAI's chat dialect."""

    endpoint = "/v1/chat/completions"

    def __init__(
        self,
        model: ModelSpec,
        client: Asking,
        capabilities: Capabilities,
        *,
        seconds: float,
        served: str = "",
    ) -> None:
        self.name = model.name
        self.capabilities = capabilities
        self.vision_encodes = 0
        self._client = client
        self._served = served
        self._seconds = seconds
        self.places = Places(model.slots, model.waiting)
        self._pictures = Pictures()
        self._text_counts: OrderedDict[bytes, int] = OrderedDict()

    @property
    def alive(self) -> bool:
        return not self._client.is_closed

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Answer piece by piece; see `Engine.stream`."""
        self.check(request)
        deadline = self._deadline()
        stages = self._thought_first if request.thinking else self._chunks
        async with self._place(request, deadline), aclosing(stages(request, deadline)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """Not offered by this dialect: it shows no log-probability of what was not sampled."""
        raise NotSupported(
            f"{self.name} cannot score labels; use an engine that holds the weights itself, such as llama-cpp",
            param="labels",
        )

    async def close(self) -> None:
        """Close all connections; the server belongs to somebody else and goes on."""
        await self._client.aclose()

    def check(self, request: GenerationRequest) -> None:
        """Refuse what the model cannot honour."""
        able = self.capabilities
        if request.images and able.vision is None:
            raise self._blind()
        wanted = {
            "schema": request.schema is not None and not able.schema,
            "choices": bool(request.choices) and not able.choices,
            "top_logprobs": request.top_logprobs is not None and not able.logprobs,
            "prefix": bool(request.prefix) and not able.prefix,
            "thinking": request.thinking is not None and not able.thinking,
        }
        for parameter, refused in wanted.items():
            if refused:
                raise NotSupported(f"{self.name} does not support {parameter}", param=parameter)

    def _blind(self) -> MedserveError:
        return NotSupported(f"{self.name} takes no images", param="images")

    # --- one answer ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _place(self, request: GenerationRequest, deadline: float) -> AsyncIterator[None]:
        kin = await self._kin(request)
        async with AsyncExitStack() as stack:
            async with _until(deadline):
                await stack.enter_async_context(self.places.one(kin))
            yield

    async def _kin(self, request: GenerationRequest) -> str | None:
        """What a request has in common with those that it takes turns with; see `Places`."""
        return await in_thread(lambda: request.images[0].sha256) if request.images else None

    async def _thought_first(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Chunk, None]:
        """The thought, which is closed when its budget is spent, and then the answer to it; see `thinking`."""
        thought = Result()
        async with aclosing(self._chunks(thinking.first_stage(request), deadline)) as chunks:
            async for chunk in chunks:
                thought = thought.plus(chunk)
                if chunk.thinking:
                    yield Chunk(thinking=chunk.thinking)
        async with aclosing(self._chunks(thinking.second_stage(request, thought), deadline)) as chunks:
            async for chunk in chunks:
                yield thinking.together(thought, chunk) if chunk.finish else chunk

    async def _chunks(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Chunk, None]:
        """The answer without its thinking, and at last what it took."""
        splitter, unopened = ThinkingSplitter(), _Unopened()
        splitter.feed(thinking.opened(request))
        known, held = Piece(), tuple[TokenLogprob, ...]()
        begun = request.prefix
        async with aclosing(self._pieces(request, deadline)) as pieces:
            async for piece in pieces:
                # The forced beginning is said with the first word, when it is certain that an answer will follow.
                spoken, begun = (begun + piece.text, "") if piece.text or piece.finish else ("", begun)
                thinks = splitter.truncated
                words, thought = splitter.feed(spoken)
                chunk = unopened.seen(words, piece.thinking + thought)
                # Tokens wait for the words that they make, and are not told of where those are a thought or its marks.
                held += tuple(replace(entry, top=entry.top[: request.top_logprobs]) for entry in piece.logprobs)
                if chunk.text:
                    chunk = replace(chunk, logprobs=held)
                if chunk.text or chunk.thinking or chunk.rethought or thinks or splitter.truncated:
                    held = ()
                if chunk != Chunk():
                    yield chunk
                known = known.plus(piece)
        if known.finish is None:
            raise EngineError(f"the answer of {self.name} broke off without saying why; ask again")
        usage = await self._usage(request, known)
        last = unopened.seen(*splitter.finish(), last=True)
        yield replace(last, logprobs=held, finish=known.finish, usage=usage, timings=known.timings or Timings())

    async def _pieces(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        body = await self._body(request)
        async with self._translated(), AsyncExitStack() as stack:
            async with _until(deadline):
                call = self._client.stream("POST", self.endpoint, json=body, headers=tracing.headers())
                response = await stack.enter_async_context(call)
                if response.status_code != httpx.codes.OK:
                    raise timed(self._refusal(response.status_code, await response.aread()), response.headers)
            async for data in _events(response, deadline):
                self._raise_error(data)
                yield self._piece(data)

    def _raise_error(self, data: Mapping[str, Any]) -> None:
        if error := data.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            raise self._refusal(code if isinstance(code, int) else 500, json.dumps(data).encode())

    def _refusal(self, status: int, content: bytes) -> MedserveError:
        """The typed error for an error answer."""
        return refusal(status, content)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """The one place where the HTTP client's errors become ours."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise EngineTimeout(f"the server behind {self.name} did not answer in time") from error
        except httpx.TransportError as error:
            raise await self._lost() from error
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise EngineError(
                f"the server behind {self.name} gave an answer that cannot be understood; check what listens there"
            ) from error

    async def _lost(self) -> MedserveError:
        return EngineError(f"the server behind {self.name} cannot be reached or hung up; check that it runs")

    async def _post(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        async with self._translated(), _until(deadline):
            response = await self._client.post(path, json=body)
        if response.status_code != httpx.codes.OK:
            raise timed(self._refusal(response.status_code, response.content), response.headers)
        async with self._translated():
            answer: dict[str, Any] = response.json()
        return answer

    # --- the dialect -----------------------------------------------------------------------------------------------

    async def _body(self, request: GenerationRequest) -> dict[str, Any]:
        messages = [await self._message(message) for message in request.messages]
        body = {
            "model": self._served,
            "messages": messages,
            "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **_sampling(request.sampling),
        }
        if begun := thinking.beginning(request):
            said = {"role": "assistant", "content": begun}
            body |= {"messages": [*messages, said], "add_generation_prompt": False, "continue_final_message": True}
        if request.stop:
            body["stop"] = list(request.stop)
        if request.schema is not None:
            wanted = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        if request.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return body

    async def _message(self, message: Message) -> dict[str, Any]:
        if not message.images:
            text = "".join(part for part in message.parts if isinstance(part, str))
            return {"role": message.role, "content": neutralise(text)}
        return {"role": message.role, "content": [await self._part(part) for part in _joined(message.parts)]}

    async def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": neutralise(part)}
        assert self.capabilities.vision is not None  # noqa: S101 - `check` refused images without it
        data = await self._pictures.encoded(part, self.capabilities.vision)
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    async def shown(self, image: Image) -> bytes:
        """The picture as it is handed to the model; see `ShowsPicture`."""
        if self.capabilities.vision is None:
            raise self._blind()
        return b64decode(await self._pictures.encoded(image, self.capabilities.vision))

    def _piece(self, data: Mapping[str, Any]) -> Piece:
        usage, timings = data.get("usage") or {}, data.get("timings") or {}
        choice = (data.get("choices") or [{}])[0]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
        delta = choice.get("delta") or {}
        return Piece(
            text=_text(delta.get("content") or ""),
            # Two names that servers have for what they took for thinking themselves.
            thinking=_text(delta.get("reasoning_content") or delta.get("reasoning") or ""),
            logprobs=_logprobs((choice.get("logprobs") or {}).get("content") or ()),
            finish=_finish(choice.get("finish_reason")),
            prompt=_count(usage.get("prompt_tokens")),
            completion=_count(usage.get("completion_tokens")),
            cached=_count(cached),
            timings=seconds(timings) if timings else None,
        )

    async def _usage(self, request: GenerationRequest, known: Piece) -> Usage:
        """What the answer took. Image tokens are measured: what the prompt takes beyond its texts."""
        prompt, cached = known.prompt or 0, known.cached or 0
        image = prompt - await self._text_tokens(request) if request.images else 0
        encodes = len(request.images) if image > 0 and cached < image else 0
        self.vision_encodes += encodes
        return Usage(prompt, known.completion or 0, cached, max(image, 0), encodes)

    async def _text_tokens(self, request: GenerationRequest) -> int:
        """The prompt's tokens without its images, as the server counts the same conversation without them."""
        messages = tuple(_without_images(message) for message in request.messages)
        body = {**await self._body(replace(request, messages=messages, max_tokens=1)), "stream": False}
        body.pop("stream_options", None)

        async def count() -> int:
            answer = await self._post(self.endpoint, body, self._deadline())
            async with self._translated():
                return int(answer["usage"]["prompt_tokens"])

        return await self._counted(json.dumps(body["messages"]), count)

    async def _counted(self, text: str, count: Callable[[], Awaitable[int]]) -> int:
        """A count that is made once for each text, and kept by the text's hash: no words of a prompt lie around."""
        key = sha256(text.encode()).digest()
        if key in self._text_counts:
            return self._text_counts[key]
        self._text_counts[key] = number = await count()
        while len(self._text_counts) > KEPT_COUNTS:
            self._text_counts.popitem(last=False)
        return number

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._seconds


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts with neighbouring texts made one, lest two halves of a control token pass and meet in the prompt."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _without_images(message: Message) -> Message:
    """The words alone; a picture without words leaves a full stop, because a turn must not be empty."""
    return replace(message, parts=tuple(part for part in message.parts if isinstance(part, str)) or (".",))


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Only what differs from OpenAI's defaults beyond its own parameters: not every server knows the others."""
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    extras = {
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
    }
    return body | {name: value for name, (value, neutral) in extras.items() if value != neutral}


def _logprobs(content: Sequence[Mapping[str, Any]]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(*_likely(entry), tuple(_likely(other) for other in entry.get("top_logprobs") or ()))
        for entry in content
    )


def _likely(entry: Mapping[str, Any]) -> tuple[str, float]:
    """A token and its log-probability; raises ValueError or TypeError where the server says something else."""
    logprob = entry["logprob"]
    if not isinstance(logprob, (int, float)) or isnan(logprob):
        raise ValueError("a log-probability is no number")
    return _text(entry["token"]), logprob


def _text(said: Any) -> str:
    """What a server says as text; raises ValueError for what is none, half a character included."""
    if not isinstance(said, str):
        raise ValueError("a text is none")
    said.encode()
    return said


def _count(said: Any) -> int | None:
    """A number of tokens, None where the server tells none; raises ValueError for what is no number."""
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int) or said > MOST_TOKENS:
        raise ValueError("a number of tokens is none")
    return said if said >= 0 else None


def _finish(reason: str | None) -> Finish | None:
    return None if reason is None else Finish.LENGTH if reason == "length" else Finish.STOP


def seconds(timings: Mapping[str, Any]) -> Timings:
    """llama.cpp's own measurement, which it gives in milliseconds."""
    return Timings(timings.get("prompt_ms", 0.0) / 1000, timings.get("predicted_ms", 0.0) / 1000)


def refusal(status: int, content: bytes) -> MedserveError:
    """The typed error for a server's error answer. Its own words are left out: they may quote the prompt."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        error = None
    if isinstance(error, dict) and (overflow := _overflow(error)):
        return overflow
    kinds: dict[int, MedserveError] = {
        400: InvalidRequest("the model's server refused the request as invalid"),
        401: EngineError(
            "the model's server wants a key; name it by `key_variable` or `key_file`, and look that it is right"
        ),
        403: EngineError("the model's server refuses the key; it may not use this model"),
        404: EngineError("the model's server does not know the model or the route"),
        413: ImageTooLarge(
            "the pictures of this request are too much for the model's server; send fewer", param="images"
        ),
        422: InvalidRequest("the model's server refused the request as invalid"),
        429: ModelBusy("the model's server has too many requests; try again in a moment"),
        502: ServerLost("what stands before the model's server cannot reach it; check that it runs"),
        503: ModelLoading("the model's server is still loading its model"),
        504: ServerLost("what stands before the model's server waited for it in vain; check that it runs"),
    }
    if 300 <= status < 400:
        return EngineError("the model's server sends elsewhere, which is not followed; name its own address as `url`")
    return kinds.get(status, EngineError(f"the model's server failed with status {status}"))


def timed(error: MedserveError, headers: Mapping[str, str]) -> MedserveError:
    """The error with the time after which asking again can help, where the server said one (RFC 9110, 10.2.3)."""
    said = headers.get("retry-after", "")
    if isinstance(error, (ModelBusy, ModelLoading, ServerLost)) and said:
        with suppress(ValueError, OverflowError):
            seconds = float(said) if said.isdecimal() else parsedate_to_datetime(said).timestamp() - time()
            error.retry_after = min(max(seconds, 0.0), LONGEST_WAIT)
    return error


def _overflow(error: Mapping[str, Any]) -> ContextOverflow | None:
    message = str(error.get("message", ""))
    takes, holds = error.get("n_prompt_tokens"), error.get("n_ctx")
    refused = error.get("type") == "exceed_context_size_error"
    if refused and isinstance(takes, int) and isinstance(holds, int):
        return ContextOverflow(
            f"the prompt takes {takes} tokens and the model's context holds {holds}; send fewer or shorter parts, or "
            "raise the model's `context`",
            param="messages",
        )
    if refused or "maximum context length" in message or "Context size has been exceeded" in message:
        return ContextOverflow(
            "prompt and answer exceed the model's context; send fewer or shorter parts, or raise the model's `context`",
            param="messages",
        )
    return None


async def _events(response: Answer, deadline: float) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a server-sent stream, up to its end mark."""
    lines = _lines(response, deadline)
    async for line in lines:
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            break
        if data:
            yield json.loads(data)
    with suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            async for _ in lines:
                pass


async def _lines(response: Answer, deadline: float) -> AsyncIterator[bytes]:
    """Lines that end in a line feed and nothing else: httpx's own would also split at U+2028 inside an answer."""
    rest, read = bytearray(), 0
    pieces = response.aiter_bytes()
    while True:
        async with _until(deadline):
            piece = await anext(pieces, None)
        if piece is None:
            return
        *lines, last = piece.split(b"\n")
        for line in lines:
            yield bytes(rest + line)
            rest.clear()
        rest += last
        read += len(piece)
        if len(rest) > MOST_LINE_BYTES or read > MOST_WHOLE_BYTES:
            raise ValueError("the stream has no end")


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    """Raise EngineTimeout when the deadline passes inside."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise EngineTimeout("the answer took longer than limits.answer_seconds; ask for less or raise it") from None
