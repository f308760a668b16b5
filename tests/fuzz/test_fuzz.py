"""A slice of the generated requests on every day: no server error, no answer that the document does not describe."""

from collections.abc import Iterator

import pytest

from tests.fuzz.__main__ import MODELS, found, service
from tests.fuzz.runner import Tally, run

CASES = 160
pytestmark = pytest.mark.timeout(300)  # drawing from all operations' schemas takes half a minute, more under load


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    with service(CASES) as running:
        yield run(running.url, CASES, 1, MODELS)


def test_every_answer_is_one_that_the_document_describes(tally: Tally) -> None:
    """Status, content type, headers and body, for requests that it allows and for such as it forbids."""
    assert CASES == tally.cases
    assert [] == list(found(tally))


def test_every_operation_was_asked(tally: Tally) -> None:
    """A route that the cases never reach proves nothing."""
    assert len(tally.statuses) > 50
    every = {status for counter in tally.statuses.values() for status in counter}
    assert {200, 400, 404} <= every
