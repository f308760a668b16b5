"""The work of a batch: item by item, each with its own result, and none that is done is ever done again."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from medserve import serialised
from medserve.api import chat, kept, later, lines
from medserve.api.errors import Unforeseen, handle_errors
from medserve.api.watch import SILENT
from medserve.errors import InvalidRequest, MedserveError, ModelFailed, UnknownJob, WorkerCrashed, by_code
from medserve.jobs import Job, Jobs, Work
from medserve.keys import Caller
from medserve.keys import Scope as KeyScope
from medserve.models import Models
from medserve.settings import Settings
from medserve.threads import in_thread

log = structlog.get_logger()

KIND = "batch"
"""What the jobs are called that are batches."""
ENDPOINTS = {chat.PATH: chat.completions}
"""What the requests of a batch file may ask: what answers them answers anybody."""
PASSING = (*later.PATIENCE, ModelFailed, WorkerCrashed)
"""What may be otherwise when a request is put again."""
NEVER_ANSWERED = (
    "interrupted",
    "the service ended each time while it worked on this item, which is not tried again; its log may say why",
)


@dataclass(frozen=True)
class Done:
    """The result of an item as a line, and whether it failed."""

    line: Mapping[str, Any]
    failed: bool


class Items(Protocol):
    """The items of one batch, by their places."""

    async def name(self, place: int) -> str:
        """The caller's own name for an item."""
        ...

    async def do(self, place: int) -> Done:
        """Do one item; what goes wrong with it is its result. Raises ModelFailed, which is about all of them."""
        ...


@dataclass(frozen=True)
class Studies:
    """Studies for a workflow."""

    names: Sequence[str]
    studies: Sequence[kept.Kept]
    chosen: kept.Chosen
    models: Models
    settings: Settings

    async def name(self, place: int) -> str:
        return self.names[place]

    async def do(self, place: int) -> Done:
        name = self.names[place]
        try:
            report = await kept.examined(self.chosen, self.studies[place], self.models, self.settings)
        except ModelFailed:
            raise
        except MedserveError as error:
            return Done(lines.refused(name, error), failed=True)
        return Done(lines.written(name, 200, kept.as_result(report)), failed=False)


@dataclass(frozen=True)
class Requests:
    """Requests of a batch file, each put to the route that it names.

    A model that failed is waited for, or thousands of requests would get its error while it rests before the next load.
    One that goes on failing is in `given_up`: further requests for it are asked once, and the first answer ends that.
    """

    file: Path
    places: Sequence[lines.Span]
    service: httpx.AsyncClient
    endpoint: str
    given_up: set[str] = field(default_factory=set)

    async def name(self, place: int) -> str:
        return (await in_thread(lines.read, self.file, self.places[place])).custom_id

    async def do(self, place: int) -> Done:
        request = await in_thread(lines.read, self.file, self.places[place])
        if request.body.get("stream"):
            error = InvalidRequest("stream is not honoured in a batch; leave it out", param="stream")
            return Done(lines.refused(request.custom_id, error), failed=True)
        model = str(request.body.get("model"))
        patience = 0.0 if model in self.given_up else later.FAILING_SECONDS
        try:
            answer = await later.patiently(lambda: self._answered(request.body), failing=patience)
        except (ModelFailed, WorkerCrashed) as error:
            if isinstance(error, ModelFailed) and error.retry_after is not None:
                self.given_up.add(model)
            return Done(lines.refused(request.custom_id, error), failed=True)
        if answer.is_success:
            self.given_up.discard(model)
        line = lines.written(request.custom_id, answer.status_code, lines.parsed(answer.content))
        return Done(line, failed=not answer.is_success)

    async def _answered(self, body: Mapping[str, Any]) -> httpx.Response:
        """The answer, whatever it is; raises what refused it where that may pass by itself."""
        sent, headers = await serialised.written(body), {"Content-Type": "application/json"}
        answer = await self.service.post(self.endpoint, content=sent, headers=headers)
        if not answer.is_success:
            told, pause = lines.parsed(answer.content)["error"], answer.headers.get("Retry-After")
            kind = by_code(told["code"], MedserveError)
            if kind is not None and issubclass(kind, PASSING):
                raise kind(told["message"], param=told["param"], retry_after=pause and float(pause))
        return answer


async def found(jobs: Jobs, identifier: str, owner: str) -> Job:
    """The owner's batch; raises UnknownJob, for jobs of other kinds too."""
    job = await jobs.get(identifier, owner)
    if job.kind != KIND:
        raise UnknownJob("there is no such batch; GET /v1/batches lists yours", param="id")
    return job


async def run(work: Work, models: Models, settings: Settings) -> dict[str, Any]:
    """Every item that has no result yet; what ended the service before is first done alone, and then given up."""
    done = await work.places()
    missing = [place for place in range(work.job.total) if place not in done]
    async with _service(work.job.owner, models, settings) as service:
        items = await _items(work, service, models, settings)
        if work.last_attempt and missing:
            place = missing.pop(0)
            await work.item(place, lines.unanswered(await items.name(place), *NEVER_ANSWERED), failed=True)
        together = 1 if work.resumed else work.order.get("parallel", 1)
        await _each(items, iter(missing), work, together)
    return {"total": work.job.total}


async def _each(items: Items, places: Iterator[int], work: Work, together: int) -> None:
    async def some() -> None:
        for place in places:
            try:
                result = await items.do(place)
            except ModelFailed:  # it would fail every other item as well
                raise
            except Exception as error:
                log.error("batch.item_broke", job=work.job.id, exc_info=error)
                bug = MedserveError("an unexpected error; the log of the service says where")
                result = Done(lines.refused(await items.name(place), bug), failed=True)
            await work.item(place, result.line, failed=result.failed)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(some())
    except ExceptionGroup as errors:  # the first one is what happened
        raise errors.exceptions[0] from None


async def _items(work: Work, service: httpx.AsyncClient, models: Models, settings: Settings) -> Items:
    order = work.order
    if "workflow" not in order:
        places = await in_thread(lines.spans, work.files[0], settings.limits)
        return Requests(work.files[0], places, service, order["endpoint"])
    files = iter(work.files)
    taken = [kept.Kept(tuple(next(files) for _ in item["kinds"]), tuple(item["kinds"])) for item in order["items"]]
    names = [item["custom_id"] for item in order["items"]]
    return Studies(names, taken, kept.Chosen.of(order), models, settings)


def _service(owner: str, models: Models, settings: Settings) -> httpx.AsyncClient:
    """A client of the very routes that answer everybody, without a network between, for the batch's owner."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    app.state.settings, app.state.models = settings, models
    for path, endpoint in ENDPOINTS.items():
        app.add_api_route(path, endpoint, methods=["POST"])
    handle_errors(app)
    app.add_middleware(Unforeseen)
    called = _Calling(app, Caller(owner, "", frozenset({KeyScope.USE})))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=called), base_url="http://batch", timeout=None)  # noqa: S113 - the job has a limit


class _Calling:
    """ASGI middleware: every request is this caller's."""

    def __init__(self, app: ASGIApp, caller: Caller) -> None:
        self._app = app
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["caller"] = self._caller
        await self._app(scope, receive, send)
