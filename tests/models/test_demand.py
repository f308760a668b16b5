"""What a load asks of the memory is the best that is known: what is said, before what was seen, before an estimate."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.models.demand import Demand, file_bytes
from medserve.settings import ModelSpec

sizes = st.integers(0, 2**40)
some = st.lists(sizes, max_size=5)


def known(files: int, estimates: list[int], weighed: list[int], said: int | None = None) -> Demand:
    """What is known after these loads of the same weights."""
    demand = Demand(said)
    demand.files_found(files)
    for estimate in estimates:
        demand.estimated(estimate)
    for weight in weighed:
        demand.weighed(weight)
    return demand


@settings(deadline=None)  # the machine may be under load
@given(st.integers(1, 2**40), sizes, some, some)
def test_what_the_settings_say_stands(said: int, files: int, estimates: list[int], weighed: list[int]) -> None:
    """Whoever says it knows better than an estimate, and than what was seen."""
    assert said == known(files, estimates, weighed, said).expected


@settings(deadline=None)  # the machine may be under load
@given(sizes, some, st.lists(st.integers(1, 2**40), min_size=1, max_size=5))
def test_what_was_seen_goes_before_an_estimate(files: int, estimates: list[int], weighed: list[int]) -> None:
    """The most of it, also where that is less than had been estimated."""
    assert max(weighed) == known(files, estimates, weighed).expected


@settings(deadline=None)  # the machine may be under load
@given(sizes, some)
def test_an_estimate_is_never_less_than_the_files(files: int, estimates: list[int]) -> None:
    """The largest counts, in whichever order they come."""
    assert max([files, *estimates]) == known(files, estimates, []).expected


@settings(deadline=None)  # the machine may be under load
@given(sizes, some, some)
def test_the_same_weights_are_remembered(files: int, estimates: list[int], weighed: list[int]) -> None:
    """From one load to the next."""
    demand = known(files, estimates, weighed)
    before = demand.expected
    demand.files_found(files)

    assert before == demand.expected


@settings(deadline=None)  # the machine may be under load
@given(st.lists(sizes, min_size=2, max_size=2, unique=True), some, some)
def test_other_weights_under_the_same_name_are_new(files: list[int], estimates: list[int], weighed: list[int]) -> None:
    """What the old ones took says nothing of them."""
    demand = known(files[0], estimates, weighed)
    demand.files_found(files[1])

    assert files[1] == demand.expected


def test_of_a_model_without_files_nothing_is_known() -> None:
    """Such as one on a server elsewhere: it asks for no room."""
    assert 0 == Demand(None).expected
    assert 0 == file_bytes(ModelSpec(name="m", engine="scripted"))


def test_the_files_are_the_weights_and_the_projector(tmp_path: Path) -> None:
    """One that is not there has no bytes; that it is missing is for its engine to say."""
    weights, projector = tmp_path / "weights.gguf", tmp_path / "projector.gguf"
    spec = ModelSpec(name="m", path=weights, projector=projector)
    weights.write_bytes(bytes(30))
    assert 30 == file_bytes(spec)

    projector.write_bytes(bytes(12))
    assert 42 == file_bytes(spec)
