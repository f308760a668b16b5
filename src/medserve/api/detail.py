"""Errors of the task routes also say `detail`, where callers who know FastAPI's own shape look for the words."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from medserve.api.errors import answer_of, refusal
from medserve.errors import MedserveError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Detailed(APIRoute):
    """A route whose errors are the one table's in the one shape, and beside `error` have its message as `detail`."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handler(request)
            except MedserveError as error:
                return _detailed(answer_of(error))
            except HTTPException as error:
                return _detailed(refusal(error.status_code, error.detail, error.headers))

        return told


def _detailed(answer: Response) -> Response:
    told = json.loads(bytes(answer.body))
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return JSONResponse(told | {"detail": told["error"]["message"]}, answer.status_code, headers)
