"""`medserve verify` as it is typed: what it prints and writes, how it ends, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from medserve import certificates
from medserve.certificates import Certificate, Verdict
from medserve.settings import DEMO
from medserve.verification import page
from tests.commands import command


@pytest.mark.timeout(300)
def test_the_demonstration_model_is_verified_from_the_command_line(tmp_path: Path) -> None:
    """Everything real: three workers one after another, a certificate that is kept, JSON and a page."""
    said = command(
        "verify",
        "medserve-demo",
        "--count",
        "6",
        "--json",
        "--out",
        str(tmp_path / "certificate.json"),
        "--page",
        str(tmp_path / "certificate.html"),
        MEDSERVE_HOME=str(tmp_path / "home"),
    )

    assert 0 == said.code, said.err + said.out
    made = Certificate.model_validate_json(said.out)
    assert made.passed
    assert made == Certificate.model_validate_json((tmp_path / "certificate.json").read_bytes())
    assert made == certificates.find(tmp_path / "home", made.subject)
    assert "Certificate of medserve-demo" in (tmp_path / "certificate.html").read_text(encoding="utf-8")
    assert "transformers" == made.reference["engine"]


def test_a_build_without_its_vision_part_ends_with_one(tmp_path: Path) -> None:
    """For scripts: 0 is for builds that passed."""
    shutil.copy(DEMO / "medserve-demo.gguf", tmp_path / "model.gguf")

    said = command(
        "verify",
        str(tmp_path / "model.gguf"),
        "--reference",
        str(DEMO),
        "--count",
        "2",
        "--threads",
        "1",
        MEDSERVE_HOME=str(tmp_path / "home"),
    )

    assert 1 == said.code
    assert "FAILED: the build does not answer as the reference does; sees:" in said.out
    assert "Known faults" in said.out


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    """With what there is."""
    said = command("verify", "nothing-like-it", MEDSERVE_HOME=str(tmp_path))

    assert 2 == said.code
    assert "no model is called 'nothing-like-it'" in said.err


def test_a_model_without_a_reference_is_refused(tmp_path: Path) -> None:
    """With what to pull."""
    shutil.copy(DEMO / "medserve-demo.gguf", tmp_path / "mine.gguf")

    said = command("verify", str(tmp_path / "mine.gguf"), MEDSERVE_HOME=str(tmp_path / "home"))

    assert 2 == said.code
    assert "medserve pull google/medgemma" in said.err


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """Before any model is loaded."""
    (tmp_path / "notes.txt").write_text("none")

    said = command("verify", "medserve-demo", "--pictures", str(tmp_path), MEDSERVE_HOME=str(tmp_path / "home"))

    assert 2 == said.code
    assert "none of the 1 files in the folder is a picture" in said.err


def test_the_schema_of_certificates_is_published() -> None:
    """And holds for a certificate."""
    said = command("verify", "--schema")

    schema = json.loads(said.out)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(certificate().model_dump_json()))
    assert 0 == said.code


def test_a_page_shows_every_check_and_loads_nothing() -> None:
    """What stands in a certificate is escaped."""
    html = page.as_html(certificate())

    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    for title in page.TITLES.values():
        assert title in html or title == page.TITLES["pixels"]


def test_the_text_tells_verdict_numbers_and_limits() -> None:
    """For a terminal."""
    text = page.as_text(certificate())

    assert "FAILED: causes" in text
    assert "at most 0.01" in text
    assert "causal_images  found" in " ".join(text.split("\n"))


def certificate() -> Certificate:
    """A certificate of a build with a fault."""
    found = certificates.Cause(
        name="causal_images",
        meaning="pictures are masked as text is",
        finding=certificates.Finding.FOUND,
        reason="it answers alike",
        n=40,
        nearer=40,
        effect=0.2,
        to_reference=0.2,
        to_fault=0.001,
    )
    divergence = certificates.Measure(name="median divergence", value=0.002, unit="nats", most=0.01)
    checks = (
        certificates.Check(name="sees", outcome=certificates.Outcome.PASSED, reason="it sees"),
        certificates.Check(name="template", outcome=certificates.Outcome.PASSED, reason="the same <b>ids</b>"),
        certificates.Check(
            name="labels", outcome=certificates.Outcome.PASSED, reason="they agree", measures=(divergence,)
        ),
        certificates.Check(name="causes", outcome=certificates.Outcome.FAILED, reason="causal_images"),
    )
    return Certificate(
        model="some-model",
        verdict=Verdict.FAILED,
        summary="causes: causal_images",
        subject={"engine": "vllm"},
        reference={"engine": "transformers"},
        settings={"count": 24},
        pictures=24,
        picture_set="0" * 64,
        checks=checks,
        causes=(found,),
        speeds=(certificates.Speed(side="subject", reason="not told"),),
    )
