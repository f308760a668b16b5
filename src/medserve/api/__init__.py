"""The gateway: one asyncio application that stays up whatever a model does, and holds no model code itself."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from medserve import __version__, tracing, workflows
from medserve.api import routes
from medserve.api.access import needs
from medserve.api.bodies import hoisted
from medserve.api.door import Door, Marked, guarded
from medserve.api.errors import Unforeseen, handle_errors
from medserve.api.limits import BodyLimit, LoopbackOnly, OwnPages, Unread, crossing, is_loopback
from medserve.api.watch import SILENT, Watch
from medserve.database import Database
from medserve.jobs import Jobs, Runner
from medserve.keys import Keyring, Keys, Scope
from medserve.models import Models
from medserve.reports import NOTICE
from medserve.settings import Settings
from medserve.threads import in_thread


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; its lifespan loads the models and gives them back.

    Raises InvalidRequest where a workflow cannot be used: a service that silently lacks one would answer 404.
    """

    tracing.check(settings)
    workflows.check(settings.workflow_folder)
    local = is_loopback(settings.host)
    unguarded = local or settings.open_to_network

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await in_thread(tracing.start, settings)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(in_thread, tracing.stop)
            database = await Database.opened(settings)
            stack.push_async_callback(database.close)
            ring = Keyring(Keys(database), open_without=unguarded, file=settings.admin_key_file)
            app.state.keyring = await stack.enter_async_context(ring.watched())
            app.state.models = models = Models(settings)
            stack.push_async_callback(models.close)
            app.state.jobs = jobs = await Jobs.opened(database, models, settings, runners)
            stack.push_async_callback(jobs.close)
            models.preload()
            jobs.start()
            yield

    # FastAPI's own pages of documentation load scripts from the internet, which a hospital's machine must not do.
    app = _Gateway(
        title="medserve",
        version=__version__,
        description=f"Self-hosted MedGemma: images in, checked reports out. {NOTICE}",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # its own route would make the document on the event loop
        telemetry=SILENT,
    )
    app.state.settings = settings
    runners: dict[str, Runner] = {}
    for module in sorted(info.name for info in iter_modules(routes.__path__)):
        family = import_module(f"{routes.__name__}.{module}")
        app.include_router(family.router, dependencies=[needs(getattr(family, "SCOPE", Scope.USE))])
        runners |= getattr(family, "RUNNERS", {})
    handle_errors(app)
    # The innermost first.
    app.add_middleware(BodyLimit, limit=settings.limits.body_bytes, seconds=settings.limits.request_seconds)
    app.add_middleware(Unread)
    app.add_middleware(Door)
    app.add_middleware(LoopbackOnly if local else OwnPages, origins=settings.origins)
    app.add_middleware(Unforeseen)
    if settings.origins:
        app.add_middleware(CORSMiddleware, **crossing(settings.origins))
    app.add_middleware(Watch)
    app.add_middleware(Marked, tls=settings.tls_in_front)
    return app


class _Gateway(FastAPI):
    """The application, whose OpenAPI document names shared parts once and tells how keys are shown."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made when it is first asked for."""
        if self.openapi_schema is None:
            made = get_openapi(title=self.title, version=self.version, description=self.description, routes=self.routes)
            self.openapi_schema = guarded(hoisted(made))
        return self.openapi_schema
