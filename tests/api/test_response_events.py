"""The events of a response: complete, in order, numbered, and adding up to the object that the last one carries."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from medserve.api.responses import Event, Writer
from medserve.errors import WorkerCrashed
from medserve.generation import Chunk, Finish, TokenLogprob, Usage

USAGE = Usage(prompt=7, completion=5, cached=3, image=2, encodes=1)


def written(*chunks: Chunk, finish: Finish = Finish.STOP, thought: int | None = 0) -> list[Event]:
    """All events of an answer in these pieces."""
    writer = Writer({"id": "resp_1", "output": []})
    opened = writer.opened()
    pieces = [event for chunk in chunks for event in writer.fed(chunk)]
    return [*opened, *pieces, *writer.ended(finish, USAGE, thought)]


def kinds(events: list[Event]) -> list[str]:
    """What the events are called, without the common beginning."""
    return [event["type"].removeprefix("response.") for event in events]


def text(output: list[dict[str, Any]], kind: str) -> str:
    """The words of all items of a kind."""
    return "".join(part["text"] for item in output if item["type"] == kind for part in item["content"])


def test_an_answer_is_told_step_by_step() -> None:
    """Item, part, pieces, and the same from the inside out."""
    writer = Writer({"id": "resp_1"})
    events = (
        writer.opened() + writer.fed(Chunk("A ")) + writer.fed(Chunk("mole.")) + writer.ended(Finish.STOP, USAGE, 0)
    )

    assert [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ] == kinds(events)
    assert list(range(10)) == [event["sequence_number"] for event in events]
    assert "in_progress" == events[0]["response"]["status"]
    assert "A mole." == events[6]["text"] == events[7]["part"]["text"] == events[8]["item"]["content"][0]["text"]
    assert [] == events[2]["item"]["content"]


def test_events_are_not_changed_by_what_comes_later() -> None:
    """Each tells how things stood."""
    writer = Writer({"id": "resp_1"})
    created, _ = writer.opened()
    added, part, _ = writer.fed(Chunk("A mole.", logprobs=(TokenLogprob("A", -0.5),)))
    writer.ended(Finish.STOP, USAGE, 0)

    assert ("in_progress", []) == (created["response"]["status"], created["response"]["output"])
    assert ("in_progress", "") == (added["item"]["status"], part["part"]["text"])
    assert [] == part["part"]["logprobs"]


def test_thinking_is_an_item_of_its_own_before_the_answer() -> None:
    """Its words are nowhere in the message."""
    events = written(Chunk(thinking="Hm. "), Chunk(thinking="Round."), Chunk("A mole."), thought=4)
    response = events[-1]["response"]

    assert ["reasoning", "message"] == [item["type"] for item in response["output"]]
    assert "Hm. Round." == text(response["output"], "reasoning")
    assert "A mole." == text(response["output"], "message")
    assert [] == response["output"][0]["summary"]
    assert 4 == response["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert kinds(events).index("reasoning_text.done") < kinds(events).index("output_text.delta")


def test_thinking_that_nothing_opened_is_taken_back_from_the_answer() -> None:
    """What was streamed as text cannot be unsaid; the closing events and the response tell it as it was."""
    events = written(Chunk("Hm. "), Chunk(rethought=True), Chunk("A mole."))
    response = events[-1]["response"]
    done = [event for event in events if event["type"] == "response.output_text.done"]

    assert "A mole." == text(response["output"], "message")
    assert "Hm. " == text(response["output"], "reasoning")
    assert ["", "A mole."] == [event["text"] for event in done]


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    """Silence is told as such, also after thinking."""
    silent, thoughtful = written(), written(Chunk(thinking="Hm."))

    assert [("message", "")] == [(i["type"], i["content"][0]["text"]) for i in silent[-1]["response"]["output"]]
    assert ["reasoning", "message"] == [item["type"] for item in thoughtful[-1]["response"]["output"]]


def test_an_answer_that_was_cut_off_is_incomplete_and_says_why() -> None:
    """Also in the middle of thinking, where no answer is made up."""
    said = written(Chunk("A mo"), finish=Finish.LENGTH)
    thought = written(Chunk(thinking="Hm"), finish=Finish.LENGTH)

    for events in (said, thought):
        response = events[-1]["response"]
        assert "response.incomplete" == events[-1]["type"]
        assert {"reason": "max_output_tokens"} == response["incomplete_details"]
        assert response["completed_at"] is None
        assert ["incomplete"] == [item["status"] for item in response["output"]]
    assert ["reasoning"] == [item["type"] for item in thought[-1]["response"]["output"]]


def test_a_failure_ends_the_events_and_keeps_what_was_said_as_incomplete() -> None:
    """The error has a code and a sentence; no item claims to be whole."""
    writer = Writer({"id": "resp_1"})
    writer.fed(Chunk("A mo"))
    (failed,) = writer.failed(WorkerCrashed("the worker ended"))
    response = failed["response"]

    assert ("response.failed", "failed") == (failed["type"], response["status"])
    assert {"code": "worker_crashed", "message": "the worker ended"} == response["error"]
    assert [("incomplete", "A mo")] == [(i["status"], i["content"][0]["text"]) for i in response["output"]]


def test_log_probabilities_go_with_the_words_and_not_with_the_thinking() -> None:
    """All of the answer's tokens, none of the others, also those that came before their text was certain."""
    hm, a, mole = (TokenLogprob(word, -0.5, ((word, -0.5),)) for word in ("Hm", "A", " mole"))
    events = written(Chunk(thinking="Hm", logprobs=(hm,)), Chunk(logprobs=(a,)), Chunk("A mole", logprobs=(mole,)))
    message = events[-1]["response"]["output"][1]

    assert ["A", " mole"] == [entry["token"] for entry in message["content"][0]["logprobs"]]
    assert ["A", " mole"] == [
        entry["token"]
        for event in events
        if event["type"] == "response.output_text.delta"
        for entry in event["logprobs"]
    ]


def test_counts_are_those_of_the_engine() -> None:
    """With what was reused and what were pictures."""
    usage = written(Chunk("A"), thought=None)[-1]["response"]["usage"]

    assert {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "image_tokens": 2, "image_encodes": 1},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": None},
        "total_tokens": 12,
    } == usage


pieces = st.lists(st.builds(Chunk, st.text(max_size=3), st.text(max_size=3)), max_size=12)


@given(pieces, st.sampled_from([Finish.STOP, Finish.LENGTH]))
def test_whatever_the_pieces_the_events_add_up(chunks: list[Chunk], finish: Finish) -> None:
    """Deltas make the words, every item that was opened is closed, numbers have no gap."""
    events = written(*chunks, finish=finish)
    output = events[-1]["response"]["output"]
    opened = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    closed = [event["item"] for event in events if event["type"] == "response.output_item.done"]

    assert "".join(chunk.text for chunk in chunks) == text(output, "message")
    assert "".join(chunk.thinking for chunk in chunks) == text(output, "reasoning")
    assert output == closed
    assert opened == [item["id"] for item in output]
    assert list(range(len(events))) == [event["sequence_number"] for event in events]
    for item in output:
        deltas = [e["delta"] for e in events if e["type"].endswith(".delta") and e["item_id"] == item["id"]]
        assert "".join(deltas) == item["content"][0]["text"]
