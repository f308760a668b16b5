"""The promises of planning: what fits is let through, and what does not is told how much would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.engines.scripted import Scripted
from medserve.errors import ContextOverflow, InvalidRequest
from medserve.examination import examine
from medserve.generation import GenerationRequest, Message, Part, collect
from medserve.models import Models
from medserve.planning import SLACK, THOUGHT, check, fewest_tokens, plan
from medserve.settings import DEMO_MODEL, ModelSpec, Settings
from medserve.workflows import find
from tests.pictures import drawn, picture


def test_a_full_series_fits_into_medgemmas_context() -> None:
    """85 slices of 256 tokens with their labels, as the model's recipe has it."""
    room = plan(85, context=131_072, image_tokens=256, label_tokens=5, text=300, answer=2048)

    assert 85 * 261 + 300 + 2048 + SLACK == room.needed(85)


def test_too_many_slices_are_told_how_many_would_fit() -> None:
    """The number in the message is the largest that fits."""
    with pytest.raises(ContextOverflow, match="28 would fit") as caught:
        plan(85, context=8192, image_tokens=256, label_tokens=5, text=300, answer=500)

    assert "images" == caught.value.param
    plan(28, context=8192, image_tokens=256, label_tokens=5, text=300, answer=500)
    with pytest.raises(ContextOverflow):
        plan(29, context=8192, image_tokens=256, label_tokens=5, text=300, answer=500)


@pytest.mark.parametrize(
    ("pictures", "text", "answer", "param"),
    [(0, 10, 3000, "max_tokens"), (0, 3000, 10, "messages"), (1, 10, 1900, "max_tokens")],
)
def test_words_or_answers_that_are_too_long_are_named(pictures: int, text: int, answer: int, param: str) -> None:
    """Sending fewer slices is no remedy where the words alone are too many."""
    with pytest.raises(ContextOverflow) as caught:
        plan(pictures, context=2048, image_tokens=256, text=text, answer=answer)

    assert param == caught.value.param
    assert "would fit" not in caught.value.message


@pytest.mark.parametrize(
    ("thought", "answer", "text", "param"),
    [
        (1500, 500, 100, THOUGHT),
        (3000, 1000, 1100, THOUGHT),
        (500, 1000, 1500, "messages"),
        (20, 3000, 10, "max_tokens"),
    ],
)
def test_a_thought_that_is_too_long_is_named(thought: int, answer: int, text: int, param: str) -> None:
    """Where all else would fit without it, or where it is the longest part; so much of it would fit as is said."""
    with pytest.raises(ContextOverflow) as caught:
        plan(0, context=2048, image_tokens=256, text=text, answer=thought + answer, thought=thought)

    assert param == caught.value.param
    if "tokens at most" in caught.value.message:
        most = int(caught.value.message.split(" tokens at most")[0].rsplit(" ", 1)[1])
        assert 2048 == plan(0, context=2048, image_tokens=256, text=text, answer=most + answer, thought=most).needed(0)


def test_pictures_that_leave_no_room_to_think_are_told_so() -> None:
    """Fewer slices would do, and so would less thought: seven slices fit beside the answer alone."""
    plan(7, context=2048, image_tokens=256, text=40, answer=100)
    with pytest.raises(ContextOverflow, match="1792 for pictures, 300 to think") as caught:
        plan(7, context=2048, image_tokens=256, text=40, answer=400, thought=300)

    assert THOUGHT == caught.value.param


def test_a_text_has_at_least_a_token_and_at_most_its_characters() -> None:
    """An estimate that never refuses what fits."""
    assert [0, 1, 1, 2] == [fewest_tokens("xy" * (length // 2)) for length in (0, 2, 16, 18)]


def test_a_run_of_one_character_may_be_one_token() -> None:
    """Gemma has tokens for long runs of spaces, line breaks and dashes; they must not make a text seem long."""
    assert 1 == fewest_tokens("a" + " " * 10_000 + "b" + "\n" * 10_000)


@given(
    pictures=st.integers(0, 200),
    context=st.integers(256, 131_072),
    tokens=st.integers(1, 1024),
    text=st.integers(0, 5000),
    answer=st.integers(1, 8192),
)
def test_what_is_said_to_fit_fits(pictures: int, context: int, tokens: int, text: int, answer: int) -> None:
    """Never a token over the context, and never a picture less than there is room for."""
    try:
        room = plan(pictures, context=context, image_tokens=tokens, text=text, answer=answer)
    except ContextOverflow:
        return
    assert room.needed(pictures) <= context
    assert pictures <= room.pictures
    assert room.needed(room.pictures + 1) > context


def series(slices: int, words: str = "What is there?", answer: int = 500) -> GenerationRequest:
    """A question about a volume, as the recipe has it."""
    parts: list[Part] = []
    for number in range(1, slices + 1):
        parts += [picture(number % 200), f"SLICE {number}"]
    return GenerationRequest((Message("user", (*parts, words)),), max_tokens=answer)


def scripted(context: int) -> Models:
    """A script behind a model's handle, with a context of this size."""
    return Models(Settings(models=(ModelSpec(name="s", engine="scripted", context=context, replies=("yes",) * 9),)))


async def test_a_volume_that_is_too_long_is_refused_before_the_engine_is_asked() -> None:
    """The message says how many slices would fit, and so many do fit."""
    handle = scripted(8192).get()
    with pytest.raises(ContextOverflow, match=r"([0-9]+) would fit") as caught:
        await collect(handle.stream(series(85)))
    fits = int(caught.value.message.split(" would fit")[0].rsplit(" ", 1)[1])

    engine = await handle.ready()
    assert isinstance(engine, Scripted)
    assert not engine.history
    assert 25 <= fits <= 31
    assert "yes" == (await collect(handle.stream(series(fits)))).text
    with pytest.raises(ContextOverflow):
        await collect(handle.stream(series(fits + 1)))


async def test_a_workflow_meets_the_same_check() -> None:
    """One place for chat and workflows: the first question is not asked."""
    with pytest.raises(ContextOverflow, match="larger context"):
        await examine(find("dermoscopy"), drawn("lesion-nv"), scripted(256).get())


async def test_a_score_meets_the_same_check() -> None:
    """Label probabilities are prompts too."""
    with pytest.raises(ContextOverflow):
        await scripted(1024).get().score(series(10), ("yes", "no"))


async def test_an_engine_that_counts_is_believed() -> None:
    """An estimate would refuse a text that fits, and let none pass that does not."""
    asked = []

    async def count(text: str) -> int:
        asked.append(len(text))
        return 900

    request = GenerationRequest((Message("user", ("x" * 6000,)),), max_tokens=64)
    await check(request, context=1024, image_tokens=256, count=count)
    with pytest.raises(ContextOverflow, match=r"900 for the words, .* for the answer and 16 to spare"):
        await check(request, context=960, image_tokens=256, count=count)
    await check(request, context=1024, image_tokens=256)
    with pytest.raises(ContextOverflow, match="2000 for the words"):
        await check(series(1, "x" * 6000, answer=64), context=1024, image_tokens=256)
    assert [6000, 6000] == asked


async def test_a_short_text_is_not_counted() -> None:
    """Its bytes are bound enough."""

    async def never(_text: str) -> int:
        raise AssertionError

    await check(series(2), context=2048, image_tokens=256, count=never)


@settings(deadline=None)
@given(words=st.text(max_size=300), context=st.integers(256, 2048))
async def test_no_text_makes_the_check_stumble(words: str, context: int) -> None:
    """Whatever is written, it fits or it is said not to."""
    try:
        request = GenerationRequest((Message("user", (words,)),), max_tokens=64)
    except InvalidRequest:
        return
    try:
        assert (await check(request, context=context, image_tokens=256)).needed(0) <= context
    except ContextOverflow:
        return


async def test_what_is_said_to_fit_fits_into_the_real_model() -> None:
    """The demonstration model's own count of the prompt, and the answer, stay within its context."""
    models = Models(Settings(models=(DEMO_MODEL,)))
    handle = models.get()
    words, answer = "What is there? " * 60, 8
    try:
        engine = await handle.ready()
        each = engine.capabilities.image_tokens
        many = engine.capabilities.context // each + 1
        with pytest.raises(ContextOverflow, match="would fit") as caught:
            await collect(handle.stream(series(many, words, answer)))
        fits = int(caught.value.message.split(" would fit")[0].rsplit(" ", 1)[1])
        usage = (await collect(handle.stream(series(fits, words, answer)))).usage
    finally:
        await models.close()

    assert each * fits <= usage.image
    assert usage.prompt + answer <= engine.capabilities.context
    assert usage.prompt + answer + 3 * each > engine.capabilities.context * 0.85
