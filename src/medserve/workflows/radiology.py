"""A free instruction about pictures or a series, answered in words or as JSON of a given schema; nothing is filled in.

What the model wrote is told apart from what is missing. JSON that fits the schema is the report's data. Of JSON that
does not, or that breaks off, what fits is given, and every place where something is absent or unfit is named. There is
no confidence unless the schema asks for one, and then it is the model's own word.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from json import dumps
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from pydantic import ConfigDict, Field, JsonValue, ValidationInfo, field_validator, model_validator
from referencing import Registry

from medserve import schemas
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.images import Modality, Study
from medserve.readers import json_of, plain
from medserve.recovery import pointer, recover
from medserve.reports import Conclusion
from medserve.settings import settings
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow, once

DESCRIBE = "Describe what is visible in this picture."
LONGEST_ANSWER = 2000
"""Tokens of an answer where nobody says how many, as in MedGemma's notebook for CT."""
AS_JSON = "Answer with JSON only, one value that fits this JSON Schema:"


class RadiologyOptions(Options):
    """What a caller may choose about an analysis.

    A stored schema is looked up when the options are read, and goes into the report as `answer`: a report can be
    replayed when the schema of that name is another one, or gone.
    """

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    instruction: str = Field(DESCRIBE, min_length=1, max_length=20_000, description="what to find out")
    answer: dict[str, JsonValue] | None = Field(None, description="the JSON Schema that the answer has to fit")
    stored: str = Field("", alias="schema", max_length=64, description="the name of a stored schema, as the answer's")
    max_tokens: int | None = Field(
        None, ge=1, le=8192, description="tokens of the answer; 2000, or half of the model's context"
    )

    @model_validator(mode="before")
    @classmethod
    def _looked_up(cls, given: Any) -> Any:
        name = given.get("schema") if isinstance(given, dict) else None
        if not isinstance(name, str) or not name or given.get("answer") is not None:
            return given
        with suppress(InvalidRequest):  # which is told with the field's name, below
            return {**given, "answer": schemas.Schemas(settings().home).get(name)}
        return given

    @field_validator("answer")
    @classmethod
    def _harmless(cls, schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        try:
            return None if schema is None else schemas.checked(schema)
        except InvalidRequest as error:
            raise ValueError(error.message) from None

    @field_validator("stored")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        if name and info.data.get("answer") is None:
            try:
                schemas.Schemas(settings().home).get(name)
            except InvalidRequest as error:
                raise ValueError(error.message) from None
        return name


async def run(study: Study, consult: Consult, options: RadiologyOptions) -> Conclusion:
    """One question about all pictures, answered in words, or as JSON where a schema is given."""
    most = options.max_tokens or min(LONGEST_ANSWER, consult.room)
    if options.answer is None:
        (answer,) = await consult.ask_all([Question("Analysis", options.instruction, plain(), most)])
        return _in_words(answer)
    return _as_data(await _asked(consult, options.instruction, options.answer, most), options.answer)


async def _asked(consult: Consult, instruction: str, schema: schemas.Schema, max_tokens: int) -> Answer[Any]:
    """The answer, bound to the schema by the engine; read without that where the engine cannot enforce this one."""
    prompt = f"{instruction}\n\n{AS_JSON}\n{dumps(schema, ensure_ascii=False)}"
    try:
        (told,) = await consult.ask_all([Question("Analysis", prompt, json_of(schema), max_tokens, constrain=True)])
    except InvalidRequest as error:
        if error.param != "schema":
            raise
        (told,) = await consult.ask_all([Question("Analysis", prompt, json_of(schema), max_tokens)])
    return told


def _in_words(answer: Answer[str]) -> Conclusion:
    """The cleaned words; a JSON value among them is given as data too, since that is what was written."""
    found = recover(answer.text)
    data = found.partial if found.error else found.value
    missing = found.missing if found.error and data is not None else ()
    return Conclusion(
        description=answer.value or "",
        removed=answer.left_out,
        data=data,
        missing=missing,
        flags=once((*answer.flags, *((Flag.INCOMPLETE,) if missing else ()))),
    )


def _as_data(answer: Answer[Any], schema: schemas.Schema) -> Conclusion:
    """The value that fits, or else what of the answer does, and where something is missing."""
    if answer.value is not None:
        return Conclusion(data=answer.value, flags=answer.flags)
    found = recover(answer.text)
    written = found.partial if found.error else found.value
    data, unfit = fitted(schema, written)
    missing = (*found.missing, *unfit) if found.error else unfit
    return Conclusion(
        data=data, missing=tuple(dict.fromkeys(missing or ("",))), flags=once((*answer.flags, Flag.INCOMPLETE))
    )


# --- what fits, and what is missing -----------------------------------------------------------------------------------


def fitted(schema: schemas.Schema, data: Any) -> tuple[Any, tuple[str, ...]]:
    """What of a value fits a schema, and the places (JSON pointers, RFC 6901) of what is absent or does not fit.

    A part that does not fit is null, so that all others keep their places; a member that the schema has no place for
    is left out. Where the value as a whole is of another kind, nothing of it fits.
    """
    if data is None:
        return None, ("",)
    kept, unfit = deepcopy(data), dict[str, None]()
    while wrong := [error for error in _errors(schema, kept) if pointer(error.absolute_path) not in unfit]:
        for error in wrong:
            if not error.absolute_path and not _extra(error):
                return None, ("",)
            if extra := _extra(error):
                instance: Any = error.instance
                for name in extra:
                    instance.pop(name, None)
            else:
                _clear(kept, list(error.absolute_path))
                unfit[pointer(error.absolute_path)] = None
    return kept, tuple(dict.fromkeys((*absent(schema, kept), *unfit)))


def absent(schema: Mapping[str, Any], data: Any) -> Iterator[str]:
    """JSON pointers of the members that a schema requires and the data does not have, each once."""
    seen: set[str] = set()
    for error in Draft202012Validator(schema, registry=Registry()).iter_errors(data):
        if error.validator == "required":
            for name in error.validator_value:
                place = pointer((*error.absolute_path, name))
                if name not in error.instance and place not in seen:
                    seen.add(place)
                    yield place


def _errors(schema: Mapping[str, Any], data: Any) -> Iterator[ValidationError]:
    """Everything that does not fit; that something is absent is another matter."""
    errors = Draft202012Validator(schema, registry=Registry()).iter_errors(data)
    return (error for error in errors if error.validator != "required")


def _extra(error: ValidationError) -> tuple[str, ...]:
    """The members of an object that its schema has no place for, where that is the error."""
    if error.validator != "additionalProperties" or error.validator_value is not False:
        return ()
    instance: Any = error.instance
    schema: Any = error.schema
    return tuple(name for name in instance if name not in schema.get("properties", {}))


def _clear(data: Any, path: list[str | int]) -> None:
    """Put null where a path leads, unless it leads through what is null already."""
    for part in path[:-1]:
        data = data[part]
        if data is None:
            return
    data[path[-1]] = None


workflow = Workflow(
    name="radiology",
    title="Radiology analysis",
    summary="A free instruction about one or many pictures or a series, answered in words or as JSON of a schema.",
    modality=Modality.OTHER,
    run=run,
    options=RadiologyOptions,
    max_images=85,
    domain=Domain(takes="one or more medical pictures, or a CT or MR series"),
)
