"""The settings that a command works with, after what was given on its line."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medserve.errors import InvalidRequest

if TYPE_CHECKING:
    from medserve.settings import ModelSpec, Settings


def settings(**given: Any) -> "Settings":
    """The settings, with what was given on the command line; raises InvalidRequest that names the setting at fault."""
    from tomllib import TOMLDecodeError

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from medserve.hub.store import declared
    from medserve.settings import Settings

    try:
        return declared(Settings(**given))
    except ValidationError as error:
        first = error.errors()[0]
        place, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        where = f"setting {place}" if place else "the settings"
        raise InvalidRequest(f"{where}: {said}", param=place or "settings") from None
    except (SettingsError, TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the settings cannot be read: {error}", param="settings") from None


def with_model(
    settings: "Settings", model: str, projector: Path | None, context: int | None, threads: int | None
) -> "Settings":
    """The settings with `model` as the default: a declared or pulled name, or what is declared by being named."""
    from medserve.settings import ModelSpec

    is_file = model.lower().endswith(".gguf")
    named = None if is_file or not model else _named(settings, model)
    for name, value in (("mmproj", projector), ("context", context), ("threads", threads)):
        if value is not None and not is_file and (named is None or name == "mmproj"):
            raise InvalidRequest(
                f"--{name} belongs to a GGUF file given with --model; of a declared model it is set in the settings",
                param=name,
            )
    if not model:
        return settings
    if named is not None:
        given = {"context": context, "threads": threads}
        named = named.model_copy(update={field: value for field, value in given.items() if value is not None})
        return _with_default(settings, named)
    if not is_file:
        return _with_declared(settings, model)
    path = Path(model)
    for file in (path, projector):
        if file is not None and not file.is_file():
            raise InvalidRequest(f"there is no file {file}", param="model")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem)
    spec = ModelSpec(name=name, path=path, projector=projector, threads=threads)
    spec = spec.model_copy(update={"context": context}) if context is not None else spec
    return _with_default(settings, spec)


def _with_default(settings: "Settings", spec: "ModelSpec") -> "Settings":
    others = tuple(other for other in settings.models if other.name != spec.name)
    return settings.model_copy(update={"models": (spec, *others), "default_model": spec.name})


def _named(settings: "Settings", model: str) -> "ModelSpec | None":
    """What a pulled model's name, a folder or an address means, with the engine for it; None for anything else.

    A model that the settings declare by that name stands before one that was pulled.
    """
    from medserve.hub import picking
    from medserve.hub.store import Store

    declared = {spec.name: spec for spec in settings.models}
    pulled = {entry.name: entry.spec for entry in Store(settings.home).kept().models}
    if model in declared and declared[model] != pulled.get(model):
        return None
    return picking.spec_of(model, settings)


def _with_declared(settings: "Settings", model: str) -> "Settings":
    if model not in [spec.name for spec in settings.models]:
        known = ", ".join(spec.name for spec in settings.models)
        raise InvalidRequest(
            f"no model is called {model!r}; declared are {known}. Fetch one with: medserve pull 1.5-4b, or give a "
            ".gguf file, a folder or an address",
            param="model",
        )
    return settings.model_copy(update={"default_model": model})
