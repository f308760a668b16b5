"""Every error answer of a server becomes a typed error of ours, without its own words: they may quote the prompt."""

import json
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from medserve.errors import (
    ContextOverflow,
    EngineError,
    ImageTooLarge,
    InvalidRequest,
    MedserveError,
    ModelBusy,
    ModelLoading,
    ServerLost,
)

LONGEST_WAIT = 3600.0
"""Seconds; a server that says a longer time to wait is not believed."""
INVALID = "the model's server refused the request as invalid"
STATUSES: Mapping[int, tuple[type[MedserveError], str, str | None]] = {
    400: (InvalidRequest, INVALID, None),
    401: (
        EngineError,
        "the model's server wants a key; name it by `key_variable` or `key_file`, and look that it is right",
        None,
    ),
    403: (EngineError, "the model's server refuses the key; it may not use this model", None),
    404: (EngineError, "the model's server does not know the model or the route", None),
    413: (ImageTooLarge, "the pictures of this request are too much for the model's server; send fewer", "images"),
    422: (InvalidRequest, INVALID, None),
    429: (ModelBusy, "the model's server has too many requests; try again in a moment", None),
    502: (ServerLost, "what stands before the model's server cannot reach it; check that it runs", None),
    503: (ModelLoading, "the model's server is still loading its model", None),
    504: (ServerLost, "what stands before the model's server waited for it in vain; check that it runs", None),
}
"""What an HTTP status says of a model's server: the error, its words, and the field of the request it is about."""
ELSEWHERE = "the model's server sends elsewhere, which is not followed; name its own address as `url`"


def refusal(status: int, content: bytes) -> MedserveError:
    """The typed error for a server's error answer. Its own words are left out: they may quote the prompt."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        error = None
    if isinstance(error, dict) and (overflow := _overflow(error)):
        return overflow
    if 300 <= status < 400:
        return EngineError(ELSEWHERE)
    kind, words, param = STATUSES.get(status, (EngineError, f"the model's server failed with status {status}", None))
    return kind(words, param=param)


def timed(error: MedserveError, headers: Mapping[str, str]) -> MedserveError:
    """The error with the time after which asking again can help, where the server said one (RFC 9110, 10.2.3)."""
    said = headers.get("retry-after", "")
    if isinstance(error, (ModelBusy, ModelLoading, ServerLost)) and said:
        with suppress(ValueError, OverflowError):
            seconds = float(said) if said.isdecimal() else parsedate_to_datetime(said).timestamp() - time()
            error.retry_after = min(max(seconds, 0.0), LONGEST_WAIT)
    return error


def _overflow(error: Mapping[str, Any]) -> ContextOverflow | None:
    """What llama.cpp and vLLM say where a prompt is too long; None for any other error."""
    message = str(error.get("message", ""))
    takes, holds = error.get("n_prompt_tokens"), error.get("n_ctx")
    refused = error.get("type") == "exceed_context_size_error"
    if refused and isinstance(takes, int) and isinstance(holds, int):
        return ContextOverflow(
            f"the prompt takes {takes} tokens and the model's context holds {holds}; send fewer or shorter parts, or "
            "raise the model's `context`",
            param="messages",
        )
    if refused or "maximum context length" in message or "Context size has been exceeded" in message:
        return ContextOverflow(
            "prompt and answer exceed the model's context; send fewer or shorter parts, or raise the model's `context`",
            param="messages",
        )
    return None
