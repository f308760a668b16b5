"""The official `openai` client, unchanged, against a real process with the real engine and the demonstration model."""

import json
import os
import signal
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from medserve.settings import DEMO, DEMO_MODEL
from tests.serving import Service, serving

MODEL = DEMO_MODEL.name
DRAWINGS = DEMO / "drawings"
KIND = "What kind of picture is this? Answer with one: dermoscopy, histology, CT, chest X-ray or other."
HELLO: Any = [{"role": "user", "content": "Describe a melanoma."}]
NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}


class Finding(BaseModel):
    """What the client's own parsing is tried with."""

    lesion: Literal["round", "oval"]
    colours: Literal[1, 2, 3]


@pytest.fixture
def client(demo: Service) -> Iterator[openai.OpenAI]:
    """The client; it tries once, so that errors are seen."""
    with speaking_to(demo) as client:
        yield client


def speaking_to(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=60)


def picture(path: Path) -> str:
    """A file as a data URI."""
    return "data:image/jpeg;base64," + b64encode(path.read_bytes()).decode()


def ended(client: openai.OpenAI, response: Response) -> Response:
    """A background response once it is neither queued nor in progress."""
    for _ in range(600):
        if response.status not in ("queued", "in_progress"):
            return response
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    raise AssertionError("the response did not end")


# --- chat ----------------------------------------------------------------------------------------------------------


def test_several_answers_are_drawn_apart_and_the_same_again(client: openai.OpenAI) -> None:
    """Each has its index, its seed and its words; a second call with the seed gives the same ones."""
    asked: Any = {"model": MODEL, "messages": HELLO, "n": 4, "temperature": 1.5, "seed": 7, "max_tokens": 24}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    words = [choice.message.content for choice in first.choices]

    assert [0, 1, 2, 3] == [choice.index for choice in first.choices]
    assert len(set(words)) > 1
    assert words == [choice.message.content for choice in second.choices]


def test_the_first_of_several_answers_is_the_one_that_comes_alone(client: openai.OpenAI) -> None:
    """Its seed is the caller's own; the counts of all are added up."""
    asked: Any = {"model": MODEL, "messages": HELLO, "temperature": 1.5, "seed": 11, "max_tokens": 24}
    alone = client.chat.completions.create(**asked)
    several = client.chat.completions.create(**asked, n=2)

    assert alone.choices[0].message.content == several.choices[0].message.content
    assert alone.usage is not None
    assert several.usage is not None
    assert 2 * alone.usage.prompt_tokens == several.usage.prompt_tokens
    assert several.usage.completion_tokens > alone.usage.completion_tokens


def test_several_streamed_answers_come_by_index_and_add_up(client: openai.OpenAI) -> None:
    """Two answers: every one opens with its role and ends with its reason."""
    asked: Any = {"model": MODEL, "messages": HELLO, "n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 16}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    for index in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "assistant" == own[0].delta.role
        assert own[-1].finish_reason is not None
        assert whole.choices[index].message.content == "".join(choice.delta.content or "" for choice in own)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details is not None
    assert 0 == chunks[-1].usage.completion_tokens_details.reasoning_tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_defect_002_1_a_picture_is_seen_in_every_turn_that_sends_it(client: openai.OpenAI, side: str) -> None:
    """System 002 kept words only, and answered each question after the first without having the picture."""
    seen = {"type": "image_url", "image_url": {"url": picture(DRAWINGS / f"kidney-{side}.png")}}
    turns: Any = [
        {"role": "user", "content": [seen, {"type": "text", "text": KIND}]},
        {"role": "assistant", "content": "CT"},
        {"role": "user", "content": "On which side is the kidney stone? Answer with one: left, right or none."},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=16)

    assert side == answer.choices[0].message.content


def test_defect_002_2_the_default_length_fits_and_another_says_what_would(client: openai.OpenAI) -> None:
    """System 002 asked for 65,535 tokens of 65,536 unless told otherwise, so that no question was ever answered."""
    assert client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content
    for far_too_long in (8192, 65_535):
        with pytest.raises(openai.BadRequestError, match="max_tokens") as refused:
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=far_too_long)
        assert "max_tokens" == refused.value.param


def test_a_json_object_is_an_object_whatever_the_model_would_say(client: openai.OpenAI) -> None:
    """Left alone it answers in words; held to `json_object` the text is one whole object, or was cut off."""
    free = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=64)
    held = [
        client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            response_format={"type": "json_object"},
            max_tokens=400,
            temperature=1.0,
            seed=seed,
        ).choices[0]
        for seed in range(4)
    ]

    assert not (free.choices[0].message.content or "").startswith("{")
    assert all((choice.message.content or "").startswith("{") for choice in held)
    whole = [json.loads(choice.message.content or "") for choice in held if choice.finish_reason == "stop"]
    assert whole
    assert all(isinstance(value, dict) for value in whole)


def test_the_clients_own_parsing_gets_what_it_asks_for(client: openai.OpenAI) -> None:
    """`parse` sends the schema of a pydantic model and reads the answer as one."""
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Finding, max_tokens=64)

    assert answer.choices[0].message.parsed is not None
    assert answer.choices[0].message.parsed.lesion in ("round", "oval")


def test_log_probabilities_and_stop_work_together(client: openai.OpenAI) -> None:
    """Every token of the answer has its own, with as many alternatives as were asked for."""
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=6)
    word = (answer.choices[0].message.content or "").split()[0]
    stopped = client.chat.completions.create(model=MODEL, messages=HELLO, stop=[word], max_tokens=6)

    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content
    assert all(2 == len(entry.top_logprobs) for entry in content)
    assert word not in (stopped.choices[0].message.content or "")
    assert "stop" == stopped.choices[0].finish_reason


def test_an_answer_can_be_sent_back_as_the_client_holds_it(client: openai.OpenAI) -> None:
    """With all the empty fields of what was not done, and with tools named as none."""
    first = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, tools=[], tool_choice="none")
    messages: Any = [*HELLO, first.choices[0].message.model_dump(), {"role": "user", "content": "And a nevus?"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, store=False)

    assert second.choices[0].finish_reason in ("stop", "length")


# --- responses -----------------------------------------------------------------------------------------------------


def test_a_response_says_what_a_chat_says(client: openai.OpenAI, dermoscopy: Path) -> None:
    """The same words to the same picture, with its tokens counted and its work reused."""
    url = picture(dermoscopy)
    parts: Any = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "Describe the image."}]
    shown: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the image."}]
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": shown}], max_completion_tokens=24
    )
    response = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": parts}], max_output_tokens=24, metadata={"case": "7"}
    )

    assert chat.choices[0].message.content == response.output_text
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens > 0
    assert {"case": "7"} == response.metadata
    assert (0.0, False) == (response.temperature, response.background)
    assert False is response.to_dict()["store"]


def test_a_streamed_response_is_read_event_by_event(client: openai.OpenAI) -> None:
    """The client's own collector of events ends with the response that comes whole otherwise."""
    whole = client.responses.create(model=MODEL, input="Describe a melanoma.", max_output_tokens=64)
    with client.responses.stream(model=MODEL, input="Describe a melanoma.", max_output_tokens=64) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert ["response.created", "response.in_progress"] == [event.type for event in events[:2]]
    assert whole.output_text == final.output_text
    assert whole.status == final.status


def test_a_response_keeps_to_a_schema(client: openai.OpenAI) -> None:
    """`responses.parse` works as `chat.completions.parse` does."""
    response = client.responses.parse(
        model=MODEL,
        instructions="Answer in JSON.",
        input="Describe a nevus.",
        text_format=Finding,
        max_output_tokens=64,
    )

    assert response.output_parsed is not None
    assert response.output_parsed.colours in (1, 2, 3)


def test_a_response_that_is_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    """And says which limit it was."""
    text: Any = {"format": {"type": "json_schema", "name": "numbers", "schema": NUMBERS}}
    response = client.responses.create(model=MODEL, input="Count.", text=text, max_output_tokens=8)

    assert "incomplete" == response.status
    assert response.incomplete_details is not None
    assert "max_output_tokens" == response.incomplete_details.reason


def test_a_conversation_goes_on_with_the_items_that_came(client: openai.OpenAI) -> None:
    """Output is sent back as input, log-probabilities and all."""
    first = client.responses.create(
        model=MODEL, input="Describe a nevus.", max_output_tokens=8, include=["message.output_text.logprobs"]
    )
    items: Any = [
        {"role": "user", "content": "Describe a nevus."},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"role": "user", "content": "And a melanoma?"},
    ]
    second = client.responses.create(model=MODEL, instructions="Be brief.", input=items, max_output_tokens=8)

    assert items[1]["content"][0]["logprobs"]
    assert second.status in ("completed", "incomplete")


def test_a_background_response_is_asked_for_later_and_then_deleted(client: openai.OpenAI, dermoscopy: Path) -> None:
    """Queued, then completed with the words that come otherwise; deleted, nobody knows it."""
    parts: Any = [
        {"type": "input_image", "image_url": picture(dermoscopy)},
        {"type": "input_text", "text": "Describe the image."},
    ]
    asked: Any = {"model": MODEL, "input": [{"role": "user", "content": parts}], "max_output_tokens": 24}
    now = client.responses.create(**asked)
    queued = client.responses.create(**asked, background=True)
    later = ended(client, queued)
    client.responses.delete(queued.id)

    assert "queued" == queued.status
    assert (queued.id, now.status, now.output_text) == (later.id, later.status, later.output_text)
    assert (True, True) == (later.to_dict()["store"], later.background)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(queued.id)


def test_a_background_response_is_cancelled(client: openai.OpenAI) -> None:
    """The work stops, and the model is free for others."""
    text: Any = {"format": {"type": "json_schema", "name": "numbers", "schema": NUMBERS}}
    running = client.responses.create(model=MODEL, input="Count.", text=text, background=True, max_output_tokens=1800)
    cancelled = client.responses.cancel(running.id)
    again = client.responses.cancel(running.id)

    assert "cancelled" == ended(client, cancelled).status
    assert running.id == again.id
    assert client.responses.create(model=MODEL, input="Describe a nevus.", max_output_tokens=4).output


def test_a_background_response_survives_kill(tmp_path: Path, dermoscopy: Path) -> None:
    """What was acknowledged is answered by the next process on the same home, picture and all."""
    parts: Any = [
        {"type": "input_image", "image_url": picture(dermoscopy)},
        {"type": "input_text", "text": "Count."},
    ]
    text: Any = {"format": {"type": "json_schema", "name": "numbers", "schema": NUMBERS}}
    environment = {"MEDSERVE_HOME": str(tmp_path)}
    with serving(environment=environment) as first, speaking_to(first) as client:
        queued = client.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": parts}],
            text=text,
            background=True,
            max_output_tokens=300,
        )
        first.stop(signal.SIGKILL)
    with serving(environment=environment) as second, speaking_to(second) as client:
        response = ended(client, client.responses.retrieve(queued.id))

    assert ("incomplete", 300) == (response.status, response.usage.output_tokens if response.usage else None)
    assert response.output_text.startswith("[")


def test_errors_of_responses_have_the_classes_that_the_client_knows(client: openai.OpenAI) -> None:
    """An unknown response is NotFoundError; a parameter that would be ignored is BadRequestError and named."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.retrieve("resp_0123456789abcdef0123456789abcdef")
    with pytest.raises(openai.BadRequestError) as earlier:
        client.responses.create(model=MODEL, input="And?", previous_response_id="resp_1")

    assert "response_id" == unknown.value.param
    assert ("unsupported_parameter", "previous_response_id") == (earlier.value.code, earlier.value.param)


def test_a_worker_that_is_killed_ends_the_events_with_a_failure(tmp_path: Path) -> None:
    """Never a response that looks whole: the last event says what happened, and the next request is answered."""
    text: Any = {"format": {"type": "json_schema", "name": "numbers", "schema": NUMBERS}}
    with serving(environment={"MEDSERVE_HOME": str(tmp_path)}) as service, speaking_to(service) as client:
        events = []
        for event in client.responses.create(
            model=MODEL, input="Count.", text=text, stream=True, max_output_tokens=1800
        ):
            events.append(event)
            if len(events) == 20:
                (worker,) = service.workers
                os.kill(worker, signal.SIGKILL)
        again = client.responses.create(model=MODEL, input="Describe a nevus.", max_output_tokens=4)

    assert "response.failed" == events[-1].type
    assert events[-1].response.error is not None
    assert "worker_crashed" == str(events[-1].response.error.code)
    assert again.output
