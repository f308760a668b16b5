"""Reports that hold everything a report can hold, and words that mean harm to every format."""

import base64
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import PIL.Image

from medserve.flags import Flag
from medserve.generation import Finish
from medserve.images import Modality, Study
from medserve.imaging import intake
from medserve.imaging.intake import Wanted
from medserve.reports import (
    DEMO_NOTICE,
    NOTICE,
    Box,
    Check,
    Conclusion,
    Control,
    Domain,
    Figure,
    Finding,
    PictureFacts,
    Provenance,
    QuotedTable,
    RemovedSentence,
    Report,
    Step,
    StudyConcern,
    StudyFacts,
    TokenCounts,
)
from medserve.settings import Limits

CREATED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
HARM = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> [here](javascript:alert(3)) ![x](http://203.0.113.9/p.png) "
    "| a | b |\n# Heading\n- item\n1. one\n```\n**bold** http://203.0.113.9/ www.example.test <b>&amp;</b> {{ 7*7 }} "
    "\x00\x1b[31m\u202egnp.exe \ufffe"
)
"""What a model, or whoever made it say so, could try to make more of than words."""


def png(shade: int = 90, width: int = 40, height: int = 30) -> str:
    """A plain figure."""
    out = BytesIO()
    PIL.Image.new("RGB", (width, height), (shade, shade, shade)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def facts(**given: Any) -> StudyFacts:
    """A study of two slices, as a report records it."""
    picture = PictureFacts(sha256="c" * 64, format="DICOM", mode="CT", width=48, height=48)
    return StudyFacts(
        **{
            "sha256": "ab" * 32,
            "modality": Modality.CT,
            "pictures": (picture, picture),
            "concerns": (StudyConcern(name="few_slices", meaning="fewer than 5 slices: too few to judge a volume by"),),
            "spacing": (2.0, 0.8, 0.7),
            "labels": ("SLICE 1", "SLICE 2"),
            "slices": (0, 1),
            "facts": {"modality": "CT"},
            **given,
        }
    )


def conclusion(**given: Any) -> Conclusion:
    """Findings of every kind, a class, places, a figure, a quoted table and data."""
    return Conclusion(
        **{
            "findings": (
                Finding(name="Stone visible", value="yes", step="Stone", probabilities={"yes": 0.9, "no": 0.1}),
                Finding(name="Side", value=None, step="Side", flags=(Flag.UNREADABLE,)),
                Finding(name="Structures", value=("dots", "streaks")),
                Finding(name="Largest diameter", value=7.25, unit="mm", source="measured"),
                Finding(name="Mean density", value=901.5, unit="[hnsf'U]", source="measured"),
                Finding(name="Hydronephrosis", value=False),
            ),
            "label": "STONE",
            "label_meaning": "kidney stone",
            "probabilities": {"STONE": 0.75, "NONE": 0.25},
            "label_mass": 0.98,
            "description": "A bright spot lies in the left kidney: 7 mm × 5 mm, Größe μ ≥ 3.",
            "removed": (RemovedSentence(sentence="I am not a doctor.", reason=Flag.REFUSAL),),
            "boxes": (Box(label="stone", picture=0, top=10, left=20.5, bottom=18, right=30),),
            "figures": (Figure(name="Overlay", caption="the measured region, outlined", png=png(), picture=0),),
            "tables": (
                QuotedTable(
                    title="Density of stones",
                    columns=("Kind", "HU"),
                    rows=(("uric acid", "200 to 450"), ("calcium", "600 to 1200")),
                    source="a textbook",
                    limits="ranges overlap",
                ),
            ),
            "data": {"stones": [{"side": "left", "mm": 7.25}]},
            "missing": ("/contrast",),
            "flags": (Flag.MEASUREMENT_DISAGREEMENT,),
            **given,
        }
    )


def report(**given: Any) -> Report:
    """A whole report that is the same each time."""
    step = Step(
        name="Stone", prompt="Is a stone visible?", max_tokens=32, reply="Yes.", finish=Finish.STOP, value="yes"
    )
    return Report(
        **{
            "id": "00112233445566778899aabbccddeeff",
            "created": CREATED,
            "title": "Kidney stone report",
            "study": facts(),
            "domain": Domain(
                takes="a CT series",
                checks=(Check(name="the model's own word", passed=False, detail="taken for other"),),
            ),
            "conclusion": conclusion(),
            "controls": (Control(kind="blank", changed=("Stone visible",), distance=0.5),),
            "depends_on_picture": True,
            "flags": (Flag.UNREADABLE, Flag.MEASUREMENT_DISAGREEMENT),
            "needs_review": True,
            "steps": (step,),
            "tokens": TokenCounts(prompt=300, completion=12, cached=100, image=64, encodes=1),
            "seconds": 1.25,
            "provenance": Provenance(
                medserve="0.0.0",
                workflow="stones",
                workflow_version="1",
                model="medserve-demo",
                engine="scripted",
                facts={"weights": "medserve-demo", "weights_sha256": "d" * 64},
            ),
            "notice": f"{NOTICE} {DEMO_NOTICE}",
            **given,
        }
    )


def harmful() -> Report:
    """A report in which every word that a model or a file may choose means harm."""
    base = conclusion()
    words = {
        "findings": (
            Finding(name=HARM, value=HARM, probabilities={HARM: 0.5}),
            Finding(name=HARM, value=(HARM, "x")),
            Finding(name=HARM, value=1.5, unit=HARM, source="measured"),
        ),
        "label": HARM,
        "label_meaning": HARM,
        "description": HARM,
        "removed": (RemovedSentence(sentence=HARM, reason=Flag.REFUSAL),),
        "boxes": (base.boxes[0].model_copy(update={"label": HARM}),),
        "figures": (base.figures[0].model_copy(update={"name": HARM, "caption": HARM}),),
        "tables": (QuotedTable(title=HARM, columns=(HARM, "b"), rows=((HARM, HARM),), source=HARM, limits=HARM),),
        "data": {HARM: [HARM]},
        "missing": (HARM,),
    }
    study = facts(concerns=(StudyConcern(name=HARM, meaning=HARM),), facts={HARM: HARM})
    made = report().provenance.model_copy(update={"model": HARM, "engine": HARM, "workflow": HARM})
    return report(
        title=HARM, notice=HARM, study=study, conclusion=base.model_copy(update=words), provenance=made,
        domain=Domain(takes=HARM, checks=(Check(name=HARM, passed=None, detail=HARM),)),
    )  # fmt: skip


async def about(files: list[bytes], modality: Modality, **given: Any) -> tuple[Report, Study]:
    """A report on these files' study, and that study."""
    study = await intake.read(files, Limits(), Wanted(modality))
    return report(study=StudyFacts.of(study), **given), study
