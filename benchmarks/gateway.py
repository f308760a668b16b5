"""What the gateway adds to its worker: milliseconds a request at a constant rate, and microseconds a streamed token.

    python -m benchmarks.gateway [--rate 200] [--seconds 10] [--rounds 5]

The same requests go at the same rate to a server and, through the gateway, to the same server; rounds alternate. Two
servers stand behind it: the llama.cpp worker with the demonstration model, one token a request, asked at its own socket
(the usual case, smallest work), and `benchmarks.stub`, which answers at once (the limit). The sender keeps a constant
rate whatever comes back, and sends nothing twice.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

from benchmarks.load import Client, Reply, Spread, constant, table
from medserve.settings import DEMO_MODEL
from tests.serving import Service, serving

CHAT = "/v1/chat/completions"
TOKENS = 400
STREAMS = 10

CONFIG = """
[[models]]
name = "{name}"
path = "{path}"
projector = "{projector}"
context = {context}
threads = 1
waiting = 1000

[[models]]
name = "stub"
engine = "openai"
url = "http://127.0.0.1:{port}"
slots = 64
waiting = 1000
preload = true
"""


@dataclass
class Way:
    """One way to the same answers, and what came of it so far."""

    name: str
    client: Client
    model: str
    replies: list[list[Reply]] = field(default_factory=list)

    def body(self, number: int) -> bytes:
        """A question that nobody asked before, which is how questions come."""
        words = f"Is finding {number} of round {len(self.replies)} by {self.name} round?"
        return json.dumps(
            {"model": self.model, "messages": [{"role": "user", "content": words}], "max_tokens": 1}
        ).encode()

    @property
    def spreads(self) -> list[Spread]:
        return [Spread.of([reply.seconds for reply in round_]) for round_ in self.replies]

    @property
    def whole(self) -> Spread:
        return Spread.of([reply.seconds for round_ in self.replies for reply in round_])


async def alternating(ways: tuple[Way, Way], *, rate: float, seconds: float, rounds: int) -> None:
    """Rounds of the one way and the other in turn; what is not answered with 200 ends the measurement."""
    for way in ways:
        await constant(way.client, CHAT, way.body, rate=rate / 4, seconds=2)  # warm, and not counted
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            replies = await constant(way.client, CHAT, way.body, rate=rate, seconds=seconds)
            wrong = [reply.status for reply in replies if reply.status != 200]
            if wrong:
                raise RuntimeError(f"{way.name}: {len(wrong)} requests were not answered, {wrong[:3]}")
            way.replies.append(replies)


async def streamed(client: Client, model: str) -> float:
    """Seconds of one long answer that is streamed, from its first byte to its last event."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS, "stream": True}
    reply = await client.ask("POST", CHAT, json.dumps(body).encode())
    if reply.status != 200 or not reply.body.endswith(b"data: [DONE]\n\n"):
        raise RuntimeError(f"a stream was not whole: {reply.status}")
    return reply.seconds


@contextmanager
def stub() -> Iterator[int]:
    """The port of a stub in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.stub"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(next(iter(process.stdout or ())))
        finally:
            process.terminate()


@contextmanager
def service(folder: Path, port: int) -> Iterator[tuple[Service, Path]]:
    """A gateway before both, and its worker's socket."""
    config = folder / "medserve.toml"
    spec = DEMO_MODEL
    config.write_text(
        CONFIG.format(name=spec.name, path=spec.path, projector=spec.projector, context=spec.context, port=port)
    )
    os.environ["HOME"] = str(folder)
    with serving(environment={"MEDSERVE_CONFIG": str(config), "TMPDIR": str(folder)}) as running:
        (socket,) = folder.glob("medserve-*/*/http.sock")
        yield running, socket


def processor_seconds(pid: int) -> float:
    """What a process has used of a processor."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


async def compare(gateway: Service, ways: tuple[Way, Way], given: argparse.Namespace) -> list[tuple[object, ...]]:
    """The rows of the table for one server, asked directly and through the gateway."""
    before = processor_seconds(gateway.process.pid)
    await alternating(ways, rate=given.rate, seconds=given.seconds, rounds=given.rounds)
    used = processor_seconds(gateway.process.pid) - before
    bare, through = ways
    asked = sum(len(round_) for round_ in through.replies) + given.rate / 2
    late = Spread.of([reply.late for way in ways for round_ in way.replies for reply in round_]).p99
    pairs = list(zip(bare.spreads, through.spreads, strict=True))
    p50 = median(one.p50 - other.p50 for other, one in pairs)
    p99 = median(one.p99 - other.p99 for other, one in pairs)
    print(f"{through.name}: {used / asked * 1000:.2f} ms of a processor a request; sent late (p99): {late:.2f} ms")
    for other, one in pairs:
        print(f"  round: bare {other.p50:.2f} / {other.p99:.2f}, gateway {one.p50:.2f} / {one.p99:.2f} (p50 / p99)")
    rows: list[tuple[object, ...]] = [(way.name, way.whole.p50, way.whole.p99, way.whole.most) for way in ways]
    return [*rows, ("added (median of the rounds)", p50, p99, "")]


async def streaming(gateway: Service, bare: Way, through: Way, rounds: int) -> tuple[float, float, float]:
    """Microseconds a token: of the server alone, through the gateway, and of the gateway's processor time."""
    pid = gateway.process.pid
    alone, passed, used = [], [], []
    for _ in range(rounds * STREAMS):
        alone.append(await streamed(bare.client, bare.model))
        before = processor_seconds(pid)
        passed.append(await streamed(through.client, through.model))
        used.append(processor_seconds(pid) - before)
    return median(alone) / TOKENS * 1e6, median(passed) / TOKENS * 1e6, sum(used) / len(used) / TOKENS * 1e6


async def measure(gateway: Service, socket: Path, port: int, given: argparse.Namespace) -> None:
    """Everything, printed as it is found."""
    url_port = int(gateway.url.rpartition(":")[2])
    through = Client(url_port)
    worker = (
        Way("llama.cpp worker, asked directly", Client(socket=socket, keep=False), DEMO_MODEL.name),
        Way("the same through medserve", through, DEMO_MODEL.name),
    )
    limit = (
        Way("server that answers at once, asked directly", Client(port), "stub"),
        Way("the same through medserve", through, "stub"),
    )
    rows = []
    for ways in (worker, limit):
        rows += await compare(gateway, ways, given)
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {given.rate:g} requests a second, {given.rounds} rounds of "
          f"{given.seconds:g} s each way, milliseconds:\n")  # fmt: skip
    print("\n".join(table(("", "p50", "p99", "most"), rows)))
    alone, passed, used = await streaming(gateway, limit[0], limit[1], given.rounds)
    print(f"\nstreaming, microseconds a token: server alone {alone:.1f}, through medserve {passed:.1f}, of which the "
          f"gateway's processor time {used:.1f}")  # fmt: skip
    for client in {id(way.client): way.client for way in (*worker, *limit)}.values():
        await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder, stub() as port, service(Path(folder), port) as (gateway, socket):
        asyncio.run(measure(gateway, socket, port, given))
    print(f"\n{perf_counter() - began:.0f} s in all, load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
