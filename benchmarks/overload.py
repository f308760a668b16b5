"""Ten times more than the service can answer: what its callers are told meanwhile, and whether probes still hear of it.

    python -m benchmarks.overload [--seconds 60] [--times 10]

First the capacity: as many answers a second as come when never more requests are under way than there are places, with
the demonstration model and 16 tokens an answer. Then so many times more requests are sent at a constant rate. `/livez`
is asked every 50 ms all the while. Every request has to be answered: with 200, or with 429 or 503 and when to come
again. Afterwards nothing may be at work or waiting, and the next request is answered.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from benchmarks.load import Client, Reply, Spread, constant, table
from medserve.settings import DEMO_MODEL
from tests.serving import Service, serving

CHAT = "/v1/chat/completions"
MODEL = f"/v1/models/{DEMO_MODEL.name}"
TOKENS = 16
PROBE_SECONDS = 0.05
CAPACITY_SECONDS = 5.0
GOOD = {200, 429, 503}
CONFIG = """
[[models]]
name = "{name}"
path = "{path}"
projector = "{projector}"
context = {context}
slots = 2
waiting = 16
threads = 1
"""


@dataclass(frozen=True)
class Overload:
    """What became of it. `capacity` is in answers a second; `rest` are the answers that nobody should get."""

    capacity: float
    rate: float
    replies: list[Reply]
    probes: list[Reply]
    left: int
    after: int

    @property
    def statuses(self) -> Counter[int]:
        return Counter(reply.status for reply in self.replies)

    @property
    def rest(self) -> list[Reply]:
        return [
            reply
            for reply in self.replies
            if reply.status not in GOOD or (reply.status != 200 and "retry-after" not in reply.headers)
        ]


def question(number: int) -> bytes:
    """A question that nobody asked before."""
    messages = [{"role": "user", "content": f"Describe finding {number} in one sentence."}]
    return json.dumps({"messages": messages, "max_tokens": TOKENS}).encode()


async def capacity(client: Client, seconds: float) -> float:
    """Answers a second when as many requests are under way as there are places, and none waits."""
    end = perf_counter() + seconds
    counts = Counter[int]()

    async def one(place: int) -> None:
        number = place * 1_000_000
        while perf_counter() < end:
            reply = await client.ask("POST", CHAT, question(number))
            counts[reply.status] += 1
            number += 1

    await asyncio.gather(*(one(place) for place in range(1, 3)))
    if set(counts) != {200}:
        raise RuntimeError(f"without any overload there were answers other than 200: {counts}")
    return counts[200] / seconds


async def probed(client: Client) -> list[Reply]:
    """`/livez` again and again, until cancelled."""
    replies: list[Reply] = []
    try:
        while True:
            replies.append(await client.ask("GET", "/livez"))
            await asyncio.sleep(PROBE_SECONDS)
    except asyncio.CancelledError:
        return replies


async def overload(port: int, *, times: float, seconds: float, measured: float = CAPACITY_SECONDS) -> Overload:
    """The whole measurement against the service at `port`."""
    client, prober = Client(port), Client(port)
    await capacity(client, 1.0)  # warm
    most = await capacity(client, measured)
    probing = asyncio.create_task(probed(prober))
    await asyncio.sleep(0)
    replies = await constant(client, CHAT, question, rate=most * times, seconds=seconds)
    probing.cancel()
    probes = await probing
    status = json.loads((await client.ask("GET", MODEL)).body)
    after = (await client.ask("POST", CHAT, question(-1))).status
    await client.close()
    await prober.close()
    return Overload(most, most * times, replies, probes, status["answering"] + status["waiting"], after)


def service(folder: Path) -> AbstractContextManager[Service]:
    """The service that is overloaded: two places and a waiting room for sixteen."""
    config = folder / "medserve.toml"
    spec = DEMO_MODEL
    config.write_text(CONFIG.format(name=spec.name, path=spec.path, projector=spec.projector, context=spec.context))
    return serving(environment={"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": str(folder / "home")})


def port_of(running: Service) -> int:
    return int(running.url.rpartition(":")[2])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as running:
        seen = asyncio.run(overload(port_of(running), times=given.times, seconds=given.seconds))
    probes = Spread.of([probe.seconds for probe in seen.probes])
    answered = Spread.of([reply.seconds for reply in seen.replies if reply.status == 200])
    refused = Spread.of([reply.seconds for reply in seen.replies if reply.status != 200])
    rates = f"capacity {seen.capacity:.0f} answers a second, asked {seen.rate:.0f} a second for {given.seconds:g} s"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {rates}\n")
    counts = sorted(seen.statuses.items())
    print("\n".join(table(("status", "requests"), [(status or "none", count) for status, count in counts])))
    print(f"\nrefused without saying when to come again, or answered otherwise: {len(seen.rest)}")
    print(f"at work or waiting afterwards: {seen.left}; the next request: {seen.after}\n")
    rows = [("/livez", probes), ("answers (200)", answered), ("refusals", refused)]
    print("\n".join(table(("ms", "p50", "p99", "most"), [(name, s.p50, s.p99, s.most) for name, s in rows])))
    print(f"\n{len(seen.probes)} probes, all 200: {all(probe.status == 200 for probe in seen.probes)}")


if __name__ == "__main__":
    main()
