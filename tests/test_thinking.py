"""The two stages of an answer with thinking are made of the request alone, whatever is thought or asked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve import planning, thinking
from medserve.errors import ContextOverflow
from medserve.generation import Chunk, Finish, GenerationRequest, Message, Result, Timings, Usage
from medserve.text import CLOSING, LABEL, OPENING, ThinkingSplitter, neutralise
from tests.engines.subjects import ask, picture

ANY = st.lists(st.sampled_from([*"ab <>\n{}", OPENING, CLOSING, LABEL, "<end_of_turn>"]), max_size=20).map("".join)
"""Words with everything among them that a model reads as more than a word."""

BOUND = {"prefix": "It is", "stop": ("x",), "schema": {"type": "string"}, "top_logprobs": 3}


def test_the_thought_is_bound_by_nothing_that_is_asked_of_the_answer() -> None:
    """Its stop text is the mark that closes it; its length is the budget."""
    stage = thinking.first_stage(ask("Which colour?", thinking=7, **BOUND))

    assert (7, (CLOSING,)) == (stage.max_tokens, stage.stop)
    assert ("", None, (), None) == (stage.prefix, stage.schema, stage.choices, stage.top_logprobs)
    assert OPENING + LABEL == thinking.beginning(stage)
    assert () == thinking.banned(stage)


def test_the_answer_keeps_every_wish_and_what_is_left_of_the_tokens() -> None:
    """Twenty-four in all, of which the thought took five."""
    request = ask("Which colour?", thinking=7, **BOUND)
    stage = thinking.second_stage(request, Result(thinking="Hm.", usage=Usage(completion=5)))

    assert 19 == stage.max_tokens
    assert ("It is", ("x",), {"type": "string"}, 3) == (stage.prefix, stage.stop, stage.schema, stage.top_logprobs)
    assert f"{OPENING}{LABEL}Hm.{CLOSING}It is" == thinking.beginning(stage)


@settings(deadline=None)  # the machine may be under load
@given(thought=ANY, prefix=ANY)
def test_a_thought_is_closed_once_whatever_stands_in_it(thought: str, prefix: str) -> None:
    """Marks among its words, or in a prefix, are data; no other control token is in the beginning of the answer."""
    request = ask("Which colour?", thinking=7, prefix=prefix)
    begun = thinking.beginning(thinking.second_stage(request, Result(thinking=thought)))

    assert begun.startswith(OPENING + LABEL)
    assert f"{OPENING}{LABEL}{neutralise(thought)}{CLOSING}{neutralise(prefix)}" == begun
    assert (1, 1, 0) == (begun.count(OPENING), begun.count(CLOSING), begun.count("<end_of_turn>"))


@settings(deadline=None)  # the machine may be under load
@given(thought=ANY, pieces=st.lists(st.text(alphabet="ab {}\n", max_size=8), max_size=6))
def test_what_follows_a_closed_thought_is_the_answer(thought: str, pieces: list[str]) -> None:
    """Piece by piece and word for word, even if it begins with the word that a thought begins with."""
    stage = thinking.second_stage(ask("Which colour?", thinking=7), Result(thinking=thought))
    splitter = ThinkingSplitter()
    splitter.feed(thinking.opened(stage))

    told = [splitter.feed(piece) for piece in (LABEL, *pieces)] + [splitter.finish()]

    assert LABEL + "".join(pieces) == "".join(text for text, _ in told)
    assert "" == "".join(thought for _, thought in told)


@settings(deadline=None)  # the machine may be under load
@given(pieces=st.lists(ANY.filter(lambda text: CLOSING not in text), max_size=6))
def test_what_is_written_in_the_first_stage_is_thought(pieces: list[str]) -> None:
    """Without the closing mark nothing of it is an answer, JSON and codes included."""
    splitter = ThinkingSplitter()
    splitter.feed(thinking.opened(thinking.first_stage(ask("Which colour?", thinking=7))))
    written = "".join(pieces)

    told = [splitter.feed(written), splitter.finish()]

    assert "" == "".join(text for text, _ in told)
    assert written == "".join(thought for _, thought in told)


def test_the_prompt_counts_once_and_the_tokens_of_both_stages_add_up() -> None:
    """The second stage reads the prompt again from what is kept of it; that is no second prompt."""
    thought = Result(thinking="Hm.", usage=Usage(40, 5, 10, 16, 1), timings=Timings(1.0, 0.5))
    last = Chunk(finish=Finish.STOP, usage=Usage(48, 7, 46, 16, 0), timings=Timings(0.25, 1.0))

    told = thinking.together(thought, last)

    assert Usage(40, 12, 10, 16, 1, thinking=5) == told.usage
    assert Timings(1.25, 1.5) == told.timings
    assert Finish.STOP is told.finish


def test_the_words_that_ask_to_think_come_before_the_callers_own_system_message() -> None:
    """And the conversation is otherwise the same."""
    plain = thinking.instructed(ask(picture(1), "Which colour?"))
    told = (Message("system", ("Be brief.",)), Message("user", ("Which colour?",)))
    system = thinking.instructed(GenerationRequest(told))

    assert [thinking.INSTRUCTION] == list(plain.messages[0].parts)
    assert 1 == len(plain.images)
    assert "SYSTEM INSTRUCTION: think silently if needed. Be brief." == "".join(map(str, system.messages[0].parts))
    assert told[1:] == system.messages[1:]


def test_marks_are_banned_where_they_have_no_place() -> None:
    """Off: none opens. After a thought: none opens and none closes. By habit: nothing is banned."""
    answer = thinking.second_stage(ask("?", thinking=7), Result(thinking="Hm."))

    assert () == thinking.banned(ask("?"))
    assert () == thinking.banned(ask("?", thinking=7))
    assert (OPENING,) == thinking.banned(ask("?", thinking=0))
    assert (OPENING, CLOSING) == thinking.banned(answer)


@pytest.mark.parametrize(("most", "budget"), [(64, 32), (3, 1), (1, 0), (8192, 1000)])
def test_a_soft_budget_leaves_half_to_the_answer(most: int, budget: int) -> None:
    """A thousand tokens to think, of answers of several lengths."""
    assert budget == thinking.within(1000, most)


async def test_the_words_that_ask_to_think_are_planned_for() -> None:
    """A prompt that fits into a context to the byte does not when the model is told to think."""
    question = "x" * 120
    room = await planning.check(ask(question), context=200, image_tokens=0, count=_each_byte)

    assert room.needed(0) > 200 - len(thinking.INSTRUCTION)
    with pytest.raises(ContextOverflow):
        await planning.check(ask(question, thinking=8), context=200, image_tokens=0, count=_each_byte)


async def _each_byte(text: str) -> int:
    return len(text.encode())
