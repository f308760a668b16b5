"""What all lists have in common: they come in pages, and what is deleted from them is told in OpenAI's shape."""

from collections.abc import Sequence
from typing import Annotated, Generic, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel

Page = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="go on behind this one")]


class Entry(BaseModel):
    """What stands in a list under its identifier."""

    id: str


T = TypeVar("T", bound=Entry)


class Listed(BaseModel, Generic[T]):
    """A page of a list in OpenAI's shape."""

    object: str = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[T], *, more: bool) -> Self:
        """The page with these entries; `more` come behind them."""
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=list(data), first_id=first, last_id=last, has_more=more)


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: str
    deleted: bool = True
