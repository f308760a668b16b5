"""Histology screening: is this a stained section of colon, and if so, are malignant gland changes visible?

The course is Healer's (a closed question and one sentence); the wording and the rules are this project's own. The
closed question is asked only where the model takes the picture, without a doubt, for what the question is about. The
verdict stands only where the answer in words, the probabilities and the explanation agree. Nobody is played, nothing
is prescribed.

A slide comes as its patches, each of which is asked about by itself. What the slide comes to is a count of their
answers by a rule that the report states. The rule's numbers are the caller's; nobody has shown that they are right.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, JsonValue

from medserve import guard
from medserve.flags import Flag, Notice
from medserve.images import Modality, Overview, Study
from medserve.imaging import overlay
from medserve.intervals import wilson
from medserve.readers import one_of, opening, plain
from medserve.reports import Conclusion, Figure, Finding
from medserve.threads import in_thread
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow

TISSUE = Question(
    "Stained section of colon",
    "Is this a tissue section of colon stained with haematoxylin and eosin? Answer yes or no.",
    one_of("yes", "no"),
    max_tokens=32,
    score=("yes", "no"),
    otherwise="Does the image show colon stained with haematoxylin and eosin? Answer yes or no.",
)
MALIGNANT = Question(
    "Malignant gland changes",
    "Are malignant gland changes visible? Answer yes or no.",
    one_of("yes", "no"),
    max_tokens=32,
    score=("yes", "no"),
    otherwise="Do the glands look malignant? Answer yes or no.",
)
EXPLANATION = Question(
    "Explanation",
    "Are malignant gland changes visible? Answer yes or no and explain in one sentence.",
    plain(),
    max_tokens=100,
)
LABELS = {"yes": "malignant gland changes are visible", "no": "no malignant gland changes are visible"}


class Verdict(Notice):
    """What a screening comes to."""

    YES = "yes", LABELS["yes"]
    NO = "no", LABELS["no"]
    INDETERMINATE = "indeterminate", "the answers cannot be read, or do not agree with one another"
    NOT_ASSESSABLE = "not_assessable", "the picture was not taken for a stained section of colon, so nothing was judged"


@dataclass(frozen=True)
class Screening:
    """The answers about one tile; the closed question was asked only where the first answer let it."""

    tissue: Answer[str]
    changes: Answer[str] | None = None
    explanation: Answer[str] | None = None

    @property
    def contradicted(self) -> bool:
        """Whether the explanation begins with the other answer than the one that was given."""
        if self.changes is None or self.explanation is None or self.changes.value is None:
            return False
        return opening(self.explanation.text, tuple(LABELS)) not in (None, self.changes.value)

    @property
    def label(self) -> str | None:
        """The answer that nothing speaks against."""
        return None if self.changes is None or self.contradicted else self.changes.decided


class HistologyOptions(Options):
    """What a caller may choose about a screening; all of it concerns slides only."""

    yes_share: float = Field(
        0.1, gt=0, le=1, description="a slide is answered yes where at least this share of its judged patches is"
    )
    no_share: float = Field(0.0, ge=0, lt=1, description="and else no where at most this share of them is")
    judged_share: float = Field(
        0.5, ge=0, le=1, description="neither where less than this share of its patches could be judged"
    )
    least_patches: int = Field(5, ge=1, description="neither where fewer patches than this could be judged")
    explained: bool = Field(False, description="ask for the sentence of explanation about every patch too")


async def run(study: Study, consult: Consult, options: HistologyOptions) -> Conclusion:
    """The protocol on the tile, or on one patch of the slide after the other."""
    if study.overview is None and len(study.images) == 1:
        return concluded(await screened(consult))
    places = range(len(study.images))
    found = [await screened(consult, place, explained=options.explained) for place in places]
    return await in_thread(of_slide, found, options, study.overview)


async def screened(consult: Consult, patch: int | None = None, *, explained: bool = True) -> Screening:
    """The questions about the study's patch in this place, or about its only picture."""
    tissue, changes, explanation = (
        asked if patch is None else asked.of_picture(patch, f"Patch {patch + 1}: ")
        for asked in (TISSUE, MALIGNANT, EXPLANATION)
    )
    (seen,) = await consult.ask_all([tissue])
    further = [changes, explanation] if explained else [changes]
    return Screening(seen, *(await consult.ask_all(further) if seen.decided == "yes" else ()))


def concluded(found: Screening) -> Conclusion:
    """What the answers about one tile come to."""
    changes, explanation = found.changes, found.explanation
    if changes is None or explanation is None:
        return Conclusion(findings=(found.tissue.finding(),), flags=(Flag.NOT_ASSESSABLE,))
    return Conclusion(
        findings=(found.tissue.finding(), changes.finding()),
        label=found.label,
        label_meaning=LABELS[found.label] if found.label else None,
        probabilities=changes.probabilities,
        calibrated=changes.calibrated,
        label_mass=changes.scores.mass if changes.scores else None,
        description=explanation.value or "",
        removed=explanation.left_out,
        flags=(Flag.CONTRADICTION,) if found.contradicted else (),
    )


def verdict(conclusion: Conclusion) -> Verdict:
    """What a conclusion of this workflow comes to; without a label it is never one of the two answers."""
    if Flag.NOT_ASSESSABLE in conclusion.flags:
        return Verdict.NOT_ASSESSABLE
    return {"yes": Verdict.YES, "no": Verdict.NO}.get(conclusion.label or "", Verdict.INDETERMINATE)


def in_words(conclusion: Conclusion) -> str:
    """The verdict and what it means, and of a yes or no the model's own explanation after it."""
    found = verdict(conclusion)
    words = f"{found.replace('_', ' ').capitalize()}: {found.meaning}."
    return f"{words} {conclusion.description}".strip() if conclusion.label else words


# --- slides --------------------------------------------------------------------------------------------------------


OTHER_TISSUE = "not colon"
UNDECIDED = "undecided"
COLOURS = {"yes": (213, 94, 0), "no": (0, 114, 178), UNDECIDED: (240, 228, 66), OTHER_TISSUE: (120, 120, 120)}
"""What a patch may come to and its colour on the map; Okabe and Ito's colours, which the colour-blind tell apart."""
LEGEND = "orange: yes, blue: no, yellow: undecided, grey: not taken for colon"


@dataclass(frozen=True)
class Tally:
    """How many patches were shown, how many were judged yes or no, and how many of these yes."""

    shown: int
    judged: int
    yes: int

    @property
    def share(self) -> float | None:
        """Of the judged patches, those answered yes."""
        return self.yes / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The share's, about which patches of the slide were drawn; it says nothing of the model's errors."""
        return wilson(self.yes, self.judged) if self.judged else None

    def label(self, options: HistologyOptions) -> str | None:
        """The slide's answer by the rule of the options."""
        if self.share is None or self.judged < max(options.least_patches, options.judged_share * self.shown):
            return None
        if self.share >= options.yes_share:
            return "yes"
        return "no" if self.share <= options.no_share else None


def of_slide(found: Sequence[Screening], options: HistologyOptions, overview: Overview | None) -> Conclusion:
    """What the answers about a slide's patches come to."""
    answers = [come_to(one) for one in found]
    counted = Counter(answers)
    tally = Tally(len(answers), counted["yes"] + counted["no"], counted["yes"])
    label = tally.label(options)
    return Conclusion(
        findings=_counts(tally),
        label=label,
        label_meaning=f"{LABELS[label]}, by the rule for slides" if label else None,
        figures=(_map(answers, overview),) if overview else (),
        data=_data(answers, tally, options),
        flags=_flags(found, answers),
    )


def come_to(found: Screening) -> str:
    """What one patch comes to: yes, no, undecided, or not colon."""
    if found.tissue.decided != "yes":
        return OTHER_TISSUE if found.tissue.decided == "no" else UNDECIDED
    return found.label or UNDECIDED


def _counts(tally: Tally) -> tuple[Finding, ...]:
    """What code counted of the model's answers; no word of the model's own."""
    interval = tally.interval
    counted: dict[str, str | float | None] = {
        "Patches judged": f"{tally.judged} of {tally.shown}",
        "Patches with malignant gland changes": f"{tally.yes} of {tally.judged}",
        "Share of the judged patches": None if tally.share is None else round(tally.share, 4),
        "95 % interval of the share": None if interval is None else "{:.4f} to {:.4f}".format(*interval),
    }
    return tuple(Finding(name=name, value=value, source="measured") for name, value in counted.items())


def _data(answers: Sequence[str], tally: Tally, options: HistologyOptions) -> JsonValue:
    """The patches' answers in their order, and the rule in words; probabilities stand in the steps."""
    return {
        "rule": f"yes from a share of {options.yes_share:g} on, else no up to {options.no_share:g}, and neither where "
        f"fewer than {options.least_patches} patches or less than {options.judged_share:g} of them could be judged; "
        "these numbers are not validated",
        "shown": tally.shown,
        "judged": tally.judged,
        "yes": tally.yes,
        "patches": list(answers),
    }


def _flags(found: Sequence[Screening], answers: Sequence[str]) -> tuple[Flag, ...]:
    judged = {"yes", "no"} & set(answers)
    taken = any(one.tissue.decided == "yes" for one in found)
    contradicted = any(one.contradicted for one in found)
    raised = {Flag.NOT_ASSESSABLE: not judged and not taken, Flag.CONTRADICTION: contradicted}
    return tuple(flag for flag, is_raised in raised.items() if is_raised)


def _map(answers: Sequence[str], overview: Overview) -> Figure:
    colours = [COLOURS[answer] for answer in answers]
    png = overlay.coloured(overview.picture, overview.places, colours)
    return Figure(name="map of the patches", caption=f"The slide with its patches ({LEGEND})", png=png)


workflow = Workflow(
    name="histology",
    title="Histology screening",
    summary="Whether a tile or slide is a stained section of colon, and if so, whether malignant gland changes show.",
    modality=Modality.HISTOLOGY,
    run=run,
    labels=LABELS,
    options=HistologyOptions,
    max_images=125,
    domain=Domain(
        takes="a section of colon stained with haematoxylin and eosin",
        modalities=frozenset({Modality.HISTOLOGY, Modality.PHOTOGRAPH}),
        looks=(guard.stained,),
    ),
)
