"""The work of a batch on a real database: what goes wrong with one item is told of that item, whatever it is."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from medserve import engines
from medserve.api import batching, chat, kept, later, lines
from medserve.database import Database
from medserve.engines import Capabilities
from medserve.errors import MedserveError, ModelFailed, WeightsCorrupt, WeightsMissing, WorkerCrashed
from medserve.generation import Chunk, GenerationRequest
from medserve.jobs import Job, JobState, Work
from medserve.jobs.ledger import ATTEMPTS, Ledger
from medserve.jobs.record import new_id
from medserve.models import Models
from medserve.settings import Limits, ModelSpec, Settings
from tests.api.conftest import Slow

pytestmark = pytest.mark.anyio

ITEMS = 4
CHOSEN = {"workflow": "dermoscopy", "model": "script", "options": {}, "temperature": 0.0, "seed": None}


@asynccontextmanager
async def begun(home: Path, picture: Path, *, crashes: int = 0) -> AsyncIterator[tuple[Work, Ledger, Models, Settings]]:
    """A batch of the same picture, taken by a gateway after some others died of it."""
    settings = Settings(home=home, models=(ModelSpec(name="script", engine="scripted", replies=("Round.",) * 500),))
    database = await Database.opened(settings)
    ledger, models = Ledger(database, days=1, lease=60), Models(settings)
    items = [{"custom_id": str(place), "kinds": ["file"]} for place in range(ITEMS)]
    order = CHOSEN | {"endpoint": "/v1/workflows/dermoscopy", "parallel": 2, "items": items}
    job = Job(new_id(), "batch", "", JobState.QUEUED, 1.0, total=ITEMS, order=order)
    await ledger.add(job, most=9, home="", folder=None, files=0)
    for _ in range(crashes):
        await ledger.claim(["batch"], "", "dead")
        await ledger.take_back(["dead"])
    claimed = await ledger.claim(["batch"], "", "alive")
    assert claimed is not None
    yield Work(claimed, (picture,) * ITEMS, ledger), ledger, models, settings
    await models.close()
    await database.close()


async def results(ledger: Ledger, work: Work) -> list[Mapping[str, Any]]:
    return [json.loads(result) for _, result in await ledger.items(work.job.id)]


async def test_an_item_that_ends_the_process_is_given_up_and_the_others_are_done(
    tmp_path: Path, dermoscopy: Path
) -> None:
    """On the last attempt, because the attempts before it were alone with it."""
    async with begun(tmp_path, dermoscopy, crashes=ATTEMPTS - 1) as (work, ledger, models, settings):
        await batching.run(work, models, settings)
        found = await results(ledger, work)
        job = await ledger.get(work.job.id, "")

    assert [None, 200, 200, 200] == [line["response"] and line["response"]["status_code"] for line in found]
    assert "interrupted" == found[0]["error"]["code"]
    assert (ITEMS, 1) == (job.done, job.attempts)


async def test_after_a_crash_items_are_done_one_at_a_time(
    tmp_path: Path, dermoscopy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the one that ends the process is known; before it, as many as were asked for."""
    most: list[int] = []
    for crashes in (0, 1):
        counted = Counted()
        monkeypatch.setattr(kept, "examined", counted)
        async with begun(tmp_path / str(crashes), dermoscopy, crashes=crashes) as (work, _, models, settings):
            with pytest.raises(ModelFailed):
                await batching.run(work, models, settings)
        most.append(counted.most)
    assert [2, 1] == most


@pytest.mark.parametrize(
    ("error", "told"),
    [(WorkerCrashed("the worker ended"), (503, "worker_crashed")), (ValueError("Mustermann"), (500, "internal_error"))],
)
async def test_whatever_goes_wrong_with_an_item_is_its_own_result(
    tmp_path: Path,
    dermoscopy: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: tuple[int, str],
) -> None:
    """A bug too, of which nothing is told but where to look."""
    examined = kept.examined
    asked = 0

    async def once_wrong(*given: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise error
        return await examined(*given, **named)

    monkeypatch.setattr(kept, "examined", once_wrong)
    async with begun(tmp_path, dermoscopy, crashes=1) as (work, ledger, models, settings):
        await batching.run(work, models, settings)
        found = await results(ledger, work)
    assert [200, told[0], 200, 200] == [line["response"]["status_code"] for line in found]
    assert told[1] == found[1]["response"]["body"]["error"]["code"]
    assert "Mustermann" not in json.dumps(found)


async def test_a_model_that_cannot_be_loaded_fails_the_batch_and_not_each_item(
    tmp_path: Path, dermoscopy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand times the same error would help nobody, and what is not done can be done when the model is back."""

    async def no_weights(*_given: Any, **_named: Any) -> Any:
        raise WeightsMissing("there is no file of weights")

    monkeypatch.setattr(kept, "examined", no_weights)
    async with begun(tmp_path, dermoscopy) as (work, ledger, models, settings):
        with pytest.raises(WeightsMissing):
            await batching.run(work, models, settings)
        assert [] == await results(ledger, work)


class Counted:
    """Counts how many examinations run at once, and fails the batch at the end of the first ones."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __call__(self, *_given: Any, **_named: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.05)
        self.now -= 1
        raise ModelFailed("counted")


@asynccontextmanager
async def asking(home: Path, *models: str) -> AsyncIterator[tuple[batching.Requests, Models]]:
    """A batch file with a question to each of these models in turn; a failed load rests for a moment only."""
    file = home / "requests"
    bodies = [{"model": model, "messages": [{"role": "user", "content": "hello"}]} for model in models]
    asked = [{"custom_id": "a", "method": "POST", "url": chat.PATH, "body": body} for body in bodies]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    specs = tuple(ModelSpec(name=name) for name in dict.fromkeys(models))
    settings = Settings(home=home, models=specs, default_model=models[0], limits=Limits(retry_seconds=0.05))
    loaded = Models(settings)
    async with batching._service("", loaded, settings) as service:
        yield batching.Requests(file, lines.spans(file, settings.limits), service, chat.PATH), loaded
    await loaded.close()


class Broken:
    """Starts models; the first loads of the one that is called `broken` fail, and those of others do not."""

    def __init__(self, loads: float) -> None:
        self.loads = loads
        self.begun: list[str] = []

    async def __call__(self, model: ModelSpec, _settings: Settings) -> Slow:
        self.begun.append(model.name)
        if model.name == "broken" and self.begun.count("broken") <= self.loads:
            raise WeightsCorrupt("the file is cut short", param="model")
        return Slow(pieces=1, between=0.0, capabilities=Capabilities(context=4096))


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch waits four times in all for a model that goes on failing."""
    monkeypatch.setattr(later, "LONGEST_PAUSE", 0.125)
    monkeypatch.setattr(later, "FAILING_SECONDS", 0.5)


@pytest.mark.usefixtures("short_waits")
async def test_a_model_that_failed_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rests before it is loaded again, and a batch file of thousands was answered with errors in that time."""
    broken = Broken(loads=2)
    monkeypatch.setattr(engines, "find", lambda _name: broken)
    async with asking(tmp_path, *["broken"] * 3) as (requests, _):
        done = [await requests.do(place) for place in range(3)]

    assert [200] * 3 == [one.line["response"]["status_code"] for one in done]
    assert ["broken"] * 3 == broken.begun


@pytest.mark.usefixtures("short_waits")
async def test_a_model_that_goes_on_failing_costs_its_items_the_wait_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end with the reason; another model's are answered, and so are its own once it was mended."""
    broken, waits, pause = Broken(loads=float("inf")), [], asyncio.sleep

    async def counted(seconds: float) -> None:
        waits.append(seconds)
        await pause(seconds)

    monkeypatch.setattr(engines, "find", lambda _name: broken)
    async with asking(tmp_path, *["broken"] * 30, "sound", "broken") as (requests, models):
        monkeypatch.setattr("medserve.api.later.asyncio.sleep", counted)
        done = [await requests.do(place) for place in range(31)]
        assert {"broken"} == requests.given_up
        broken.loads = 0
        models.get("broken").retry()
        done.append(await requests.do(31))
        assert set() == requests.given_up

    errors = [one.line["response"]["body"]["error"] for one in done[:30]]
    assert {"weights_corrupt"} == {error["code"] for error in errors}
    assert all(error["message"].startswith("the file is cut short") for error in errors)
    assert [503] * 30 + [200] * 2 == [one.line["response"]["status_code"] for one in done]
    assert [True] * 30 + [False] * 2 == [one.failed for one in done]
    assert 4 == waits.count(0.125)


@pytest.mark.parametrize(("crashes", "told"), [(later.CRASHES - 1, 200), (later.CRASHES, 503)])
async def test_a_request_whose_worker_ended_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: int, told: int
) -> None:
    """As a study is: one crash among ten thousand requests costs none of them its answer."""

    class Crashing(Slow):
        def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
            nonlocal crashes
            crashes -= 1
            self.failure = WorkerCrashed("the worker ended") if crashes >= 0 else None
            return super().stream(request)

    async def started(_model: ModelSpec, _settings: Settings) -> Slow:
        return Crashing(pieces=1, between=0.0, capabilities=Capabilities(context=4096))

    monkeypatch.setattr(engines, "find", lambda _name: started)
    monkeypatch.setattr(later, "LONGEST_PAUSE", 0.0)
    async with asking(tmp_path, "slow") as (requests, _):
        done = await requests.do(0)

    assert (told, told != 200) == (done.line["response"]["status_code"], done.failed)
    assert done.failed is ("error" in done.line["response"]["body"])


async def test_what_passes_by_itself_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full waiting room is no reason to fail; a worker that crashes again and again is one."""
    monkeypatch.setattr(later, "PAUSE_SECONDS", 0.0)
    asked: list[type[MedserveError]] = []

    async def ask(errors: list[type[MedserveError]]) -> str:
        if errors:
            asked.append(errors[0])
            raise errors.pop(0)("for now")
        return "at last"

    busy: list[type[MedserveError]] = [*later.PATIENCE, *later.PATIENCE]
    assert "at last" == await later.patiently(lambda: ask(busy))
    assert 6 == len(asked)
    crashes: list[type[MedserveError]] = [WorkerCrashed] * 9
    with pytest.raises(WorkerCrashed):
        await later.patiently(lambda: ask(crashes))
    assert 9 - later.CRASHES == len(crashes)
