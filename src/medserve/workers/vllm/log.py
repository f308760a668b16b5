"""What vLLM writes while it starts tells how far it is and why it failed; what it writes later is not read."""

import asyncio
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence

LINES = 400
PIECE_BYTES = 2**16

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


class Log:
    """How far vLLM is, which is told as it comes, and what it complains of.

    `attention` is which code computes attention, empty where vLLM does not say.
    """

    def __init__(self, tell: Callable[[str, float | None], None]) -> None:
        self.lines: deque[str] = deque(maxlen=LINES)
        self.attention = ""
        self._told = tell
        self._stage = ""
        self._open = True

    def close(self) -> None:
        """Keep nothing any more: from now on it may be about somebody's request."""
        self._open = False
        self.lines.clear()

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Read to the end, so that vLLM never waits for a full pipe. Bars of progress end their lines by a return."""
        rest = b""
        while piece := await reader.read(PIECE_BYTES):
            if not self._open:
                continue
            *lines, rest = re.split(rb"[\r\n]+", rest + piece)
            rest = rest[-PIECE_BYTES:]
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
            self._told(stage, int(share[1] or share[2]) / 100 if share else None)


def explained(status: int, lines: Sequence[str]) -> str:
    """Why vLLM ended while it started, in its own words without paths: its last complaint that is no consequence."""
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    said = [found[0] for line in lines if (found := REASON.fullmatch(PREFIX.sub("", line).strip()))]
    causes = [reason for reason in said if not CONSEQUENCE.search(reason)] or said
    if causes:
        return f"vLLM could not start: {_without_paths(causes[-1])}"
    short = "; the machine may be short of memory" if status == -signal.SIGKILL else ""
    return f"vLLM {ended} while it started and gave no reason{short}"


def _without_paths(line: str) -> str:
    """A line with directories cut away, though not out of addresses, and what pydantic puts after a reason."""
    return re.sub(r"(?<![:/\w])(?:/[^\s'\"/]+)+/", "", line.partition(" [type=")[0])[:300]
