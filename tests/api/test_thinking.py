"""How long to think, asked in every dialect over real HTTP, on the real engine where it is about what comes back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
from openai.types.shared import ReasoningEffort

from medserve.api.reasoning import EFFORTS, Length, ThinkingOff, ThinkingOn, Thoughtful, Wish, length
from medserve.engines import Capabilities
from medserve.errors import InvalidRequest, ModelFailed
from medserve.models import ModelHandle
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings
from tests.api.conftest import Slow, gateway
from tests.serving import Service, serving

MODEL = DEMO_MODEL.name
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Describe a melanoma."}]}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SPEC = ModelSpec(name="m", context=32_768)


@pytest.fixture
def client(demo: Service) -> Iterator[openai.OpenAI]:
    """The official client, which tries once, so that errors are seen."""
    url = f"{demo.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def plain(demo: Service) -> Iterator[httpx.Client]:
    """The same service for dialects that are not OpenAI's."""
    with httpx.Client(base_url=demo.url, trust_env=False, timeout=60) as client:
        yield client


def thought(answer: Any) -> tuple[str, str, int]:
    """The thought, the answer and the tokens of the thought."""
    message = answer.choices[0].message
    return (
        getattr(message, "reasoning_content", ""),
        message.content,
        answer.usage.completion_tokens_details.reasoning_tokens,
    )


# --- what is meant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_comes_on_top_of_the_usual_length(effort: Any) -> None:
    """In a context with room for it; where the caller names the length, half of that at most is thought."""
    wish = Thoughtful(reasoning_effort=effort).wish()

    assert Length(1024 + EFFORTS[effort], EFFORTS[effort]) == length(wish, None, SPEC)
    assert min(EFFORTS[effort], 50) == length(wish, 100, SPEC).thinking


def test_an_effort_gives_way_in_a_small_context() -> None:
    """What no caller asked for in numbers must not refuse his question."""
    small = ModelSpec(name="m", context=2048)

    assert Length(1024, 512) == length(Thoughtful(reasoning_effort="high").wish(), None, small)


def test_a_budget_in_tokens_is_honoured_as_it_is() -> None:
    """With the usual length after it, or within the length that is named."""
    wish = Thoughtful(thinking=ThinkingOn(type="enabled", budget_tokens=3000)).wish()

    assert Length(4024, 3000) == length(wish, None, SPEC)
    assert Length(3001, 3000) == length(wish, 3001, SPEC)
    with pytest.raises(InvalidRequest) as refused:
        length(wish, 3000, SPEC)
    assert "thinking.budget_tokens" == refused.value.param


def test_every_effort_of_the_official_client_is_known() -> None:
    """Those that came after the first four too, each with more thought than the one before it."""
    (words,) = [kind for kind in get_args(ReasoningEffort) if kind is not type(None)]

    assert get_args(words) == tuple(EFFORTS)
    assert sorted(EFFORTS.values()) == list(EFFORTS.values())


def test_off_is_off_and_nothing_said_is_nothing_asked() -> None:
    """What is not said is left to the model's settings, and where they are silent to the model."""
    off = Thoughtful(thinking=ThinkingOff(type="disabled")).wish()
    usual = ModelSpec(name="m", context=32_768, thinking=512)

    assert Wish(0, "thinking") == off
    assert Length(1024, 0) == length(off, None, usual)
    assert Length(1536, 512) == length(None, None, usual)
    assert Length(100, 50) == length(None, 100, usual)
    assert Length(1024, None) == length(None, None, SPEC)
    assert Length(712, 512) == length(None, None, usual, usual=200)


# --- OpenAI's chat -------------------------------------------------------------------------------------------------


def test_an_effort_makes_the_model_think_within_it(client: openai.OpenAI) -> None:
    """Half of forty tokens at most; the answer is the rest and holds nothing of the thought."""
    answer = client.chat.completions.create(**ASKED, reasoning_effort="low", max_completion_tokens=40)
    words, said, tokens = thought(answer)

    assert words
    assert said
    assert 1 <= tokens <= 20
    assert tokens < answer.usage.completion_tokens <= 40
    assert words not in said


@pytest.mark.parametrize(
    ("on", "off"),
    [
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 6}}, {"thinking": {"type": "disabled"}}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_three_ways_switch_thinking_on_and_off(client: openai.OpenAI, on: Any, off: Any) -> None:
    """Off gives the very answer that comes where nothing is said, for this model does not think by habit."""
    told = client.chat.completions.create(**ASKED, max_tokens=24, extra_body=on)
    silent = client.chat.completions.create(**ASKED, max_tokens=24, extra_body=off)
    usual = client.chat.completions.create(**ASKED, max_tokens=24)

    assert thought(told)[0]
    assert thought(told)[1]
    assert not hasattr(silent.choices[0].message, "reasoning_content")
    assert usual.choices[0].message.content == silent.choices[0].message.content


def test_a_thought_streams_before_the_answer_and_is_counted(client: openai.OpenAI) -> None:
    """Piece by piece as `reasoning_content`, then `content`; the pieces are those of the whole answer."""
    wish: Any = {**ASKED, "max_tokens": 30, "extra_body": {"thinking": {"type": "enabled", "budget_tokens": 12}}}
    whole = client.chat.completions.create(**wish)
    chunks = list(client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    words = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    said = [delta.content or "" for delta in deltas]

    assert thought(whole) == ("".join(words), "".join(said), 12)
    assert sum(map(bool, words)) > 2
    assert max(n for n, word in enumerate(words) if word) < min(n for n, word in enumerate(said) if word)
    assert 12 == chunks[-1].usage.completion_tokens_details.reasoning_tokens


def test_eight_answers_are_thought_about_each_for_itself(client: openai.OpenAI) -> None:
    """The first is what its seed gives alone; thoughts add up in the usage and the prompt counts once for each."""
    budget = {"thinking": {"type": "enabled", "budget_tokens": 4}}
    wish: Any = {**ASKED, "max_tokens": 16, "temperature": 1.0, "seed": 5, "extra_body": budget}
    alone = client.chat.completions.create(**wish)
    eight = client.chat.completions.create(**wish, n=8)

    assert 8 == len({choice.index for choice in eight.choices})
    assert all(getattr(choice.message, "reasoning_content", "") for choice in eight.choices)
    assert thought(alone)[:2] == thought(eight)[:2]
    assert 8 * alone.usage.prompt_tokens == eight.usage.prompt_tokens
    assert 8 <= eight.usage.completion_tokens_details.reasoning_tokens <= 32


def test_json_is_the_answer_and_never_the_thought(client: openai.OpenAI) -> None:
    """Defect 004-1: JSON was looked for in thinking too; here a schema does not even bind it."""
    member = {"a": {"enum": ["x", "y"]}}
    schema = {"type": "object", "properties": member, "required": ["a"], "additionalProperties": False}
    bound: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = client.chat.completions.create(**ASKED, reasoning_effort="low", max_tokens=40, response_format=bound)
    words, said, _ = thought(answer)

    assert json.loads(said)["a"] in {"x", "y"}
    assert words
    assert "{" not in words


@pytest.mark.parametrize(
    ("wish", "param", "remedy"),
    [
        ({"reasoning_effort": "low", "thinking": {"type": "disabled"}}, "thinking", "give one"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "chat_template_kwargs",
            "give one",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 24}}, "thinking.budget_tokens", "less than the 24"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", "greater than or equal to 1"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens", "leave it out"),
        ({"thinking": {"type": "adaptive"}}, "thinking", "'enabled'"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort", "'high'"),
        ({"chat_template_kwargs": {"add_vision_id": True}}, "chat_template_kwargs.enable_thinking", "required"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "leave it out"),
    ],
)
def test_a_wish_that_cannot_be_meant_names_its_field(client: openai.OpenAI, wish: Any, param: str, remedy: str) -> None:
    """With what to do about it."""
    with pytest.raises(openai.BadRequestError, match=remedy) as refused:
        client.chat.completions.create(**ASKED, max_tokens=24, extra_body=wish)
    assert param == refused.value.param


@pytest.mark.anyio
async def test_a_model_that_cannot_be_told_to_think_refuses_it_by_the_callers_own_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On or off: a wish that would be ignored is a wrong answer in the making."""
    said = {"messages": [{"role": "user", "content": "hello"}]}
    wishes: list[tuple[str, dict[str, Any], str]] = [
        (CHAT, said | {"reasoning_effort": "none"}, "reasoning_effort"),
        (CHAT, said | {"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        (CHAT, said | {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
        (RESPONSES, {"input": "hello", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ("/slow/v1/generate", {"text": "hello", "thinking": 5}, "thinking"),
        ("/generate", {"prompt": "hello", "thinking": 0}, "thinking"),
    ]
    async with gateway(Slow(pieces=1), monkeypatch) as running:
        await running.client.post(CHAT, json=said)  # loads it
        for path, body, param in wishes:
            answer = await running.client.post(path, json=body)
            assert 400 == answer.status_code
            told = answer.json()["error"]
            assert ("unsupported_parameter", param) == (told["code"], told["param"])


# --- the other dialects --------------------------------------------------------------------------------------------


def test_responses_think_by_effort_and_say_so(client: openai.OpenAI) -> None:
    """A `reasoning` item before the message, its tokens in the usage, and the effort echoed."""
    asked: Any = {"model": MODEL, "input": "Describe a melanoma.", "max_output_tokens": 40}
    answer = client.responses.create(**asked, reasoning={"effort": "low"})
    off = client.responses.create(**asked, reasoning={"effort": "none"})

    assert ["reasoning", "message"] == [item.type for item in answer.output]
    assert answer.output_text
    assert 1 <= answer.usage.output_tokens_details.reasoning_tokens <= 20
    assert "low" == answer.reasoning.effort
    assert ["message"] == [item.type for item in off.output]


def test_a_model_s_own_address_takes_a_budget(plain: httpx.Client) -> None:
    """`thinking` is a number of tokens; the parameters that were used, sent again, ask for the same."""
    asked = {"text": "Describe a melanoma.", "thinking": 6, "max_new_tokens": 20}
    first = plain.post(f"/{MODEL}/v1/generate", json=asked).json()
    again = plain.post(f"/{MODEL}/v1/generate", json={"text": asked["text"], **first["parameters"]}).json()
    on_top = plain.post(f"/{MODEL}/v1/generate", json={"text": asked["text"], "thinking": 6}).json()
    refused = plain.post(f"/{MODEL}/v1/generate", json=asked | {"thinking": 20})

    assert first["thinking"]
    assert first["response"]
    assert (6, 20) == (first["parameters"]["thinking"], first["parameters"]["max_new_tokens"])
    assert (first["thinking"], first["response"]) == (again["thinking"], again["response"])
    assert 206 == on_top["parameters"]["max_new_tokens"]
    assert (400, "thinking") == (refused.status_code, refused.json()["error"]["param"])


def test_a_model_describes_that_it_can_be_told_to_think(plain: httpx.Client) -> None:
    """The field is in the schema of what it takes."""
    assert "thinking" in json.dumps(plain.get(f"/{MODEL}/v1/schema").json())


def test_older_routes_take_a_budget_and_show_the_thought(plain: httpx.Client) -> None:
    """`/generate`, `/analyze`, instances and the form of `/predict`: the answer stays free of it."""
    order = {"prompt": "Describe a melanoma.", "thinking": 6, "max_tokens": 20}
    drawing = {"image_file": (DEMO / "drawings" / "lesion-mel.png").read_bytes()}
    told = plain.post("/generate", json=order).json()
    analysed = plain.post("/analyze", json=order).json()
    instance = plain.post("/predict", json={"instances": [order]}).json()["predictions"][0]
    formed = plain.post("/predict", data={"question": "What is it?", "thinking": "6"}, files=drawing).json()

    assert told["thinking"] == analysed["thinking"] == instance["thinking"]
    assert told["text"] == analysed["raw_output"] == instance["raw_output"]
    assert told["thinking"]
    assert told["thinking"] not in told["text"]
    assert formed["answer"]["thinking"]
    assert formed["prediction"]


def test_the_longest_thought_leaves_the_form_of_predict_a_field_it_has(tmp_path: Path) -> None:
    """With the usual answer it is more than any answer can have: the answer is what is left of that."""
    config = tmp_path / "medserve.toml"
    config.write_text('[[models]]\nname = "said"\nengine = "scripted"\nreplies = ["A mole."]\n')
    drawing = {"image_file": (DEMO / "drawings" / "lesion-mel.png").read_bytes()}
    environment = {"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(tmp_path)}
    with serving(environment=environment) as running:
        form = {"question": "What?", "thinking": "8000"}
        answer = httpx.post(f"{running.url}/predict", data=form, files=drawing, trust_env=False, timeout=60)

    assert 200 == answer.status_code
    assert ("A mole.", 8192) == (answer.json()["prediction"], answer.json()["answer"]["max_tokens"])


# --- what does not fit ---------------------------------------------------------------------------------------------

LONG = " ".join(f"Finding {number} is round." for number in range(900))
"""Some 1200 tokens at the least, more than half of a context of 2048."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service whose models have a context of 2048 tokens; one of them thinks where a request does not say it."""
    home = tmp_path_factory.mktemp("small")
    (home / "medserve.toml").write_text(
        "".join(
            f'[[models]]\nname = "{name}"\nengine = "scripted"\ncontext = 2048\n{more}replies = {["round"] * 99}\n'
            for name, more in (("small", ""), ("thinker", "thinking = 600\n"))
        )
    )
    environment = {"MEDSERVE_CONFIG": str(home / "medserve.toml"), "MEDSERVE_HOME": str(home)}
    with (
        serving(environment=environment) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=60) as http,
    ):
        for model in ("small", "thinker"):
            http.post(CHAT, json=said(model=model)).raise_for_status()  # loads it
        yield http


def said(words: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat that says this."""
    return {"messages": [{"role": "user", "content": words}], **more}


def budget(tokens: int) -> dict[str, Any]:
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, said(**budget(3000)), "thinking.budget_tokens"),
        (CHAT, said(**budget(3000), max_tokens=4000), "thinking.budget_tokens"),
        (CHAT, said(LONG, thinking={"type": "enabled"}), "thinking"),
        (CHAT, said(LONG, reasoning_effort="medium"), "reasoning_effort"),
        (CHAT, said(LONG, chat_template_kwargs={"enable_thinking": True}), "chat_template_kwargs.enable_thinking"),
        (RESPONSES, {"input": LONG, "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ("/small/v1/generate", {"text": "hello", "thinking": 3000}, "thinking"),
        ("/small/v1/chat", said(thinking=3000, max_new_tokens=4000), "thinking"),
        ("/generate", {"prompt": "hello", "thinking": 3000}, "thinking"),
        ("/generate", {"prompt": "hello", "thinking": 3000, "max_tokens": 4000}, "thinking"),
        ("/generate", {"prompt": "hello", "thinking": 20, "max_tokens": 20}, "thinking"),
        ("/analyze", {"prompt": "hello", "thinking": 3000}, "thinking"),
        ("/analyze", {"prompt": LONG, "thinking": 900}, "thinking"),
    ],
)
def test_a_thought_that_does_not_fit_is_told_of_the_field_that_wished_for_it(
    small: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    """Into the context or into the answer's length: less of it is what helps, not a field that was never sent."""
    answer = small.post(path, json=body)

    assert (400, param) == (answer.status_code, answer.json()["error"]["param"]), answer.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, said(max_tokens=4000), "max_tokens"),
        (CHAT, said(reasoning_effort="high", max_tokens=4000), "max_tokens"),
        (CHAT, said(reasoning_effort="high", max_completion_tokens=4000), "max_completion_tokens"),
        (CHAT, said(LONG, model="thinker"), "max_tokens"),
        (
            RESPONSES,
            {"input": "hello", "reasoning": {"effort": "high"}, "max_output_tokens": 4000},
            "max_output_tokens",
        ),
        ("/small/v1/generate", {"text": "hello", "max_new_tokens": 4000, "thinking": 20}, "max_new_tokens"),
        ("/thinker/v1/generate", {"text": "hello", "max_new_tokens": 4000}, "max_new_tokens"),
        ("/generate", {"prompt": "hello", "max_tokens": 4000, "thinking": 20}, "max_tokens"),
    ],
)
def test_a_length_that_does_not_fit_is_told_of_the_field_that_says_it(
    small: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    """A thought that gives way to it, or that nobody asked for, is not what is wrong."""
    answer = small.post(path, json=body)

    assert ("context_length_exceeded", param) == tuple(answer.json()["error"][key] for key in ("code", "param"))


def test_a_form_and_instances_name_their_own_fields(small: httpx.Client) -> None:
    """The form has no field for a length; an instance has its place."""
    drawing = {"image_file": (DEMO / "drawings" / "lesion-mel.png").read_bytes()}
    thought = small.post("/predict", data={"question": "What?", "thinking": "3000"}, files=drawing).json()
    words = small.post("/predict", data={"question": LONG}, files=drawing).json()
    instances = [{"prompt": "hello", "thinking": 3000, "max_tokens": 4000}]
    instance = small.post("/predict", json={"instances": instances}).json()["predictions"][0]

    assert ["thinking", "question"] == [told["error"]["param"] for told in (thought, words)]
    assert "instances.0.thinking" == instance["error"]["param"]


def test_a_workflow_names_its_options(small: httpx.Client) -> None:
    """The thought before the second look, and the length that an instruction's answer may have."""
    shown = {"images": (DEMO / "drawings" / "lesion-mel.png").read_bytes()}
    options = {"guard": False}
    look = small.post(
        "/v1/workflows/dermoscopy", files=shown, data={"options": json.dumps(options | {"thinking": 3000})}
    ).json()
    length = small.post(
        "/v1/workflows/radiology",
        files=shown,
        data={"options": json.dumps(options | {"instruction": "What is it?", "max_tokens": 4000})},
    ).json()

    assert ["options.thinking", "options.max_tokens"] == [told["error"]["param"] for told in (look, length)]


# --- the settings --------------------------------------------------------------------------------------------------


def test_the_settings_say_how_long_a_model_thinks_where_a_request_does_not(tmp_path: Path) -> None:
    """For every dialect; a request's own word stands, and workflows have theirs."""
    config = tmp_path / "medserve.toml"
    weights = f'path = "{DEMO / "medserve-demo.gguf"}"\ncontext = 2048\nthreads = 1\nthinking = 6\n'
    config.write_text(f'[[models]]\nname = "{MODEL}"\n{weights}')
    environment = {"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(tmp_path)}
    off = ASKED | {"max_tokens": 20, "reasoning_effort": "none"}
    with (
        serving(environment=environment) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=60) as http,
    ):
        usual = http.post(CHAT, json=ASKED | {"max_tokens": 20}).json()
        tight = http.post(CHAT, json=ASKED | {"max_tokens": 4}).json()
        silent = http.post(CHAT, json=off).json()
        shown = {"images": (DEMO / "drawings" / "lesion-mel.png").read_bytes()}
        report = http.post("/v1/workflows/dermoscopy", files=shown).json()
        own = http.post(f"/{MODEL}/v1/generate", json={"text": "Describe a melanoma."}).json()
        older = http.post("/generate", json={"prompt": "Describe a melanoma."}).json()

    assert 6 == usual["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 2 == tight["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert "reasoning_content" not in silent["choices"][0]["message"]
    assert (6, 206) == (own["parameters"]["thinking"], own["parameters"]["max_new_tokens"])
    assert own["thinking"]
    assert (True, 1006) == (bool(older["thinking"]), older["max_tokens"])
    assert report["steps"]
    assert not any(step["thinking"] for step in report["steps"])


@pytest.mark.anyio
async def test_a_setting_that_the_engine_cannot_keep_fails_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says which; a service that thought by its own habit instead would not do as it was told."""
    engine = Slow()
    engine.capabilities = Capabilities(context=4096, sight_test=False)

    async def started(_model: ModelSpec, _settings: Settings) -> Slow:
        return engine

    handle = ModelHandle(ModelSpec(name="slow", thinking=5), Settings(), started)
    with pytest.raises(ModelFailed, match="thinking"):
        await handle.ready()
    assert not engine.alive
