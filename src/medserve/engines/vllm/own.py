"""A vLLM of our own is started, watched, and ended where its engine has died; nobody else can reach it."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from medserve import footprint
from medserve.engines import Capabilities, Outlook, refuse_unused
from medserve.engines._parity import certified
from medserve.engines._worker import WorkerEngine, capabilities, ended_on_failure, ready
from medserve.engines.vllm.arguments import further
from medserve.engines.vllm.dialect import Vllm
from medserve.errors import EngineError, ModelFailed, WeightsMissing, WorkerCrashed
from medserve.footprint import Need
from medserve.generation import Chunk, GenerationRequest, LabelScores
from medserve.process import Child
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread

WORKER = "medserve.workers.vllm"
READER = "medserve.workers.vllm.plan"
PROBE_SECONDS = 10.0


async def start(model: ModelSpec, settings: Settings) -> "OwnVllm":
    """The model on a vLLM that a worker starts; raises ModelFailed, which says why and what to do."""
    child = await Child.start(WORKER, order(model, settings), seconds=settings.limits.load_seconds)
    async with ended_on_failure(child):
        able = replace(capabilities("vllm", child.facts, model), thinking=True, batches=True)
        judged, refusal = await certified(able, settings)
        if able.vision is None:  # a model without vision has no need of a certificate
            judged = able
        engine = OwnVllm(model, child, judged, refusal, seconds=settings.limits.answer_seconds)
    return await ready(engine)


def order(model: ModelSpec, settings: Settings) -> dict[str, Any]:
    """What a worker is told of the model that it is to run; raises ModelFailed for settings that it could not obey."""
    if model.path is None:
        raise WeightsMissing(f"{model.name} has no path; name its folder of safetensors, or a url", param="path")
    if model.quantise is not None:
        raise ModelFailed(
            f"quantise of {model.name} is for the transformers engine; here vLLM's own ways go among `arguments`, such "
            "as --quantization fp8",
            param="quantise",
        )
    refuse_unused(model, "python", "precision", "device", "parallel", "arguments")
    return {
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


async def examine(model: ModelSpec, settings: Settings) -> Outlook:
    """The folder, and the build of vLLM that the model's python has; see `Examine`."""
    seen = await in_thread(footprint.asked, READER, order(model, settings))
    where = "the processor" if seen["cpu"] else "GPUs, whose memory it shares out itself"
    return Outlook(f"vLLM {seen['build']} computes on {where}", Need.of(seen["need"]))


class OwnVllm(Vllm, WorkerEngine):
    """A model on a vLLM that a worker of ours started and watches."""

    def __init__(
        self, model: ModelSpec, child: Child, capabilities: Capabilities, refusal: str, *, seconds: float
    ) -> None:
        WorkerEngine.__init__(self, model, child, capabilities, seconds=seconds)
        self._served = child.facts["served"]
        self._unseeing = refusal

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
