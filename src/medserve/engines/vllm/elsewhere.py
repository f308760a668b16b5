"""The vLLM that somebody else runs is used for what it tells and shows of itself, and left running."""

import asyncio
import re
from dataclasses import replace

from medserve.engines import SERVER, Capabilities, Outlook, refuse_unused
from medserve.engines._parity import certified
from medserve.engines._server import connected, fingerprint
from medserve.engines._server.patience import patiently
from medserve.engines._server.served import MEDGEMMA_SIDE, Served, chosen, got, plain, usable
from medserve.engines.vllm.dialect import Vllm
from medserve.errors import EngineError, InvalidRequest, ModelFailed
from medserve.imaging import raster
from medserve.imaging.preprocess import VisionInput
from medserve.settings import DEMO, ModelSpec, Settings
from medserve.tcp_http import TcpClient
from medserve.threads import in_thread

DRAWING = DEMO / "sight-a.png"
VERSION = re.compile(r"[\w.+!-]{1,100}")


async def start(model: ModelSpec, settings: Settings) -> Vllm:
    """The vLLM at the model's `url`; raises ModelFailed with what to mend."""
    refuse_unused(model, *SERVER)
    client = connected(model)
    try:
        return await _met(model, client, settings)
    except BaseException:
        await client.aclose()
        raise


async def examine(model: ModelSpec, settings: Settings) -> Outlook:
    """What the vLLM tells of itself, and whether it would be shown pictures; see `Examine`."""
    refuse_unused(model, *SERVER)
    client = connected(model)
    try:
        version, served = await told(client, model, asyncio.get_running_loop().time())
    finally:
        await client.aclose()
    _, refusal = await certified(_capabilities(model, version, served), settings)
    mend = f"pictures are refused: {refusal}; mend it and run: medserve verify {model.name}" if refusal else ""
    return Outlook(f"it is vLLM {version}; {served.words}", warning=mend)


async def _met(model: ModelSpec, client: TcpClient, settings: Settings) -> Vllm:
    until = asyncio.get_running_loop().time() + settings.limits.load_seconds
    version, served = await told(client, model, until)
    able, refusal = await certified(_capabilities(model, version, served), settings)
    engine = Vllm(model, client, able, refusal, seconds=settings.limits.answer_seconds, served=served.name)
    try:
        await engine.introduce()
    except (EngineError, InvalidRequest):  # its /tokenize is not to be had, as behind somebody's proxy
        engine.capabilities = replace(engine.capabilities, score=False, thinking=False)
    if not refusal:
        await engine.look(await raster.read(await in_thread(DRAWING.read_bytes), settings.limits))
    return engine


async def told(client: TcpClient, model: ModelSpec, until: float) -> tuple[str, Served]:
    """The version of the vLLM at an address, and what it says of the model; raises ModelFailed where it is none."""
    with usable(model):
        said = await patiently(lambda: got(client, "/version"), until)
        version = said.get("version") if isinstance(said, dict) else None
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise ModelFailed(
                f"no vLLM answers at the url of {model.name}; for other servers use the engine openai", param="url"
            )
        return version, await chosen(client, model, until)


def _capabilities(model: ModelSpec, version: str, served: Served) -> Capabilities:
    """What vLLM honours; how many tokens a picture takes is seen later."""
    facts = {
        "engine": "vllm",
        "build": f"vllm {version}",
        "weights": plain(served.name),
        "resample": model.resample,
        "address_fingerprint": fingerprint(model),
    }
    return Capabilities(
        context=served.context or model.context,
        vision=VisionInput(MEDGEMMA_SIDE, model.resample),
        schema=True,
        choices=True,
        logprobs=True,
        score=True,
        prefix=True,
        thinking=True,
        batches=True,
        facts=tuple(sorted(facts.items())),
    )
