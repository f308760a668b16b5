"""vLLM is asked in OpenAI's dialect with its own extensions, and every number comes from what it counted itself."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from medserve import thinking
from medserve.engines import Capabilities
from medserve.engines._chat import OpenAIEngine
from medserve.engines._chat.piece import Piece
from medserve.engines._labels import refuse_senseless, refuse_thinking, tokens_after
from medserve.engines.vllm.labels import Next, Tokens, scored
from medserve.errors import EngineError, InvalidRequest, MedserveError, NotSupported
from medserve.generation import GREEDY, JSON_LAYOUT, GenerationRequest, LabelScores, Message, Sampling, Timings, Usage
from medserve.images import Image
from medserve.settings import ModelSpec
from medserve.text import CLOSING, OPENING, neutralise
from medserve.unix_http import Asking

END_OF_TURN = "<end_of_turn>"
SOFT_TOKEN = "<image_soft_token>"
AROUND_IMAGE = ("<start_of_image>", "<end_of_image>")
NEVER = -100.0
"""The lowest bias that vLLM takes: e^-100 of what the token's probability was."""
SCORED_AT_ONCE = 100
"""Tokens whose log-probabilities are asked for in one request; vLLM gives at most 128."""


class Vllm(OpenAIEngine):
    """A model on a vLLM, whoever runs it. `refusal` is why it is shown no pictures although it takes them, or ""."""

    _ids_of: Mapping[str, int] = {}

    def __init__(
        self,
        model: ModelSpec,
        client: Asking,
        capabilities: Capabilities,
        refusal: str,
        *,
        seconds: float,
        served: str,
    ) -> None:
        super().__init__(model, client, capabilities, seconds=seconds, served=served)
        self._unseeing = refusal

    async def introduce(self) -> None:
        """Learn the ids of control tokens; a model whose vocabulary has no marks of thinking cannot be told to think.

        Raises EngineError where the vocabulary is not Gemma's.
        """
        marks = (END_OF_TURN, SOFT_TOKEN, *AROUND_IMAGE, OPENING, CLOSING)
        found = {mark: await self._tokens(mark) for mark in marks}
        self._ids_of = {mark: ids[0] for mark, ids in found.items() if len(ids) == 1}
        if END_OF_TURN not in self._ids_of:
            raise EngineError(f"the vocabulary of {self.name} lacks {END_OF_TURN}; its weights are not Gemma's")
        thinks = OPENING in self._ids_of and CLOSING in self._ids_of
        self.capabilities = replace(self.capabilities, thinking=thinks)

    async def look(self, drawing: Image) -> None:
        """Learn how many tokens a picture takes; a model that takes none reads words alone."""
        request = GenerationRequest((Message("user", (drawing, "Describe the image.")),), max_tokens=1)
        try:
            answer = await self._post(self.endpoint, await self._whole(request), self._deadline())
        except InvalidRequest:
            self.capabilities = replace(self.capabilities, vision=None)
            return
        async with self._translated():
            tokens = (await self._usage(request, self._piece(answer))).image
        self.capabilities = replace(self.capabilities, image_tokens=tokens)

    def _blind(self) -> MedserveError:
        return NotSupported(f"{self.name} takes no images: {self._unseeing or 'it has no vision part'}", param="images")

    async def _kin(self, _request: GenerationRequest) -> str | None:
        """Nobody takes turns: vLLM answers in batches."""
        return None

    # --- the dialect -----------------------------------------------------------------------------------------------

    async def _body(self, request: GenerationRequest) -> dict[str, Any]:
        if request.schema is not None:
            request = replace(request, schema={**request.schema, "x-guidance": JSON_LAYOUT})
        body = {**await super()._body(request), **_sampling(request.sampling), "return_token_ids": True}
        if request.choices:
            body["structured_outputs"] = {"choice": list(request.choices)}
        if banned := thinking.banned(request):
            body["logit_bias"] = {str(self._ids_of[mark]): NEVER for mark in banned}
        return body

    async def _message(self, message: Message) -> dict[str, Any]:
        """Gemma's template trims each part by itself; so do we, before neighbouring texts are joined."""
        if message.role == "system":
            return await super()._message(message)
        parts = tuple(part.strip() if isinstance(part, str) else part for part in message.parts)
        return await super()._message(replace(message, parts=parts))

    async def _pieces(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        ends: Sequence[int] = ()
        try:
            async with aclosing(super()._pieces(request, deadline)) as pieces:
                async for piece in pieces:
                    ends = piece.ends if isinstance(piece, _Read) else ends
                    yield piece if piece.cached is None else replace(piece, encodes=_beyond(ends, piece.cached))
        except InvalidRequest as error:
            if request.schema is None or type(error) is not InvalidRequest:
                raise
            raise InvalidRequest(
                "the schema uses a keyword, type or reference that vLLM cannot enforce; use a simpler one",
                param="schema",
            ) from None

    def _piece(self, data: Mapping[str, Any]) -> Piece:
        piece = super()._piece(data)
        if told := data.get("metrics"):
            spent = (told.get("time_to_first_token_ms"), told.get("generation_time_ms"))
            piece = replace(piece, timings=Timings(*((milliseconds or 0.0) / 1000 for milliseconds in spent)))
        if (ids := data.get("prompt_token_ids")) is None or SOFT_TOKEN not in self._ids_of:
            return piece
        soft = self._ids_of[SOFT_TOKEN]
        return _Read(**{**vars(piece), "image": ids.count(soft)}, ends=tuple(_image_ends(ids, soft)))

    async def _usage(self, request: GenerationRequest, known: Piece) -> Usage:
        """What vLLM counted. A picture is taken as encoded where its tokens were not in the cache.

        vLLM may still have held its features then, which it does not tell.
        """
        if known.image is None:
            return await super()._usage(request, known)
        self.vision_encodes += known.encodes
        return Usage(known.prompt or 0, known.completion or 0, known.cached or 0, known.image, known.encodes)

    async def prompt_ids(self, request: GenerationRequest) -> tuple[int | None, ...]:
        """The tokens of the whole prompt; see `ShowsPrompt`."""
        self.check(request)
        body = {**await self._whole(replace(request, schema=None, choices=())), "max_tokens": 1}
        answer = await self._post(self.endpoint, body, self._deadline())
        around = {self._ids_of.get(mark) for mark in AROUND_IMAGE}
        soft = self._ids_of.get(SOFT_TOKEN)
        async with self._translated():
            ids = [None if token == soft else token for token in answer["prompt_token_ids"] if token not in around]
        return tuple(token for place, token in enumerate(ids) if token is not None or ids[place - 1] is not None)

    async def count(self, text: str) -> int:
        """The number of a text's tokens; see `Counts`."""
        return len(await self._tokens(neutralise(text)))

    async def _tokens(self, text: str) -> tuple[int, ...]:
        """The token ids of a text; control tokens in it count as such."""
        if not text:
            return ()
        body = {"model": self._served, "prompt": text, "add_special_tokens": False}
        answer = await self._post("/tokenize", body, self._deadline())
        async with self._translated():
            return tuple(map(int, answer["tokens"]))

    # --- labels ----------------------------------------------------------------------------------------------------

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """log P(label, end of turn | prompt) for each label, from the raw logits of all its tokens.

        A label follows the prefix as text: the two are tokenised together, so that "Answer: " and "yes" make the
        tokens that the model knows. `usage` counts the prompt once. Where thinking is forbidden, the probabilities are
        those of a model that cannot begin to think.
        """
        refuse_senseless(labels)
        if not self.capabilities.score:
            raise NotSupported(
                f"the vLLM of {self.name} does not tell tokens, so labels cannot be scored", param="labels"
            )
        refuse_thinking(request)
        asked = replace(request, schema=None, choices=(), stop=(), top_logprobs=None, max_tokens=1, sampling=GREEDY)
        self.check(asked)
        deadline = self._deadline()
        barred = {self._ids_of[mark] for mark in thinking.banned(asked)}
        async with self._place(request, deadline):
            paths = {label: await self._path(request.prefix, label) for label in labels}
            return await scored(paths, barred, lambda place, tokens: self._next(asked, place, tokens, deadline))

    async def _path(self, prefix: str, label: str) -> Tokens:
        """The tokens of a label after the prefix, and the end of turn."""
        path = await tokens_after(prefix, self._stem(prefix), label, lambda text: self._tokens(neutralise(text)))
        return (*path, self._ids_of[END_OF_TURN])

    def _stem(self, prefix: str) -> str:
        """What of a prefix stays at the end of a prompt: the template of somebody else's vLLM trims it."""
        return prefix.rstrip()

    async def _next(self, request: GenerationRequest, place: Tokens, tokens: Collection[int], deadline: float) -> Next:
        """How likely each of these tokens comes next after the prompt, the prefix and the tokens of a place."""
        begun = self._stem(request.prefix) + await self._text(place, deadline)
        body = await self._whole(replace(request, prefix=begun))
        body |= {"logprobs": True, "return_tokens_as_token_ids": True}
        known: dict[int, float] = {}
        piece, steps = Piece(), 0
        wanted = sorted(tokens)
        for first in range(0, len(wanted), SCORED_AT_ONCE):
            chosen = {"logprob_token_ids": wanted[first : first + SCORED_AT_ONCE]}
            answer = await self._post(self.endpoint, body | chosen, deadline)
            async with self._translated():
                if place and tuple(answer["prompt_token_ids"][-len(place) :]) != place:
                    raise EngineError(f"{self.name} could not be made to say one of the labels; choose simpler labels")
                said = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                known |= {int(entry["token"].removeprefix("token_id:")): float(entry["logprob"]) for entry in said}
                piece = piece if steps else self._piece(answer)
                steps += 1
        ends = piece.ends if isinstance(piece, _Read) else ()
        usage = await self._usage(request, replace(piece, completion=steps, encodes=_beyond(ends, piece.cached or 0)))
        return Next(known, usage, piece.timings or Timings())

    async def _text(self, place: Tokens, deadline: float) -> str:
        if not place:
            return ""
        answer = await self._post("/detokenize", {"model": self._served, "tokens": place}, deadline)
        async with self._translated():
            return str(answer["prompt"])


@dataclass(frozen=True)
class _Read(Piece):
    """A piece that also tells where each picture ends in the prompt, in tokens."""

    ends: tuple[int, ...] = ()


def _image_ends(ids: Sequence[int], soft: int) -> list[int]:
    """Where each run of soft tokens ends: behind its last one."""
    return [place + 1 for place, token in enumerate(ids) if token == soft and ids[place + 1 : place + 2] != [soft]]


def _beyond(ends: Sequence[int], cached: int) -> int:
    """How many pictures end beyond what was in the cache."""
    return sum(end > cached for end in ends)


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Every sampler's setting, because the weights' own defaults would fill the gaps on somebody else's vLLM."""
    return {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
