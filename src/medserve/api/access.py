"""What a route needs from the application it belongs to: settings, models, the caller, and one model ready to answer.

The functions are asynchronous though they wait for nothing, because FastAPI runs others in a thread.
"""

import asyncio
from typing import Annotated, Any

from fastapi import Depends, Request

from medserve.errors import ModelLoading, ScopeMissing
from medserve.jobs import Jobs
from medserve.keys import Caller, Scope
from medserve.models import ModelHandle, Models
from medserve.settings import Settings


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # put there by the door
    return caller


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


SettingsOf = Annotated[Settings, Depends(_settings)]
ModelsOf = Annotated[Models, Depends(_models)]
JobsOf = Annotated[Jobs, Depends(_jobs)]
CallerOf = Annotated[Caller, Depends(_caller)]


def needs(scope: Scope) -> Any:
    """A dependency for routes that only keys with `scope` may use; raises ScopeMissing for others."""

    async def check(caller: CallerOf) -> None:
        if not caller.may(scope):
            raise ScopeMissing(f"the key does not cover this; it takes a key with the scope {scope}")

    return Depends(check)


async def held(handle: ModelHandle, settings: Settings) -> ModelHandle:
    """The model once it is loaded; a request is held for `limits.hold_seconds`, then told to come again."""
    try:
        async with asyncio.timeout(settings.limits.hold_seconds):
            await handle.ready()
    except TimeoutError:
        words = f"{handle.name} is still loading; ask again later"
        raise ModelLoading(words, param="model", retry_after=handle.loaded_in) from None
    return handle
