"""Dermoscopy: observe one feature at a time, look again with the observations in hand, then classify in words.

The course is DermGemma's (four small questions, a comparison, a text-only classification); the wording and the rules
for reading are this project's own. Nothing that the model says is rewritten, and nothing is assumed: a feature that
cannot be read is passed on as "not readable", and a class that cannot be read is no class.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from medserve import guard
from medserve.images import Modality, Study
from medserve.readers import any_of, code_of, one_of, prose, words_from
from medserve.reports import Conclusion, in_words
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow

SHAPE = "What is the overall shape of the lesion? Answer with one word: round, oval or irregular."
NETWORK = "Is a pigment network visible in the lesion? Answer yes or no."
STRUCTURES = "Which of these structures are visible: dots, globules, streaks? Name those you see, or answer none."
COLOURS = "Which colours does the lesion have? Answer with colour names only, separated by commas."
VESSELS = "Which vessels are visible: arborizing, dotted, linear? Name those you see, or answer none."
REGRESSION = "Is regression or a blue-white veil visible? Answer yes or no."
KERATOSIS = "Are comedo-like openings or milia-like cysts visible? Answer yes or no."
WHICH = (
    "Which class fits best: MEL (melanoma), NV (melanocytic nevus), BCC (basal cell carcinoma) or "
    "BKL (benign keratosis)? Answer with one code."
)
WHICH_OTHERWISE = "What is the most likely class: MEL, NV, BCC or BKL? Answer with the code."

COLOUR_NAMES = ("white", "blue", "black", "brown", "yellow", "pink", "orange", "gray", "tan", "red", "purple")
CLASSES = {
    "MEL": "melanoma",
    "NV": "melanocytic nevus",
    "BCC": "basal cell carcinoma",
    "BKL": "benign keratosis",
}
SYNONYMS = {
    "MEL": ("melanoma", "malignant melanoma"),
    "NV": ("nevus", "naevus", "melanocytic nevus", "melanocytic naevus", "mole"),
    "BCC": ("basal cell carcinoma", "basalioma"),
    "BKL": ("benign keratosis", "seborrheic keratosis", "seborrhoeic keratosis", "benign keratosis-like lesion"),
}

FEATURES = (
    Question(
        "Shape",
        SHAPE,
        one_of("round", "oval", "irregular"),
        otherwise="Which shape does the lesion have? Round, oval or irregular?",
    ),
    Question(
        "Pigment network",
        NETWORK,
        one_of("yes", "no"),
        otherwise="Do you see a pigment network? Reply with yes or no.",
    ),
    Question(
        "Structures",
        STRUCTURES,
        any_of("dots", "globules", "streaks"),
        otherwise="Of dots, globules and streaks, which are there? Name them, or say none.",
    ),
    Question(
        "Colours",
        COLOURS,
        words_from(*COLOUR_NAMES),
        otherwise="Which colours do you see? Answer with colour names.",
    ),
)
SIGNS = (
    Question(
        "Vessels",
        VESSELS,
        any_of("arborizing", "dotted", "linear"),
        otherwise="Are there arborizing, dotted or linear vessels? Name them, or say none.",
    ),
    Question(
        "Regression or blue-white veil",
        REGRESSION,
        one_of("yes", "no"),
        otherwise="Do you see regression or a blue-white veil? Reply with yes or no.",
    ),
    Question(
        "Comedo-like openings or milia-like cysts",
        KERATOSIS,
        one_of("yes", "no"),
        otherwise="Do you see comedo-like openings or milia-like cysts? Reply with yes or no.",
    ),
)


class DermoscopyOptions(Options):
    """What a caller may choose about a dermoscopy report."""

    signs: bool = Field(False, description="also ask for vessels, regression and signs of keratosis")


async def run(study: Study, consult: Consult, options: DermoscopyOptions) -> Conclusion:
    """Four observations (seven with `signs`), a second look, and one class of four or none."""
    observed = await consult.ask_all(FEATURES + SIGNS if options.signs else FEATURES)
    findings = {answer.step: _spoken(answer) for answer in observed}
    look = await consult.ask("Second look", second_look(findings), prose(SYNONYMS), max_tokens=256)
    description = look.value or ""
    verdict = await consult.choose(
        "Classification",
        classification(findings, description),
        code_of(SYNONYMS),
        tuple(CLASSES),
        max_tokens=32,
        look=False,
        otherwise=classification(findings, description, WHICH_OTHERWISE),
    )
    scores = verdict.scores
    return Conclusion(
        findings=tuple(answer.finding() for answer in observed),
        label=verdict.value,
        label_meaning=CLASSES[verdict.value] if verdict.value else None,
        probabilities=verdict.probabilities,
        calibrated=verdict.calibrated,
        label_mass=scores.mass if scores else None,
        description=description,
        removed=look.left_out,
    )


def observations(findings: Mapping[str, str]) -> str:
    """The findings as the list that later questions quote: one `- Name: value` a line, in the order asked."""
    return "\n".join(f"- {name}: {value}" for name, value in findings.items())


def second_look(findings: Mapping[str, str]) -> str:
    """The question that sends the model back to the picture with what it has said so far."""
    return (
        f"These observations were made on this picture:\n{observations(findings)}\n\n"
        "Compare each observation with the picture and say in one short sentence whether it is consistent or "
        "inconsistent. Then name further clearly visible features that the list leaves out. "
        "Describe only what is visible, in plain sentences, and do not name a diagnosis."
    )


def classification(findings: Mapping[str, str], description: str, which: str = WHICH) -> str:
    """The text-only question that ends the protocol; `description` is the cleaned second look and may be empty."""
    second = f"\n\nSecond look: {description}" if description else ""
    return f"Observations of a skin lesion by dermoscopy:\n{observations(findings)}{second}\n\n{which}"


def _spoken(answer: Answer[Any]) -> str:
    """An observation as later questions quote it."""
    return "not readable" if answer.value is None else in_words(answer.value)


workflow = Workflow(
    name="dermoscopy",
    title="Dermoscopy report",
    summary="Observations of a skin lesion, a second look at the picture, and a class of MEL, NV, BCC or BKL.",
    modality=Modality.DERMOSCOPY,
    run=run,
    labels=CLASSES,
    options=DermoscopyOptions,
    domain=Domain(
        takes="a dermoscopic photograph of one skin lesion",
        modalities=frozenset({Modality.DERMOSCOPY, Modality.PHOTOGRAPH}),
        looks=(guard.skin,),
        kind="dermoscopy",
    ),
)
