"""Gemma 3 from safetensors on transformers and torch, on GPUs or a processor, in a process of its own.

The worker decodes by itself (`medserve.workers.transformers`): questions that are asked at the same time are answered
in one batch, what they begin alike is read once, a picture goes through the vision part once. In float32 an answer is
token for token that of transformers' `generate()`, whatever it shared and whoever was answered beside it; with fewer
bits sums are rounded otherwise in a larger batch, as they are in transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from json import loads
from typing import Any

from medserve import footprint, machine, thinking
from medserve.engines import Outlook, Weights, refuse_unused
from medserve.engines._chat.piece import Piece, seconds
from medserve.engines._chat.refusals import refusal
from medserve.engines._labels import refuse_senseless, refuse_thinking
from medserve.engines._worker import WorkerEngine, capabilities, ended_on_failure, ready
from medserve.errors import (
    EngineError,
    MedserveError,
    NotSupported,
    WeightsMissing,
    by_code,
)
from medserve.footprint import Need
from medserve.generation import GenerationRequest, LabelScores, Message, Part, Usage
from medserve.process import Child
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread

WORKER = "medserve.workers.transformers"
READER = "medserve.workers.transformers.plan"
DEVICES = "medserve.workers.transformers.devices"
WEIGHTS = Weights.FOLDER
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "600",  # libgomp's default starves cores that others use too
}
"""What a worker finds in its environment: nothing is ever fetched, and idle threads leave their core to others."""


async def start(model: ModelSpec, settings: Settings) -> "Transformers":
    """Load the model in a worker of its own; raises ModelFailed, which says why and what to do."""
    return await launch(model, settings)


async def launch(model: ModelSpec, settings: Settings, *, causal_images: bool = False) -> "Transformers":
    """As `start`; `causal_images` masks pictures as text is, which `verify` compares faulty builds with."""
    spec = order(model)
    child = await Child.start(
        WORKER,
        {**spec, "causal_images": causal_images},
        seconds=settings.limits.load_seconds,
        environment={**ENVIRONMENT, "OMP_NUM_THREADS": str(spec["threads"])},
        python=model.python,
    )
    async with ended_on_failure(child):
        engine = Transformers(model, child, seconds=settings.limits.answer_seconds)
    return await ready(engine)


def order(model: ModelSpec) -> dict[str, Any]:
    """What a worker is told of the model that it is to load; raises ModelFailed for settings that it could not obey."""
    refuse_unused(model, "python", "precision", "quantise", "device")
    if model.path is None:
        raise WeightsMissing(f"{model.name} has no path; name its folder of safetensors", param="path")
    return {
        "folder": str(model.path),
        "context": model.context,
        "slots": model.slots,
        "threads": model.threads or machine.processors(),
        "precision": model.precision,
        "quantise": model.quantise,
        "device": model.device,
        "reuse": model.reuse,
    }


def need(model: ModelSpec) -> Need:
    """What the model takes, by the headers of its folder; raises ModelFailed as `start` would. Blocking."""
    return Need.of(footprint.asked(READER, order(model))["need"])


async def examine(model: ModelSpec, settings: Settings) -> Outlook:
    """What is known of the model before it is started, and where torch would compute it; see `Examine`."""
    takes = await in_thread(need, model)  # first, because it takes no torch to see that a folder is no model
    if model.device == "cpu":
        return Outlook("it computes on the processor, as its device says", takes)
    seen = await in_thread(footprint.asked, DEVICES, order(model), python=model.python)
    gpus = f"{len(seen['gpus'])} GPU(s): {', '.join(seen['gpus'])}" if seen["gpus"] else "no GPU"
    words = f"torch {seen['torch']} sees {gpus}"
    if seen["room"]:
        return Outlook(words, replace(takes, room=seen["room"]))
    if takes.gpu:
        return Outlook(words, takes, "the driver has a GPU that torch does not see; install a build of torch with CUDA")
    return Outlook(f"{words}, so it computes on the processor", takes)


class Transformers(WorkerEngine):
    """A model in safetensors in its worker process."""

    def __init__(self, model: ModelSpec, child: Child, *, seconds: float) -> None:
        able = replace(capabilities("transformers", child.facts, model), thinking=True, batches=True)
        super().__init__(model, child, able, seconds=seconds)

    def _blind(self) -> MedserveError:
        return NotSupported(
            f"{self.name} is a model without a vision part and cannot see; use one with it, such as medgemma-4b-it",
            param="images",
        )

    def _refusal(self, status: int, content: bytes) -> MedserveError:
        """The worker is our own: its errors are ours, by their code and with their words."""
        try:
            error = loads(content)["error"]
            kind = by_code(error["type"], MedserveError)
            return (kind or EngineError)(error["message"], param=error.get("param"))
        except (ValueError, KeyError, TypeError):
            return refusal(status, content)

    async def _kin(self, _request: GenerationRequest) -> str | None:
        """Nobody takes turns: the worker reads once what questions have in common, and answers them together."""
        return None

    # --- the dialect -----------------------------------------------------------------------------------------------

    async def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body = {**await super()._body(request), "raw_prefix": True, "banned_tokens": thinking.banned(request)}
        if request.choices:
            body["structured_outputs"] = {"choice": request.choices}
        return body

    async def _message(self, message: Message) -> dict[str, Any]:
        """Every part as it is: the worker trims each as Gemma's template does, and then makes control tokens data."""
        return {"role": message.role, "content": [await self._part(part) for part in message.parts]}

    async def _part(self, part: Part) -> dict[str, Any]:
        return {"type": "text", "text": part} if isinstance(part, str) else await super()._part(part)

    def _piece(self, data: Mapping[str, Any]) -> Piece:
        details = (data.get("usage") or {}).get("prompt_tokens_details") or {}
        return replace(super()._piece(data), image=details.get("image_tokens"), encodes=details.get("encodes", 0))

    async def _usage(self, _request: GenerationRequest, known: Piece) -> Usage:
        """What the worker counted."""
        self.vision_encodes += known.encodes
        return Usage(known.prompt or 0, known.completion or 0, known.cached or 0, known.image or 0, known.encodes)

    async def prompt_ids(self, request: GenerationRequest) -> tuple[int | None, ...]:
        """The tokens of the whole prompt; see `ShowsPrompt`."""
        said = await self._post("/tokenize", await self._body(request), self._deadline())
        async with self._translated():
            return tuple(said["ids"])

    async def count(self, text: str) -> int:
        """The number of a text's tokens; see `Counts`."""
        return int((await self._post("/tokenize", {"content": text}, self._deadline()))["count"])

    async def score(self, request: GenerationRequest, labels: Sequence[str]) -> LabelScores:
        """log P(label, end of turn | prompt) for each label, from the raw logits of all its tokens, in one pass.

        A label follows the prefix as text: the two are tokenised together, so that "Answer: " and "yes" make the
        tokens that the model knows. `usage` counts the prompt once. Where thinking is forbidden, the probabilities are
        those of a model that cannot begin to think.
        """
        refuse_senseless(labels)
        self.check(replace(request, schema=None, choices=()))
        refuse_thinking(request)
        deadline = self._deadline()
        async with self._place(request, deadline):
            body = {**await self._body(request), "labels": list(labels)}
            said = await self._post("/v1/score", body, deadline)
        async with self._translated():
            usage = await self._usage(request, self._piece(said))
            logprobs = dict(zip(labels, map(float, said["logprobs"]), strict=True))
        return LabelScores(logprobs, usage, seconds(said["timings"]))
