"""What a server tells of itself and of its model is held within bounds, and why it cannot be used is said."""

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

import httpx

from medserve.engines._chat.refusals import refusal, timed
from medserve.engines._server import connected
from medserve.engines._server.patience import patiently
from medserve.errors import EngineTimeout, MedserveError, ModelError, ModelFailed, ServerLost
from medserve.settings import ModelSpec
from medserve.tcp_http import TcpClient

LOOK_SECONDS = 10.0
"""How long a server may take to tell something of itself."""
MEDGEMMA_SIDE = 896
"""Pixels a side of the pictures that MedGemma takes; servers do not say what their model takes."""
MOST_CONTEXT = 131_072
"""No model of Gemma 3 has more, whatever a server says."""
NAMES = 20
"""Names of models that an error holds, and letters of who owns one."""
LONGEST_NAME = 256
"""A name that is longer, or cannot be printed, is none: it would stand in errors, logs and reports."""
MOST_SIDE = 4096


@contextmanager
def usable(model: ModelSpec) -> Iterator[None]:
    """An error inside is told as the reason why the model behind its server cannot be loaded."""
    try:
        yield
    except ModelError:
        raise
    except MedserveError as error:
        raise ModelFailed(f"{model.name} cannot be used: {_reason(error)}", param="model") from error


def _reason(error: MedserveError) -> str:
    """Why a server cannot be used, as far down as it is known."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "the certificate of its server is not trusted; name the authority that signed it as `ca`"
        if isinstance(cause, ssl.SSLError):
            return "its server does not speak TLS as it should; is the url one of http?"
        if isinstance(cause, socket.gaierror):
            return "the host in its url cannot be found"
        cause = cause.__cause__
    return error.message


async def introduced(model: ModelSpec) -> "Served":
    """What the server at the model's `url` says of the model, asked once; raises ModelError as `start` would."""
    client = connected(model)
    try:
        with usable(model):
            return await chosen(client, model, asyncio.get_running_loop().time())
    finally:
        await client.aclose()


@dataclass(frozen=True)
class Served:
    """A model as its server lists it; `context` in tokens, None where that is not told.

    `side` is that of the pictures which the model takes, in pixels: only medserve tells it, of others it is MedGemma's.
    `listed` is False for a name that was only told here, because the server lists nothing.
    """

    name: str
    context: int | None = None
    owner: str = ""
    side: int = MEDGEMMA_SIDE
    listed: bool = True

    @property
    def words(self) -> str:
        """For people: which model of the server it is, and its context where that is told."""
        if not self.listed:
            return f"its server answers, lists no models and will be asked for {plain(self.name)}"
        return f"its server has {plain(self.name)}" + (f" with a context of {self.context}" if self.context else "")


async def chosen(client: TcpClient, model: ModelSpec, until: float) -> Served:
    """The model named by `served`, else the one of our own name, else the only one that the server has."""
    said = await patiently(lambda: got(client, "/v1/models"), until)
    if said is None and model.served:  # a server that lists nothing may still know what it is asked for
        return Served(model.served, listed=False)
    listed = _listed(said, model)
    wanted = model.served or (model.name if model.name in listed or len(listed) != 1 else next(iter(listed)))
    if wanted not in listed:
        names = [plain(name) for name in listed]
        known = (", ".join(names[:NAMES]) or "none") + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")
        raise ModelFailed(
            f"the server at the url of {model.name} has no model of that name; it has: {known}; name one by `served`",
            param="served",
        )
    entry = listed[wanted]
    side = _number(entry, ("facts", "image_size")) or MEDGEMMA_SIDE
    return Served(wanted, _number(entry, *LISTED), str(entry.get("owned_by") or "")[:NAMES], min(side, MOST_SIDE))


def _listed(said: Any, model: ModelSpec) -> dict[str, dict[str, Any]]:
    """The models of a server's list by their names, without names that are none."""
    try:
        entries = {str(entry["id"]): entry for entry in said["data"] or ()}
    except (KeyError, TypeError):
        raise ModelFailed(f"no OpenAI-compatible server answers at the url of {model.name}; is it running?") from None
    return {name: entry for name, entry in entries.items() if len(name) <= LONGEST_NAME and name.isprintable()}


LISTED = (("max_model_len",), ("meta", "n_ctx"), ("facts", "context"), ("loaded_context_length",))
"""Where servers list the context: vLLM and SGLang, newer llama-servers, medserve, LM Studio."""


async def context_of(client: TcpClient, name: str) -> int | None:
    """The context of a model where its server does not list it; None where it says it nowhere."""
    ways: tuple[tuple[str, Callable[[Any], int | None]], ...] = (
        ("/props", lambda said: _number(said, ("default_generation_settings", "n_ctx"))),  # llama-server
        (f"/api/v0/models/{quote(name)}", lambda said: _number(said, ("loaded_context_length",))),  # LM Studio
        ("/api/ps", lambda said: _loaded(said, name)),  # Ollama
    )
    for path, read in ways:
        with suppress(MedserveError, httpx.HTTPError, LookupError, TypeError, AttributeError):
            if (context := read(await got(client, path))) is not None:
                return context
    return None


def _loaded(said: Any, name: str) -> int | None:
    entries = {entry["name"]: entry for entry in said["models"]}
    return _number(entries[name] if name in entries else entries[f"{name}:latest"], ("context_length",))


def _number(said: Any, *paths: tuple[str, ...]) -> int | None:
    """The first of these places that holds a number of tokens, which may be written as text."""
    for path in paths:
        place = said
        for name in path:
            place = place.get(name) if isinstance(place, Mapping) else None
        with suppress(TypeError, ValueError, OverflowError):
            if not isinstance(place, bool) and int(place) > 0:
                return min(int(place), MOST_CONTEXT)
    return None


async def got(client: TcpClient, path: str) -> Any:
    """What the server says there, None where it has no such page; raises MedserveError when it says nothing."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            answer = await client.get(path)
    except TimeoutError:
        raise EngineTimeout("the model's server did not answer in time; check that it runs") from None
    except httpx.TransportError as error:
        raise ServerLost("no server answers at its url; is it running?") from error
    return _said(answer.status_code, answer.content, answer.headers)


def _said(status: int, content: bytes, headers: Mapping[str, str]) -> Any:
    if status in (404, 405):
        return None
    if status != httpx.codes.OK:
        raise timed(refusal(status, content), headers)
    with suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


class Tokeniser:
    """Asks a server for tokens in the words of llama-server and of vLLM, which SGLang shares."""

    def __init__(self, client: TcpClient, served: str) -> None:
        self._client = client
        self._served = served

    async def token(self, text: str) -> int | None:
        """The id of a text that is one token, control tokens included."""
        llama = {"content": text, "add_special": False, "parse_special": True}
        vllm = {"model": self._served, "prompt": text, "add_special_tokens": False}
        for body in (llama, vllm):
            with suppress(MedserveError, httpx.HTTPError, TimeoutError, LookupError, TypeError):
                async with asyncio.timeout(LOOK_SECONDS):
                    answer = await self._client.post("/tokenize", json=body)
                tokens = _said(answer.status_code, answer.content, answer.headers)["tokens"]
                if len(tokens) == 1 and isinstance(tokens[0], int):
                    return tokens[0]
        return None


def plain(name: str) -> str:
    """A model's name at its server; llama-server gives the path of a file, which is nobody's business."""
    return PurePath(name).name if name.startswith("/") else name.rpartition("\\")[2]
