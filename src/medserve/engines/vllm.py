"""Gemma 3 on vLLM: started and watched as a process of our own, or met at the address where somebody else runs it.

Our own vLLM listens on a socket in a private folder: most of its routes ask for no key, so nobody else may reach it.
It batches by itself, keeps what it has read in whole blocks, and is asked in OpenAI's dialect with its own extensions.

What it shows of log-probabilities comes from the model's raw logits, but for an answer bound by a schema or by choices:
there it has taken away what the grammar forbids before it looks. Labels are therefore scored by asking, for each
beginning of a label, how likely each next token is, one unbound token at a time: nothing is sampled that is used.

Some builds mask pictures as they mask text, which Gemma 3 does not, and say nothing of it. A certificate
(`medserve verify`) tells; where it says that the build failed, pictures are refused.
"""

import asyncio
import re
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import exp, fsum, log
from pathlib import Path
from typing import Any

import httpx

from medserve import certificates, thinking
from medserve.certificates import Parity
from medserve.engines import SERVER, Capabilities, _attached, _server, refuse_unused
from medserve.engines._worker import WorkerEngine
from medserve.engines.openai import MEDGEMMA_SIDE, OpenAIEngine, Piece
from medserve.errors import (
    EngineError,
    InvalidRequest,
    MedserveError,
    ModelError,
    ModelFailed,
    NotSupported,
    WeightsMissing,
    WorkerCrashed,
)
from medserve.generation import (
    GREEDY,
    JSON_LAYOUT,
    Chunk,
    GenerationRequest,
    LabelScores,
    Message,
    Sampling,
    Timings,
    Usage,
)
from medserve.images import Image
from medserve.imaging import raster
from medserve.imaging.preprocess import VisionInput
from medserve.process import Child
from medserve.settings import DEMO, ModelSpec, Settings
from medserve.tcp_http import TcpClient
from medserve.text import CLOSING, OPENING, neutralise
from medserve.threads import in_thread

WORKER = "medserve.workers.vllm"
END_OF_TURN = "<end_of_turn>"
SOFT_TOKEN = "<image_soft_token>"
AROUND_IMAGE = ("<start_of_image>", "<end_of_image>")
NEVER = -100.0
"""The lowest bias that vLLM takes: e^-100 of what the token's probability was."""
SCORED_AT_ONCE = 100
"""Tokens whose log-probabilities are asked for in one request; vLLM gives at most 128."""
PROBE_SECONDS = 10.0
DRAWING = DEMO / "sight-a.png"
VERSION = re.compile(r"[\w.+!-]{1,100}")

OURS = {
    "--model": "path",
    "--max-model-len": "context",
    "--max-num-seqs": "slots",
    "--tensor-parallel-size": "parallel",
    "-tp": "parallel",
    "--dtype": "precision",
    "--limit-mm-per-prompt": "limits.images",
    "--enable-prefix-caching": "reuse",
    "--no-enable-prefix-caching": "reuse",
}
"""Arguments that are made from settings of the model."""
VALUED = frozenset(
    {
        "--attention-backend",
        "--block-size",
        "--cpu-offload-gb",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--kv-cache-memory-bytes",
        "--linear-backend",
        "--long-prefill-token-threshold",
        "--max-cudagraph-capture-size",
        "--max-num-batched-tokens",
        "--max-parallel-loading-workers",
        "--mm-encoder-attn-backend",
        "--mm-encoder-tp-mode",
        "--mm-processor-cache-gb",
        "--mm-processor-cache-type",
        "--optimization-level",
        "--performance-mode",
        "--pipeline-parallel-size",
        "--quantization",
        "--safetensors-load-strategy",
        "--seed",
        "--stream-interval",
    }
)
SWITCHES = frozenset(
    {
        "--async-scheduling",
        "--disable-cascade-attn",
        "--disable-chunked-mm-input",
        "--disable-custom-all-reduce",
        "--disable-hybrid-kv-cache-manager",
        "--enable-chunked-prefill",
        "--enable-flashinfer-autotune",
        "--enforce-eager",
        "--no-async-scheduling",
        "--no-enable-chunked-prefill",
        "--no-enforce-eager",
        "--numa-bind",
        "--skip-mm-profiling",
    }
)
"""Further arguments that may be given, with a value or without: what tunes memory and speed.

It is a list of what is allowed. vLLM has hundreds, among them some that listen to the network, read files, run code of
others or write prompts into logs, and every release brings more.
"""


async def start(model: ModelSpec, settings: Settings) -> "Vllm":
    """The model on a vLLM of our own, or on the one at its `url`; raises ModelFailed, which says why and what to do."""
    if model.url is not None:
        refuse_unused(model, *SERVER)
        return await _met(model, settings)
    if model.path is None:
        raise WeightsMissing(f"{model.name} has no path; name its folder of safetensors, or a url", param="path")
    if model.quantise is not None:
        raise ModelFailed(
            f"quantise of {model.name} is for the transformers engine; here vLLM's own ways go among `arguments`, such "
            "as --quantization fp8",
            param="quantise",
        )
    refuse_unused(model, "python", "precision", "device", "parallel", "arguments")
    spec = {
        "folder": str(model.path.absolute()),
        "python": str((model.python or Path(sys.executable)).absolute()),
        "context": model.context,
        "slots": model.slots,
        "threads": model.threads,
        "precision": model.precision,
        "device": model.device,
        "parallel": model.parallel,
        "images": settings.limits.images,
        "reuse": model.reuse,
        "arguments": further(model.arguments),
    }
    child = await Child.start(WORKER, spec, seconds=settings.limits.load_seconds)
    try:
        facts = _facts(child.facts, model)
        parity = await in_thread(certificates.parity, settings.home, facts)
        engine = OwnVllm(model, child, facts, parity, seconds=settings.limits.answer_seconds)
    except BaseException:  # nobody else knows of the worker
        await child.stop(grace=0)
        raise
    try:
        await engine.introduce()
        engine.watch()
    except BaseException:
        await engine.close()
        raise
    return engine


def further(arguments: Sequence[str]) -> tuple[str, ...]:
    """The further arguments of vLLM's command as they were given; raises ModelFailed for one that is not allowed."""
    rest = list(arguments)
    while rest:
        name, equals, given = rest.pop(0).partition("=")
        if name in OURS:
            raise ModelFailed(f"{name} is not an argument of its own: set `{OURS[name]}`", param="arguments")
        if name not in VALUED | SWITCHES or (name in SWITCHES and equals):
            raise ModelFailed(
                f"{name[:60]} is not taken among `arguments`: only what tunes memory and speed is, because others "
                "open vLLM to the network or to files, run code, or write prompts into logs; docs/vllm.md has the list",
                param="arguments",
            )
        if name in VALUED and not given and (equals or not rest or rest.pop(0).startswith("-")):
            raise ModelFailed(f"{name} needs a value after it", param="arguments")
    return tuple(arguments)


async def _met(model: ModelSpec, settings: Settings) -> "Vllm":
    """The vLLM that somebody else runs at the model's `url`."""
    client = _server.connected(model)
    try:
        until = asyncio.get_running_loop().time() + settings.limits.load_seconds
        version, served = await _asked(client, model, until)
        weights = _attached.plain(served.name)
        facts = {
            "engine": "vllm",
            "build": f"vllm {version}",
            "weights": weights,
            "resample": model.resample,
            "address_fingerprint": _server.fingerprint(model),
        }
        parity = await in_thread(certificates.parity, settings.home, facts)
        capabilities = _capabilities(
            served.context or model.context,
            VisionInput(MEDGEMMA_SIDE, model.resample),
            0,
            facts,
            parity,
        )
        engine = Vllm(model, client, capabilities, seconds=settings.limits.answer_seconds, served=served.name)
        engine.judge(parity)
        try:
            await engine.introduce()
        except (EngineError, InvalidRequest):  # its /tokenize is not to be had, as behind somebody's proxy
            engine.capabilities = replace(engine.capabilities, score=False, thinking=False)
        if not parity.refusal:
            await engine.look(await raster.read(await in_thread(DRAWING.read_bytes), settings.limits))
    except BaseException:
        await client.aclose()
        raise
    return engine


async def _asked(client: TcpClient, model: ModelSpec, until: float) -> tuple[str, _attached.Served]:
    """The version of the vLLM at an address, and what it says of the model."""
    try:
        told = await _attached.patiently(lambda: _attached.got(client, "/version"), until)
        version = told.get("version") if isinstance(told, dict) else None
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise ModelFailed(
                f"no vLLM answers at the url of {model.name}; for other servers use the engine openai", param="url"
            )
        return version, await _attached.chosen(client, model, until)
    except ModelError:
        raise
    except MedserveError as error:
        raise _attached.unusable(model, error) from error


class Vllm(OpenAIEngine):
    """A model on a vLLM, whoever runs it."""

    _refused = ""
    _ids_of: Mapping[str, int] = {}

    def judge(self, parity: Parity) -> None:
        """Keep why pictures are refused, if they are."""
        self._refused = parity.refusal

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
        return NotSupported(f"{self.name} takes no images: {self._refused or 'it has no vision part'}", param="images")

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

    async def _whole(self, request: GenerationRequest) -> dict[str, Any]:
        """The body of a question whose answer comes in one piece."""
        body = {**await self._body(request), "stream": False}
        body.pop("stream_options")
        return body

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
        if not labels or not all(labels) or len(set(labels)) < len(labels):
            raise InvalidRequest("labels must be different texts, none of them empty", param="labels")
        if not self.capabilities.score:
            raise NotSupported(
                f"the vLLM of {self.name} does not tell tokens, so labels cannot be scored", param="labels"
            )
        if request.thinking:
            raise InvalidRequest("labels are scored without thinking; set it to 0 or leave it out", param="thinking")
        asked = replace(request, schema=None, choices=(), stop=(), top_logprobs=None, max_tokens=1, sampling=GREEDY)
        self.check(asked)
        deadline = self._deadline()
        async with self._place(request, deadline):
            paths = {label: await self._path(request.prefix, label) for label in labels}
            return await self._scored(asked, paths, deadline)

    async def _scored(
        self, request: GenerationRequest, paths: Mapping[str, tuple[int, ...]], deadline: float
    ) -> LabelScores:
        barred = {self._ids_of[mark] for mark in thinking.banned(request)}
        nexts: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for path in paths.values():
            for place, token in enumerate(path):
                nexts[path[:place]].add(token)
        # What all have in common is read first and once; the others find it read, and are answered together.
        root = await self._next(request, (), nexts.pop(()) | barred, deadline)
        others = [self._next(request, node, tokens | barred, deadline) for node, tokens in nexts.items()]
        known = {(): root, **dict(zip(nexts, await _together(others), strict=True))}
        scores = {
            label: fsum(known[path[:place]].logprob(token, barred) for place, token in enumerate(path))
            for label, path in paths.items()
        }
        longest = max((said.timings for node, said in known.items() if node), key=_total, default=Timings())
        usage = replace(root.usage, completion=sum(said.usage.completion for said in known.values()))
        return LabelScores(scores, usage, root.timings + longest)

    async def _path(self, prefix: str, label: str) -> tuple[int, ...]:
        """The tokens of a label after the prefix, and the end of turn."""
        stem = self._stem(prefix)
        whole, known = await self._tokens(neutralise(prefix + label)), await self._tokens(neutralise(stem))
        if whole[: len(known)] != known:  # the two grow together; then the label stands for itself
            whole, known = await self._tokens(neutralise(prefix[len(stem) :] + label)), ()
        return (*whole[len(known) :], self._ids_of[END_OF_TURN])

    def _stem(self, prefix: str) -> str:
        """What of a prefix stays at the end of a prompt: the template of somebody else's vLLM trims it."""
        return prefix.rstrip()

    async def _next(
        self, request: GenerationRequest, node: tuple[int, ...], tokens: Collection[int], deadline: float
    ) -> "_Next":
        """How likely each of these tokens comes next after the prompt, the prefix and the tokens of a node."""
        begun = self._stem(request.prefix) + await self._text(node, deadline)
        body = await self._whole(replace(request, prefix=begun))
        body |= {"logprobs": True, "return_tokens_as_token_ids": True}
        known: dict[int, float] = {}
        piece, steps = Piece(), 0
        wanted = sorted(tokens)
        for first in range(0, len(wanted), SCORED_AT_ONCE):
            chosen = {"logprob_token_ids": wanted[first : first + SCORED_AT_ONCE]}
            answer = await self._post(self.endpoint, body | chosen, deadline)
            async with self._translated():
                if node and tuple(answer["prompt_token_ids"][-len(node) :]) != node:
                    raise EngineError(f"{self.name} could not be made to say one of the labels; choose simpler labels")
                said = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                known |= {int(entry["token"].removeprefix("token_id:")): float(entry["logprob"]) for entry in said}
                piece = piece if steps else self._piece(answer)
                steps += 1
        ends = piece.ends if isinstance(piece, _Read) else ()
        usage = await self._usage(request, replace(piece, completion=steps, encodes=_beyond(ends, piece.cached or 0)))
        return _Next(known, usage, piece.timings or Timings())

    async def _text(self, node: tuple[int, ...], deadline: float) -> str:
        if not node:
            return ""
        answer = await self._post("/detokenize", {"model": self._served, "tokens": node}, deadline)
        async with self._translated():
            return str(answer["prompt"])


class OwnVllm(Vllm, WorkerEngine):
    """A model on a vLLM that a worker of ours started and watches."""

    def __init__(
        self, model: ModelSpec, child: Child, facts: Mapping[str, str], parity: Parity, *, seconds: float
    ) -> None:
        vision = child.facts["vision"]
        seen = VisionInput(vision["size"], model.resample) if vision else None
        tokens = vision["tokens"] if vision else 0
        capabilities = _capabilities(child.facts["context"], seen, tokens, facts, parity)
        WorkerEngine.__init__(self, model, child, capabilities, seconds=seconds)
        self._served = child.facts["served"]
        self.judge(parity)

    def _stem(self, prefix: str) -> str:
        """Our own template trims nothing; a space goes with the word that follows it."""
        return prefix.rstrip(" ")

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Answer piece by piece; see `Engine.stream`."""
        try:
            async with aclosing(super().stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineError as error:
            raise await self._cause(error) from error

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """See `Vllm.score`."""
        try:
            return await super().score(request, labels)
        except EngineError as error:
            raise await self._cause(error) from error

    async def _cause(self, error: EngineError) -> EngineError:
        """Why a request failed. A vLLM whose engine has died still answers for seconds, with errors: it is ended."""
        if type(error) is not EngineError or await self._healthy():
            return error
        await self._child.stop(grace=0)
        return WorkerCrashed(f"the vLLM of {self.name} died with work to do; it is started anew by the next request")

    async def _healthy(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return (await self._client.get("/health")).status_code == httpx.codes.OK
        except (TimeoutError, httpx.HTTPError):
            return False


@dataclass(frozen=True)
class _Read(Piece):
    """A piece that also tells where each picture ends in the prompt, in tokens."""

    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Next:
    """Log-probabilities of what may come next at one place, and what it took to know them."""

    known: Mapping[int, float]
    usage: Usage
    timings: Timings

    def logprob(self, token: int, barred: Collection[int]) -> float:
        """That of a token, of a model that cannot say what is barred."""
        rest = 1.0 - fsum(exp(self.known[other]) for other in barred)
        return self.known[token] - (log(max(rest, exp(self.known[token]))) if barred else 0.0)


async def _together(asked: Sequence[Coroutine[Any, Any, _Next]]) -> list[_Next]:
    """All answers; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _image_ends(ids: Sequence[int], soft: int) -> list[int]:
    """Where each run of soft tokens ends: behind its last one."""
    return [place + 1 for place, token in enumerate(ids) if token == soft and ids[place + 1 : place + 2] != [soft]]


def _beyond(ends: Sequence[int], cached: int) -> int:
    """How many pictures end beyond what was in the cache."""
    return sum(end > cached for end in ends)


def _total(timings: Timings) -> float:
    return timings.prompt + timings.completion


def _facts(told: Mapping[str, Any], model: ModelSpec) -> dict[str, str]:
    """What our own vLLM serves, for the record."""
    facts = {"engine": "vllm", **told["record"], "slots": str(model.slots)}
    if vision := told["vision"]:
        facts |= {"image_size": str(vision["size"]), "image_tokens": str(vision["tokens"]), "resample": model.resample}
    return facts


def _capabilities(
    context: int, vision: VisionInput | None, image_tokens: int, facts: Mapping[str, str], parity: Parity
) -> Capabilities:
    """What vLLM honours. A model without vision has no need of a certificate."""
    record = {**facts, **(dict([parity.fact]) if vision else {})}
    sees = vision if not parity.refusal else None
    return Capabilities(
        context=context,
        vision=sees,
        image_tokens=image_tokens if sees else 0,
        schema=True,
        choices=True,
        logprobs=True,
        score=True,
        prefix=True,
        thinking=True,
        batches=True,
        facts=tuple(sorted(record.items())),
    )


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Every sampler's setting, because the weights' own defaults would fill the gaps on somebody else's vLLM."""
    return {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
