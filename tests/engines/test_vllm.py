"""vLLM under our supervision: a family of processes that nobody else can reach or outlive, and a dialect that is exact.

The family here is `vllm_stand_in.py`'s, which speaks vLLM's command line and HTTP; `make vllm-contract` runs the engine
on a real vLLM.
"""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from math import exp, log
from pathlib import Path
from typing import Any

import jinja2
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve import certificates, footprint, process, thinking
from medserve.certificates import Certificate, Check, Outcome, Verdict
from medserve.engines import vllm
from medserve.engines.vllm import arguments as vllm_arguments
from medserve.engines.vllm.arguments import further
from medserve.engines.vllm.dialect import NEVER, Vllm
from medserve.engines.vllm.own import OwnVllm
from medserve.errors import (
    ContextOverflow,
    EngineError,
    InvalidRequest,
    MemoryShort,
    ModelFailed,
    NotSupported,
    WeightsMissing,
    WorkerCrashed,
)
from medserve.generation import GenerationRequest, Message, Sampling, collect
from medserve.hub import picking
from medserve.models import ModelHandle, State
from medserve.process import Progress
from medserve.settings import DEMO, Limits, ModelSpec, Settings
from medserve.text import CLOSING, OPENING
from medserve.unix_http import UnixClient
from medserve.workers.vllm import build
from medserve.workers.vllm.command import TEMPLATE
from medserve.workers.vllm.environment import one_gpu
from medserve.workers.vllm.log import explained
from medserve.workers.vllm.memory import PROCESS_BYTES
from tests.engines import vllm_stand_in
from tests.engines.families import family, gone
from tests.engines.servers import Request, between, whole
from tests.engines.subjects import ask, picture
from tests.engines.vllm_stand_in import END_OF_TURN, MARKS, logprobs, tokenised

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux, and who ends whom is asked of its kernel"),
]

SPEC = ModelSpec(name="demo-on-vllm", engine="vllm", path=DEMO, context=2048, threads=1)
GONE_SECONDS = 10.0


class Onlooker:
    """Notes what a load tells and asks for."""

    def __init__(self, room: int = 2**60) -> None:
        self.room = room
        self.told: list[Progress] = []
        self.asked: list[int] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    async def make_room(self, memory_bytes: int) -> None:
        self.asked.append(memory_bytes)
        if memory_bytes > self.room:
            raise MemoryShort("no room")


@contextmanager
def looking_on(room: int = 2**60) -> Iterator[Onlooker]:
    """Somebody looks on at the loads of this task for as long as the context lasts."""
    onlooker = Onlooker(room)
    token = process.ONLOOKER.set(onlooker)
    try:
        yield onlooker
    finally:
        process.ONLOOKER.reset(token)


@asynccontextmanager
async def running(folder: Path, **behaviour: Any) -> AsyncIterator[OwnVllm]:
    """An engine of one's own on a stand-in that behaves in a certain way."""
    engine = await started(folder, **behaviour)
    try:
        yield engine
    finally:
        await engine.close()


async def started(folder: Path, spec: ModelSpec = SPEC, settings: Settings | None = None, **behaviour: Any) -> OwnVllm:
    """The same, to be closed by who asks."""
    python = vllm_stand_in.install(folder / "environment", **behaviour)
    engine = await vllm.start(spec.model_copy(update={"python": python}), settings or Settings(home=folder / "home"))
    assert isinstance(engine, OwnVllm)
    return engine


@pytest.fixture(scope="module")
async def engine(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OwnVllm]:
    """One that the tests of the dialect share."""
    async with running(tmp_path_factory.mktemp("vllm")) as engine:
        yield engine


async def refused(folder: Path, spec: ModelSpec = SPEC, **behaviour: Any) -> ModelFailed:
    """The error that starting this gives."""
    with pytest.raises(ModelFailed) as caught:
        await started(folder, spec, **behaviour)
    assert "/" not in caught.value.message.replace("docs/vllm.md", "")  # no path of this machine
    return caught.value


# --- the family -------------------------------------------------------------------------------------------------------


async def test_closing_ends_the_whole_family(tmp_path: Path) -> None:
    """Those who do not end when they are asked to, and their children, too; and the private folder goes."""
    engine = await started(tmp_path)
    processes = family(engine.pid)
    folder = Path(engine._child.facts["socket"]).parent

    await engine.close()

    assert len(processes) >= 5  # the warden, vLLM's API, its engine with a child, and multiprocessing's own
    await gone(processes)
    assert not folder.exists()
    assert not engine.alive


async def test_a_killed_worker_takes_the_family_along(tmp_path: Path) -> None:
    """However sudden its end: what it started holds a GPU's memory and must not stay."""
    engine = await started(tmp_path)
    processes = family(engine.pid)

    os.kill(engine.pid, signal.SIGKILL)

    await gone(processes)
    async with asyncio.timeout(GONE_SECONDS):  # it is told a moment after it was seen
        await engine.exited()
    assert not engine.alive
    await engine.close()


GATEWAY = """
import asyncio, sys
from pathlib import Path
from typing import Any
from tests.engines import test_vllm

async def main():
    engine = await test_vllm.started(Path(sys.argv[1]))
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_gateway_takes_the_family_along(tmp_path: Path) -> None:
    """As when the system ends it for want of memory."""
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GATEWAY, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert gateway.stdout is not None
    async with asyncio.timeout(60):
        pid = int(await gateway.stdout.readline())
    processes = [psutil.Process(pid), *family(pid)]

    gateway.kill()
    await gateway.wait()

    await gone(processes)
    gateway._transport.close()  # type: ignore[attr-defined]  # asyncio leaves that to chance


async def test_without_its_worker_and_its_warden_vllm_ends(tmp_path: Path) -> None:
    """Both killed at once: the kernel ends vLLM's first process, the one that serves."""
    engine = await started(tmp_path)
    api = next(one for one in family(engine.pid) if "--uds" in one.cmdline())
    rest = family(api.pid)
    warden = next(one for one in psutil.Process(engine.pid).children() if one != api)

    warden.suspend()  # so that it cannot do its work before it is killed
    os.kill(engine.pid, signal.SIGKILL)
    warden.kill()

    await gone([api])
    for one in rest:  # whom nobody is left to end
        with suppress(psutil.NoSuchProcess):
            one.kill()
    await engine.close()


async def answer_while_it_dies(engine: OwnVllm, process: psutil.Process) -> None:
    """A long answer, in the middle of which a process is killed."""
    async with aclosing(engine.stream(ask("Describe the image.", max_tokens=512))) as chunks:
        await anext(chunks)
        process.kill()
        async for _ in chunks:
            pass


async def test_vllm_that_dies_is_told_as_a_crash(tmp_path: Path) -> None:
    """The answer that was being written fails by the right name, and nobody of the family stays."""
    async with running(tmp_path, pause=0.05) as engine:
        processes = family(engine.pid)
        api = next(one for one in processes if "--uds" in one.cmdline())
        with pytest.raises(WorkerCrashed, match="started anew by the next request"):
            await answer_while_it_dies(engine, api)

        await gone(processes)
        assert not engine.alive


async def test_an_engine_of_vllm_that_dies_is_told_as_a_crash(tmp_path: Path) -> None:
    """vLLM then still answers, with errors, for a moment."""
    async with running(tmp_path, pause=0.05) as engine:
        api = next(one for one in family(engine.pid) if "--uds" in one.cmdline())
        core = next(one for one in api.children() if one.children())
        with pytest.raises(WorkerCrashed):
            await answer_while_it_dies(engine, core)


async def test_the_next_request_starts_it_anew(tmp_path: Path) -> None:
    """A crash costs the requests that were being answered and no others."""
    python = vllm_stand_in.install(tmp_path / "environment")
    handle = ModelHandle(SPEC.model_copy(update={"python": python}), Settings(home=tmp_path / "home"))
    try:
        engine = await handle.ready()
        assert isinstance(engine, OwnVllm)
        os.kill(engine.pid, signal.SIGKILL)
        await engine.exited()

        result = await collect(handle.stream(ask("Which colour?", max_tokens=2)))

        assert result.usage.completion
        assert State.READY is handle.state
    finally:
        await handle.close()


# --- who can reach it -------------------------------------------------------------------------------------------------


def test_nobody_else_can_reach_it(engine: OwnVllm) -> None:
    """Its routes ask for no key: the socket lies in a folder of this user's alone, and nothing listens to a network."""
    socket = Path(engine._child.facts["socket"])

    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert 0o700 == stat.S_IMODE(socket.parent.stat().st_mode)
    assert 0 == stat.S_IMODE(socket.stat().st_mode) & 0o077
    for one in [psutil.Process(engine.pid), *family(engine.pid)]:
        assert [] == [held for held in one.net_connections("inet") if held.status == psutil.CONN_LISTEN]


async def told(engine: OwnVllm) -> tuple[dict[str, object], dict[str, str]]:
    """The command line and the environment that the stand-in was started with."""
    said = (await UnixClient(engine._child.facts["socket"]).get("/stand-in")).json()
    return said["arguments"], said["environment"]


async def test_how_it_is_started(engine: OwnVllm) -> None:
    """With what makes it exact, private and as large as the settings say."""
    arguments, environment = await told(engine)
    expected = {
        "max_model_len": 2048,
        "max_num_seqs": 2,
        "tensor_parallel_size": 1,
        "dtype": "bfloat16",
        "generation_config": "vllm",
        "max_logprobs": 20,
        "logprobs_mode": "raw_logprobs",
        "structured_outputs_config": '{"backend": "guidance", "disable_any_whitespace": true}',
        "limit_mm_per_prompt": '{"image": 128}',
        "enable_prefix_caching": True,
        "enable_prompt_tokens_details": True,
        "disable_fastapi_docs": True,
        "disable_uvicorn_access_log": True,
    }

    assert expected == {name: arguments[name] for name in expected}
    assert {"1"} == {environment[name] for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE")}
    assert environment["TMPDIR"] == str(Path(engine._child.facts["socket"]).parent)


async def test_the_settings_of_a_model_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that share each layer, no reuse, arguments of one's own; a key of the gateway's environment does not."""
    monkeypatch.setenv("HUB_KEY", "secret")
    changes = {
        "slots": 5,
        "reuse": False,
        "precision": "float32",
        "parallel": 2,
        "arguments": ("--seed", "7", "--attention-backend=TRITON_ATTN"),
    }
    engine = await started(tmp_path, SPEC.model_copy(update=changes), says=["INFO Using TRITON_ATTN backend."])
    try:
        arguments, environment = await told(engine)
        facts = dict(engine.capabilities.facts)
    finally:
        await engine.close()

    assert (5, 2, False) == (
        arguments["max_num_seqs"],
        arguments["tensor_parallel_size"],
        arguments["enable_prefix_caching"],
    )
    assert (7, "TRITON_ATTN", "float32") == (arguments["seed"], arguments["attention_backend"], arguments["dtype"])
    assert "HUB_KEY" not in environment
    assert ("TRITON_ATTN", "2", "--seed 7 --attention-backend=TRITON_ATTN") == (
        facts["attention"],
        facts["parallel"],
        facts["arguments"],
    )


OPENING_ARGUMENTS = (
    ["--host", "0.0.0.0"],  # noqa: S104 - it is refused
    ["--port=8000"],
    ["--uds", "/tmp/other.sock"],  # noqa: S108 - it is refused
    ["--api-key", "secret"],
    ["--allowed-local-media-path", "/"],
    ["--trust-remote-code"],
    ["--trust_remote_code"],
    ["--trust-request-chat-template"],
    ["--middleware", "os.system"],
    ["--logits-processors", "os:system"],
    ["--worker-cls", "os.system"],
    ["--config", "file.yaml"],
    ["--kv-transfer-config", "{}"],
    ["--enable-log-requests"],
    ["--enforce-eager", "somewhere"],
    ["--enforce-eager="],
    ["--seed=1", "somewhere"],
    ["--compilation-config.mode", "0"],
    ["-O3"],
    ["serve"],
)


@pytest.mark.parametrize("arguments", OPENING_ARGUMENTS, ids=lambda arguments: arguments[0])
def test_arguments_that_would_open_it_are_refused_by_name(arguments: list[str]) -> None:
    """Before anything is started; an abbreviation or another spelling is refused as well."""
    with pytest.raises(ModelFailed) as caught:
        further(arguments)

    assert caught.value.param == "arguments"
    assert arguments[-1 if arguments[-1] == "somewhere" else 0].partition("=")[0] in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("name", "setting"), vllm_arguments.OURS.items())
def test_arguments_with_a_setting_of_their_own_name_it(name: str, setting: str) -> None:
    """There is one way to say how long a context is."""
    with pytest.raises(ModelFailed, match=f"set `{setting}`"):
        further([name, "1"])


def test_arguments_that_tune_are_taken() -> None:
    """As they were given; one without its value is told."""
    given = ("--gpu-memory-utilization", "0.8", "--enforce-eager", "--kv-cache-dtype=fp8")

    assert given == further(given)
    with pytest.raises(ModelFailed, match="--seed needs a value"):
        further(["--seed"])
    with pytest.raises(ModelFailed, match="--seed needs a value"):
        further(["--seed", "--enforce-eager"])
    with pytest.raises(ModelFailed, match="--seed needs a value"):
        further(["--seed=", "somewhere"])  # which vLLM would take for an argument of its own


# --- starting ---------------------------------------------------------------------------------------------------------


async def test_a_start_is_followed(tmp_path: Path) -> None:
    """By vLLM's own log: what it does now, and how much of that is done where it says so."""
    with looking_on() as onlooker:
        async with running(tmp_path):
            stages = [progress.stage for progress in onlooker.told]

    assert ["looking for vLLM", "starting vLLM", "starting the engine", "reading the weights"] == stages[:4]
    assert Progress("reading the weights", 0.5) in onlooker.told


async def test_memory_is_asked_for_before_anything_is_started(tmp_path: Path) -> None:
    """Where there is none, vLLM is not started at all."""
    python = vllm_stand_in.install(tmp_path / "environment", marks=str(tmp_path / "was-started"))

    with looking_on(room=1000) as onlooker, pytest.raises(MemoryShort):
        await vllm.start(SPEC.model_copy(update={"python": python}), Settings(home=tmp_path / "home"))

    assert 3 * PROCESS_BYTES < onlooker.asked[0] < 3 * PROCESS_BYTES + 2**30
    assert not (tmp_path / "was-started").exists()


async def test_a_start_that_fails_gives_the_last_real_reason(tmp_path: Path) -> None:
    """Not that which follows from it, and without paths."""
    error = await refused(tmp_path, fails="ValueError: no room for /srv/secret/model.bin in the cache")

    assert "vLLM could not start: ValueError: no room for model.bin in the cache" in error.message


async def test_an_argument_that_vllm_does_not_know_is_its_own_complaint(tmp_path: Path) -> None:
    """As from another version of it."""
    error = await refused(tmp_path, SPEC.model_copy(update={"arguments": ("--performance-mode", "latency")}))

    assert "unrecognized arguments: --performance-mode latency" in error.message


async def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """With all that it had started."""
    before = set(psutil.Process().children(recursive=True))
    settings = Settings(home=tmp_path / "home", limits=Limits(load_seconds=4))

    with pytest.raises(ModelFailed, match="not loaded within 4 seconds"):
        await started(tmp_path, settings=settings, slow=60)

    await gone(list(set(psutil.Process().children(recursive=True)) - before))


async def test_a_start_that_is_given_up_leaves_nobody(tmp_path: Path) -> None:
    """As when the service is stopped while a model loads."""
    before = set(psutil.Process().children(recursive=True))
    with looking_on() as onlooker:
        loading = asyncio.create_task(started(tmp_path, slow=60))
    async with asyncio.timeout(30):
        while Progress("reading the weights", 0.5) not in onlooker.told:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    processes = list(set(psutil.Process().children(recursive=True)) - before)

    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    assert len(processes) >= 5
    await gone(processes)


async def test_without_vllm_it_is_said_where_to_put_it(tmp_path: Path) -> None:
    """An environment that has none, one whose vLLM is too old, and what is no Python at all."""
    plain = SPEC.model_copy(update={"python": Path(sys.executable)})
    with pytest.raises(ModelFailed, match="not installed in the environment of the model's python"):
        await vllm.start(plain, Settings(home=tmp_path / "home"))

    assert "vLLM 0.19.1 is too old; 0.32 or newer" in (await refused(tmp_path / "old", version="0.19.1")).message
    for python, said in ((Path("/bin/true"), "is no Python"), (tmp_path / "none", "cannot be started")):
        with pytest.raises(ModelFailed, match=said):
            await vllm.start(SPEC.model_copy(update={"python": python}), Settings(home=tmp_path / "home"))


async def test_a_python_that_hangs_is_told_before_the_doctor_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both waited for as long, so that the doctor knew no reason and the Python was left running."""
    assert build.PROBE_SECONDS <= footprint.SECONDS / 2
    monkeypatch.setattr(build, "PROBE_SECONDS", 0.2)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o700)

    with pytest.raises(ModelFailed, match="python, which should run vLLM, is no Python; check the model's python"):
        await build.build_of(python)


async def test_what_cannot_be_done_by_this_build_is_said(tmp_path: Path) -> None:
    """A GPU from a build for processors, and the other way round."""
    error = await refused(tmp_path / "cpu", SPEC.model_copy(update={"device": "cuda"}))
    assert "is a build for processors and device is cuda" in error.message

    error = await refused(
        tmp_path / "gpu", SPEC.model_copy(update={"device": "cpu"}), distribution="vllm", version="0.32.0"
    )
    assert "is a build for GPUs and device is cpu" in error.message


def test_one_gpu_is_one_of_the_visible() -> None:
    """By the number that it has among them; none is taken that was hidden."""
    assert "1" == one_gpu("cuda:1", None)
    assert "5" == one_gpu("cuda:1", "4,5")
    with pytest.raises(ModelFailed, match="leaves 2 GPUs"):
        one_gpu("cuda:2", "4,5")


def test_the_doctor_tells_of_vllm_where_it_is_declared() -> None:
    """And not of the engine that the same folder would run on otherwise."""
    assert "vllm" == picking.choose(SPEC).engine


async def test_settings_that_mean_nothing_here_are_refused(tmp_path: Path) -> None:
    """They are not ignored."""
    for changes, said in (({"quantise": "8bit"}, "quantise"), ({"path": None}, "has no path")):
        with pytest.raises(ModelFailed, match=said):
            await vllm.start(SPEC.model_copy(update=changes), Settings(home=tmp_path))
    with pytest.raises(WeightsMissing, match="does not exist"):
        await vllm.start(SPEC.model_copy(update={"path": tmp_path / "none"}), Settings(home=tmp_path))
    assert "float16" in (await refused(tmp_path, SPEC.model_copy(update={"precision": "float16"}))).message


# --- the prompt -------------------------------------------------------------------------------------------------------

OURS = jinja2.Environment(autoescape=False).from_string(TEMPLATE.read_text())  # noqa: S701 - prompts are no HTML
THEIRS = jinja2.Environment(autoescape=False).from_string((DEMO / "chat_template.jinja").read_text())  # noqa: S701
TEXTS = st.text(st.sampled_from("ab \n\t"), max_size=6)
PARTS = st.lists(st.one_of(st.just({"type": "image"}), TEXTS.map(lambda text: {"type": "text", "text": text})))


@given(st.one_of(st.none(), TEXTS), st.lists(PARTS, min_size=1, max_size=4), st.booleans())
def test_our_template_is_gemmas(system: str | None, turns: list[list[dict[str, str]]], asked: bool) -> None:
    """For every conversation that is not made to go on with a given beginning."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": parts} for place, parts in enumerate(turns)]
    if len(turns) % 2 == 0:  # an answer that is the last is one that goes on
        messages.append({"role": "user", "content": [{"type": "text", "text": "a"}]})
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    told = {"messages": messages, "bos_token": "<bos>", "add_generation_prompt": asked}

    assert THEIRS.render(told) == OURS.render(told)


def test_what_an_answer_begins_with_is_left_as_it_is() -> None:
    """White space at its ends is part of it, which Gemma's template would take away."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b \n"}]

    assert OURS.render(messages=messages, bos_token="<bos>").endswith("<start_of_turn>model\n b \n<end_of_turn>\n")


async def test_the_prompt_can_be_shown(engine: OwnVllm) -> None:
    """Token by token, a picture with its marks as one."""
    ids = await engine.prompt_ids(ask(picture(1), picture(2), "Which colour?"))
    before, after = "<bos><start_of_turn>user\n\n\n", "\n\nWhich colour?<end_of_turn>\n<start_of_turn>model\n"

    assert [*tokenised(before), None, *tokenised("\n\n\n\n"), None, *tokenised(after)] == list(ids)


async def test_a_system_message_comes_before_the_users_words(engine: OwnVllm) -> None:
    """In the user's first turn, as Gemma knows no other."""
    messages = (Message("system", ("Be brief.",)), Message("user", (" Which colour? ",)))
    ids = await engine.prompt_ids(GenerationRequest(messages))

    assert tokenised(PROMPT.replace("Which", "Be brief.\n\nWhich")) == list(ids)


async def test_control_tokens_in_words_are_words(engine: OwnVllm) -> None:
    """Neither a user's text nor a prefix can end a turn or show a picture."""
    ids = await engine.prompt_ids(ask("a<end_of_turn>", "<start_of_", "image>", prefix="<end_of_turn>"))

    assert 1 == ids.count(END_OF_TURN)
    assert None not in ids


# --- answers ----------------------------------------------------------------------------------------------------------


def said_after(prompt: str, tokens: int) -> str:
    """What the toy says greedily."""
    ids = tokenised(prompt)
    said: list[int] = []
    while len(said) < tokens and (not said or said[-1] != END_OF_TURN):
        said.append(int(logprobs([*ids, *said]).argmax()))
    return vllm_stand_in.detokenised([token for token in said if token != END_OF_TURN])


PROMPT = "<bos><start_of_turn>user\nWhich colour?<end_of_turn>\n<start_of_turn>model\n"


async def test_an_answer(engine: OwnVllm) -> None:
    """Its words, its counts, and how long it took by vLLM's own clock."""
    result = await collect(engine.stream(ask("Which colour?", max_tokens=12)))

    assert said_after(PROMPT, 12) == result.text
    assert len(tokenised(PROMPT)) == result.usage.prompt
    assert 0 < result.usage.completion <= 12
    assert 0.003 == result.timings.prompt
    assert 0.002 * result.usage.completion == pytest.approx(result.timings.completion)


async def test_a_beginning_is_gone_on_with(engine: OwnVllm) -> None:
    """Exactly as it was given, a space at its end too."""
    result = await collect(engine.stream(ask("Which colour?", prefix="It is ", max_tokens=8)))

    assert "It is " + said_after(PROMPT + "It is ", 8) == result.text


async def test_pictures_are_counted_and_read_once(engine: OwnVllm) -> None:
    """Their tokens are measured in the prompt; asked about again, none is encoded."""
    question = ask(picture(31), picture(32), picture(33), "Which colour do you see in all three of them?", max_tokens=2)

    first, again = await collect(engine.stream(question)), await collect(engine.stream(question))

    assert (48, 3, 0) == (first.usage.image, first.usage.encodes, first.usage.cached)
    assert (48, 0) == (again.usage.image, again.usage.encodes)
    assert again.usage.cached >= 64


async def test_questions_about_one_picture_are_asked_together(engine: OwnVllm) -> None:
    """vLLM batches: nobody takes turns."""
    assert engine.capabilities.batches
    async with engine.places.one(await engine._kin(ask(picture(1), "Which colour?"))):
        async with asyncio.timeout(10):
            await collect(engine.stream(ask(picture(1), "Which colour?", max_tokens=2)))


async def test_choices_and_schemas_bind(engine: OwnVllm) -> None:
    """A schema's JSON has the separators that models are used to, and no other white space."""
    schema = {"type": "object", "properties": {"colour": {"enum": ["brown"]}, "even": {"type": "boolean"}}}

    chosen = await collect(engine.stream(ask("Which one?", choices=("mel", "melanoma"))))
    fitting = await collect(engine.stream(ask("Which one?", schema=schema, max_tokens=64)))

    assert chosen.text in {"mel", "melanoma"}
    assert '{"colour": "brown", "even": false}' == fitting.text


async def test_a_schema_that_cannot_be_enforced_is_refused(engine: OwnVllm) -> None:
    """It is not ignored, and it is said which field is at fault."""
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine.stream(ask("Which one?", schema={"patternProperties": {"a": {}}})))

    assert caught.value.param == "schema"


async def test_a_prompt_beyond_the_context(engine: OwnVllm) -> None:
    """By its own name, for who could send less."""
    with pytest.raises(ContextOverflow):
        await collect(engine.stream(ask("x" * 3000)))


async def test_every_sampler_is_told(engine: OwnVllm) -> None:
    """Even at its neutral value: the weights' own habits would fill the gaps on somebody else's vLLM."""
    body = await engine._body(ask("Which colour?", sampling=Sampling(temperature=1.0, seed=3)))

    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    assert {**neutral, "temperature": 1.0, "seed": 3} == {
        name: body[name] for name in (*neutral, "temperature", "seed")
    }


async def test_leaving_stops_the_work(tmp_path: Path) -> None:
    """vLLM is told by the closed connection."""
    async with running(tmp_path, pause=0.02) as engine:
        async with aclosing(engine.stream(ask("Describe the image.", max_tokens=512))) as chunks:
            await anext(chunks)
        client = UnixClient(engine._child.facts["socket"])
        async with asyncio.timeout(5):
            while b"num_requests_running 0" not in (await client.get("/metrics")).content:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_thinking_is_forbidden_by_its_mark(engine: OwnVllm) -> None:
    """And where it is wanted, the answer is made to begin with it."""
    forbidden = await engine._body(ask("Which colour?", thinking=0))
    wanted = await engine._body(thinking.first_stage(ask("Which colour?", thinking=8)))

    assert {str(MARKS.index(OPENING)): NEVER} == forbidden["logit_bias"]
    assert wanted["messages"][-1] == {"role": "assistant", "content": OPENING + "thought\n"}
    assert engine.capabilities.thinking


async def test_thinking_in_two_stages(engine: OwnVllm) -> None:
    """The thought is told apart from the answer, and only the answer is bound."""
    result = await collect(engine.stream(ask("Which one?", thinking=6, choices=("mel", "nevus"), max_tokens=40)))

    assert result.text in {"mel", "nevus"}
    assert result.thinking
    assert CLOSING not in result.text


async def test_logprobs(engine: OwnVllm) -> None:
    """Of each token, with as many alternatives as were asked for, from the raw logits."""
    hot = Sampling(temperature=2.0, seed=1)
    result = await collect(engine.stream(ask("Which colour?", max_tokens=3, top_logprobs=4, sampling=hot)))

    assert all(len(entry.top) == 4 for entry in result.logprobs)
    first = logprobs(tokenised(PROMPT))
    assert result.logprobs[0].logprob == pytest.approx(first[tokenised(result.logprobs[0].token)[0]])


# --- labels -----------------------------------------------------------------------------------------------------------


def scored(prompt: str, label: str, *, barred: tuple[int, ...] = ()) -> float:
    """log P(label, end of turn) by the toy's own arithmetic."""
    ids, total = tokenised(prompt), 0.0
    for token in [*tokenised(label), END_OF_TURN]:
        known = logprobs(ids)
        total += known[token] - log(1 - sum(exp(known[other]) for other in barred))
        ids.append(token)
    return total


@pytest.mark.parametrize("prefix", ["", "It is ", "It is"])
async def test_labels_are_scored_by_the_raw_logits(engine: OwnVllm, prefix: str) -> None:
    """All their tokens and the end of the turn; labels that begin alike share what they have in common."""
    labels = ("mel", "melanoma", "nevus")
    scores = await engine.score(ask("Which colour?", prefix=prefix, sampling=Sampling(temperature=1.0)), labels)

    stem = prefix.rstrip(" ")  # a space belongs to the word that follows it
    expected = {label: scored(PROMPT + stem, prefix[len(stem) :] + label) for label in labels}
    assert expected == pytest.approx(scores.logprobs)
    assert len(tokenised(PROMPT + stem)) == scores.usage.prompt


async def test_labels_of_a_model_that_must_not_think(engine: OwnVllm) -> None:
    """Their probabilities are those of a model that cannot open a thought."""
    scores = await engine.score(ask("Which colour?", thinking=0), ("a", "b"))

    expected = {label: scored(PROMPT, label, barred=(MARKS.index(OPENING),)) for label in ("a", "b")}
    assert expected == pytest.approx(scores.logprobs)


async def test_labels_in_any_number_and_order(engine: OwnVllm) -> None:
    """More than vLLM tells in one request; their order changes nothing."""
    labels = tuple(f"{first}{second}" for first in "abcdefghijkl" for second in "abcdefghijkl")

    forth = await engine.score(ask("Which colour?"), labels)
    back = await engine.score(ask("Which colour?"), labels[::-1])

    assert forth.logprobs == back.logprobs
    assert 144 == len(forth.logprobs)
    assert forth.logprobs["cd"] == pytest.approx(scored(PROMPT, "cd"))


async def test_a_label_that_cannot_be_said_in_text_is_refused(engine: OwnVllm) -> None:
    """One of its tokens is half a character: rather no number than a wrong one."""
    with pytest.raises(EngineError, match="choose simpler labels"):
        await engine.score(ask("Which colour?"), ("ä", "b"))


@pytest.mark.parametrize("labels", [(), ("a", "a"), ("a", "")])
async def test_labels_that_make_no_sense(engine: OwnVllm, labels: tuple[str, ...]) -> None:
    """Before anything is asked."""
    with pytest.raises(InvalidRequest) as caught:
        await engine.score(ask("Which colour?"), labels)

    assert caught.value.param == "labels"


# --- certificates -----------------------------------------------------------------------------------------------------


async def certified(engine: OwnVllm, folder: Path, outcome: Outcome, verdict: Verdict) -> OwnVllm:
    """An engine of the same build, which has a certificate with this outcome."""
    home = folder / "home"
    facts = dict(engine.capabilities.facts)
    check = Check(name="labels", outcome=outcome, reason="as planted")
    certificates.keep(
        home,
        Certificate(
            model="demo",
            verdict=verdict,
            summary="the build masks pictures as it masks text",
            subject=facts,
            reference={},
            settings={},
            pictures=1,
            picture_set="0",
            checks=(check,),
        ),
    )
    return await started(folder, settings=Settings(home=home))


async def test_a_build_that_failed_is_shown_no_pictures(engine: OwnVllm, tmp_path: Path) -> None:
    """With the reason; words it answers."""
    engine = await certified(engine, tmp_path, Outcome.FAILED, Verdict.FAILED)
    try:
        with pytest.raises(NotSupported, match="the build masks pictures as it masks text"):
            await collect(engine.stream(ask(picture(1), "Which colour?")))
        assert (await collect(engine.stream(ask("Which colour?", max_tokens=2)))).text
        assert dict(engine.capabilities.facts)["parity"].startswith("failed")
    finally:
        await engine.close()


async def test_a_build_that_passed_says_so(engine: OwnVllm, tmp_path: Path) -> None:
    """Its reports carry no warning."""
    engine = await certified(engine, tmp_path, Outcome.PASSED, Verdict.PASSED)
    try:
        assert not certificates.is_unverified(dict(engine.capabilities.facts))
        assert (await collect(engine.stream(ask(picture(1), "Which colour?", max_tokens=2)))).usage.image
    finally:
        await engine.close()


def test_a_build_without_a_certificate_is_unverified(engine: OwnVllm) -> None:
    """It answers, and what it says of itself flags its reports."""
    assert certificates.is_unverified(dict(engine.capabilities.facts))


# --- somebody else's --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def at_an_address(engine: OwnVllm, *, without: str = "") -> AsyncIterator[str]:
    """The same vLLM at an address of this machine, as one that somebody else runs; of one route it knows nothing."""

    def lacks(request: Request) -> bytes | None:
        return whole(404, {"detail": "Not Found"}) if request.path == without else None

    async with between(engine, lacks) as stands:
        yield stands.url


def elsewhere(url: str, **changes: object) -> ModelSpec:
    return ModelSpec(name="elsewhere", engine="vllm", url=url).model_copy(update=changes)


async def test_one_that_somebody_else_runs(engine: OwnVllm, tmp_path: Path) -> None:
    """It is asked in the same way, and left running."""
    async with at_an_address(engine) as url:
        met = await vllm.start(elsewhere(url), Settings(home=tmp_path))
        assert isinstance(met, Vllm)
        try:
            result = await collect(met.stream(ask("Which colour?", max_tokens=12)))
            scores = await met.score(ask("Which colour?"), ("mel", "nevus"))
        finally:
            await met.close()

    assert said_after(PROMPT, 12) == result.text
    assert scores.logprobs == pytest.approx({label: scored(PROMPT, label) for label in ("mel", "nevus")})
    assert 2048 == met.capabilities.context
    assert ("build", f"vllm {vllm_stand_in.VERSION}") in met.capabilities.facts
    assert ("parity", certificates.NOT_VERIFIED) in met.capabilities.facts
    assert engine.alive


async def test_one_that_does_not_tell_tokens_scores_no_labels(engine: OwnVllm, tmp_path: Path) -> None:
    """What cannot be had is not promised."""
    async with at_an_address(engine, without="/tokenize") as url:
        met = await vllm.start(elsewhere(url), Settings(home=tmp_path))
        try:
            assert not met.capabilities.score
            with pytest.raises(NotSupported):
                await met.score(ask("Which colour?"), ("mel", "nevus"))
        finally:
            await met.close()


async def test_an_address_without_vllm(engine: OwnVllm, tmp_path: Path) -> None:
    """Nobody there, another server, or another model."""
    async with at_an_address(engine, without="/version") as url:
        with pytest.raises(ModelFailed, match="no vLLM answers"):
            await vllm.start(elsewhere(url), Settings(home=tmp_path))
    with pytest.raises(ModelFailed, match="is it running"):
        await vllm.start(elsewhere(url), Settings(home=tmp_path))
    async with at_an_address(engine) as url:
        with pytest.raises(ModelFailed, match="it has: model"):
            await vllm.start(elsewhere(url, served="other"), Settings(home=tmp_path))


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (401, {"error": {"message": "no"}}, "key_file"),
        (200, {"data": [{"id": "a\nb"}, {"id": "c" * 1000}]}, "it has: none"),
        (200, b"[" * 20_000, "is it running"),
    ],
    ids=["wrong key", "odd names", "no list"],
)
async def test_why_an_address_cannot_be_used(
    engine: OwnVllm, tmp_path: Path, status: int, said: object, words: str
) -> None:
    """A key that is missing is not told as a server that does not run, nor is a list that is none a failure of ours."""

    def says(request: Request) -> bytes | None:
        return whole(status, said) if request.path == "/v1/models" else None

    async with between(engine, says) as stands:
        with pytest.raises(ModelFailed, match=words):
            await vllm.start(elsewhere(stands.url), Settings(home=tmp_path))


async def test_what_an_address_says_of_itself_is_bounded(engine: OwnVllm, tmp_path: Path) -> None:
    """A context that is no number is that of the settings, and the path of somebody's folder stays with them."""

    def says(request: Request) -> bytes | None:
        listed = {"data": [{"id": "/home/jane/medgemma", "max_model_len": float("inf")}]}
        return whole(200, listed) if request.path == "/v1/models" else None

    async with between(engine, says) as stands:
        met = await vllm.start(elsewhere(stands.url, context=1000), Settings(home=tmp_path))
        await met.close()

    assert 1000 == met.capabilities.context
    assert "medgemma" == dict(met.capabilities.facts)["weights"]


# --- what it says of its failures -------------------------------------------------------------------------------------

REASONS = (
    (
        "(EngineCore pid=7) ERROR 11-20 15:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
        "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
    ),
    (
        "  Value error, User-specified max_model_len (99) is too large. [type=value_error, input_value={'a': '/b/c'}]",
        "Value error, User-specified max_model_len (99) is too large.",
    ),
    (
        "ValueError: no room in /srv/cache/x. See https://docs.example.org/en/page for more.",
        "ValueError: no room in x. See https://docs.example.org/en/page for more.",
    ),
    ("entry.py: error: unrecognized arguments: --what", "entry.py: error: unrecognized arguments: --what"),
    ("ModuleNotFoundError: No module named 'torchvision'", "ModuleNotFoundError: No module named 'torchvision'"),
)


@pytest.mark.parametrize(("line", "reason"), REASONS)
def test_reasons_are_found_in_the_log(line: str, reason: str) -> None:
    """Beneath vLLM's own prefixes, and not taken for what merely follows from them."""
    lines = [line, "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."]

    assert f"vLLM could not start: {reason}" == explained(1, lines)


def test_a_silent_end_is_told_by_its_signal() -> None:
    """As when the system has ended it."""
    assert "was ended by signal 9 while it started and gave no reason; the machine may" in explained(-9, [])
    assert "ended with status 3" in explained(3, ["INFO all is well"])
