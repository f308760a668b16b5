"""What dialects share: turns become messages, a question several answers, and errors name the right field."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.api import conversation
from medserve.api.conversation import Turn, answers, refuse_unable, renamed, thought_tokens
from medserve.api.streaming import begun, together
from medserve.engines import Capabilities
from medserve.errors import ContextOverflow, EngineError, InvalidRequest, MedserveError, ModelBusy, NotSupported
from medserve.generation import Chunk, Finish, GenerationRequest, Message, Result, Sampling, Usage
from medserve.models import ModelHandle
from medserve.settings import ModelSpec, Settings
from tests.api.conftest import Slow
from tests.pictures import picture

HELLO = (Message("user", ("hello",)),)


async def numbers(count: int, running: set[int], name: int) -> AsyncGenerator[int, None]:
    """So many numbers, each after a pause; `running` holds the name while they come."""
    running.add(name)
    try:
        for number in range(count):
            await asyncio.sleep(0.001)
            yield number
    finally:
        running.discard(name)


async def failing(error: Exception) -> AsyncGenerator[int, None]:
    """One number, and then a failure."""
    yield 0
    raise error


def handle_of(engine: Slow) -> ModelHandle:
    """A handle that starts this engine."""

    async def start(_model: ModelSpec, _settings: Settings) -> Slow:
        return engine

    return ModelHandle(ModelSpec(name="slow", slots=2), Settings(), start)


# --- several streams at once ---------------------------------------------------------------------------------------


async def test_streams_come_interleaved_each_in_its_own_order() -> None:
    """Nothing is lost, and no stream waits for another to end."""
    running: set[int] = set()
    async with aclosing(together([numbers(20, running, name) for name in range(3)], at_once=3)) as pieces:
        told = [piece async for piece in pieces]

    for name in range(3):
        assert list(range(20)) == [number for index, number in told if index == name]
    assert {0, 1, 2} == {index for index, _ in told[:9]}


async def test_no_more_streams_run_than_there_are_places() -> None:
    """The third begins when one of the two has ended."""
    running: set[int] = set()
    most = 0
    async with aclosing(together([numbers(5, running, name) for name in range(4)], at_once=2)) as pieces:
        async for _ in pieces:
            most = max(most, len(running))

    assert 2 == most


async def test_one_failure_ends_all_streams_and_is_raised() -> None:
    """What the others still had to say is not made any more."""
    running: set[int] = set()
    streams = [numbers(1000, running, 0), failing(ModelBusy("full")), numbers(1000, running, 2)]
    with pytest.raises(ModelBusy):
        [piece async for piece in together(streams, at_once=3)]

    assert set() == running


async def test_leaving_early_ends_all_streams() -> None:
    """A reader who goes away leaves nothing running."""
    running: set[int] = set()
    async with aclosing(together([numbers(1000, running, name) for name in range(3)], at_once=3)) as pieces:
        await anext(pieces)

    assert set() == running


async def test_what_fails_before_the_first_piece_is_raised_before_anything_is_said() -> None:
    """So that it can still be told by the status line."""

    async def broken() -> AsyncGenerator[int, None]:
        raise ContextOverflow("too long")
        yield 0

    with pytest.raises(ContextOverflow):
        await anext(begun(broken()))


async def test_a_stream_that_was_waited_for_begins_and_ends_where_its_reader_stops() -> None:
    """The work of a reader who leaves before the first piece is cancelled."""
    running: set[int] = set()
    async with aclosing(begun(numbers(3, running, 1))) as pieces:
        assert [None, 0, 1, 2] == [piece async for piece in pieces]
    async with aclosing(begun(numbers(1000, running, 1))) as pieces:
        assert await anext(pieces) is None
        assert {1} == running

    assert set() == running


# --- answers -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 8))
def test_every_answer_has_a_seed_of_its_own_and_the_first_the_callers(seed: int, n: int) -> None:
    """The same call gives the same seeds; the highest number counts as the one below it, as llama.cpp takes it."""
    request = GenerationRequest(HELLO, sampling=Sampling(seed=seed))
    seeds = [conversation._numbered(request, index).sampling.seed for index in range(n)]

    assert seed == seeds[0]
    assert n == len({min(one, 2**32 - 2) for one in seeds if one is not None})
    assert seeds == [conversation._numbered(request, index).sampling.seed for index in range(n)]


def test_without_a_seed_none_is_invented() -> None:
    """Chance stays chance."""
    request = GenerationRequest(HELLO, sampling=Sampling(temperature=1.0))

    assert conversation._numbered(request, 3).sampling.seed is None


async def test_answers_end_together_and_every_one_is_whole() -> None:
    """Three answers on two slots."""
    engine = Slow(pieces=3, between=0.0, capabilities=Capabilities(context=4096))
    results = [Result()] * 3
    async with aclosing(answers(handle_of(engine), GenerationRequest(HELLO), {}, 3)) as pieces:
        async for index, chunk in pieces:
            results[index] = results[index].plus(chunk)

    assert 3 == engine.finished
    assert ["so so so "] * 3 == [result.text for result in results]


@pytest.mark.parametrize(("seed", "most"), [(None, 2), (7, 1)])
async def test_answers_with_a_seed_are_written_one_after_another(seed: int | None, most: int) -> None:
    """What is computed together differs in its last bits, and a seed is given to get the same again."""
    engine, seen = Slow(pieces=3, between=0.001, capabilities=Capabilities(context=4096)), 0
    request = GenerationRequest(HELLO, sampling=Sampling(temperature=1.0, seed=seed))
    async for _ in answers(handle_of(engine), request, {}, 3):
        seen = max(seen, engine.running)

    assert most == seen


@pytest.mark.parametrize(
    ("wanted", "param"),
    [({"schema": {"type": "object"}}, "schema"), ({"top_logprobs": 0}, "top_logprobs"), ({"prefix": "A"}, "prefix")],
)
async def test_what_the_engine_cannot_honour_is_refused_before_it_is_asked(
    wanted: dict[str, object], param: str
) -> None:
    """Whether or not the engine itself would have looked; the dialect's own name is told."""
    engine = Slow(capabilities=Capabilities(context=4096))
    request = GenerationRequest(HELLO, **wanted)  # type: ignore[arg-type]  # the parameters of the test
    with pytest.raises(NotSupported) as refused:
        await anext(answers(handle_of(engine), request, {param: "the.field"}))

    assert ("the.field", "unsupported_parameter") == (refused.value.param, refused.value.code)
    assert 0 == engine.running


def test_who_sends_a_picture_to_a_blind_model_is_told_what_it_lacks() -> None:
    """Not only that it cannot be done, and not that a part is missing where a certificate speaks against the build."""
    asked = GenerationRequest((Message("user", (picture(), "hello")),))
    with pytest.raises(NotSupported, match=r"takes no images: it has no vision part.*mmproj file"):
        refuse_unable("model", Capabilities(context=4096), asked)
    with pytest.raises(NotSupported, match=r"`medserve verify` found that its build does not answer"):
        refuse_unable("model", Capabilities(context=4096, facts=(("parity", "failed 2026-11-20"),)), asked)
    with pytest.raises(NotSupported, match=r"probed at its server and is not honoured: alike"):
        refuse_unable("model", Capabilities(4096, facts=(("probed_vision", "not honoured: alike"),)), asked)


def test_an_able_engine_is_not_refused() -> None:
    """Nothing is raised."""
    able = Capabilities(context=4096, schema=True, logprobs=True, prefix=True)
    refuse_unable("model", able, GenerationRequest(HELLO, schema={}, top_logprobs=1, prefix="A"))


def test_an_error_keeps_its_kind_and_its_patience_under_another_name() -> None:
    """Only the field is renamed; what has no other name stays the very same error."""
    error = ModelBusy("full", param="messages", retry_after=7.0)
    told = renamed(error, {"messages": "input"})

    assert (ModelBusy, "input", 7.0) == (type(told), told.param, told.retry_after)
    assert renamed(error, {"schema": "x"}) is error
    assert renamed(EngineError("no field"), {"messages": "input"}).param is None


class Counting(Slow):
    """An engine that counts words for tokens."""

    async def count(self, text: str) -> int:
        return len(text.split())


async def test_tokens_of_thinking_are_counted_and_never_guessed() -> None:
    """None, all, counted anew, or unknown: as far as it can be known."""
    usage = Usage(completion=9)
    said = Result(text="yes", thinking="let me see", finish=Finish.STOP, usage=usage)

    assert 0 == await thought_tokens(handle_of(Slow()), Result(text="yes", usage=usage))
    assert 9 == await thought_tokens(handle_of(Slow()), Result(thinking="let me", usage=usage))
    assert 3 == await thought_tokens(handle_of(Counting(capabilities=Capabilities(context=4096))), said)
    assert await thought_tokens(handle_of(Slow(capabilities=Capabilities(context=4096))), said) is None


# --- turns ---------------------------------------------------------------------------------------------------------


async def test_several_system_turns_become_the_one_that_gemma_knows() -> None:
    """In their order, with an empty line between."""
    turns = [Turn("system", ("A",)), Turn("developer", ("B",)), Turn("user", ("hello",))]
    read = await conversation.read(turns, Settings())

    assert (Message("system", ("A", "\n\n", "B")), *HELLO) == read.messages
    assert {} == read.headers


async def test_a_system_turn_in_the_middle_is_not_moved() -> None:
    """It is refused by the question, which says what turns there may be."""
    turns = [Turn("user", ("hello",)), Turn("system", ("A",)), Turn("user", ("hello",))]
    read = await conversation.read(turns, Settings())

    with pytest.raises(InvalidRequest, match="in turn"):
        GenerationRequest(read.messages)


async def test_too_many_words_are_refused_under_the_dialects_name() -> None:
    """Before anything is read."""
    with pytest.raises(MedserveError) as refused:
        await conversation.read([Turn("user", ("x" * 400_001,))], Settings(), "input")

    assert "input" == refused.value.param


async def test_a_chunk_without_words_is_passed_on() -> None:
    """The last one carries the reason and the counts."""
    engine = Slow(pieces=0, capabilities=Capabilities(context=4096))
    told = [piece async for piece in answers(handle_of(engine), GenerationRequest(HELLO), {})]

    assert [(0, Chunk(finish=Finish.STOP, usage=Usage(3, 0)))] == told
