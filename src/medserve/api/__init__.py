"""The gateway: one asyncio application that stays up whatever a model does, and holds no model code itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from medserve import __version__
from medserve.api import routes
from medserve.api.bodies import hoisted
from medserve.api.errors import Unforeseen, handle_errors
from medserve.api.limits import BodyLimit, LoopbackOnly, is_loopback
from medserve.models import Models
from medserve.reports import NOTICE
from medserve.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; its lifespan loads the models and gives them back."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.models = models = Models(settings)
        if settings.preload:
            models.preload()
        try:
            yield
        finally:
            await models.close()

    # FastAPI's own pages of documentation load scripts from the internet, which a hospital's machine must not do.
    app = FastAPI(
        title="medserve",
        version=__version__,
        description=f"Self-hosted MedGemma: images in, checked reports out. {NOTICE}",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    for module in sorted(info.name for info in iter_modules(routes.__path__)):
        app.include_router(import_module(f"{routes.__name__}.{module}").router)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    handle_errors(app)
    app.add_middleware(BodyLimit, limit=settings.limits.body_bytes)
    if is_loopback(settings.host):
        app.add_middleware(LoopbackOnly)
    app.add_middleware(Unforeseen)
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made when it is first asked for."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        app.openapi_schema = hoisted(made)
    return app.openapi_schema
