"""The engine on a real vLLM: what it promises of the demo model's own logits, and what nobody else may do to it.

Run by `make vllm-contract`, which installs vLLM into an environment of its own; skipped where none is named. Exactness
is shown in float32, and with words alone where the build masks pictures as it masks text.
"""

import asyncio
import os
import re
import signal
import sys
from contextlib import aclosing
from math import exp
from pathlib import Path
from statistics import median

import psutil
import pytest

from medserve.engines import transformers, vllm
from medserve.engines.llama_cpp import LlamaCpp
from medserve.engines.transformers import Transformers
from medserve.engines.vllm.own import OwnVllm
from medserve.errors import ContextOverflow, InvalidRequest, ModelFailed, WorkerCrashed
from medserve.generation import Finish, LabelScores, Sampling, collect
from medserve.models import ModelHandle, State
from medserve.settings import DEMO, Settings
from medserve.unix_http import UnixClient
from tests.engines.families import family, gone
from tests.engines.subjects import SAFETENSORS, VLLM_PYTHON, ask, batching, picture

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(VLLM_PYTHON is None, reason="no vLLM is named; make vllm-contract installs one"),
]

LABELS = ("brown", "black", "blue", "light brown")
QUESTIONS = ("Which colour?", "Which colours are there?", "What is the shape of the lesion?")


@pytest.fixture
def engine(real_vllm: OwnVllm | None) -> OwnVllm:
    """The one that the contract's tests share."""
    assert real_vllm is not None
    return real_vllm


def apart(first: LabelScores, second: LabelScores) -> float:
    """The largest difference between two scores of the same labels, in nats."""
    return max(abs(first.logprobs[label] - second.logprobs[label]) for label in first.logprobs)


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "It is ", "The colour:"])
@pytest.mark.parametrize("question", QUESTIONS)
async def test_labels_have_the_probabilities_of_the_reference(
    engine: OwnVllm, tensors: Transformers, question: str, prefix: str
) -> None:
    """Both computed in float32 from the same weights."""
    wish = ask(question, prefix=prefix)

    assert apart(await engine.score(wish, LABELS), await tensors.score(wish, LABELS)) < 1e-3


async def test_labels_have_the_probabilities_of_llama_cpp(engine: OwnVllm, llama: LlamaCpp) -> None:
    """Whose weights are the same in another form."""
    wish = ask("Which colour?")

    assert apart(await engine.score(wish, LABELS), await llama.score(wish, LABELS)) < 0.05


@pytest.mark.parametrize("question", QUESTIONS)
async def test_answers_are_those_of_the_reference(engine: OwnVllm, tensors: Transformers, question: str) -> None:
    """Word for word, with the same log-probabilities."""
    wish = ask(question, top_logprobs=3)
    ours, theirs = await collect(engine.stream(wish)), await collect(tensors.stream(wish))

    assert theirs.text == ours.text
    said = [(entry.token, entry.logprob) for entry in ours.logprobs]
    expected = [(entry.token, entry.logprob) for entry in theirs.logprobs]
    for (token, logprob), (other, known) in zip(said, expected, strict=False):
        assert other == token
        assert logprob == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize("prefix", ["", "It is "])
async def test_the_prompt_is_that_of_the_reference(engine: OwnVllm, llama: LlamaCpp, prefix: str) -> None:
    """Token for token, pictures and all."""
    wish = ask(picture(1), " Which colour? ", picture(2), "And here?", prefix=prefix)

    assert await llama.prompt_ids(wish) == await engine.prompt_ids(wish)


async def test_pictures_are_masked_as_gemma_masks_them_or_as_text(
    engine: OwnVllm, tensors: Transformers, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build does one of the two, and which is said; `medserve verify` finds it out for any build."""
    wishes = [ask(picture(seed), "Which colour?") for seed in range(6)]
    ours = [await engine.score(wish, LABELS) for wish in wishes]
    reference = await transformers.launch(SAFETENSORS, Settings(), causal_images=True)
    try:
        as_text = [await reference.score(wish, LABELS) for wish in wishes]
    finally:
        await reference.close()
    right = [await tensors.score(wish, LABELS) for wish in wishes]

    to_right = median(apart(own, other) for own, other in zip(ours, right, strict=True))
    to_text = median(apart(own, other) for own, other in zip(ours, as_text, strict=True))
    with capsys.disabled():
        sys.stdout.write(f"\nwith a picture: {to_right:.6f} nats from Gemma's mask, {to_text:.6f} from that of text\n")

    assert min(to_right, to_text) < 1e-3
    assert max(to_right, to_text) > 10 * min(to_right, to_text)


# --- shared -----------------------------------------------------------------------------------------------------------


async def test_what_was_read_is_not_read_again(engine: OwnVllm) -> None:
    """Whole blocks of the cache, a picture's above all; and the labels of the same question find it too."""
    wish = ask(picture(77), "What is the shape of the lesion? Look at its border and at its size.", max_tokens=2)
    first, again = await collect(engine.stream(wish)), await collect(engine.stream(wish))
    scores = await engine.score(wish, LABELS)

    assert (0, 1) == (first.usage.cached, first.usage.encodes)
    assert again.usage.cached >= 32
    assert 0 == again.usage.encodes
    assert scores.usage.cached >= 32
    assert first.timings.prompt > 0


async def test_many_questions_at_once_are_answered_as_one_by_one(engine: OwnVllm) -> None:
    """In batches, in float32."""
    wishes = [ask(picture(90 + place % 2), question) for place, question in enumerate(QUESTIONS * 2)]
    alone = [(await collect(engine.stream(wish))).text for wish in wishes]
    together = await asyncio.gather(*(collect(engine.stream(wish)) for wish in wishes))

    assert alone == [result.text for result in together]


async def test_leaving_stops_the_work(engine: OwnVllm) -> None:
    """vLLM is told by the closed connection."""
    client = UnixClient(engine._child.facts["socket"])
    async with aclosing(engine.stream(ask("Describe the image.", max_tokens=1500, prefix="a"))) as chunks:
        await anext(chunks)
    async with asyncio.timeout(10):
        while b'num_requests_running{engine="0",model_name="model"} 0.0' not in (await client.get("/metrics")).content:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_wishes_are_honoured(engine: OwnVllm) -> None:
    """Stop texts, token limits, seeds, and what cannot be: refused by the right name."""
    hot = Sampling(temperature=1.5, seed=5)
    first = await collect(engine.stream(ask("Describe the image.", sampling=hot)))
    again = await collect(engine.stream(ask("Describe the image.", sampling=hot)))

    assert first.text == again.text
    with pytest.raises(ContextOverflow):
        await collect(engine.stream(ask("colour " * 3000)))
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.stream(ask("Which?", schema={"type": "object", "unevaluatedProperties": {"not": {}}})))
    assert caught.value.param == "schema"


async def test_the_mass_of_all_first_tokens_is_one(engine: OwnVllm) -> None:
    """Log-probabilities are of raw logits: those of the likeliest add up to no more than one, and nearly to it."""
    result = await collect(engine.stream(ask("Which colour?", top_logprobs=20, max_tokens=1)))

    assert 0.9 < sum(exp(logprob) for _, logprob in result.logprobs[0].top) <= 1.0001
    assert result.finish is Finish.LENGTH


# --- private, and never outliving -------------------------------------------------------------------------------------


def test_nobody_else_can_reach_it(engine: OwnVllm) -> None:
    """No process of the family listens to any network."""
    listening = [
        held.laddr
        for one in [psutil.Process(engine.pid), *family(engine.pid)]
        for held in one.net_connections("inet")
        if held.status == psutil.CONN_LISTEN
    ]

    assert [] == [address for address in listening if address.ip not in {"127.0.0.1", "::1"}]
    assert Path(engine._child.facts["socket"]).parent.stat().st_mode & 0o077 == 0


async def test_a_killed_worker_takes_the_family_along_and_the_next_request_starts_it_anew() -> None:
    """The engine's process and its workers too, which hold the memory."""
    spec = SAFETENSORS.model_copy(update={"engine": "vllm", "python": VLLM_PYTHON})
    handle = ModelHandle(spec, Settings())
    try:
        engine = await handle.ready()
        assert isinstance(engine, OwnVllm)
        processes = family(engine.pid)
        assert len(processes) >= 4
        os.kill(engine.pid, signal.SIGKILL)
        await gone(processes)

        assert (await collect(handle.stream(ask("Which colour?", max_tokens=2)))).usage.completion
        assert State.READY is handle.state
    finally:
        await handle.close()


async def test_an_engine_process_that_dies_is_told_as_a_crash() -> None:
    """In the middle of an answer; and closing leaves nobody."""
    async with batching() as engine:
        processes = family(engine.pid)
        core = next(one for one in processes if "EngineCore" in " ".join([one.name(), *one.cmdline()]))
        with pytest.raises(WorkerCrashed):
            await answer_while_it_dies(engine, core)
    await gone(processes)


async def answer_while_it_dies(engine: OwnVllm, process: psutil.Process) -> None:
    """A long answer, in the middle of which a process is killed."""
    async with aclosing(engine.stream(ask("Describe the image.", max_tokens=1500, prefix="a"))) as chunks:
        await anext(chunks)
        process.kill()
        async for _ in chunks:
            pass


async def test_a_start_that_fails_gives_vllms_own_reason() -> None:
    """Not what follows from it, and without paths."""
    spec = SAFETENSORS.model_copy(
        update={"engine": "vllm", "python": VLLM_PYTHON, "arguments": ("--kv-cache-memory-bytes", "4096")}
    )
    with pytest.raises(ModelFailed) as caught:
        await vllm.start(spec, Settings())

    assert "vLLM could not start: ValueError" in caught.value.message
    assert str(DEMO) not in caught.value.message
    assert not re.search(r"(?<![:/\w])/\w", caught.value.message)
