"""What an engine without a certificate writes is flagged as such, and nothing else is."""

from dataclasses import replace
from pathlib import Path

from medserve.engines.llama_cpp import LlamaCpp
from medserve.examination import examine
from medserve.flags import Flag
from medserve.imaging import intake
from medserve.settings import Limits
from medserve.workflows import find
from tests.verification.builds import Lent


async def test_a_report_by_a_build_that_nobody_verified_says_so(engine: LlamaCpp, dermoscopy: Path) -> None:
    """The engine's own facts tell it, and the report keeps them."""
    study = await intake.read([dermoscopy], Limits())
    build = Lent(engine)
    verified = await examine(find("dermoscopy"), study, build, options={"guard": False})

    build.capabilities = replace(engine.capabilities, facts=(*engine.capabilities.facts, ("parity", "not verified")))
    report = await examine(find("dermoscopy"), study, build, options={"guard": False})

    assert Flag.UNVERIFIED in report.flags
    assert report.needs_review
    assert "not verified" == report.provenance.facts["parity"]
    assert Flag.UNVERIFIED not in verified.flags
