"""The request of the per-model dialect: its JSON Schema, its checks and its echo say the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from medserve.api import queries
from medserve.api.conversation import Picture, Turn
from medserve.api.queries import Query
from medserve.engines import Capabilities
from medserve.errors import InvalidRequest
from medserve.generation import Sampling

SEEING = Draft202012Validator(queries.schema(Capabilities(context=131_072), sees=True))
UNSEEING = Draft202012Validator(queries.schema(Capabilities(context=131_072), sees=False))

words = st.text(alphabet="ab?é ", min_size=1, max_size=8).map(lambda text: f"x{text}")
picture = st.sampled_from(["image", "url", "base64"]).map(lambda name: {"type": "image", name: "aGk="})
part = st.one_of(
    picture,
    words.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(
        [
            {"type": "image"},
            {"type": "image", "path": "/etc/hostname"},
            {"type": "image", "image": "aGk=", "url": "aGk="},
            {"type": "image_url", "image_url": {"url": "aGk="}},
            {"type": "image_url", "image_url": "aGk="},
            {"type": "audio"},
        ]
    ),
)
turn = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": st.one_of(words, st.lists(part, max_size=3)),
    }
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.none() | st.lists(turn, max_size=3),
        "text": st.none() | words,
        "prompt": st.none() | words,
        "system": st.none() | words,
        "image": st.sampled_from([None, "", "aGk="]),
        "max_new_tokens": st.sampled_from([0, 1, 200, 8192, 8193, None]),
        "do_sample": st.sampled_from([True, False, 1, None]),
        "temperature": st.sampled_from([None, 0, 0.0, 0.7, 2, 2.1, -0.1]),
        "top_p": st.sampled_from([None, 0, 0.9, 1, 1.0, 1.1]),
        "top_k": st.sampled_from([None, 0, 40, -1, 1_000_001]),
        "repetition_penalty": st.sampled_from([None, 1, 1.1, 0.05, 11]),
        "seed": st.sampled_from([None, 0, 2**32 - 1, 2**32]),
        "stream": st.just(True),
    },
)


def taken(body: dict[str, Any]) -> bool:
    """Whether the service takes a body."""
    try:
        Query.model_validate(body, strict=True).check()
    except (ValidationError, InvalidRequest):
        return False
    return True


@given(bodies)
def test_the_schema_takes_what_the_service_takes_and_nothing_else(body: dict[str, Any]) -> None:
    """003's schema was a constant that its own service did not keep to."""
    assert taken(body) == SEEING.is_valid(body)


@given(bodies)
def test_the_schema_of_a_model_that_sees_nothing_takes_all_but_pictures(body: dict[str, Any]) -> None:
    """Only what shows a picture is refused beyond what is refused anyway."""
    assert UNSEEING.is_valid(body) == (SEEING.is_valid(body) and not shows(body))


def shows(body: dict[str, Any]) -> bool:
    """Whether a body shows a picture."""
    contents = [turn["content"] for turn in body.get("messages") or () if not isinstance(turn["content"], str)]
    return body.get("image") is not None or any(part["type"] != "text" for content in contents for part in content)


@given(
    st.builds(
        Sampling,
        temperature=st.floats(0, 2),
        top_p=st.floats(0, 1),
        top_k=st.integers(0, 1_000_000),
        repetition_penalty=st.floats(0.1, 10),
        seed=st.none() | st.integers(0, 2**32 - 1),
    ),
    st.integers(1, 8192),
)
def test_parameters_that_are_echoed_ask_for_the_same_again(sampling: Sampling, tokens: int) -> None:
    """Whoever keeps an answer's parameters can repeat it."""
    if sampling.temperature == 0:
        sampling = Sampling(repetition_penalty=sampling.repetition_penalty, seed=sampling.seed)
    again = Query.model_validate({"text": "again", **queries.effective(tokens, sampling)}, strict=True)

    again.check()
    assert (tokens, sampling) == (again.max_new_tokens, again.sampling())


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"do_sample": False, "temperature": 0.7}, "temperature"),
        ({"do_sample": False, "top_p": 0.9}, "top_p"),
        ({"do_sample": False, "top_k": 40}, "top_k"),
        ({"do_sample": True, "temperature": 0}, "temperature"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(parameters: dict[str, Any], param: str) -> None:
    """003 ignored a temperature beside do_sample false in silence."""
    with pytest.raises(InvalidRequest, match="do_sample") as refused:
        Query(text="hello", **parameters).check()

    assert param == refused.value.param


def test_nothing_is_drawn_unless_asked_for() -> None:
    """Greedy is the default, and a draw without a temperature is from the model's own distribution."""
    assert Sampling() == Query(text="hello").sampling()
    assert Sampling(temperature=1.0) == Query(text="hello", do_sample=True).sampling()


def test_the_picture_goes_before_the_words() -> None:
    """MedGemma was trained so; 003 put the words first."""
    (asked,) = Query(text="what is it?", image="aGk=").turns

    assert Turn("user", (Picture("aGk=", "image"), "what is it?")) == asked


@pytest.mark.parametrize("system", [None, "", "  "])
def test_no_system_text_is_invented(system: str | None) -> None:
    """003 put one of its own before every question, which MedGemma 1.5 was not trained with."""
    assert ["user"] == [turn.role for turn in Query(prompt="hello", system=system).turns]


def test_a_system_text_that_is_given_is_used() -> None:
    """As a turn of its own, the first."""
    first, _ = Query(prompt="hello", system="Be brief.").turns

    assert Turn("system", ("Be brief.",)) == first


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": " "}, "text"),
        ({"prompt": ""}, "prompt"),
        ({"text": "a", "prompt": "b"}, "prompt"),
        ({"messages": [{"role": "user", "content": "a"}], "text": "b"}, "text"),
        ({"messages": [{"role": "user", "content": "a"}], "system": "b"}, "system"),
        ({"messages": [{"role": "user", "content": "a"}], "image": "b"}, "image"),
    ],
)
def test_what_contradicts_itself_or_asks_nothing_is_refused(body: dict[str, Any], param: str) -> None:
    """With the field that is to be changed."""
    with pytest.raises(InvalidRequest) as refused:
        Query.model_validate(body, strict=True).check()

    assert param == refused.value.param


def test_an_answer_is_never_longer_than_the_context() -> None:
    """The range in the schema is that of this model."""
    described = queries.schema(Capabilities(context=2048), sees=True)

    assert 2048 == described["properties"]["max_new_tokens"]["maximum"]
    assert 2048 == queries.inputs(described)["optional"]["max_new_tokens"]["maximum"]


def test_the_fields_are_told_one_by_one() -> None:
    """Those of which some must be given, and the rest; no picture for a model that sees nothing."""
    seeing, unseeing = [queries.inputs(queries.schema(Capabilities(context=2048), sees=sees)) for sees in (True, False)]

    assert {"messages", "text", "prompt", "image"} == set(seeing["required"])
    assert {"messages", "text", "prompt"} == set(unseeing["required"])
    assert {"description", "type", "minLength"} == set(seeing["required"]["image"])
    assert {"type": "number", "minimum": 0, "maximum": 2} == seeing["optional"]["temperature"]
