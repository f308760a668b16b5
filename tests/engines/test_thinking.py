"""Thinking on the real engine: asked for, bounded, closed and answered, or forbidden to a model that would think."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from math import exp, inf, log
from typing import Any

import pytest

from medserve import thinking
from medserve.engines.llama_cpp import LlamaCpp, _Walk, render
from medserve.errors import InvalidRequest
from medserve.generation import Finish, GenerationRequest, Result, Sampling, collect
from medserve.text import CLOSING, OPENING
from tests.engines.subjects import ask, picture, running

pytestmark = pytest.mark.anyio

QUESTION = "Describe the image."
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["brown", "black"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


READ = {"tokens_evaluated": 9, "timings": {"cache_n": 0}}
"""What an answer of llama.cpp says of its prompt."""


def thoughtful(*parts: object, **wishes: object) -> GenerationRequest:
    """A question with a budget of eight tokens among sixty-four, unless the wishes say otherwise."""
    return ask(*(parts or (QUESTION,)), **{"thinking": 8, "max_tokens": 64, **wishes})  # type: ignore[arg-type]


async def answered(engine: LlamaCpp, request: GenerationRequest) -> Result:
    return await collect(engine.stream(request))


# --- the budget ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 8, 40])
async def test_a_model_that_spends_its_budget_is_made_to_answer(llama: LlamaCpp, budget: int) -> None:
    """Known defects of a peer (Ollama 15754, 17127): thoughts stood in the answer, or nothing but thoughts was left."""
    result = await answered(llama, thoughtful(picture(1), QUESTION, thinking=budget))

    assert result.thinking
    assert result.text.strip()
    assert result.usage.thinking is not None
    assert 1 <= result.usage.thinking <= budget
    assert result.usage.thinking < result.usage.completion <= 64
    assert OPENING not in result.text + result.thinking
    assert CLOSING not in result.text + result.thinking


async def test_a_longer_thought_begins_as_the_shorter_one(llama: LlamaCpp) -> None:
    """The budget ends a thought and changes no word of it."""
    short = await answered(llama, thoughtful(thinking=4))
    long = await answered(llama, thoughtful(thinking=12))

    assert 4 == short.usage.thinking
    assert long.thinking.startswith(short.thinking)
    assert len(long.thinking) > len(short.thinking)


async def test_only_the_answers_end_is_the_end(llama: LlamaCpp) -> None:
    """A thought that its budget cut is no answer that was cut: a choice that is whole has ended."""
    whole = await answered(llama, thoughtful("Which colour?", choices=("brown", "black")))
    cut = await answered(llama, thoughtful("Count.", max_tokens=10, schema={"type": "array", "minItems": 40}))

    assert 8 == whole.usage.thinking
    assert Finish.STOP is whole.finish
    assert Finish.LENGTH is cut.finish
    assert 10 == cut.usage.completion


async def test_a_thought_that_the_model_closes_takes_no_more_than_it_took(llama: LlamaCpp) -> None:
    """What it leaves of its budget belongs to the answer."""
    seeds = [thoughtful(thinking=40, sampling=Sampling(temperature=1.5, seed=seed)) for seed in range(8)]
    results = [await answered(llama, request) for request in seeds]

    spent = [result.usage.thinking or 0 for result in results]
    assert min(spent) < 40
    assert all(result.usage.completion <= 64 for result in results)
    assert any(result.usage.completion - thought > 24 for result, thought in zip(results, spent, strict=True))


# --- what the answer is bound by -----------------------------------------------------------------------------------


async def test_a_schema_binds_the_answer_and_not_the_thought(llama: LlamaCpp) -> None:
    """The answer alone is JSON; the thought is in words."""
    result = await answered(llama, thoughtful("Which colour?", schema=COLOUR))

    assert json.loads(result.text)["colour"] in {"brown", "black"}
    assert result.thinking
    assert "{" not in result.thinking


async def test_choices_and_a_prefix_bind_the_answer(llama: LlamaCpp) -> None:
    """The words after the thought are the prefix and one of the choices, and the prefix is said once."""
    result = await answered(llama, thoughtful("Which colour?", choices=("brown", "black"), prefix="Answer: "))

    assert result.text in {"Answer: brown", "Answer: black"}
    assert "Answer:" not in result.thinking


async def test_a_stop_text_does_not_end_a_thought(llama: LlamaCpp) -> None:
    """The thought is the same although the text stands in it; the answer ends before it."""
    free = await answered(llama, thoughtful(thinking=12))
    thought, word = free.thinking, free.thinking.split()[1]
    ended = free.text[4:8]

    stopped = await answered(llama, thoughtful(thinking=12, stop=(word, ended)))

    assert thought == stopped.thinking
    assert word not in stopped.text
    assert ended not in stopped.text
    assert free.text.startswith(stopped.text)


async def test_log_probabilities_are_those_of_the_answer(llama: LlamaCpp) -> None:
    """One for each token that is no thought, and together they spell the answer."""
    result = await answered(llama, thoughtful(max_tokens=20, top_logprobs=2))

    assert result.usage.thinking is not None
    assert result.text == "".join(entry.token for entry in result.logprobs)
    assert len(result.logprobs) <= result.usage.completion - result.usage.thinking
    assert all(2 == len(entry.top) for entry in result.logprobs)


# --- while it is written -------------------------------------------------------------------------------------------


async def test_a_thought_streams_while_it_is_written(llama: LlamaCpp) -> None:
    """Several pieces of thought, then those of the answer; finish, usage and timings once, of both."""
    chunks = [chunk async for chunk in llama.stream(thoughtful(thinking=20))]
    kinds = ["thought" if chunk.thinking else "words" for chunk in chunks if chunk.thinking or chunk.text]

    assert kinds == sorted(kinds)
    assert kinds.count("thought") > 3
    assert all(chunk.finish is None and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].timings is not None
    assert chunks[-1].timings.completion > 0


@pytest.mark.parametrize("stage", ["thinking", "text"])
async def test_a_reader_may_leave_in_either_stage(llama: LlamaCpp, stage: str) -> None:
    """The place is free at once and the next question is answered."""
    async with aclosing(llama.stream(thoughtful(thinking=20, max_tokens=1500))) as chunks:
        await anext(chunk async for chunk in chunks if getattr(chunk, stage))

    assert 0 == llama.places.answering
    async with asyncio.timeout(20):
        assert (await answered(llama, ask("Which colour?", max_tokens=2))).usage.completion


async def test_eight_at_once_are_all_thought_about_and_answered(llama: LlamaCpp) -> None:
    """Each with a thought of its own within its budget, whatever the others do."""
    drawn = [thoughtful(sampling=Sampling(temperature=1.0, seed=seed)) for seed in range(8)]

    results = await asyncio.gather(*(answered(llama, request) for request in drawn))

    assert all(result.text.strip() and 1 <= (result.usage.thinking or 0) <= 8 for result in results)
    assert len({result.thinking + result.text for result in results}) > 1


async def test_the_same_question_is_thought_about_alike(llama: LlamaCpp) -> None:
    """To the last digit of the answer's log-probabilities, whether or not its prompt is still kept."""
    request = thoughtful(picture(5), QUESTION, top_logprobs=0)
    first, second = [await answered(llama, request) for _ in range(2)]

    assert (first.thinking, first.text, first.logprobs) == (second.thinking, second.text, second.logprobs)


# --- what it costs -------------------------------------------------------------------------------------------------


async def test_the_second_stage_goes_on_from_the_first(llama: LlamaCpp) -> None:
    """It reads two tokens: the last that was thought, and the mark that closes the thought."""
    request, deadline = thoughtful(picture(6), QUESTION), llama._deadline()
    thought = await collect(llama._chunks(thinking.first_stage(request), deadline))
    answer = await collect(llama._chunks(thinking.second_stage(request, thought), deadline))

    assert 1 <= answer.usage.prompt - answer.usage.cached <= 2
    assert (1, 0) == (thought.usage.encodes, answer.usage.encodes)


async def test_both_stages_see_the_picture_and_it_is_encoded_once() -> None:
    """The prompt counts once, with the tokens of one picture."""
    async with running() as engine:
        result = await answered(engine, thoughtful(picture(1), QUESTION))

        assert 1 == result.usage.encodes == engine.vision_encodes
        assert engine.capabilities.image_tokens == result.usage.image


# --- off -----------------------------------------------------------------------------------------------------------


async def test_thinking_is_forbidden_to_a_model_that_would_think(
    llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias makes the model open a thought wherever it may: by habit nothing is answered, forbidden the same as ever.

    Known defects of peers (Ollama 15754, MedGemma's own issue 42): no switch kept the model from thinking unasked.
    """
    body = llama._body

    async def eager(request: GenerationRequest) -> dict[str, Any]:
        asked = await body(request)
        return asked | {"logit_bias": [*asked.get("logit_bias", ()), [llama._marks[OPENING], 100.0]]}

    calm = await answered(llama, ask(QUESTION))
    monkeypatch.setattr(llama, "_body", eager)
    habit = await answered(llama, ask(QUESTION))
    off = await answered(llama, ask(QUESTION, thinking=0))

    assert ("", Finish.LENGTH) == (habit.text, habit.finish)
    assert (calm.text, "") == (off.text, off.thinking)


async def test_forbidding_what_a_model_does_not_do_changes_nothing(llama: LlamaCpp) -> None:
    """The same words, and the same log-probabilities to the last digit."""
    asked = ask(picture(1), QUESTION, top_logprobs=0)
    free, off = [await answered(llama, one) for one in (asked, replace(asked, thinking=0))]

    assert (free.text, free.logprobs) == (off.text, off.logprobs)


async def test_labels_are_scored_as_by_a_model_that_cannot_begin_to_think(llama: LlamaCpp) -> None:
    """What it gives to the opening mark is shared out among what it may say; the odds of the labels stay the same."""
    asked = ask(picture(1), "Is there a pigment network? Answer yes or no.")
    first = (await answered(llama, replace(asked, max_tokens=1, top_logprobs=20))).logprobs[0]
    opens = exp(dict(first.top).get(OPENING, -inf))
    free, off = [await llama.score(one, ["yes", "no"]) for one in (asked, replace(asked, thinking=0))]

    share = log(1 - opens)
    assert off.logprobs["yes"] == pytest.approx(free.logprobs["yes"] - share, abs=1e-6)
    assert off.logprobs["no"] == pytest.approx(free.logprobs["no"] - share, abs=1e-6)
    assert free.mass <= off.mass <= 1


@pytest.mark.parametrize("opens", [0.25, 0.999, 1.0])
def test_a_mark_that_is_nearly_certain_leaves_the_labels_what_was_seen_of_them(opens: float) -> None:
    """MedGemma 1.5 may give the mark nearly everything; the labels are shared out among what is left, and no more."""
    rest = {2: 0.6 * (1 - min(opens, 0.999)), 3: 0.4 * (1 - min(opens, 0.999))}
    seen = [{"id": token, "logprob": log(share)} for token, share in {14: opens, **rest}.items()]
    first = {"id": 2, "logprob": log(rest[2]), "top_logprobs": seen}
    walk = _Walk()
    walk.add((2,), {"completion_probabilities": [first], "tokens_predicted": 1, **READ}, 0)

    assert walk.logprob((2,), {14}) == pytest.approx(log(0.6), abs=1e-3)
    assert walk.logprob((2,), set()) == log(rest[2])
    assert walk.logprob((2,), {99}) == log(rest[2])


async def test_labels_are_not_scored_after_a_thought(llama: LlamaCpp) -> None:
    """A thought is sampled and a score is not: the wish is refused by its name."""
    with pytest.raises(InvalidRequest, match="without thinking") as refused:
        await llama.score(thoughtful(), ["yes", "no"])
    assert "thinking" == refused.value.param


# --- the prompt ----------------------------------------------------------------------------------------------------


async def test_the_marks_are_control_tokens_where_we_write_them_and_nowhere_else(llama: LlamaCpp) -> None:
    """Of a question, a thought and a prefix that hold the marks as words, one pair is real."""
    marked = f"{OPENING}a{CLOSING}"
    request = thoughtful(marked, prefix=marked)
    stage = thinking.second_stage(request, Result(thinking=f"it says {CLOSING}<end_of_turn>"))

    ids = await llama._ids("".join(render(stage).texts), control=True)

    assert [1, 1] == [ids.count(llama._marks[mark]) for mark in (OPENING, CLOSING)]
    assert 1 == ids.count(llama._ends["<end_of_turn>"])


def test_the_prompt_says_that_the_model_may_think() -> None:
    """In Google's own words, before the caller's system message; the model's turn begins with the open mark."""
    (text,) = render(thinking.first_stage(thoughtful("Which colour?"))).texts

    assert text == (
        "<start_of_turn>user\nSYSTEM INSTRUCTION: think silently if needed.\n\nWhich colour?<end_of_turn>\n"
        "<start_of_turn>model\n<unused94>thought\n"
    )
