"""A slice of the hostile corpus on every day: no crash, no hang, no untyped error, no memory that stays."""

from collections.abc import Iterator

import pytest

from medserve.imaging.isolation import Decoders
from tests.hostile import corpus, samples
from tests.hostile.__main__ import MEMORY, report
from tests.hostile.runner import HANG, Tally, run

COUNT = 150


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    pool = Decoders(1)
    yield run(corpus.selection(COUNT, 1), pool, samples.picture("PNG"))
    pool.close()


def test_every_sound_file_of_the_corpus_is_one() -> None:
    """What the corpus damages is readable before."""
    pool = Decoders(1)
    whole = [
        corpus.Hostile(0, format_, kind, data)
        for format_, kinds in samples.samples().items()
        for kind, data in kinds.items()
        if format_ != "dicom" or kind == "made"
    ]
    refused = [outcome for outcome in run(whole, pool).outcomes if outcome.result != "read"]
    pool.close()

    assert [] == [f"{outcome.hostile.format} {outcome.hostile.what}: {outcome.message}" for outcome in refused]


def test_no_hostile_file_gets_past_the_decoders(tally: Tally) -> None:
    """Each is read or refused with an error of medserve's own, in time."""
    assert COUNT == len(tally.outcomes)
    assert [] == [outcome.hostile[:3] for outcome in tally.untyped]
    # Other tests run beside this one and the decoders' limits stretch on a crowded machine; `make hostile` allows HANG.
    assert [] == [outcome.hostile[:3] for outcome in tally.outcomes if outcome.seconds > 3 * HANG]


def test_the_formats_foresee_what_can_go_wrong(tally: Tally) -> None:
    """A module's own refusal says more than the last resort at the border."""
    assert [] == [(outcome.hostile[:3], outcome.surprise) for outcome in tally.surprises]


def test_memory_comes_back(tally: Tally) -> None:
    """The calling process stays as it was."""
    assert tally.grown <= MEMORY


def test_no_message_quotes_what_a_file_holds(tally: Tally) -> None:
    """The planted name is in many of the files and in none of the refusals."""
    assert [] == [outcome.hostile[:3] for outcome in tally.outcomes if "PLANTED" in outcome.message]


def test_the_corpus_is_the_same_every_time() -> None:
    """The number and the seed decide, so that a finding can be looked at again."""
    assert corpus.damaged(700, 1) == corpus.damaged(700, 1)
    assert corpus.damaged(700, 1) != corpus.damaged(700, 2)


def test_the_result_can_be_printed(tally: Tally) -> None:
    """The report names every format."""
    text = "\n".join(report(tally, "command"))

    assert {"dicom", "jpeg", "slide", "zip"} <= {
        line.split("|")[1].strip() for line in text.splitlines() if "|" in line
    }
