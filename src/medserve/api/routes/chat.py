"""Chat in OpenAI's dialect, pictures included, so that every client which speaks it works unchanged."""

from fastapi import APIRouter

from medserve.api import chat
from medserve.api.bodies import request_body, schema_of
from medserve.api.errors import WORK_ERRORS, documented

router = APIRouter(tags=["openai"])

router.post(
    chat.PATH,
    name="chat_completions",
    responses={
        200: {"content": {"application/json": {}, "text/event-stream": {}}},
        **documented(*WORK_ERRORS),
    },
    openapi_extra=request_body({"application/json": schema_of(chat.ChatRequest)}),
)(chat.completions)
