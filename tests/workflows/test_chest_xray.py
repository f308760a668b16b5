"""The chest film protocol: what it asks of one film and of two, and where its boxes lie."""

from base64 import b64decode
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as some

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Concern, Image, Modality, Source, Study
from medserve.imaging import intake, raster
from medserve.imaging.intake import Wanted
from medserve.imaging.preprocess import VisionInput, padding, resized, square
from medserve.reports import Box, Report, as_text
from medserve.settings import DEMO, Limits
from medserve.workflows import find
from medserve.workflows.chest_xray import CHANGES, COURSES, SCALE, unpadded
from tests.golden_reports import keep, kept, steady
from tests.imaging import phantoms

GOLDEN = "chest-xray"
DRAWINGS = DEMO / "drawings"
DRAWING = DRAWINGS / "chest-large-heart.png"
CAT = DRAWINGS / "cat.png"
FILM = raster.decode(DRAWING.read_bytes(), Limits())
PRIOR = raster.decode((DRAWINGS / "chest-normal.png").read_bytes(), Limits())

KIND = Reply(
    "chest X-ray",
    label_logprobs={"dermoscopy": -8.0, "histology": -8.0, "CT": -6.0, "chest X-ray": -0.01, "other": -7.0},
)
HEART = Reply("yes", label_logprobs={"yes": -0.05, "no": -3.5})
LOOK = "This is a chest film. The heart is large."
PLACE = '```json\n[{"box_2d": [400, 350, 760, 720], "label": "heart"}]\n```'
ONE = (KIND, HEART, LOOK)


async def report(*replies: str | Reply, films: tuple[Image, ...] = (FILM,), **options: Any) -> Report:
    """A report on drawn films, made of these replies."""
    return await examine(find("chest-xray"), Study(films), Scripted(replies), options=options)


async def golden() -> Any:
    """The whole report on a drawing with one structure located, without what differs from run to run."""
    study = await intake.read([DRAWING.read_bytes()], Limits(), Wanted(Modality.XRAY))
    made = await examine(find("chest-xray"), study, Scripted((*ONE, PLACE)), options={"locate": ["heart"]})
    whole = steady(made)
    for figure in whole["conclusion"]["figures"]:  # how a PNG is packed is its library's affair
        figure["png"] = list(PIL.Image.open(BytesIO(b64decode(figure["png"]))).size)
    return whole


async def test_the_golden_report() -> None:
    """The whole report on a drawing, prompts and overlay included, is what it was when it was last looked at.

    Written again, after a look at the difference, by: python -m tests.workflows.test_chest_xray
    """
    assert kept(GOLDEN) == await golden()


# --- one film -------------------------------------------------------------------------------------------------------


async def test_one_film_is_asked_for_the_heart_and_described() -> None:
    """Nothing is compared where there is nothing to compare with."""
    made = await report(*ONE)

    assert ["Kind of picture", "Heart enlarged", "Description"] == [step.name for step in made.steps]
    assert [("Heart enlarged", "yes")] == [(one.name, one.value) for one in made.conclusion.findings]
    assert LOOK == made.conclusion.description
    assert ((), (), ()) == (made.conclusion.boxes, made.conclusion.figures, made.flags)


async def test_every_finding_is_the_models_word() -> None:
    """Nothing is measured on a film, so nothing says that it was."""
    made = await report(*ONE, PLACE, locate=["heart"])

    found = made.conclusion
    assert {"model"} == {one.source for one in found.findings} | {one.source for one in found.boxes}


async def test_a_heart_that_cannot_be_read_is_no_answer() -> None:
    """Neither yes nor no is assumed."""
    made = await report(KIND, Reply("The heart is as it is.", label_logprobs=HEART.label_logprobs), LOOK)

    assert made.conclusion.findings[0].value is None
    assert made.needs_review


# --- boxes ----------------------------------------------------------------------------------------------------------


async def test_a_box_is_given_in_the_films_own_pixels() -> None:
    """The drawing is square, so that nothing is padded and thousandths are thousandths of the film."""
    made = await report(*ONE, PLACE, locate=["heart"])

    side = FILM.height
    expected = Box(label="heart", top=0.4 * side, left=0.35 * side, bottom=0.76 * side, right=0.72 * side)
    assert (expected,) == made.conclusion.boxes
    assert "Place of heart" == made.conclusion.findings[1].name
    assert made.conclusion.findings[1].value == (
        f"rows {0.4 * side:.0f} to {0.76 * side:.0f}, columns {0.35 * side:.0f} to {0.72 * side:.0f}",
    )


async def test_the_overlay_shows_the_box_where_it_is() -> None:
    """Its border has the box's colour at the scale of the figure; outside of it the film is as it was."""
    found = (await report(*ONE, PLACE, locate=["heart"])).conclusion
    (figure,), (box,) = found.figures, found.boxes
    drawn = np.asarray(PIL.Image.open(BytesIO(b64decode(figure.png))).convert("RGB"))
    scale = drawn.shape[0] / FILM.height

    row, column = round(box.bottom * scale), round((box.left + box.right) / 2 * scale)
    assert (255, 196, 0) == tuple(drawn[row - 1, column])
    assert drawn[row + 5, column].max() - drawn[row + 5, column].min() == 0
    assert ("boxes", 0) == (figure.name, figure.picture)


@pytest.mark.parametrize(
    ("reply", "flag"),
    [
        ("The heart is in the middle.", Flag.INVALID_JSON),
        ('[{"box_2d": [400, 350, 760], "label": "heart"}]', Flag.INVALID_JSON),
        ('[{"box_2d": [400, 350, 760, 1720], "label": "heart"}]', Flag.INVALID_JSON),
        ('[{"box_2d": [400, 350, 760, 720], "label": "heart"}, {"box_2d": [1', Flag.TRUNCATED),
        ('[{"box_2d": [760, 350, 400, 720], "label": "heart"}]', Flag.OUTSIDE_PICTURE),
    ],
    ids=["words", "three numbers", "beyond the square", "cut short", "upside down"],
)
async def test_what_is_no_box_is_not_drawn(reply: str, flag: Flag) -> None:
    """Nothing is mended: numbers are neither exchanged nor moved into the picture."""
    made = await report(*ONE, reply, locate=["heart"])

    assert ((), ()) == (made.conclusion.boxes, made.conclusion.figures)
    assert flag in made.flags


async def test_an_empty_list_says_that_the_structure_is_nowhere() -> None:
    """That is an answer, and no flag."""
    made = await report(*ONE, "[]", locate=["heart"])

    assert ((), ()) == (made.conclusion.findings[1].value, made.flags)


async def test_the_engine_is_held_to_the_form_of_boxes() -> None:
    """The request carries the schema, as far as an engine can be constrained."""
    engine = Scripted((*ONE, PLACE))
    await examine(find("chest-xray"), Study((FILM,)), engine, options={"locate": ["heart"]})
    asked = engine.history[-1].schema

    assert asked is not None
    assert SCALE == asked["items"]["properties"]["box_2d"]["items"]["maximum"]


SIDES = some.integers(8, 400)


@given(SIDES, SIDES, some.data())
def test_padding_and_unpadding_is_the_identity(width: int, height: int, data: some.DataObject) -> None:
    """A box of the film that is written in thousandths of the square comes back, to half a thousandth of its side."""
    film = Image(np.zeros((height, width, 3), np.uint8), Source("PNG", "RGB", width, height))
    place = padding(width, height)
    top, bottom = sorted(data.draw(some.lists(some.integers(0, height), min_size=2, max_size=2, unique=True)))
    left, right = sorted(data.draw(some.lists(some.integers(0, width), min_size=2, max_size=2, unique=True)))
    edges = (top + place.top, left + place.left, bottom + place.top, right + place.left)

    exact = unpadded([edge / place.side * SCALE for edge in edges], "", film)  # type: ignore[misc]
    rounded = unpadded([round(edge / place.side * SCALE) for edge in edges], "", film)

    assert exact is not None
    assert pytest.approx((top, left, bottom, right)) == (exact.top, exact.left, exact.bottom, exact.right)
    if rounded is not None:  # a box thinner than a thousandth may round to none
        near = pytest.approx((top, left, bottom, right), abs=place.side / SCALE / 2 + 1e-9)
        assert near == (rounded.top, rounded.left, rounded.bottom, rounded.right)


@given(SIDES, SIDES, some.data())
def test_the_models_own_padding_is_the_one_that_is_taken_away(width: int, height: int, data: some.DataObject) -> None:
    """A white patch is found in what the model is shown, and its place there, un-padded, is the patch's in the film."""
    top, left = data.draw(some.integers(0, height - 1)), data.draw(some.integers(0, width - 1))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + 9, left : left + 9] = 255
    film = Image(pixels, Source("PNG", "RGB", width, height))
    shown, _place = square(film)
    rows, columns = np.nonzero(shown[..., 0])
    seen = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)

    found = unpadded([float(edge) / len(shown) * SCALE for edge in seen], "", film)  # type: ignore[misc]

    assert found is not None
    expected = (top, left, min(top + 9, height), min(left + 9, width))
    assert pytest.approx(expected) == (found.top, found.left, found.bottom, found.right)


@pytest.mark.parametrize(("width", "height"), [(640, 320), (320, 640), (500, 333)])
def test_a_place_in_the_resized_picture_is_the_same_place(width: int, height: int) -> None:
    """What the vision part takes is the same square made smaller: thousandths stay thousandths."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = 255
    film = Image(pixels, Source("PNG", "RGB", width, height))
    shown = resized(film, VisionInput(448))[..., 0] > 127
    rows, columns = np.nonzero(shown)
    seen = [edge / 448 * SCALE for edge in (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)]

    found = unpadded([round(edge) for edge in seen], "", film)

    assert found is not None
    near = pytest.approx((height / 4, width / 4, height / 2, width / 2), abs=2 * max(width, height) / 448)
    assert near == (found.top, found.left, found.bottom, found.right)


@given(SIDES, SIDES, some.lists(some.integers(0, SCALE), min_size=4, max_size=4))
def test_every_box_lies_in_the_film(width: int, height: int, numbers: list[int]) -> None:
    """Or is none: whatever reaches into the padding is cut off."""
    film = Image(np.zeros((height, width, 3), np.uint8), Source("PNG", "RGB", width, height))
    found = unpadded(numbers, "", film)

    if found is not None:
        assert 0 <= found.top < found.bottom <= height
        assert 0 <= found.left < found.right <= width


def test_a_box_in_the_padding_is_no_box() -> None:
    """A wide film has black above and below it, and nothing can be there."""
    film = Image(np.zeros((100, 400, 3), np.uint8), Source("PNG", "RGB", 400, 100))

    assert unpadded([0, 0, 300, 1000], "", film) is None
    assert unpadded([700, 0, 1000, 1000], "", film) is None


# --- two films ------------------------------------------------------------------------------------------------------


async def test_two_films_are_compared_the_prior_one_first() -> None:
    """Every comparison shows both in their order and says which is which; the rest is about the current film."""
    films = (PRIOR, FILM)
    made = await report(KIND, *ONE, "stable", "absent", "worsened", "absent", "absent", films=films)
    compared = made.steps[4:]

    assert list(CHANGES) == [name.split(" in picture")[0].lower() for name in (step.name for step in compared)]
    assert {(PRIOR.sha256, FILM.sha256)} == {step.images for step in compared}
    assert {(FILM.sha256,)} == {step.images for step in made.steps[1:4]}
    assert all("picture 2 (current) against picture 1 (prior)" in step.name for step in compared)
    assert all("first picture is a prior chest film and the second one the current" in step.prompt for step in compared)
    assert ["stable", "absent", "worsened", "absent", "absent"] == [one.value for one in made.conclusion.findings[1:]]


async def test_boxes_are_on_the_current_film() -> None:
    """The second of two."""
    made = await report(KIND, *ONE, PLACE, "absent", films=(PRIOR, FILM), locate=["heart"], compare=["edema"])

    assert [1] == [box.picture for box in made.conclusion.boxes]
    assert [1] == [figure.picture for figure in made.conclusion.figures]


@pytest.mark.parametrize("course", COURSES)
async def test_each_course_can_be_said(course: str) -> None:
    """In one word or in a sentence."""
    made = await report(KIND, *ONE, f"{course.capitalize()}.", films=(PRIOR, FILM), compare=["edema"])

    assert course == made.conclusion.findings[1].value


async def test_a_film_against_itself_is_flagged() -> None:
    """Sending one file twice is a mistake that a reader must hear of."""
    twice = await report(KIND, *ONE, "worsened", films=(FILM, FILM), compare=["edema"])
    two = await report(KIND, *ONE, "worsened", films=(PRIOR, FILM), compare=["edema"])

    assert (Flag.SAME_PICTURE,) == twice.flags
    assert Flag.SAME_PICTURE not in two.flags


async def test_three_films_are_too_many() -> None:
    """A course over more than two films is not what the model was trained on."""
    with pytest.raises(InvalidRequest, match="at most 2 picture"):
        await report(films=(PRIOR, FILM, PRIOR))


# --- what is no chest film ------------------------------------------------------------------------------------------


def refused(made: Report) -> str:
    """Why; the checks that failed."""
    assert made.domain is not None
    assert ((Flag.NOT_ASSESSABLE,), ()) == (made.conclusion.flags, made.conclusion.findings)
    return "; ".join(check.detail for check in made.domain.checks if check.passed is False)


async def test_a_ct_is_refused_with_the_reason() -> None:
    """Its file says what it is, and no model is asked."""
    slices = await intake.read([phantoms.series(phantoms.abdomen())[0]], Limits())
    engine = Scripted(ONE)
    made = await examine(find("chest-xray"), slices, engine)

    assert "stated to be CT" in refused(made)
    assert not engine.history
    assert Concern.WRONG_MODALITY.value in [one.name for one in made.study.concerns]
    assert "NOT ASSESSABLE" in as_text(made)


async def test_a_photograph_is_refused_with_the_reason() -> None:
    """It has colours."""
    cat = raster.decode(CAT.read_bytes(), Limits())

    assert "colours" in refused(await report(films=(cat,)))


@pytest.mark.parametrize("place", [0, 1])
async def test_both_films_are_looked_at(place: int) -> None:
    """A photograph beside a film is refused whichever of the two it is."""
    cat = raster.decode(CAT.read_bytes(), Limits())
    films = (cat, FILM) if place == 0 else (FILM, cat)

    assert "colours" in refused(await report(films=films))


async def test_a_grey_picture_that_the_model_takes_for_something_else_is_refused() -> None:
    """Where neither the file nor its looks can tell, the model's own word decides."""
    word = Reply(
        "CT", label_logprobs={"dermoscopy": -9.0, "histology": -9.0, "CT": -0.01, "chest X-ray": -7.0, "other": -6.0}
    )

    assert "taken for CT" in refused(await report(word))
    assert "taken for CT" in refused(await report(KIND, word, films=(PRIOR, FILM)))


@pytest.mark.parametrize("names", [[""], [" "], ["x" * 101], ["heart"] * 17])
async def test_names_have_a_length(names: list[str]) -> None:
    """Refused before any model is asked."""
    with pytest.raises(InvalidRequest) as caught:
        await report(locate=names)

    assert "options.locate" == caught.value.param


def test_names_are_a_list_or_stand_between_commas() -> None:
    """As a form and as a command line give them."""
    workflow = find("chest-xray")

    assert workflow.own({"locate": "heart, right clavicle"}) == workflow.own({"locate": ["heart", "right clavicle"]})


if __name__ == "__main__":
    keep(GOLDEN, golden())
