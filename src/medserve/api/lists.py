"""What all lists have in common: they come in pages, and what is deleted from them is told in OpenAI's shape."""

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel

Page = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="go on behind this one")]


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: str
    deleted: bool = True
