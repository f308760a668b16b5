"""GGUF models on llama.cpp in a process of their own: prompts equal Hugging Face's, pictures are encoded once.

The prompt is written here and sent to llama.cpp's native `/completion`, not to its chat route: that one trims the line
feeds which Gemma's processor puts around a picture, and shows no log-probability of the end of turn.

What reuse does. A slot keeps what it has read, and a prompt that begins alike is continued from there. So all questions
that begin with one picture share its work, and each is answered exactly, to the last bit of its log-probabilities, as
if it had come first. A prompt that is repeated whole would differ in the fourth decimal, because llama.cpp would read
its last token alone, by another arithmetic path; `_rewind` takes care of that. Not exact to the bit are answers that
are written at the same time (they are computed together) and the later turns of a conversation (the model's own words
were read one at a time).
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from hashlib import sha256
from math import exp, fsum, log
from pathlib import Path
from typing import Any

from medserve import footprint, machine, thinking
from medserve.engines import Outlook, Weights, refuse_unused
from medserve.engines._chat.piece import Piece, seconds
from medserve.engines._labels import refuse_senseless, refuse_thinking, tokens_after
from medserve.engines._worker import WorkerEngine, capabilities, ended_on_failure, ready
from medserve.errors import (
    EngineError,
    ImageTooLarge,
    InvalidRequest,
    MedserveError,
    ModelFailed,
    NotSupported,
    WeightsMissing,
)
from medserve.footprint import Need
from medserve.generation import (
    JSON_LAYOUT,
    Finish,
    GenerationRequest,
    LabelScores,
    Message,
    Sampling,
    Timings,
    TokenLogprob,
    Usage,
)
from medserve.images import Image
from medserve.probing.wording import alternatives
from medserve.process import Child
from medserve.settings import ModelSpec, Settings
from medserve.text import CLOSING, OPENING, neutralise
from medserve.threads import in_thread

WORKER = "medserve.workers.llama_cpp"
READER = "medserve.workers.gguf_plan"
WEIGHTS = Weights.FILE
BOS = "<bos>"
END_OF_TURN = "<end_of_turn>"
ANSWER = "<start_of_turn>model\n"
CONNECT_SECONDS = 10.0
MARKS_AROUND_IMAGE = 2
"""<start_of_image> and <end_of_image>, which stand in the prompt beside the image's own tokens."""
SCORED_ALTERNATIVES = 20
MOST_PICTURE_BYTES = 95 * 2**20
"""llama.cpp's listener refuses requests of more than 100 MiB."""
REMEMBERED = 256
"""Questions of which it is known that some slot may hold their whole prompt; schemas known to work."""
MOST_CONTEXT = 131_072
DRAWN_AT_RANDOM = 2**32 - 1
"""The one seed that llama.cpp takes for none."""


async def start(model: ModelSpec, settings: Settings) -> "LlamaCpp":
    """Load the model in a worker of its own; raises ModelFailed, which says why and what to do."""
    spec = order(model)
    environment = {"GOMP_SPINCOUNT": "600", "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": str(spec["threads"])}
    child = await Child.start(WORKER, spec, seconds=settings.limits.load_seconds, environment=environment)
    async with ended_on_failure(child):
        engine = LlamaCpp(model, child, seconds=settings.limits.answer_seconds)
    return await ready(engine)


def order(model: ModelSpec) -> dict[str, Any]:
    """What a worker is told of the model that it is to load; raises ModelFailed for settings that it could not obey."""
    if model.path is None:
        raise WeightsMissing(f"{model.name} has no path; name its GGUF file", param="path")
    if model.quantise is not None:
        raise ModelFailed(
            f"quantise of {model.name} is for safetensors; a GGUF file has its bits already: take one of fewer",
            param="quantise",
        )
    refuse_unused(model)
    return {
        "weights": str(model.path),
        "projector": _text(model.projector or projector_beside(model.path)),
        "context": model.context,
        "slots": model.slots,
        "threads": model.threads or machine.processors(),
    }


def need(model: ModelSpec) -> Need:
    """What the model takes, by the headers of its files; raises ModelFailed as `start` would. Blocking."""
    return Need.of(footprint.asked(READER, order(model))["need"])


async def examine(model: ModelSpec, settings: Settings) -> Outlook:
    """What is known of the model before it is started; see `Examine`."""
    return Outlook(need=await in_thread(need, model))


def _text(path: Path | None) -> str | None:
    return str(path) if path else None


def projector_beside(weights: Path) -> Path | None:
    """The one file beside the weights that is named as a projector; two would leave it to chance which is meant."""
    found = [path for path in weights.parent.glob("*.gguf") if "mmproj" in path.name.lower() and path != weights]
    kin = [path for path in found if path.name.startswith(weights.stem)] or found
    return kin[0] if len(kin) == 1 else None


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: the texts before, between and after its images, and the images."""

    texts: tuple[str, ...]
    images: tuple[Image, ...]


def render(request: GenerationRequest) -> Prompt:
    """The conversation as Gemma 3's template and processor of Hugging Face write it, without the <bos> before it.

    Texts are trimmed, the system's words come before the first user's, a picture stands between empty lines.
    """
    written: list[str | Image] = []
    system = ""
    for message in request.messages:
        if message.role == "system":
            system = "".join(part for part in message.parts if isinstance(part, str)) + "\n\n"
            continue
        written += _turn(message, system)
        system = ""
    written.append(ANSWER + thinking.beginning(request))
    return _joined(written)


def _turn(message: Message, system: str) -> list[str | Image]:
    """One turn; neighbouring texts are joined before control tokens are made data, lest two halves make one."""
    role = "model" if message.role == "assistant" else "user"
    turn = _joined([system, *(part.strip() if isinstance(part, str) else part for part in message.parts)])
    said = [neutralise(text) for text in turn.texts]
    written: list[str | Image] = [f"<start_of_turn>{role}\n", said[0]]
    for image, text in zip(turn.images, said[1:], strict=True):
        written += ["\n\n", image, "\n\n", text]
    return [*written, f"{END_OF_TURN}\n"]


def _joined(written: Sequence[str | Image]) -> Prompt:
    texts, images = [""], []
    for part in written:
        if isinstance(part, str):
            texts[-1] += part
        else:
            images.append(part)
            texts.append("")
    return Prompt(tuple(texts), tuple(images))


class LlamaCpp(WorkerEngine):
    """A GGUF model in its worker process."""

    endpoint = "/completion"

    def __init__(self, model: ModelSpec, child: Child, *, seconds: float) -> None:
        super().__init__(model, child, capabilities("llama-cpp", child.facts, model), seconds=seconds)
        self._reuse = model.reuse
        self._marker = ""
        self._ends: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._compiled: OrderedDict[str, None] = OrderedDict()
        self._asked: OrderedDict[str, None] = OrderedDict()

    async def introduce(self) -> None:
        """Learn from the worker what only it knows: its mark for pictures, and the ids of marks of turns and thoughts.

        A vocabulary without marks of thinking belongs to a model that does not think, which cannot be told to.
        """
        async with self._translated():
            async with asyncio.timeout(CONNECT_SECONDS):
                properties = await self._client.get("/props")
        self._marker = properties.json()["media_marker"]
        for mark in (END_OF_TURN, "<eos>"):
            ids = await self._ids(mark, control=True)
            if len(ids) != 1:
                raise EngineError(f"the vocabulary of {self.name} lacks {mark}; its weights are not Gemma's")
            self._ends[mark] = ids[0]
        marks = {mark: await self._ids(mark, control=True) for mark in (OPENING, CLOSING)}
        if all(len(ids) == 1 for ids in marks.values()):
            self._marks = {mark: ids[0] for mark, ids in marks.items()}
            self.capabilities = replace(self.capabilities, thinking=True)

    def _blind(self) -> MedserveError:
        return NotSupported(
            f"{self.name} was loaded without a vision projector and cannot see; put the model's mmproj file beside "
            "its weights or name it as `projector`, and load it again",
            param="images",
        )

    # --- the dialect -----------------------------------------------------------------------------------------------

    async def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": await self._prompt(render(request)),
            "n_predict": request.max_tokens,
            "stream": True,
            "return_progress": True,
            "cache_prompt": self._reuse,
            "preserved_tokens": [OPENING, CLOSING],  # the marks of thinking must not be swallowed
            **_sampling(request.sampling),
        }
        if banned := thinking.banned(request):
            body["logit_bias"] = [[self._marks[mark], False] for mark in banned]
        if request.stop:
            body["stop"] = list(request.stop)
        if request.choices:  # like a schema, they bind what follows the prefix
            body["grammar"] = alternatives(request.choices)
        if request.schema is not None:
            body["json_schema"] = await self._compact(request.schema)
        if request.top_logprobs is not None:
            body |= {"n_probs": max(1, request.top_logprobs), "post_sampling_probs": False}
        return body

    async def _prompt(self, prompt: Prompt) -> str | dict[str, Any]:
        if not prompt.images:
            return prompt.texts[0]
        vision = self.capabilities.vision
        assert vision is not None  # noqa: S101 - `check` refused images without it
        data = [await self._pictures.encoded(image, vision) for image in prompt.images]
        if (total := sum(map(len, data))) > MOST_PICTURE_BYTES:
            raise ImageTooLarge(
                f"the pictures of one request take {total / 1e6:.0f} MB as the model sees them and llama.cpp accepts "
                f"{MOST_PICTURE_BYTES / 1e6:.0f} MB; send fewer",
                param="images",
            )
        return {"prompt_string": self._marker.join(prompt.texts), "multimodal_data": data}

    async def _compact(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The schema with its layout fixed; raises InvalidRequest when llama.cpp cannot honour all of it.

        llama.cpp goes on without any constraint when it does not understand a schema. So it is asked once to end an
        answer at once, which every working schema forbids.
        """
        fixed = {**schema, "x-guidance": JSON_LAYOUT}
        key = sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
        if key not in self._compiled:
            end = self._ends[END_OF_TURN]
            body = {"prompt": [end], "n_predict": 1, "json_schema": fixed, "logit_bias": [[end, 1000.0]]}
            answer = await self._post(self.endpoint, {**body, "cache_prompt": False}, self._deadline())
            if answer["stop_type"] == "eos":
                raise InvalidRequest(
                    "the schema uses a keyword, type or reference that llama.cpp cannot enforce; use a simpler one",
                    param="schema",
                )
        _remember(self._compiled, key)
        return fixed

    def _piece(self, data: Mapping[str, Any]) -> Piece:
        progress, timings = data.get("prompt_progress") or {}, data.get("timings") or {}
        if progress:
            return Piece(prompt=progress["total"], cached=progress["cache"])
        said = data.get("completion_probabilities") or ()
        return Piece(
            text=data["content"],
            logprobs=tuple(_logprob(entry) for entry in said if entry["bytes"]),
            finish=_finish(data["stop_type"]) if data["stop"] else None,
            prompt=data.get("tokens_evaluated"),
            completion=data.get("tokens_predicted"),
            cached=timings.get("cache_n"),
            timings=seconds(timings) if timings else None,
        )

    async def _usage(self, request: GenerationRequest, known: Piece) -> Usage:
        return await self._measured(render(request), known)

    async def _measured(self, prompt: Prompt, known: Piece) -> Usage:
        """What the answer took. An image's tokens are what the prompt takes beyond its texts, which are counted."""
        taken = await self._taken(prompt, known) if prompt.images else 0
        image = max(0, taken - MARKS_AROUND_IMAGE) * len(prompt.images)
        return Usage(known.prompt or 0, known.completion or 0, known.cached or 0, image, known.encodes)

    async def _encoded(self, prompt: Prompt, known: Piece) -> int:
        """How many pictures the vision encoder has to see: those that end beyond what the slot still holds."""
        if not prompt.images:
            return 0
        taken, texts = await self._taken(prompt, known), await self._counts(prompt)
        ends = [sum(texts[: index + 1]) + (index + 1) * taken - 1 for index in range(len(prompt.images))]
        encodes = sum(end > (known.cached or 0) for end in ends)
        self.vision_encodes += encodes
        return encodes

    async def _taken(self, prompt: Prompt, known: Piece) -> int:
        """The tokens that each picture takes, the marks around it included."""
        return ((known.prompt or 0) - sum(await self._counts(prompt))) // len(prompt.images)

    async def _counts(self, prompt: Prompt) -> list[int]:
        return [await self._count(text, first=not index) for index, text in enumerate(prompt.texts)]

    async def _count(self, text: str, *, first: bool) -> int:
        """The number of a text's tokens as part of a prompt, the <bos> before the first included."""
        return first + await self._text_counts.of(text, lambda: self._length(text))

    async def _length(self, text: str) -> int:
        return len(await self._ids(text, control=True))

    async def prompt_ids(self, request: GenerationRequest) -> tuple[int | None, ...]:
        """The tokens of the whole prompt; see `ShowsPrompt`."""
        first, *others = render(request).texts
        ids: list[int | None] = [*await self._ids(BOS, control=True), *await self._ids(first, control=True)]
        for text in others:
            ids += [None, *await self._ids(text, control=True)]
        return tuple(ids)

    async def count(self, text: str) -> int:
        """The number of a text's tokens; see `Counts`."""
        return len(await self._ids(text, control=False))

    async def _ids(self, text: str, *, control: bool) -> tuple[int, ...]:
        """The token ids of a text; control tokens in it count as such, or as mere text."""
        body = {"content": text, "add_special": False, "parse_special": control}
        return tuple((await self._post("/tokenize", body, self._deadline()))["tokens"])

    # --- exactness --------------------------------------------------------------------------------------------------

    async def _pieces(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        """The answer, and first how many pictures it makes the encoder see: known even if it is broken off."""
        prompt = render(request)
        # What was thought is there to be read on from, in the slot that wrote it.
        yield Piece(encodes=0 if thinking.answers_a_thought(request) else await self._rewind(prompt, deadline))
        async with aclosing(super()._pieces(request, deadline)) as pieces:
            if (first := await anext(pieces, None)) is None:
                return
            yield replace(first, encodes=await self._encoded(prompt, first))
            async for piece in pieces:
                yield piece

    async def _rewind(self, prompt: Prompt, deadline: float) -> int:
        """Make a slot forget the beginning of its answer where this very question was asked lately.

        It costs a few tokens and leaves the rest, the picture above all, in place: a prompt that ends otherwise is
        read up to where the two differ, and the words before the answer are then read together as they were the
        first time. Returns how many pictures had to be encoded, which is none unless the slot had forgotten them.
        """
        question = prompt.texts[-1].rpartition(ANSWER)[0]
        if not self._reuse or not self._repeats(
            (*prompt.texts[:-1], question, *(image.sha256 for image in prompt.images))
        ):
            return 0
        other = replace(prompt, texts=(*prompt.texts[:-1], question + "<eos>"))
        body = {"prompt": await self._prompt(other), "n_predict": 0, "cache_prompt": True}
        answer = await self._post(self.endpoint, body, deadline)
        return await self._encoded(other, _read(answer))

    def _repeats(self, parts: tuple[str, ...]) -> bool:
        """Whether this question was asked lately; from now on it was."""
        key = sha256("\0".join(parts).encode()).hexdigest()
        repeated = key in self._asked
        _remember(self._asked, key)
        return repeated

    # --- labels ----------------------------------------------------------------------------------------------------

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """log P(label, end of turn | prompt) for each label, from the raw logits of all its tokens.

        A label follows the prefix as text: the two are tokenised together, so that "Answer: " and "yes" make the
        tokens that the model knows. `usage` counts the prompt once. Where thinking is forbidden, the probabilities are
        those of a model that cannot begin to think.
        """
        refuse_senseless(labels)
        self.check(replace(request, schema=None, choices=()))
        refuse_thinking(request)
        deadline = self._deadline()
        async with self._place(request, deadline):
            paths = {label: await self._path(request.prefix, label) for label in labels}
            prompt = render(replace(request, prefix=request.prefix.rstrip(" ")))
            walk = _Walk()
            # In an order of their own, so that the order of the labels changes nothing.
            for path in sorted(paths.values()):
                if not walk.knows(path):
                    encodes = await self._rewind(prompt, deadline)
                    answer = await self._forced(prompt, path, deadline)
                    walk.add(path, answer, encodes + await self._encoded(prompt, _read(answer)))
            usage = await self._measured(prompt, walk.read)
        barred = {self._marks[mark] for mark in thinking.banned(request)}
        scores = {label: walk.logprob(path, barred) for label, path in paths.items()}
        return LabelScores(scores, usage, walk.timings)

    async def _path(self, prefix: str, label: str) -> tuple[int, ...]:
        """The tokens of a label after the prefix, and the end of turn."""
        stem = prefix.rstrip(" ")
        path = await tokens_after(prefix, stem, label, lambda text: self._ids(text, control=False))
        return (*path, self._ends[END_OF_TURN])

    async def _forced(self, prompt: Prompt, path: tuple[int, ...], deadline: float) -> dict[str, Any]:
        """One answer that is made to be `path`, with the raw log-probabilities of its tokens."""
        body = {
            "prompt": await self._prompt(prompt),
            "n_predict": len(path),
            "temperature": 0.0,
            "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in path[:-1]),
            "logit_bias": [[self._ends["<eos>"], False]],
            "n_probs": SCORED_ALTERNATIVES,
            "post_sampling_probs": False,
            "cache_prompt": self._reuse,
        }
        answer = await self._post(self.endpoint, body, deadline)
        if tuple(entry["id"] for entry in answer["completion_probabilities"]) != path:
            raise EngineError(f"{self.name} could not be made to say one of the labels; choose simpler labels")
        return answer


def _remember(latest: OrderedDict[str, None], key: str) -> None:
    """Keep a key as the latest of at most REMEMBERED."""
    latest[key] = None
    latest.move_to_end(key)
    while len(latest) > REMEMBERED:
        latest.popitem(last=False)


class _Walk:
    """Log-probabilities of next tokens by the tokens before them, gathered from forced answers; the first found stays.

    Every answer also tells of the likeliest alternatives beside its path, so many labels need no answer of their own.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], dict[int, float]] = {}
        self.read = Piece()
        self.timings = Timings()

    def knows(self, path: tuple[int, ...]) -> bool:
        return all(token in self._known.get(path[:index], {}) for index, token in enumerate(path))

    def logprob(self, path: tuple[int, ...], barred: Collection[int]) -> float:
        """That of the whole path, of a model that cannot say what is barred."""
        return sum(
            self._known[path[:index]][token] - self._others(path[:index], barred) for index, token in enumerate(path)
        )

    def _others(self, path: tuple[int, ...], barred: Collection[int]) -> float:
        """The log-probability that the next token is none of those barred; one that is not among the likeliest is none.

        Of a token that is nearly certain the rest is known to few digits; what was seen of it is a lower bound.
        """
        known = self._known[path]
        if not any(token in known for token in barred):
            return 0.0
        rest = 1.0 - fsum(exp(value) for token, value in known.items() if token in barred)
        seen = fsum(exp(value) for token, value in known.items() if token not in barred)
        return min(0.0, log(max(rest, seen)))

    def add(self, path: tuple[int, ...], answer: Mapping[str, Any], encodes: int) -> None:
        for index, entry in enumerate(answer["completion_probabilities"]):
            node = self._known.setdefault(path[:index], {})
            for seen in (entry, *entry["top_logprobs"]):
                node.setdefault(seen["id"], seen["logprob"])
        read = _read(answer) if self.read.prompt is None else Piece()
        steps = (self.read.completion or 0) + answer["tokens_predicted"]
        self.read = self.read.plus(replace(read, completion=steps, encodes=encodes))
        self.timings += seconds(answer["timings"])


def _read(answer: Mapping[str, Any]) -> Piece:
    """What a whole answer says of its prompt."""
    return Piece(prompt=answer["tokens_evaluated"], cached=answer["timings"]["cache_n"])


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Every sampler's setting, because llama.cpp's defaults and the weights' own would fill the gaps."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "typical_p": 1.0,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": MOST_CONTEXT,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": DRAWN_AT_RANDOM if sampling.seed is None else min(sampling.seed, DRAWN_AT_RANDOM - 1),
    }


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    top = tuple((other["token"], other["logprob"]) for other in entry["top_logprobs"])
    return TokenLogprob(entry["token"], entry["logprob"], top)


def _finish(reason: str) -> Finish:
    return Finish.LENGTH if reason == "limit" else Finish.STOP
