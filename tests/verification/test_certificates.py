"""A certificate is found for the build that it was made of, and for no other."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from medserve import certificates
from medserve.certificates import Certificate, Check, Measure, Outcome, Verdict
from medserve.errors import InvalidRequest

FACTS = {
    "engine": "vllm",
    "build": "vllm 0.32.0",
    "weights": "Demo",
    "fingerprint": "ab",
    "devices": "CPU",
    "slots": "2",
}
GOOD = Check(name="sees", outcome=Outcome.PASSED, reason="it sees")
BAD = Check(name="causes", outcome=Outcome.FAILED, reason="causal_images: pictures are masked as text is")
OPEN = Check(name="labels", outcome=Outcome.NOT_DONE, reason="too few")


def certificate(*checks: Check, facts: dict[str, str] = FACTS) -> Certificate:
    return Certificate(
        model="medserve-demo",
        verdict=certificates.verdict(checks),
        summary="; ".join(check.reason for check in checks),
        subject=facts,
        reference={"engine": "transformers"},
        settings={"count": 24},
        pictures=24,
        picture_set="0" * 64,
        checks=checks,
    )


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    """Whatever of the facts does not decide how a model answers."""
    made = certificate(GOOD)
    certificates.keep(tmp_path, made)

    assert made == certificates.find(tmp_path, {**FACTS, "slots": "8", "threads": "3"})


@pytest.mark.parametrize("name", ["engine", "build", "fingerprint", "devices", "arguments", "address_fingerprint"])
def test_another_build_has_no_certificate(tmp_path: Path, name: str) -> None:
    """Each of what decides how a model answers."""
    certificates.keep(tmp_path, certificate(GOOD))

    assert certificates.find(tmp_path, {**FACTS, name: "another"}) is None


def test_a_later_certificate_of_the_same_build_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    """There is one at most."""
    file = certificates.keep(tmp_path, certificate(BAD))

    assert file == certificates.keep(tmp_path, certificate(GOOD))
    assert [file] == list(file.parent.iterdir())
    found = certificates.find(tmp_path, FACTS)
    assert found is not None
    assert found.passed


def test_only_this_user_may_look_into_the_folder(tmp_path: Path) -> None:
    """It lies in the home, as jobs do."""
    file = certificates.keep(tmp_path / "home", certificate(GOOD))

    assert 0o700 == file.parent.stat().st_mode & 0o777
    assert 0o600 == file.stat().st_mode & 0o777


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_certificate_is_none(tmp_path: Path, content: str) -> None:
    """The build counts as not verified."""
    certificates.keep(tmp_path, certificate(GOOD)).write_text(content)

    assert certificates.find(tmp_path, FACTS) is None
    assert certificates.NOT_VERIFIED == certificates.parity(tmp_path, FACTS).fact[1]


def test_a_certificate_whose_verdict_does_not_follow_is_none(tmp_path: Path) -> None:
    """A verdict is not believed against its own checks."""
    file = certificates.keep(tmp_path, certificate(BAD))
    file.write_text(json.dumps({**json.loads(file.read_text()), "verdict": "passed"}))

    assert certificates.find(tmp_path, FACTS) is None
    with pytest.raises(ValidationError):
        Certificate.model_validate_json(file.read_bytes())


def test_a_failed_build_is_refused_pictures_with_the_reason(tmp_path: Path) -> None:
    """What failed is what the caller is told."""
    certificates.keep(tmp_path, certificate(GOOD, BAD))

    found = certificates.parity(tmp_path, FACTS)

    assert found.fact[1].startswith("failed")
    assert "causal_images" in found.refusal
    assert certificates.is_unverified(dict([found.fact]))


def test_what_another_medserve_found_right_is_not_verified_and_what_it_found_wrong_stays_refused(
    tmp_path: Path,
) -> None:
    """Pixels and prompts are medserve's own."""
    certificates.keep(tmp_path, certificate(GOOD).model_copy(update={"medserve": "0.0.1"}))
    passed = certificates.parity(tmp_path, FACTS)
    certificates.keep(tmp_path, certificate(BAD).model_copy(update={"medserve": "0.0.1"}))

    assert ((certificates.PARITY, certificates.NOT_VERIFIED), "") == (passed.fact, passed.refusal)
    assert "causal_images" in certificates.parity(tmp_path, FACTS).refusal


def test_a_home_that_cannot_be_written_is_said_so_with_the_remedy(tmp_path: Path) -> None:
    """A file lies where the folder should be; its name is not told."""
    (tmp_path / "file").write_text("")

    with pytest.raises(InvalidRequest, match="set MEDSERVE_HOME to a folder that is") as refused:
        certificates.keep(tmp_path / "file", certificate(GOOD))

    assert str(tmp_path) not in refused.value.message


def test_a_build_that_passed_is_verified(tmp_path: Path) -> None:
    """With the day."""
    made = certificate(GOOD)
    certificates.keep(tmp_path, made)

    found = certificates.parity(tmp_path, FACTS)

    assert (("parity", f"verified {made.created:%Y-%m-%d}"), "") == (found.fact, found.refusal)
    assert not certificates.is_unverified(dict([found.fact]))


def test_an_unfinished_certificate_refuses_nothing_and_verifies_nothing(tmp_path: Path) -> None:
    """Pictures are taken, and reports say that nobody has compared the build."""
    certificates.keep(tmp_path, certificate(GOOD, OPEN))

    found = certificates.parity(tmp_path, FACTS)

    assert (certificates.NOT_VERIFIED, "") == (found.fact[1], found.refusal)


def test_an_engine_that_needs_no_certificate_is_not_called_unverified() -> None:
    """Only one that says of itself that it may be silently wrong."""
    assert not certificates.is_unverified({"engine": "llama-cpp"})
    assert certificates.is_unverified({"engine": "vllm", "parity": "not verified"})


def test_what_is_not_needed_and_not_done_does_not_keep_a_build_from_passing() -> None:
    """A model without vision passes without seeing."""
    unseen = Check(name="sees", outcome=Outcome.NOT_DONE, reason="no vision part", needed=False)

    assert Verdict.PASSED is certificates.verdict((unseen, GOOD))
    assert Verdict.INCOMPLETE is certificates.verdict((unseen,))
    assert Verdict.INCOMPLETE is certificates.verdict((GOOD, OPEN))
    assert Verdict.FAILED is certificates.verdict((BAD, OPEN))


def test_a_number_that_could_not_be_measured_is_null_in_json() -> None:
    """With the reason beside it."""
    measure = Measure(name="median divergence", value=None, reason="not told")

    assert {"value": None, "reason": "not told"}.items() <= json.loads(measure.model_dump_json()).items()
