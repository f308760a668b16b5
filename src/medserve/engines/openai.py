"""One client for every server that streams answers over HTTP: nothing asked is dropped in silence, no error is untyped.

It speaks OpenAI's chat completions, which llama-server, vLLM, Ollama and many others understand. An engine with a
better way to ask the same server, as llama.cpp has, derives from `OpenAIEngine` and replaces the dialect: `endpoint`,
`_body` and `_piece`.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import httpx

from medserve import tracing
from medserve.engines import Capabilities
from medserve.errors import (
    ContextOverflow,
    EngineError,
    EngineTimeout,
    ImageTooLarge,
    InvalidRequest,
    MedserveError,
    ModelBusy,
    ModelFailed,
    ModelLoading,
    NotSupported,
)
from medserve.generation import (
    Chunk,
    Finish,
    GenerationRequest,
    LabelScores,
    Message,
    Part,
    Sampling,
    Timings,
    TokenLogprob,
    Usage,
)
from medserve.imaging.preprocess import VisionInput
from medserve.places import Pictures, Places
from medserve.settings import ModelSpec, Settings
from medserve.text import CLOSING, ThinkingSplitter, neutralise
from medserve.threads import in_thread
from medserve.unix_http import Answer, Asking

CONNECT_SECONDS = 10.0
MEDGEMMA_SIDE = 896
KEPT_COUNTS = 4096
END_SECONDS = 0.1
"""How long it is waited for the end of a stream that has said its last: it leaves a connection to be used again."""


async def start(model: ModelSpec, settings: Settings) -> "OpenAIEngine":
    """A server that somebody else runs, at the model's `url`; raises ModelFailed when it does not answer."""
    if model.url is None:
        raise ModelFailed(f"{model.name} needs a url, such as http://127.0.0.1:8000", param="url")
    client = httpx.AsyncClient(base_url=model.url, timeout=patience())
    try:
        served = await _served(client, model)
    except BaseException:
        await client.aclose()
        raise
    capabilities = Capabilities(
        context=served.get("max_model_len") or served.get("meta", {}).get("n_ctx_train") or model.context,
        vision=VisionInput(MEDGEMMA_SIDE, model.resample),
        schema=True,
        logprobs=True,
        facts=(("engine", "openai"), ("weights", served["id"])),
    )
    return OpenAIEngine(model, client, capabilities, seconds=settings.limits.answer_seconds, served=served["id"])


async def _served(client: httpx.AsyncClient, model: ModelSpec) -> dict[str, Any]:
    """What the server says of the model: the one of our name, or the only one it has."""
    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        listed: list[dict[str, Any]] = response.json()["data"]
    except (httpx.HTTPError, KeyError, ValueError):
        raise ModelFailed(f"no OpenAI-compatible server answers at the url of {model.name}; is it running?") from None
    named = [entry for entry in listed if entry["id"] == model.name] or (listed if len(listed) == 1 else [])
    if not named:
        known = ", ".join(entry["id"] for entry in listed) or "none"
        raise ModelFailed(f"the server at the url of {model.name} has no model of that name; it has: {known}")
    return named[0]


def patience() -> httpx.Timeout:
    """Connecting is quick or hopeless; reading may take as long as the answer's own limit allows."""
    return httpx.Timeout(None, connect=CONNECT_SECONDS)


@dataclass(frozen=True)
class Piece:
    """What one event of a stream says, whatever the dialect; numbers are None where it says nothing of them."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    encodes: int = 0
    timings: Timings | None = None

    def plus(self, later: "Piece") -> "Piece":
        """The counts known after a later event; text and log-probabilities are not kept."""
        return Piece(
            finish=later.finish or self.finish,
            prompt=_known(later.prompt, self.prompt),
            completion=_known(later.completion, self.completion),
            cached=_known(later.cached, self.cached),
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
        async with self._place(request, deadline), aclosing(self._pieces(request, deadline)) as pieces:
            async for chunk in self._chunks(request, pieces):
                yield chunk

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """Not offered by this dialect: it shows no log-probability of what was not sampled."""
        raise NotSupported(f"{self.name} cannot score labels; use the engine llama-cpp", param="labels")

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
        }
        for parameter, refused in wanted.items():
            if refused:
                raise NotSupported(f"{self.name} does not support {parameter}", param=parameter)

    def _blind(self) -> MedserveError:
        return NotSupported(f"{self.name} takes no images", param="images")

    # --- one answer ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _place(self, request: GenerationRequest, deadline: float) -> AsyncIterator[None]:
        kin = await in_thread(lambda: request.images[0].sha256) if request.images else None
        async with AsyncExitStack() as stack:
            async with _until(deadline):
                await stack.enter_async_context(self.places.one(kin))
            yield

    async def _chunks(self, request: GenerationRequest, pieces: AsyncIterator[Piece]) -> AsyncIterator[Chunk]:
        """The answer without its thinking, and at last what it took."""
        splitter, unopened = ThinkingSplitter(), _Unopened()
        known = Piece()
        begun = request.prefix
        async for piece in pieces:
            # The forced beginning is said with the first word, when it is certain that an answer will follow.
            spoken, begun = (begun + piece.text, "") if piece.text or piece.finish else ("", begun)
            chunk = unopened.seen(*splitter.feed(spoken))
            if chunk != Chunk() or piece.logprobs:
                logprobs = tuple(replace(entry, top=entry.top[: request.top_logprobs]) for entry in piece.logprobs)
                yield replace(chunk, logprobs=logprobs)
            known = known.plus(piece)
        if known.finish is None:
            raise EngineError(f"the answer of {self.name} broke off without saying why; ask again")
        usage = await self._usage(request, known)
        last = unopened.seen(*splitter.finish(), last=True)
        yield replace(last, finish=known.finish, usage=usage, timings=known.timings or Timings())

    async def _pieces(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        body = await self._body(request)
        async with self._translated(), AsyncExitStack() as stack:
            async with _until(deadline):
                call = self._client.stream("POST", self.endpoint, json=body, headers=tracing.headers())
                response = await stack.enter_async_context(call)
                if response.status_code != httpx.codes.OK:
                    raise refusal(response.status_code, await response.aread())
            async for data in _events(response, deadline):
                self._raise_error(data)
                yield self._piece(data)

    def _raise_error(self, data: Mapping[str, Any]) -> None:
        if error := data.get("error"):
            raise refusal(int(error.get("code") or 500), json.dumps(data).encode())

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """The one place where the HTTP client's errors become ours."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise EngineTimeout(f"the server behind {self.name} did not answer in time") from error
        except httpx.TransportError as error:
            raise await self._lost() from error

    async def _lost(self) -> MedserveError:
        return EngineError(f"the server behind {self.name} cannot be reached or hung up; check that it runs")

    async def _post(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        async with self._translated(), _until(deadline):
            response = await self._client.post(path, json=body)
        if response.status_code != httpx.codes.OK:
            raise refusal(response.status_code, response.content)
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
        if request.prefix:
            prefix = {"role": "assistant", "content": neutralise(request.prefix)}
            body |= {"messages": [*messages, prefix], "add_generation_prompt": False, "continue_final_message": True}
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

    def _piece(self, data: Mapping[str, Any]) -> Piece:
        usage, timings = data.get("usage") or {}, data.get("timings") or {}
        choice = (data.get("choices") or [{}])[0]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
        return Piece(
            text=(choice.get("delta") or {}).get("content") or "",
            logprobs=_logprobs((choice.get("logprobs") or {}).get("content") or ()),
            finish=_finish(choice.get("finish_reason")),
            prompt=usage.get("prompt_tokens"),
            completion=usage.get("completion_tokens"),
            cached=cached,
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
        body.pop("stream_options")
        answer = self._post(self.endpoint, body, self._deadline())
        return await self._counted(json.dumps(body["messages"]), _prompt_tokens(answer))

    async def _counted(self, text: str, count: Coroutine[Any, Any, int]) -> int:
        """A count that is made once for each text, and kept by the text's hash: no words of a prompt lie around."""
        key = sha256(text.encode()).digest()
        if key in self._text_counts:
            count.close()
            return self._text_counts[key]
        self._text_counts[key] = number = await count
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


async def _prompt_tokens(answer: Coroutine[Any, Any, dict[str, Any]]) -> int:
    return int((await answer)["usage"]["prompt_tokens"])


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
        TokenLogprob(
            entry["token"],
            entry["logprob"],
            tuple((other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ()),
        )
        for entry in content
    )


def _finish(reason: str | None) -> Finish | None:
    return None if reason is None else Finish.LENGTH if reason == "length" else Finish.STOP


def seconds(timings: Mapping[str, Any]) -> Timings:
    """llama.cpp's own measurement, which it gives in milliseconds."""
    return Timings(timings.get("prompt_ms", 0.0) / 1000, timings.get("predicted_ms", 0.0) / 1000)


def refusal(status: int, content: bytes) -> MedserveError:
    """The typed error for a server's error answer. Its own words are left out: they may quote the prompt."""
    try:
        error = json.loads(content).get("error") or {}
    except (ValueError, AttributeError):
        error = {}
    if overflow := _overflow(error):
        return overflow
    kinds: dict[int, MedserveError] = {
        400: InvalidRequest("the model's server refused the request as invalid"),
        401: EngineError("the model's server wants a key"),
        403: EngineError("the model's server wants another key"),
        404: EngineError("the model's server does not know the model or the route"),
        413: ImageTooLarge(
            "the pictures of this request are too much for the model's server; send fewer", param="images"
        ),
        422: InvalidRequest("the model's server refused the request as invalid"),
        429: ModelBusy("the model's server has too many requests; try again in a moment"),
        503: ModelLoading("the model's server is still loading its model"),
    }
    return kinds.get(status, EngineError(f"the model's server failed with status {status}"))


def _overflow(error: Mapping[str, Any]) -> ContextOverflow | None:
    message = str(error.get("message", ""))
    if error.get("type") == "exceed_context_size_error":
        return ContextOverflow(
            f"the prompt takes {error.get('n_prompt_tokens')} tokens and the model's context holds "
            f"{error.get('n_ctx')}; send fewer or shorter parts, or raise the model's `context`",
            param="messages",
        )
    if "maximum context length" in message or "Context size has been exceeded" in message:
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
    rest = b""
    pieces = response.aiter_bytes()
    while True:
        async with _until(deadline):
            piece = await anext(pieces, None)
        if piece is None:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    """Raise EngineTimeout when the deadline passes inside."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise EngineTimeout("the answer took longer than limits.answer_seconds; ask for less or raise it") from None
