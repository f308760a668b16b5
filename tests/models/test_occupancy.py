"""A model rests when nobody uses it, is told to be idle when that lasts, and is never told so while it is used."""

from contextvars import ContextVar
from time import monotonic, time

from medserve.models.occupancy import Occupancy
from tests.models.conftest import Passes

IDLE_SECONDS = 600.0
request: ContextVar[str] = ContextVar("request", default="none")


class Model:
    """Its occupancy, and in the words of which request it was told to be idle."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self.told: list[str] = []
        self.occupancy = Occupancy(idle_seconds, lambda: self.told.append(request.get()), monotonic)


async def test_who_rests_for_the_idle_time_is_told_so_once(passes: Passes) -> None:
    """And not before."""
    model = Model()
    model.occupancy.rest()
    await passes(IDLE_SECONDS - 1)
    assert [] == model.told

    await passes(2)
    assert ["none"] == model.told

    await passes(10 * IDLE_SECONDS)
    assert ["none"] == model.told


async def test_it_is_no_affair_of_the_last_request(passes: Passes) -> None:
    """The log would else tell of a request what happened an hour after it."""
    model = Model()
    request.set("the last one")
    model.occupancy.rest()
    await passes(IDLE_SECONDS + 1)

    assert ["none"] == model.told


async def test_a_lease_ends_the_rest(passes: Passes) -> None:
    """Nobody is told to be idle at work, however long that is."""
    model = Model()
    model.occupancy.rest()
    with model.occupancy.lease():
        model.occupancy.rest()
        assert (1, None, None) == (
            model.occupancy.leases,
            model.occupancy.resting_since,
            model.occupancy.idle_since,
        )
        await passes(10 * IDLE_SECONDS)

    assert (0, []) == (model.occupancy.leases, model.told)


async def test_it_rests_when_the_last_of_its_users_has_gone(passes: Passes) -> None:
    """The first to go changes nothing, even when it goes by an error."""
    model = Model()
    with model.occupancy.lease():
        try:
            with model.occupancy.lease():
                raise ZeroDivisionError
        except ZeroDivisionError:
            model.occupancy.rest()
        await passes(IDLE_SECONDS + 1)
        assert (1, []) == (model.occupancy.leases, model.told)
    model.occupancy.rest()
    await passes(IDLE_SECONDS + 1)

    assert (0, ["none"]) == (model.occupancy.leases, model.told)


async def test_since_when_it_rests_is_known_by_both_clocks() -> None:
    """By one that never goes back, to compare models by, and by that of the wall, to be told."""
    model = Model()
    before = monotonic(), time()
    model.occupancy.rest()
    after = monotonic(), time()

    assert before[0] <= (model.occupancy.resting_since or 0) <= after[0]
    assert before[1] <= (model.occupancy.idle_since or 0) <= after[1]
    model.occupancy.end_rest()


async def test_each_use_begins_the_idle_time_anew(passes: Passes) -> None:
    """What counts is the time since the last one."""
    model = Model()
    for _ in range(4):
        with model.occupancy.lease():
            pass
        model.occupancy.rest()
        await passes(IDLE_SECONDS - 1)
    assert [] == model.told

    await passes(2)
    assert ["none"] == model.told


async def test_no_idle_time_is_never(passes: Passes) -> None:
    """It rests all the same, so that it can make room for others."""
    model = Model(idle_seconds=0)
    model.occupancy.rest()
    await passes(1e6)

    assert model.occupancy.resting_since is not None
    assert [] == model.told


async def test_a_model_that_is_gone_is_told_nothing(passes: Passes) -> None:
    """Another may have been loaded since, which has its own rest."""
    model = Model()
    model.occupancy.rest()
    model.occupancy.end_rest()
    await passes(IDLE_SECONDS + 1)

    assert (None, []) == (model.occupancy.resting_since, model.told)
