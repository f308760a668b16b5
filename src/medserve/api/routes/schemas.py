"""Schemas under names, for answers as JSON: everybody may use them, and who administers the service keeps them."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, RootModel

from medserve.api.access import SettingsOf, needs
from medserve.api.bodies import JsonObject, read_json, request_body
from medserve.api.errors import LOOK_ERRORS, documented
from medserve.keys import Scope
from medserve.schemas import Schemas
from medserve.threads import in_thread

router = APIRouter(tags=["schemas"], responses=documented(*LOOK_ERRORS))

ADMIN = [needs(Scope.ADMIN)]


class NamedSchema(BaseModel):
    """A JSON Schema (draft 2020-12) and the name under which a workflow's option finds it."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    name: str
    body: dict[str, Any] = Field(alias="schema")


class SchemaList(BaseModel):
    """The names of all schemas."""

    object: str = "list"
    data: list[str]


class SchemaRemoved(BaseModel):
    """A schema that is no more."""

    name: str
    deleted: bool = True


class Body(RootModel[JsonObject]):
    """A JSON Schema as it is sent."""


@router.get("/v1/schemas")
async def list_schemas(settings: SettingsOf) -> SchemaList:
    """The names of all stored schemas."""
    return SchemaList(data=await in_thread(Schemas(settings.home).names))


@router.get("/v1/schemas/{name}", responses=documented(400))
async def show_schema(name: str, settings: SettingsOf) -> NamedSchema:
    """One schema; 404 when there is none of that name."""
    return NamedSchema(name=name, body=await in_thread(Schemas(settings.home).get, name))


@router.put(
    "/v1/schemas/{name}",
    dependencies=ADMIN,
    openapi_extra=request_body({"application/json": {"type": "object", "description": "a JSON Schema"}}),
    responses={201: {"model": NamedSchema, "description": "The name is new"}, **documented(400, 408, 413, 415)},
)
async def put_schema(name: str, request: Request, response: Response, settings: SettingsOf) -> NamedSchema:
    """Keep a schema under a name, in place of the one that has it: 201 where the name is new, 200 otherwise."""
    sent = (await read_json(request, Body)).root
    if await in_thread(Schemas(settings.home).put, name, sent):
        response.status_code = 201
    return NamedSchema(name=name, body=sent)


@router.delete("/v1/schemas/{name}", dependencies=ADMIN, responses=documented(400))
async def remove_schema(name: str, settings: SettingsOf) -> SchemaRemoved:
    """Forget a schema; reports that used it keep it."""
    await in_thread(Schemas(settings.home).remove, name)
    return SchemaRemoved(name=name)
