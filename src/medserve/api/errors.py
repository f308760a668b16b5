"""Where errors meet HTTP: one table, one shape (OpenAI's), and never a stack trace or a caller's own data."""

import asyncio
import errno
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medserve import errors
from medserve.errors import MedserveError

log = structlog.get_logger()

STATUS: Mapping[type[MedserveError], int] = {
    errors.InvalidRequest: 400,
    errors.UnknownModel: 404,
    errors.UnknownWorkflow: 404,
    errors.UnknownJob: 404,
    errors.UnknownFile: 404,
    errors.UnknownPicture: 404,
    errors.UnknownSchema: 404,
    errors.JobUnfinished: 409,
    errors.ImageTooLarge: 413,
    errors.AccessDenied: 403,
    errors.KeyRequired: 401,
    errors.RateLimited: 429,
    errors.ModelError: 503,
    errors.ModelBusy: 429,
    errors.EngineError: 502,
    errors.WorkerCrashed: 503,
    errors.DeviceFull: 503,
    errors.EngineTimeout: 504,
    errors.SourceFailed: 502,
    errors.JobsFull: 429,
    errors.DatabaseFailed: 503,
    errors.DiskFull: 507,
    errors.ServiceStopping: 503,
    MedserveError: 500,
}
"""The HTTP status of each error; an error without a row of its own has that of its nearest ancestor."""

RETRY_AFTER: Mapping[type[MedserveError], int] = {
    errors.ModelLoading: 10,
    errors.ModelBusy: 5,
    errors.MemoryShort: 10,
    errors.RateLimited: 5,
    errors.WorkerCrashed: 2,
    errors.DeviceFull: 5,
    errors.JobsFull: 30,
    errors.DatabaseFailed: 5,
    errors.DiskFull: 30,
    errors.ServiceStopping: 10,
}
"""Seconds after which asking again can help, unless the error itself says it; others do not mend themselves."""

HTTP_CODES: Mapping[int, str] = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    500: "internal_error",
}
"""Stable codes of the errors that HTTP itself has."""

KINDS: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's names for kinds of errors, where the status alone does not say them."""

CHALLENGES: Mapping[type[MedserveError], str] = {
    errors.KeyRequired: 'Bearer realm="medserve"',
    errors.ScopeMissing: 'Bearer realm="medserve", error="insufficient_scope"',
}
"""How a caller is asked to show who it is (RFC 6750)."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says where a file cannot grow: the disk, the user's share of it, or the largest file is full."""

WORK_ERRORS = (400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 502, 503, 504, 507)
"""What a route that asks a model can answer beside success."""
LOOK_ERRORS = (401, 403, 404, 421, 429, 500)
"""What a route that only tells something can."""


class ErrorDetail(BaseModel):
    """What went wrong: a sentence with the next step, the kind of error, the field at fault and a stable code."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ClientGone(Exception):
    """The client closed the connection; nobody is left to be answered."""


def status_of(error: MedserveError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def headers_of(error: MedserveError) -> dict[str, str]:
    """The headers of an error's answer: when to ask again, and how to show who one is."""
    usual = next((seconds for kind, seconds in RETRY_AFTER.items() if isinstance(error, kind)), None)
    wait = error.retry_after if error.retry_after is not None else usual
    headers = {"Retry-After": str(max(1, ceil(wait)))} if wait is not None else {}
    asked = next((told for kind, told in CHALLENGES.items() if isinstance(error, kind)), None)
    return headers | ({"WWW-Authenticate": asked} if asked else {})


def body_of(error: MedserveError) -> ErrorBody:
    """An error as it travels."""
    return _body(status_of(error), error.message, error.param, error.code)


def answer_of(error: MedserveError) -> JSONResponse:
    """The answer that an error is."""
    return _answer(status_of(error), body_of(error), headers_of(error))


def stopping() -> errors.ServiceStopping:
    """What is told to those who still wait when the service ends."""
    return errors.ServiceStopping("the service is being stopped and this was not ready in time; send it again")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same errors as an OpenAPI document knows them."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer for what goes wrong before any route is reached."""
    return _answer(status, _body(status, message, None, HTTP_CODES.get(status, "http_error")), headers)


def handle_errors(app: FastAPI) -> None:
    """Teach `app` to answer every kind of foreseen error in the one shape."""
    app.add_exception_handler(MedserveError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(ClientDisconnect, _gone)  # in the middle of its question


class Unforeseen:
    """ASGI middleware: a bug is a 500 in the one shape, a full disk a 507, and both a line in the log without data.

    Starlette's own handler would hand the exception on to the server, which logs its words. A request that is cancelled
    because the service stops, and was not answered yet, gets a 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not started:
                await answer_of(stopping())(scope, receive, send)
            raise
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("request.failed", exc_info=error)
            if not started:
                await _surprise(error)(scope, receive, send)


def _surprise(error: Exception) -> JSONResponse:
    """The answer to what nobody foresaw; that a disk is full is none, wherever it happens."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return answer_of(
            errors.DiskFull("there is no room on the service's disk for what this request brings; come again later")
        )
    return refusal(500, "an unexpected error; the log of the service says where")


def _body(status: int, message: str, param: str | None, code: str | None) -> ErrorBody:
    kind = KINDS.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def _answer(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MedserveError)  # noqa: S101 - so it was registered
    return answer_of(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """What FastAPI itself finds in a path or a query; bodies are read by `bodies`."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - so it was registered
    first = error.errors()[0]
    name = first["loc"][-1]
    return _answer(400, body_of(invalid([{**first, "loc": (name,)}], {name: None})))


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - so it was registered
    words = {
        404: "there is no such route; GET /docs lists all",
        405: "this route takes other methods; GET /docs lists all",
    }
    return refusal(error.status_code, words.get(error.status_code, error.detail), error.headers)


async def _gone(_request: Request, _error: Exception) -> JSONResponse:
    return refusal(499, "the client went away")


# --- what pydantic finds -------------------------------------------------------------------------------------------

_WORDS: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not known or not honoured here; leave it out",
    "unknown_field": "holds a field that is not known here; leave it out",
    "union_tag_not_found": "needs a `type`",
    "union_tag_invalid": "has a `type` that is not known here; it must be one of {expected_tags}",
    "none_required": "is not honoured here; leave it out",
    "value_error": "{error}",
    "string_too_short": "must not be empty",
}
"""Words of our own where pydantic's would quote the caller or leave the remedy open."""
_LONGEST_PLACE = 100
NAMELESS = "?"
"""Stands in a place for a name of the caller's own, which is not told."""


def invalid(found: Sequence[Mapping[str, Any]], document: object = None) -> errors.InvalidRequest:
    """The first of pydantic's findings in a request, as an error that names the field and quotes nothing else."""
    first = found[0]
    place = _place(first["loc"], document)
    words = _WORDS.get(first["type"])
    told = words.format(**first.get("ctx", {})) if words else f"is refused: {_lowered(first['msg'])}"
    return errors.InvalidRequest(f"{place or 'the body'} {told}", param=place or None)


def _place(location: Sequence[str | int], document: object) -> str:
    """Where in the caller's document that is; pydantic's own names for the branches of its unions are left out."""
    path: list[str] = []
    for index, part in enumerate(location):
        inside = _inside(document, part)
        if inside is not _NOWHERE:
            document = inside
        elif index < len(location) - 1 or part == NAMELESS or not isinstance(document, dict):
            continue
        path.append(str(part))
    shown = "".join(character if character.isalnum() or character in "_-." else "?" for character in ".".join(path))
    return shown[:_LONGEST_PLACE]


_NOWHERE = object()


def _inside(document: object, part: str | int) -> object:
    if isinstance(document, dict):
        return document.get(part, _NOWHERE)
    if isinstance(document, list) and isinstance(part, int) and part < len(document):
        return document[part]
    return _NOWHERE


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
