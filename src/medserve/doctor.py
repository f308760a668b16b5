"""What this machine can run and what stands in the way, in plain words and without starting a model.

Of each model its engine is asked what it would refuse (`engines.Examine`); a server behind a model is asked who it is.
"""

import asyncio
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medserve import engines, machine
from medserve.engines import Outlook
from medserve.errors import ModelBusy, ModelError, ModelFailed, ModelLoading, WeightsMissing
from medserve.hub import fitting, picking
from medserve.hub.store import Pulled, Store
from medserve.residency import GIB
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread

SERVER_SECONDS = 5.0
"""How long a server may take to say who it is; it does not compute for that."""

NEEDED_FOR_MEDGEMMA = 6 * GIB
"""Memory from which MedGemma 4B is recommended.

Its Q4_0 file with vision was measured at 3.7 GB resident with a context of 4096 tokens, which is the "about 4 GiB" told
below; the system and a longer context take the rest.
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is in order, and what to do if it is not."""

    what: str
    good: bool
    words: str


async def examine_machine(settings: Settings) -> list[Check]:
    """All checks, the general ones first, then one for each declared or pulled model.

    Servers are asked at the same time, files are read by as many processes as there are cores.
    """
    kept = await in_thread(Store(settings.home).kept)
    pulled = {model.name: model for model in kept.models}
    readers = asyncio.Semaphore(machine.processors())
    return [
        *await in_thread(_general),
        *(Check("pulled models", False, fault) for fault in kept.faults),
        *await asyncio.gather(*(_model(spec, pulled.get(spec.name), settings, readers) for spec in settings.models)),
    ]


def _general() -> list[Check]:
    """What is looked at whatever the models are."""
    return [_python(), _processor(), _memory(), _disk(), _engine(), _transformers(), _gpus(), _hub()]


def _python() -> Check:
    return Check("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _processor() -> Check:
    return Check("processor", True, f"{machine.processors()} core(s); the llama.cpp engine uses them, no GPU is needed")


def _memory() -> Check:
    total = machine.memory_total()
    fits = "the demonstration model" if total < NEEDED_FOR_MEDGEMMA else "MedGemma 4B as Q4 GGUF (needs about 4 GiB)"
    return Check("memory", total > GIB / 2, f"{total / GIB:.1f} GiB; enough for {fits}")


def _disk() -> Check:
    """Never an obstacle: the demonstration model is on the disk already.

    Files of MedGemma 4B with the vision part: 3.3 GB as Q4_K_M, 5.0 GB as Q8_0, 8.6 GB in bf16.
    """
    free = shutil.disk_usage(Path.cwd()).free
    return Check("disk", True, f"{free / GIB:.0f} GiB free here; the files of MedGemma 4B take 3 to 9 GiB")


def _engine() -> Check:
    try:
        return Check("llama.cpp engine", True, f"xllamacpp {version('xllamacpp')} is installed")
    except PackageNotFoundError:
        return Check("llama.cpp engine", False, "xllamacpp is not installed; run: pip install medserve")


def _transformers() -> Check:
    """Never an obstacle: GGUF files do without it. Nothing of it is imported here."""
    try:
        found = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    except PackageNotFoundError:
        return Check("transformers engine", True, f"not installed; for models in safetensors run: {picking.INSTALL}")
    return Check("transformers engine", True, f"{' and '.join(found)} are installed")


def _gpus() -> Check:
    """Never an obstacle: the llama.cpp engine does without."""
    gpus = machine.gpus()
    named = ", ".join(f"{gpu.name} with {gpu.total_bytes / GIB:.0f} GiB" for gpu in gpus.devices)
    return Check("GPU", True, named or gpus.reason)


def _hub() -> Check:
    """Never an obstacle: MedGemma's GGUF files need no token. The token itself is not shown."""
    from medserve.hub.remote import Hub  # the client takes a while to import

    hub = Hub()
    token = "a token is there" if hub.has_token else "no HF_TOKEN, which only repositories behind terms need"
    return Check("model hub", True, f"{hub.endpoint}; {token}; downloads go to {hub.cache}")


async def _model(spec: ModelSpec, pulled: Pulled | None, settings: Settings, readers: asyncio.Semaphore) -> Check:
    what = f"model {spec.name}"
    try:
        held = await in_thread(_engine_of, spec, pulled)
        turn: AbstractAsyncContextManager[None] = _patience() if spec.url is not None else readers
        async with turn:
            outlook = await _examined(spec, settings)
    except (ModelLoading, ModelBusy) as error:
        return Check(what, True, f"{error.message}; who asks it waits for it")
    except ModelError as error:
        return Check(what, False, error.message)
    choices = pulled.choices if pulled else ()
    obstacle = fitting.obstacle(outlook.need, settings, choices) if outlook.need else None
    takes = f"takes {outlook.need.words}" if outlook.need else ""
    said = "; ".join(filter(None, (held, outlook.words, takes, outlook.warning, obstacle)))
    return Check(what, not outlook.warning and obstacle is None, said)


def _engine_of(spec: ModelSpec, pulled: Pulled | None) -> str:
    """Which engine runs a model and why; raises ModelFailed where that engine or the model's files are not here."""
    engines.find(spec.engine)
    files = [path for path in (spec.path, spec.projector) if path is not None]
    if missing := [str(path) for path in files if not _is_there(path)]:
        mend = f"pull it again: medserve pull {pulled.repo}" if pulled and pulled.repo else "check the paths"
        raise WeightsMissing(f"not there: {' and '.join(missing)}; {mend}")
    picking.runnable(spec)
    if spec.path is None and spec.url is None:
        return f"runs on the {spec.engine} engine without files of its own"
    choice = picking.choose(spec)
    return f"runs on the {spec.engine} engine" + (f": {choice.reason}" if choice.engine == spec.engine else "")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that this user may not look into
        return False


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Asking a server ends in time, even where that takes the question and never answers."""
    try:
        async with asyncio.timeout(SERVER_SECONDS):
            yield
    except TimeoutError:
        raise ModelFailed(
            f"its server does not answer within {SERVER_SECONDS:g} seconds; check that it runs, and the url",
            param="url",
        ) from None


async def _examined(spec: ModelSpec, settings: Settings) -> Outlook:
    """What the model's engine knows of it before it starts; nothing where it looks at nothing."""
    examine = engines.examiner(spec.engine)
    return await examine(spec, settings) if examine is not None else Outlook()
