"""What a request to a server elsewhere costs in the engine `openai`: with its own client, and with httpx in its place.

    python -m benchmarks.servers [--requests 200] [--rounds 10]

The same engine asks the same server, `benchmarks.stub`, which answers at once; the two clients take turns, one request
after another. Counted is the processor time of this process alone, so that other work on the machine weighs little.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from time import process_time

import httpx
import uvloop

from benchmarks.gateway import stub
from benchmarks.load import table
from medserve import addresses
from medserve.engines import Capabilities
from medserve.engines._chat import OpenAIEngine
from medserve.generation import GenerationRequest, Message, collect
from medserve.settings import ModelSpec
from medserve.tcp_http import TcpClient
from medserve.unix_http import Asking


async def burnt(engine: OpenAIEngine, requests: int) -> float:
    """Milliseconds of a processor that one request took, over so many; one token a question, none asked twice."""
    began = process_time()
    for number in range(requests):
        question = Message("user", (f"Is finding {number} round?",))
        await collect(engine.stream(GenerationRequest((question,), max_tokens=1)))
    return (process_time() - began) / requests * 1000


async def measure(port: int, requests: int, rounds: int) -> dict[str, Sequence[float]]:
    """Milliseconds of each round by client; the first round of each is not counted."""
    url = f"http://127.0.0.1:{port}"
    clients: dict[str, Asking] = {
        "httpx": httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(None, connect=10.0), trust_env=False),
        "medserve.tcp_http": TcpClient(addresses.parsed(url)),
    }
    spec, able = ModelSpec(name="stub", engine="openai", url=url), Capabilities(context=131_072)
    engines = {name: OpenAIEngine(spec, client, able, seconds=60.0, served="stub") for name, client in clients.items()}
    took: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            took[name].append(await burnt(engine, requests))
    for engine in engines.values():
        await engine.close()
    return {name: each[1:] for name, each in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    with stub() as port:
        took = uvloop.run(measure(port, given.requests, given.rounds))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {given.rounds} rounds of {given.requests} requests each way, "
          "milliseconds of a processor a request:\n")  # fmt: skip
    print("\n".join(table(("client", "median", "least", "most"), [
        (name, median(each), min(each), max(each)) for name, each in took.items()
    ])))  # fmt: skip


if __name__ == "__main__":
    main()
