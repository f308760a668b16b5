"""A text for the patient holds what the report holds, in plain words, and there is none where nothing was found."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.engines.scripted import Scripted
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.leaflets import Leaflet, as_text, explain, prompt_for, tellable
from medserve.leaflets.readability import measured, syllables_of
from medserve.leaflets.support import doubt, stem
from medserve.models import Models
from medserve.reports import NOTICE, Conclusion, Control, Domain, Finding, Report
from medserve.settings import Settings
from tests.exports.samples import report

GOLDEN = Path(__file__).parent / "golden" / "exports" / "leaflet.txt"
STONE = Finding(name="Kidney stone", value="yes")
NO_STONE = Finding(name="Kidney stone", value="no")
LENGTH = Finding(name="Largest diameter", value=7.25, unit="mm", source="measured")
STRUCTURES = Finding(name="Structures", value=("dots", "streaks"))


def about(*findings: Finding, label: str | None = None, flags: tuple[Flag, ...] = ()) -> Report:
    """A report with these findings and nothing else."""
    return report(conclusion=Conclusion(findings=findings, label=label), domain=None, flags=flags)


async def told(made: Report, *replies: str, level: int = 6) -> Leaflet:
    """The text that these replies make of a report."""
    return await explain(made, Scripted(replies), level)


async def golden() -> str:
    """The whole text for a person, with a sentence kept of each kind and one left out."""
    made = about(STONE, LENGTH, STRUCTURES, Finding(name="Side", value=None, flags=(Flag.UNREADABLE,)))
    replies = (
        "The picture shows a kidney stone. It may come from drinking too little.",
        "It measures 7.25 mm in diameter.",
        "The structures are dots and streaks.",
    )
    return as_text(await told(made, *replies)) + "\n"


async def test_the_golden_text() -> None:
    """Written again, after a look at the difference, by: python -m tests.test_leaflets."""
    assert GOLDEN.read_text(encoding="utf-8") == await golden()


async def test_nobody_is_told_of_a_kidney_stone_that_is_not_there() -> None:
    """System 004 told every patient "You have a kidney stone" and printed advice, stone or none."""
    leaflet = await told(about(NO_STONE), "You have a kidney stone in your left kidney. Drink more water.")

    assert not leaflet.text
    assert {"unsupported_word"} == {gone.reason for gone in leaflet.removed}
    assert Flag.CLEANING_EMPTIED in leaflet.flags
    assert "You have a kidney stone." not in (await told(about(NO_STONE), "You have a kidney stone.")).text
    assert "No kidney stone is seen." == (await told(about(NO_STONE), "No kidney stone is seen.")).text


@pytest.mark.parametrize(
    "made",
    [
        about(),
        about(Finding(name="Side", value=None, flags=(Flag.UNREADABLE,))),
        about(STONE.model_copy(update={"flags": (Flag.CONTRADICTION,)})),
        about(STONE, flags=(Flag.NOT_ASSESSABLE,)),
        about(STONE, flags=(Flag.PICTURE_IGNORED,)),
        about(STONE, flags=(Flag.DOMAIN_DOUBT,)),
        report(domain=Domain(takes="a CT series", assessable=False)),
    ],
    ids=["none", "unreadable", "contradicted", "not assessable", "picture ignored", "in doubt", "outside the domain"],
)
async def test_without_a_finding_there_is_no_text_and_no_question(made: Report) -> None:
    """A refusal that says why; no canned sentence, and the model is not even asked."""
    engine = Scripted(["You are healthy."])

    with pytest.raises(InvalidRequest, match="no finding that may be told"):
        await explain(made, engine)
    assert "You are healthy." == (await explain_any(engine)).removed[0].sentence


@pytest.mark.parametrize("flag", [Flag.CONTRADICTION, Flag.MEASUREMENT_DISAGREEMENT])
def test_findings_that_speak_against_one_another_are_not_told(flag: Flag) -> None:
    """Malignant changes that the explanation denies, a stone that no voxel bears out: each alone bears no flag."""
    disputed = report(conclusion=Conclusion(findings=(STONE, LENGTH), flags=(flag,)), domain=None, flags=(flag,))

    assert ([], ["Kidney stone", "Largest diameter"]) == named(disputed)


def test_what_other_words_changed_is_not_told() -> None:
    """The paraphrase control says of which finding, or of the class, that it hangs by the words of the question."""
    worded = Control(kind="paraphrase", changed=("Kidney stone", "label"), reworded=("Kidney stone",))
    found = Conclusion(findings=(STONE, LENGTH), label="yes")

    assert (["Largest diameter"], ["Kidney stone", "Classification"]) == named(
        report(conclusion=found, domain=None, flags=(), controls=(worded,))
    )


def named(made: Report) -> tuple[list[str], list[str]]:
    """The findings of a report that may be told to a patient, and those that may not, by name."""
    findings, untold = tellable(made)
    return [one.name for one in findings], [one.finding for one in untold]


async def explain_any(engine: Scripted) -> Leaflet:
    """What the engine says next; its first reply if it was never asked."""
    return await explain(about(STONE), engine)


@pytest.mark.parametrize(
    ("sentence", "finding"),
    [
        ("A kidney stone can be seen.", STONE),
        ("The picture shows a kidney stone.", STONE),
        ("You do not have a kidney stone.", NO_STONE),
        ("There isn't a kidney stone in the picture.", NO_STONE),
        ("It is 7.25 mm in diameter.", LENGTH),
        ("The largest diameter is 7,25 millimetres.", LENGTH),
        ("The structures are dots and streaks.", STRUCTURES),
        ("The program calls this a mole.", Finding(name="Classification", value="melanocytic nevus")),
        ("There are no dots and no streaks.", Finding(name="Dots or streaks", value=())),
        ("The spot is round.", Finding(name="Lesion shape", value="round")),
        ("No malignant gland changes are seen.", Finding(name="Malignant gland changes", value="no")),
        ("There is no hydronephrosis.", Finding(name="Hydronephrosis (the model's word)", value="none")),
    ],
)
def test_a_sentence_that_says_the_finding_is_kept(sentence: str, finding: Finding) -> None:
    """In the finding's own words, or in plain ones that say no more."""
    assert doubt(sentence, finding) is None


@pytest.mark.parametrize(
    ("sentence", "finding", "fault"),
    [
        ("A large kidney stone can be seen.", STONE, "unsupported_word"),
        ("A kidney stone is in your left kidney.", STONE, "unsupported_word"),
        ("You should drink water.", STONE, "unsupported_word"),
        ("A kidney stone may be seen.", STONE, "unsupported_word"),
        ("The kidney stone is cancer.", STONE, "unsupported_word"),
        ("Two kidney stones are seen.", STONE, "unsupported_word"),
        ("It is 7 mm in diameter.", LENGTH, "unsupported_number"),
        ("It is 7.25 cm in diameter.", LENGTH, "unsupported_word"),
        ("It is 72.5 mm in diameter.", LENGTH, "unsupported_number"),
        ("A kidney stone can be seen.", NO_STONE, "wrong_polarity"),
        ("No kidney stone can be seen.", STONE, "wrong_polarity"),
        ("You are not without a kidney stone.", NO_STONE, "wrong_polarity"),
        ("The structures are dots.", STRUCTURES, "says_nothing"),
        ("Dots and streaks are visible.", STRUCTURES, "says_nothing"),
        ("The picture is normal.", Finding(name="Lungs", value="normal"), "says_nothing"),
        ("It is round.", Finding(name="Lesion shape", value="round"), "says_nothing"),
        ("The program looked at your picture.", STONE, "says_nothing"),
        ("Is a kidney stone seen?", STONE, "says_nothing"),
        ("The kidney is seen.", STONE, "says_nothing"),
        ("No gland changes are seen.", Finding(name="Malignant gland changes", value="no"), "says_nothing"),
        ("Your heart is not seen.", Finding(name="Heart enlarged", value="no"), "says_nothing"),
        ("The kidney is seen.", Finding(name="Side", value="left"), "unsupported_word"),
    ],
)
def test_a_sentence_that_says_something_else_is_left_out(sentence: str, finding: Finding, fault: str) -> None:
    """Sizes, sides, numbers, units, advice, doubts, causes, and the opposite."""
    found = doubt(sentence, finding)

    assert found is not None
    assert fault == found.fault


async def test_what_is_left_out_is_kept_with_the_words_that_gave_cause() -> None:
    """A person can look at what the model would have said."""
    leaflet = await told(about(STONE), "The kidney stone is dangerous. A kidney stone is seen.")

    assert "A kidney stone is seen." == leaflet.text
    assert [("The kidney stone is dangerous.", "unsupported_word", ("dangerous",))] == [
        (gone.sentence, gone.reason, gone.words) for gone in leaflet.removed
    ]


async def test_one_finding_never_lends_its_words_to_another() -> None:
    """The sentence about the stone may not take its side from the finding about the cyst."""
    cyst = Finding(name="Cyst", value="left")
    leaflet = await told(about(STONE, cyst), "A kidney stone is seen in the left part.", "The cyst is left.")

    assert "The cyst is left." == leaflet.text
    assert [("Kidney stone", "no sentence of the model's was supported")] == [
        (one.finding, one.reason) for one in leaflet.untold
    ]
    assert Flag.INCOMPLETE in leaflet.flags


async def test_a_text_that_is_too_hard_is_flagged_and_not_hidden() -> None:
    """The measure is in the record with what was asked for; a short text is said to be uncertainly measured."""
    finding = Finding(name="Classification", value="seborrhoeic keratosis")
    leaflet = await told(about(finding), "The program finds seborrhoeic keratosis.", level=2)

    assert leaflet.readability is not None
    assert leaflet.readability.grade > 2
    assert not leaflet.readability.reliable
    assert Flag.HARD_TO_READ in leaflet.flags
    assert "harder than the reading level" in as_text(leaflet)
    assert Flag.HARD_TO_READ not in (await told(about(STONE), "A kidney stone is seen.")).flags


async def test_the_notice_is_part_of_the_text_for_a_person() -> None:
    """Research use, also on paper for patients."""
    assert NOTICE in as_text(await told(about(STONE), "A kidney stone is seen."))


async def test_a_guardrail_is_no_sentence_for_a_patient() -> None:
    """What cleaning takes out of every answer is taken out here too."""
    leaflet = await told(about(STONE), "As an AI, I cannot give medical advice. A kidney stone is seen.")

    assert "A kidney stone is seen." == leaflet.text
    assert Flag.REFUSAL == leaflet.removed[0].reason


def test_flagged_and_unreadable_findings_are_named_as_untold() -> None:
    """So that nobody takes their absence for their denial."""
    unsure = STONE.model_copy(update={"name": "Unsure", "flags": (Flag.LABEL_DISAGREEMENT,)})
    findings, untold = tellable(about(STONE, unsure, Finding(name="Side", value=None)))

    assert [STONE] == findings
    assert [("Unsure", "flagged"), ("Side", "not readable")] == [(one.finding, one.reason) for one in untold]


def test_a_place_without_a_box_is_no_denial() -> None:
    """ "Place of heart: none" is a box that was not drawn, and no patient is told of a heart that is not there."""
    boxed, empty = Finding(name="Place of lung", value=("rows 1 to 2",)), Finding(name="Place of heart", value=())
    findings, untold = tellable(about(STONE, boxed, empty))

    assert [STONE] == findings
    assert [("Place of lung", "a place"), ("Place of heart", "a place")] == [
        (one.finding, one.reason) for one in untold
    ]


def test_a_measure_that_was_not_taken_is_said_to_be_that() -> None:
    """Nobody reads the volume of a single slice."""
    _, untold = tellable(about(STONE, Finding(name="Stone 1: volume", value=None, unit="mm3", source="measured")))

    assert ["not measured"] == [one.reason for one in untold]


def test_the_question_is_about_one_finding_and_its_number() -> None:
    """With its unit as people write it, and the level that was asked for."""
    prompt = prompt_for(LENGTH, 4)

    assert "Finding: Largest diameter\nValue: 7.25 mm\n" in prompt
    assert "school grade 4" in prompt


@pytest.mark.parametrize("level", [0, 17])
async def test_a_level_beyond_school_is_refused(level: int) -> None:
    """Grades go from 1 to 16."""
    with pytest.raises(InvalidRequest, match="from 1 to 16"):
        await told(about(STONE), "x", level=level)


@pytest.mark.parametrize(
    ("word", "count"),
    [("a", 1), ("stone", 1), ("kidney", 2), ("melanoma", 4), ("picture", 2), ("visible", 3), ("tumour", 2), ("12", 2)],
)
def test_syllables_are_counted(word: str, count: int) -> None:
    """As a dictionary counts them."""
    assert count == syllables_of(word)


def test_the_grade_is_the_published_formula() -> None:
    """0.39 words a sentence, 11.8 syllables a word, less 15.59; six words and seven syllables here."""
    found = measured("The cat sat. The dog was running.")

    assert found is not None
    assert (2, 7, 8) == (found.sentences, found.words, found.syllables)
    assert round(0.39 * 7 / 2 + 11.8 * 8 / 7 - 15.59, 1) == found.grade


def test_longer_words_and_sentences_are_harder() -> None:
    """The order that every measure of readability has."""
    texts = (
        "A spot is seen. It is round.",
        "The picture that was examined shows a roundish pigmented spot.",
        "Dermatoscopic examination demonstrates morphological characteristics compatible with melanocytic neoplasia.",
    )
    grades = [found.grade for text in texts if (found := measured(text))]

    assert 3 == len(grades)
    assert sorted(grades) == grades


@given(st.text())
def test_any_text_is_measured_or_has_no_words(text: str) -> None:
    """Whatever a model writes."""
    found = measured(text)

    assert found is None or (found.words >= 1 and found.syllables >= found.words and found.sentences >= 1)


@given(st.text(max_size=200))
def test_whatever_is_kept_has_no_number_but_the_findings(text: str) -> None:
    """No text at all brings a number into a finding that has none."""
    if doubt(text, STONE) is None:
        assert not any(one.isdigit() for one in text)


@given(st.sampled_from(["streak", "spot", "colour", "shape", "stone", "measure", "picture", "kidney", "body"]))
def test_a_word_and_its_plural_have_one_stem(word: str) -> None:
    """Streaks are streaks of one streak."""
    plural = word[:-1] + "ies" if word.endswith("dy") else word + "s"

    assert stem(word) == stem(plural)


async def test_the_record_survives_its_json() -> None:
    """With steps and all."""
    leaflet = await told(about(STONE), "A kidney stone is seen.")

    assert leaflet == Leaflet.model_validate_json(leaflet.model_dump_json())
    assert json.loads(leaflet.model_dump_json())["steps"][0]["name"] == "Plain words: Kidney stone"


async def test_the_demonstration_model_brings_no_unsupported_word_to_a_patient() -> None:
    """It has not learned to write for patients: whatever it says is held against the finding or left out."""
    models = Models(Settings())
    made = about(STONE, NO_STONE)
    try:
        leaflet = await explain(made, await models.get().ready())
    finally:
        await models.close()
    findings = {"Kidney stone": (STONE, NO_STONE)}

    assert 2 == len(leaflet.steps)
    assert all(any(doubt(one.sentence, of) is None for of in findings[one.finding]) for one in leaflet.told)
    assert leaflet.told or Flag.CLEANING_EMPTIED in leaflet.flags
    assert Flag.DEMONSTRATION in leaflet.flags


if __name__ == "__main__":
    import asyncio

    GOLDEN.write_text(asyncio.run(golden()), encoding="utf-8")
