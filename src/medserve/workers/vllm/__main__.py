"""The process that starts vLLM: nobody reaches that vLLM but through a socket in a private folder, and it ends with us.

Run by `medserve.process`, which describes the protocol.
"""

import asyncio
import json
import re
import shutil
import sys
from typing import Any

import httpx

from medserve import machine
from medserve.errors import MedserveError, ModelFailed
from medserve.unix_http import UnixClient
from medserve.workers.transformers.folder import Examined
from medserve.workers.vllm import family
from medserve.workers.vllm.build import Build
from medserve.workers.vllm.command import SERVED, command
from medserve.workers.vllm.family import Family
from medserve.workers.vllm.log import Log, explained
from medserve.workers.vllm.parent import AsyncParent
from medserve.workers.vllm.plan import planned
from medserve.workers.vllm.spec import Spec
from medserve.workers.vllm.warden import Warden

POLL_SECONDS = 0.1
ANSWER_SECONDS = 10.0


def main() -> None:
    """Start vLLM as standard input says, say so, and watch over it until one of the two ends."""
    parent = AsyncParent.taken()
    spec = Spec.of(json.loads(sys.stdin.readline()))
    family.adopt()
    warden = Warden(spec.directory)
    try:
        status = asyncio.run(_run(spec, parent, warden))
    finally:
        warden.dismiss()
        family.reap()
        shutil.rmtree(spec.directory, ignore_errors=True)
    sys.exit(status)


async def _run(spec: Spec, parent: AsyncParent, warden: Warden) -> int:
    """Serve until vLLM ends, or standard input does; the exit status."""
    serving = asyncio.create_task(_serve(spec, parent, warden))
    left = asyncio.create_task(parent.listen())
    await asyncio.wait({serving, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    serving.cancel()
    try:
        await serving
    except asyncio.CancelledError:
        return 0
    except MedserveError as error:
        parent.fail(error)
    return 1


async def _serve(spec: Spec, parent: AsyncParent, warden: Warden) -> None:
    """From files to a server that answers, and on until it ends; raises ModelFailed with the reason why it cannot."""
    parent.tell("looking for vLLM")
    plan = await planned(spec)
    await parent.ask_for(plan.memory_bytes)
    parent.tell("starting vLLM")
    log = Log(parent.tell)
    arguments = command(spec, plan.found, plan.build, plan.precision)
    async with family.started(arguments, plan.inherits, spec.directory, warden=warden, follow=log.follow) as vllm:
        await _opened(vllm, log, UnixClient(str(spec.socket)))
        parent.say({"ready": facts(spec, plan.found, plan.build, plan.precision, log.attention)})
        await vllm.ended()


async def _opened(vllm: Family, log: Log, client: UnixClient) -> None:
    """Return once it answers; raises ModelFailed with its own reason when it ends instead."""
    while not await _answers(client):
        if vllm.status is not None:
            await vllm.heard()
            raise ModelFailed(explained(vllm.status, log.lines))
        await asyncio.sleep(POLL_SECONDS)
    log.close()


async def _answers(client: UnixClient) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await client.get("/health")).status_code == httpx.codes.OK
    except (TimeoutError, httpx.HTTPError):
        return False


def facts(spec: Spec, found: Examined, build: Build, precision: str, attention: str) -> dict[str, Any]:
    """What is served, for the record."""
    vision = found.vision
    return {
        "socket": str(spec.socket),
        "served": SERVED,
        "context": found.context,
        "vision": {"size": vision.size, "tokens": vision.tokens} if vision else None,
        "record": {
            "weights": found.title,
            "fingerprint": found.fingerprint,
            "parameters": str(found.parameters),
            "precision": precision,
            "build": f"vllm {build.vllm}",
            "torch": build.torch,
            "python": build.python,
            "context": str(found.context),
            "vocabulary": str(found.text.vocabulary),
            "architecture": found.architecture,
            "trained_context": str(found.text.trained_context),
            "devices": "CPU" if build.cpu else _gpus(spec),
            "parallel": str(spec.parallel),
            **({"attention": attention} if attention else {}),
            **({"arguments": " ".join(spec.arguments)} if spec.arguments else {}),
        },
    }


def _gpus(spec: Spec) -> str:
    """The names of the GPUs that it computes on, as the driver gives them."""
    number = re.fullmatch(r"cuda:(\d+)", spec.device)
    first = int(number[1]) if number else 0
    return ",".join(gpu.name for gpu in machine.gpus().devices[first : first + spec.parallel]) or "GPU"


if __name__ == "__main__":
    main()
