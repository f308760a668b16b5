"""What a route needs from the application it belongs to: the settings, the models, and one model ready to answer."""

import asyncio
from typing import Annotated

from fastapi import Depends, Request

from medserve.errors import ModelLoading
from medserve.models import ModelHandle, Models
from medserve.settings import Settings


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


SettingsOf = Annotated[Settings, Depends(_settings)]
ModelsOf = Annotated[Models, Depends(_models)]


async def held(handle: ModelHandle, settings: Settings) -> ModelHandle:
    """The model once it is loaded; a request is held for `limits.hold_seconds`, then told to come again."""
    try:
        async with asyncio.timeout(settings.limits.hold_seconds):
            await handle.ready()
    except TimeoutError:
        raise ModelLoading(f"{handle.name} is still loading; ask again later", param="model") from None
    return handle
