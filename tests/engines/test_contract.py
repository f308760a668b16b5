"""What every engine promises, whatever runs behind it: a new engine joins by one line in ENGINES."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from medserve.engines import Engine
from medserve.engines._chat import OpenAIEngine
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.scripted import Scripted
from medserve.engines.transformers import Transformers
from medserve.engines.vllm.own import OwnVllm
from medserve.errors import InvalidRequest, NotSupported
from medserve.generation import Chunk, Finish, Sampling, collect
from tests.engines.subjects import VLLM_PYTHON, ask, picture

pytestmark = pytest.mark.anyio

ENGINES = ("scripted", "llama-cpp", "openai", "transformers", *(("vllm",) if VLLM_PYTHON else ()))
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["brown", "black"]}, "even": {"type": "boolean"}},
    "required": ["colour", "even"],
    "additionalProperties": False,
}

Prepare = Callable[..., Engine]
"""Gives the engine under test; one that needs a script is given these replies."""


@pytest.fixture(params=ENGINES)
def prepare(
    request: pytest.FixtureRequest,
    llama: LlamaCpp,
    remote: OpenAIEngine,
    tensors: Transformers,
    real_vllm: OwnVllm | None,
) -> Prepare:
    engines: dict[str, Prepare] = {
        "scripted": lambda *replies: Scripted(replies),
        "llama-cpp": lambda *_: llama,
        "openai": lambda *_: remote,
        "transformers": lambda *_: tensors,
    }
    if real_vllm is not None:
        engines["vllm"] = lambda *_: real_vllm
    return engines[request.param]


async def pieces(engine: Engine, **wishes: object) -> list[Chunk]:
    return [chunk async for chunk in engine.stream(ask("Describe the image.", **wishes))]


async def test_pieces_add_up(prepare: Prepare) -> None:
    """The streamed pieces are the whole answer, and asking again gives the same one."""
    engine = prepare("brown and round", "brown and round")

    chunks = await pieces(engine)
    whole = await collect(engine.stream(ask("Describe the image.")))

    assert "".join(chunk.text for chunk in chunks) == whole.text


async def test_only_the_last_piece_sums_up(prepare: Prepare) -> None:
    """Finish, usage and timings come once, at the end."""
    chunks = await pieces(prepare("brown and round"))

    assert all(chunk.finish is None and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].finish is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].timings is not None


async def test_stop(prepare: Prepare) -> None:
    """The answer ends before a stop text."""
    engine = prepare("brown and round", "brown and round")
    free = await collect(engine.stream(ask("Describe the image.")))
    stop = free.text[2:4]

    stopped = await collect(engine.stream(ask("Describe the image.", stop=(stop,))))

    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish is Finish.STOP


async def test_token_limit(prepare: Prepare) -> None:
    """An answer cut by the limit says so."""
    result = await collect(prepare("one two three four five").stream(ask("Describe the image.", max_tokens=1)))

    assert result.finish is Finish.LENGTH
    assert result.usage.completion == 1


async def test_seed(prepare: Prepare) -> None:
    """The same seed draws the same answer."""
    engine = prepare("brown", "brown")
    wish = ask("Describe the image.", sampling=Sampling(temperature=1.0, seed=7))

    first, second = await collect(engine.stream(wish)), await collect(engine.stream(wish))

    assert first.text == second.text


async def test_choices(prepare: Prepare) -> None:
    """The answer is one of the choices, word for word."""
    choices = ("melanoma", "mel", 'a "nevus"')
    result = await collect(prepare("mel").stream(ask("Which one?", choices=choices)))

    assert result.text in choices
    assert result.finish is Finish.STOP


async def test_schema(prepare: Prepare) -> None:
    """An answer bound by a schema is JSON that fits it."""
    engine = prepare('{"colour": "brown", "even": true}')
    result = await collect(engine.stream(ask("Which colour?", schema=SCHEMA, max_tokens=64)))

    answer = json.loads(result.text)
    assert set(answer) == {"colour", "even"}
    assert answer["colour"] in {"brown", "black"}


async def test_logprobs(prepare: Prepare) -> None:
    """Log-probabilities are given for every token, with as many alternatives as asked for, or the wish is refused."""
    engine = prepare("brown")
    wish = ask("Which colour?", max_tokens=3, top_logprobs=2)
    if not engine.capabilities.logprobs:
        with pytest.raises(NotSupported):
            await collect(engine.stream(wish))
        return

    result = await collect(engine.stream(wish))

    assert 1 <= len(result.logprobs) <= 3
    for entry in result.logprobs:
        assert entry.logprob <= 0
        assert len(entry.top) == 2
        assert max(entry.top, key=lambda other: other[1])[1] >= entry.logprob


async def test_prefix(prepare: Prepare) -> None:
    """A forced beginning is part of the answer, and the answer goes on from there."""
    result = await collect(prepare("brown").stream(ask("Which colour?", prefix="It is")))

    assert result.text.startswith("It is")
    assert len(result.text) > len("It is")


async def test_usage_of_words(prepare: Prepare) -> None:
    """Words are counted, and without a picture there are no image tokens."""
    result = await collect(prepare("brown").stream(ask("Which colour?")))

    assert result.usage.prompt > 0
    assert result.usage.completion > 0
    assert result.usage.image == 0
    assert result.usage.encodes == 0


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_image_tokens(prepare: Prepare, number: int) -> None:
    """Every picture takes as many tokens as the engine declares."""
    engine = prepare("brown")
    pictures = [picture(seed) for seed in range(number)]
    result = await collect(engine.stream(ask(*pictures, "Which colour?")))

    assert result.usage.image == number * engine.capabilities.image_tokens
    assert result.usage.prompt > result.usage.image


async def test_leaving_early(prepare: Prepare) -> None:
    """A reader who leaves frees the place: the next question is answered at once."""
    engine = prepare(*["one two three four five"] * 4)
    for _ in range(3):
        async with aclosing(engine.stream(ask("Describe the image.", max_tokens=512))) as chunks:
            await anext(chunks)

    async with asyncio.timeout(20):
        result = await collect(engine.stream(ask("Which colour?", max_tokens=2)))

    assert result.usage.completion > 0


async def test_many_at_once(prepare: Prepare) -> None:
    """Questions that are asked at the same time are all answered."""
    engine = prepare(*["brown"] * 6)
    asked: list[Awaitable[object]] = [
        collect(engine.stream(ask(picture(number % 2), "Which colour?", max_tokens=4))) for number in range(6)
    ]

    results = await asyncio.gather(*asked)

    assert len(results) == 6


THOUGHT = "<unused94>thought\none two three four five six seven<unused95>"
"""What a script must say that is to think before it answers."""


async def thoughtful(engine: Engine, question: str = "Describe the image.", **wishes: object) -> list[Chunk]:
    """The pieces of an answer that has five of forty tokens to think; none where the engine refuses the wish."""
    wish = ask(question, **{"thinking": 5, "max_tokens": 40, **wishes})
    if not engine.capabilities.thinking:
        with pytest.raises(NotSupported, match="thinking"):
            await collect(engine.stream(wish))
        return []
    return [chunk async for chunk in engine.stream(wish)]


async def test_a_thought_has_a_budget_and_then_an_answer(prepare: Prepare) -> None:
    """It streams apart from the answer and before it; what both took is told once, at the end."""
    if not (chunks := await thoughtful(prepare(THOUGHT + "brown and round"))):
        return
    words = [n for n, chunk in enumerate(chunks) if chunk.text]
    thought = [n for n, chunk in enumerate(chunks) if chunk.thinking]
    usage = chunks[-1].usage

    assert max(thought) < min(words)
    assert usage is not None
    assert usage.thinking is not None
    assert 1 <= usage.thinking <= 5
    assert usage.thinking < usage.completion <= 40
    assert all(chunk.usage is None and chunk.finish is None for chunk in chunks[:-1])
    assert not any("<unused9" in chunk.text + chunk.thinking for chunk in chunks)


async def test_what_binds_the_answer_does_not_bind_the_thought(prepare: Prepare) -> None:
    """Choices: the answer is one of them, after a thought that is none."""
    engine = prepare(THOUGHT + "brown")
    if not engine.capabilities.choices:
        return
    if not (chunks := await thoughtful(engine, "Which colour?", choices=("brown", "black"))):
        return

    assert "".join(chunk.text for chunk in chunks) in {"brown", "black"}
    assert "".join(chunk.thinking for chunk in chunks) not in {"", "brown", "black"}
    assert chunks[-1].finish is Finish.STOP


async def test_thinking_that_is_off_leaves_the_answer_alone(prepare: Prepare) -> None:
    """No thought, and the words of a model that did not mean to think."""
    engine = prepare("brown and round", "brown and round")
    chunks = await thoughtful(engine, thinking=0, max_tokens=24)
    usual = await collect(engine.stream(ask("Describe the image.")))

    assert not any(chunk.thinking for chunk in chunks)
    assert not chunks or "".join(chunk.text for chunk in chunks) == usual.text


async def test_leaving_while_it_thinks(prepare: Prepare) -> None:
    """The place is free for the next question."""
    engine = prepare(*[THOUGHT + "brown and round"] * 2)
    if not engine.capabilities.thinking:
        return
    async with aclosing(engine.stream(ask("Describe the image.", thinking=200, max_tokens=400))) as chunks:
        assert (await anext(chunks)).thinking

    async with asyncio.timeout(20):
        result = await collect(engine.stream(ask("Which colour?", max_tokens=2)))

    assert result.usage.completion > 0


async def test_bad_wishes() -> None:
    """What makes no sense is refused before any engine sees it."""
    with pytest.raises(InvalidRequest):
        ask("Which colour?", choices=("a",), schema=SCHEMA)
