"""The scripted engine says what it was given, and nothing else."""

import pytest

from medserve.engines import scripted
from medserve.engines.scripted import Reply, Scripted
from medserve.errors import EngineError, NotSupported
from medserve.generation import Finish, Usage, collect
from medserve.settings import ModelSpec, Settings
from tests.engines.subjects import ask, picture

pytestmark = pytest.mark.anyio


async def test_replies_come_in_order() -> None:
    """The replies of the settings are said one after another, and the requests are kept."""
    engine = await scripted.start(ModelSpec(name="s", engine="scripted", replies=("one", "two")), Settings())

    answers = [(await collect(engine.stream(ask(question)))).text for question in ("a?", "b?")]

    assert answers == ["one", "two"]
    assert [request.messages[0].parts for request in engine.history] == [("a?",), ("b?",)]


async def test_an_empty_script_says_how_long_it_was() -> None:
    """When no reply is left the error says how many there were, and quotes no question."""
    engine = Scripted(["one"])
    await collect(engine.stream(ask("first")))

    with pytest.raises(EngineError, match="script of 1 replies has none left"):
        await collect(engine.stream(ask("secret question")))


async def test_a_reply_outside_the_choices_is_an_error() -> None:
    """A script that breaks the request's rules is a mistake in the script."""
    with pytest.raises(EngineError, match="none of the choices"):
        await collect(Scripted(["perhaps"]).stream(ask("?", choices=("yes", "no"))))


async def test_replies_are_found_by_question() -> None:
    """Given questions, the order does not matter."""
    engine = Scripted({"colour?": "brown", "shape?": "round"})

    answers = [(await collect(engine.stream(ask(picture(1), question)))).text for question in ("shape?", "colour?")]

    assert answers == ["round", "brown"]


async def test_thinking_is_split() -> None:
    """A plain reply is read as a model's words are."""
    result = await collect(Scripted(["<unused94>thought\nhm<unused95>brown"]).stream(ask("?")))

    assert (result.text, result.thinking) == ("brown", "hm")


async def test_a_record_is_replayed_word_for_word() -> None:
    """A recorded reply keeps its finish, usage and thinking whatever the request's limits are."""
    record = Reply("a b c d", "hm", Finish.LENGTH, usage=Usage(9, 4, 0, 4, 1))

    result = await collect(Scripted([record]).stream(ask("?", max_tokens=2, stop=("b",))))

    assert (result.text, result.thinking, result.finish, result.usage) == ("a b c d", "hm", Finish.LENGTH, record.usage)


async def test_recorded_scores_belong_to_the_question_just_answered() -> None:
    """Words and label scores of one question come from one record."""
    engine = Scripted([Reply("yes", label_logprobs={"yes": -0.1, "no": -2.5}), "next"])
    question = ask("?")
    await collect(engine.stream(question))

    scores = await engine.score(question, ["no", "yes"])

    assert scores.logprobs == {"no": -2.5, "yes": -0.1}
    assert (await collect(engine.stream(ask("!")))).text == "next"


async def test_plain_text_has_no_scores() -> None:
    """A probability is never made up."""
    with pytest.raises(NotSupported):
        await Scripted(["yes"]).score(ask("?"), ["yes", "no"])
