"""Which models exist and what state each is in: told apart honestly, loaded when asked, unloaded when not needed.

`handle.py` is a model and its life: `loading.py` brings its engine up, `occupancy.py` counts who uses it, `setbacks.py`
says when it may be tried again after failures, `demand.py` what memory it will ask for, `status.py` what is told.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from medserve import engines, metrics
from medserve.engines import Weights
from medserve.errors import InvalidRequest, ModelFailed, UnknownModel
from medserve.models.handle import ModelHandle
from medserve.models.status import State, Status
from medserve.residency import Room
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread

__all__ = ["ModelHandle", "Models", "State", "Status"]

log = structlog.get_logger()

SECRETS = ("key_variable", "key_file", "ca", "python", "arguments")
"""What only the settings may say of a model: with a request, they would send this machine's secrets to any address, or
run any program on it."""


class Models:
    """All models by name: those that the settings declare, and those that were added since."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._room = Room(settings.limits.memory_bytes)
        self._handles = {spec.name: ModelHandle(spec, settings, room=self._room) for spec in settings.models}
        self._default = settings.default

    def get(self, name: str | None = None) -> ModelHandle:
        """The model of that name, or the default; raises UnknownModel, which says which names exist."""
        try:
            return self._handles[name or self._default]
        except KeyError:
            known = ", ".join(self._handles)
            raise UnknownModel(f"no model has that name; there are: {known}", param="model") from None

    def __iter__(self) -> Iterator[ModelHandle]:
        return iter(tuple(self._handles.values()))

    def preload(self) -> None:
        """Begin to load what the settings want loaded from the start, and keep it so when its worker ends.

        A failure is kept in the model's state.
        """
        for handle in self:
            if handle.spec.preload or (self._settings.preload and handle.name == self._default):
                handle.kept = True
                handle.begin()

    async def weigh(self) -> None:
        """Look again at the memory that every loaded model holds."""
        for handle in self:
            await handle.weigh()

    async def add(self, spec: ModelSpec) -> ModelHandle:
        """One more model, until the service ends; raises InvalidRequest that names the field at fault."""
        _check_secrets(spec)
        await in_thread(_check_files, spec)
        if spec.name in self._handles:
            raise InvalidRequest("a model has that name already; remove it or take another name", param="name")
        if spec.url is not None and not spec.url.startswith(("http://", "https://")):
            raise InvalidRequest("url must begin with http:// or https://", param="url")
        try:
            handle = ModelHandle(spec, self._settings, room=self._room)
        except ModelFailed as error:
            raise InvalidRequest(error.message, param="engine") from None
        self._handles[spec.name] = handle
        log.info("model.added", model=spec.name, engine=spec.engine)
        if spec.preload:
            handle.kept = True
            handle.begin()
        return handle

    async def remove(self, name: str) -> None:
        """Unload a model that was added and forget it; raises InvalidRequest for one that the settings declare."""
        handle = self.get(name)
        if name in {spec.name for spec in self._settings.models}:
            raise InvalidRequest(
                f"{name} is declared in the settings and cannot be removed; unload it, or take it out of the settings "
                "and start again",
                param="name",
            )
        await handle.remove()
        self._handles.pop(name, None)
        metrics.forget(name)
        log.info("model.removed", model=name)

    async def close(self) -> None:
        await asyncio.gather(*(handle.close() for handle in self))


def _check_secrets(spec: ModelSpec) -> None:
    for name in SECRETS:
        if getattr(spec, name):
            raise InvalidRequest(f"{name} can be said in the settings only; declare the model there", param=name)


def _check_files(spec: ModelSpec) -> None:
    """Files that a request names are named in full and exist; where the service was started plays no part.

    Whether a path names a file or a folder is for the engine to say.
    """
    for name, path, kind in (("path", spec.path, _kind(spec)), ("projector", spec.projector, Weights.FILE)):
        if path is not None and not path.is_absolute():
            raise InvalidRequest(f"{name} must be absolute, such as /srv/models/weights.gguf", param=name)
        if path is not None and not _is_there(path, kind):
            takes = f"{kind} on the machine of the service; the engine {spec.engine} takes a {kind}"
            raise InvalidRequest(
                f"{name} names no {takes if kind else 'file and no folder on the machine of the service'}", param=name
            )


def _kind(spec: ModelSpec) -> Weights | None:
    with suppress(ModelFailed):  # an engine that is none is told of by who would start it
        return engines.weights(spec.engine)
    return None


def _is_there(path: Path, kind: Weights | None) -> bool:
    looks: dict[Weights | None, Callable[[], bool]] = {
        Weights.FILE: path.is_file,
        Weights.FOLDER: path.is_dir,
        None: lambda: path.is_file() or path.is_dir(),
    }
    try:
        return looks[kind]()
    except OSError:  # too long a name, or a folder that is not ours to look into
        return False
