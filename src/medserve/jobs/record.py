"""A job as everyone may see it: whose it is, what was ordered, how far it has come and how it ended."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import RowMapping

_ID = re.compile(r"job_[0-9a-f]{32}")


class JobState(StrEnum):
    """Where a job is in its life. The last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class Failure(NamedTuple):
    """Why a job failed: a code that does not change and a sentence that quotes nothing of the order."""

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """One job. Times are Unix seconds; `total` is 0 where nobody knows how many steps there will be.

    `attempts` counts how often it was begun since it last got on. One that is `cancelling` still runs, and will end as
    cancelled. `expires` is when it and its result will be deleted; None until it has ended.
    """

    id: str
    kind: str
    owner: str
    state: JobState
    created: float
    started: float | None = None
    ended: float | None = None
    expires: float | None = None
    done: int = 0
    total: int = 1
    step: str = ""
    error: Failure | None = None
    order: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    cancelling: bool = False

    @classmethod
    def of(cls, row: RowMapping) -> "Job":
        """The job in a row of the table."""
        code, message = row["error_code"], row["error_message"]
        return cls(
            id=row["id"],
            kind=row["kind"],
            owner=row["owner"],
            state=JobState(row["state"]),
            created=row["created"],
            started=row["started"],
            ended=row["ended"],
            expires=row["expires"],
            done=row["done"],
            total=row["total"],
            step=row["step"],
            error=None if code is None else Failure(code, message or ""),
            order=json.loads(row["order"]),
            attempts=row["attempts"],
            cancelling=row["cancelling"],
        )


def new_id() -> str:
    """An identifier that nobody can guess."""
    return f"job_{uuid4().hex}"


def is_id(text: str) -> bool:
    """Whether a text may be a job's identifier at all; nothing else is ever looked up."""
    return _ID.fullmatch(text) is not None


def as_json(value: Mapping[str, Any]) -> str:
    """A value as it is kept. In ASCII: PostgreSQL takes neither NUL nor half a surrogate pair."""
    return json.dumps(value, allow_nan=False)
