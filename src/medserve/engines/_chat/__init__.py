"""One client for every server that streams answers over HTTP: nothing asked is dropped in silence, no error is untyped.

It speaks OpenAI's chat completions, which llama-server, vLLM, Ollama and many others understand. An engine with a
better way to ask the same server, as llama.cpp has, derives from `OpenAIEngine` and replaces the dialect: `endpoint`,
`_body` and `_piece`.
"""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from medserve import thinking, tracing
from medserve.engines import Capabilities
from medserve.engines._chat.counts import TextCounts
from medserve.engines._chat.piece import Piece, read
from medserve.engines._chat.refusals import refusal, timed
from medserve.engines._chat.speech import Speech
from medserve.engines._chat.sse import events, until
from medserve.errors import EngineError, EngineTimeout, MedserveError, NotSupported
from medserve.generation import Chunk, GenerationRequest, LabelScores, Message, Part, Result, Sampling, Usage
from medserve.images import Image
from medserve.places import Pictures, Places
from medserve.probing.wording import bound
from medserve.settings import ModelSpec
from medserve.text import neutralise
from medserve.threads import in_thread
from medserve.unix_http import Asking


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
        self._text_counts = TextCounts()

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
            async with until(deadline):
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
        speech = Speech(request)
        async with aclosing(self._pieces(request, deadline)) as pieces:
            async for piece in pieces:
                if (chunk := speech.chunk(piece)) != Chunk():
                    yield chunk
        if speech.known.finish is None:
            raise EngineError(f"the answer of {self.name} broke off without saying why; ask again")
        yield speech.last(await self._usage(request, speech.known))

    async def _pieces(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        body = await self._body(request)
        async with self._translated(), AsyncExitStack() as stack:
            async with until(deadline):
                call = self._client.stream("POST", self.endpoint, json=body, headers=tracing.headers())
                response = await stack.enter_async_context(call)
                if response.status_code != httpx.codes.OK:
                    raise timed(self._refusal(response.status_code, await response.aread()), response.headers)
            async for data in events(response, deadline):
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
        async with self._translated(), until(deadline):
            response = await self._client.post(path, json=body)
        if response.status_code != httpx.codes.OK:
            raise timed(self._refusal(response.status_code, response.content), response.headers)
        async with self._translated():
            answer: dict[str, Any] = response.json()
        return answer

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._seconds

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
            body |= bound(request.schema)
        if request.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return body

    async def _whole(self, request: GenerationRequest) -> dict[str, Any]:
        """The body of a question whose answer comes in one piece."""
        body = {**await self._body(request), "stream": False}
        body.pop("stream_options", None)
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
        return read(data)

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
        body = await self._whole(replace(request, messages=messages, max_tokens=1))

        async def count() -> int:
            answer = await self._post(self.endpoint, body, self._deadline())
            async with self._translated():
                return int(answer["usage"]["prompt_tokens"])

        return await self._text_counts.of(json.dumps(body["messages"]), count)


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
