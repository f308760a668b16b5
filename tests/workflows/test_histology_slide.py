"""A slide's patches are asked about one by one, counted by a rule that the report states, and shown on a map."""

from base64 import b64decode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.engines.scripted import Reply, Scripted
from medserve.errors import InvalidRequest, NoTissue
from medserve.examination import examine
from medserve.flags import Flag
from medserve.images import Image, Overview, Source, Study
from medserve.imaging import intake
from medserve.imaging.intake import Wanted
from medserve.reports import Report, as_text
from medserve.settings import Limits
from medserve.workflows import find
from medserve.workflows.histology import COLOURS, HistologyOptions, Tally, Verdict, in_words, verdict
from tests import pictures
from tests.golden_reports import keep, kept, steady
from tests.imaging import pyramids
from tests.workflows import slides
from tests.workflows.slides import GLASS

GOLDEN = "histology-slide"
SURE, UNSURE = {"yes": -0.05, "no": -3.5}, {"yes": -3.5, "no": -0.05}
SAID = {
    "yes": (Reply("yes", label_logprobs=SURE), Reply("yes", label_logprobs=SURE)),
    "no": (Reply("yes", label_logprobs=SURE), Reply("no", label_logprobs=UNSURE)),
    "undecided": (Reply("yes", label_logprobs=SURE), Reply("no", label_logprobs=SURE)),
    "not colon": (Reply("no", label_logprobs=UNSURE),),
}
"""What a model says of a patch that comes to this."""


def patches(count: int) -> Study:
    """Patches that look like tissue, beside one another on an overview."""
    tile = pictures.drawn("colon-normal").images[0].pixels
    images = tuple(Image(np.roll(tile, place, axis=1).copy(), Source("SVS", "RGB", 256, 256)) for place in range(count))
    whole = Image(np.full((20, 20 * count, 3), 255, np.uint8), Source("SVS", "RGB", 256, 256))
    places = tuple((20.0 * place, 0.0, 20.0 * place + 20, 20.0) for place in range(count))
    return Study(images, overview=Overview(whole, places))


async def report(answers: Sequence[str], **options: Any) -> Report:
    """A report on a slide whose patches come to these answers."""
    engine = Scripted([reply for answer in answers for reply in SAID[answer]])
    return await examine(find("histology"), patches(len(answers)), engine, options=options)


async def test_the_patches_answers_are_counted() -> None:
    """Each in its place; the share is of those that could be judged, with its interval."""
    made = await report(["yes", "no", "no", "undecided", "not colon", "yes"], least_patches=4)
    found = {one.name: one.value for one in made.conclusion.findings}
    data: Any = made.conclusion.data

    assert ["yes", "no", "no", "undecided", "not colon", "yes"] == data["patches"]
    assert (6, 4, 2) == (data["shown"], data["judged"], data["yes"])
    assert ("4 of 6", 0.5) == (found["Patches judged"], found["Share of the judged patches"])
    assert "0.1500 to 0.8500" == found["95 % interval of the share"]
    assert "yes" == made.conclusion.label


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes"] + ["no"] * 9, Verdict.YES),
        (["yes"] + ["no"] * 10, Verdict.INDETERMINATE),
        (["no"] * 5, Verdict.NO),
        (["no"] * 5 + ["not colon"] * 6, Verdict.INDETERMINATE),
        (["yes"], Verdict.INDETERMINATE),
        (["yes"] * 4, Verdict.INDETERMINATE),
        (["yes"] * 5, Verdict.YES),
        (["undecided"] * 3, Verdict.INDETERMINATE),
        (["not colon"] * 3, Verdict.NOT_ASSESSABLE),
    ],
)
async def test_the_rule_decides(answers: list[str], expected: Verdict) -> None:
    """Yes from a tenth on, no if none is, nothing between, of fewer than five, or where most are not judged."""
    made = await report(answers)

    assert expected == verdict(made.conclusion)
    assert (expected in {Verdict.YES, Verdict.NO}) == (made.conclusion.label is not None)


async def test_the_rule_is_stated_and_claims_no_validity() -> None:
    """With the numbers that were asked for."""
    made = await report(["yes", "no", "no", "no"], yes_share=0.3, no_share=0.25, least_patches=2)
    data: Any = made.conclusion.data

    assert "no" == made.conclusion.label
    assert "0.3" in data["rule"]
    assert "0.25" in data["rule"]
    assert "fewer than 2 patches" in data["rule"]
    assert "not validated" in data["rule"]
    assert in_words(made.conclusion).startswith("No: ")


async def test_a_slide_has_no_probability_of_its_own() -> None:
    """Shares of patches are none, and none is made of them; each patch's own stand in its step."""
    made = await report(["yes", "no"])

    assert made.conclusion.probabilities is None
    assert all(step.label_logprobs for step in made.steps)


async def test_counts_are_no_words_of_the_models() -> None:
    """Code counted them; where nothing was judged there is no share, and it was not a reading that failed."""
    made = await report(["undecided"] * 2)

    assert {"measured"} == {one.source for one in made.conclusion.findings}
    assert "Share of the judged patches           not measured\n" in as_text(made)


async def test_patches_that_are_not_taken_for_colon_are_not_asked_further() -> None:
    """One question of them, two of the others; a sentence about each only where it is asked for."""
    made = await report(["not colon", "yes"])
    assert [f"Patch {n}" for n in (1, 2, 2)] == [step.name.split(":")[0] for step in made.steps]

    said = [*SAID["yes"], Reply("yes. The glands are crowded.")]
    told = await examine(find("histology"), patches(1), Scripted(said), options={"explained": True})
    assert 3 == len(told.steps)


async def test_an_explanation_that_says_otherwise_makes_its_patch_undecided() -> None:
    """As it does of a tile."""
    said = [*SAID["yes"], Reply("No. The glands are round.")]
    made = await examine(find("histology"), patches(1), Scripted(said), options={"explained": True})

    data: Any = made.conclusion.data
    assert ["undecided"] == data["patches"]
    assert Flag.CONTRADICTION in made.flags


async def test_the_map_has_each_answers_colour_in_its_place() -> None:
    """A quarter of the strip for each patch, tinted over what it shows."""
    answers = ["yes", "no", "undecided", "not colon"]
    (figure,) = (await report(answers)).conclusion.figures
    drawn = np.asarray(PIL.Image.open(BytesIO(b64decode(figure.png))), np.int16)

    assert (40, 160) == drawn.shape[:2]
    for place, answer in enumerate(answers):
        tint = drawn[20, 40 * place + 20]
        nearest = min(COLOURS, key=lambda one: int(abs(np.array(COLOURS[one]) * 0.45 + 255 * 0.55 - tint).sum()))
        assert answer == nearest


async def test_patches_without_a_slide_are_counted_without_a_map() -> None:
    """Somebody else may have cut them."""
    study = Study(patches(5).images)
    made = await examine(find("histology"), study, Scripted([reply for _ in range(5) for reply in SAID["no"]]))

    assert ("no", ()) == (made.conclusion.label, made.conclusion.figures)


async def test_more_patches_than_medgemma_takes_are_refused() -> None:
    """125 of one slide, as in its notebook."""
    with pytest.raises(InvalidRequest, match="at most 125 picture"):
        await examine(find("histology"), Study(patches(1).images * 126), Scripted(()))


@given(st.integers(0, 125), st.integers(0, 125), st.floats(0.01, 1), st.floats(0, 0.99), st.floats(0, 1))
def test_more_yes_never_turns_yes_into_no(judged: int, yes: int, most: float, least: float, enough: float) -> None:
    """Whatever the options: the rule is monotonous, and the interval holds the share."""
    options = HistologyOptions(yes_share=most, no_share=least, judged_share=enough)
    yes = min(yes, judged)
    tally = Tally(125, judged, yes)
    if tally.share is not None and tally.interval is not None:
        assert tally.interval[0] <= tally.share + 1e-12
        assert tally.interval[1] >= tally.share - 1e-12
    if tally.label(options) == "yes" and yes < judged:
        assert "yes" == Tally(125, judged, yes + 1).label(options)


# --- through the door ----------------------------------------------------------------------------------------------


async def test_a_slide_comes_with_where_its_patches_lie(tmp_path: Path) -> None:
    """In pixels of an overview without any frames: the glass is white on it, and the patches lie on tissue."""
    path = slides.slide(tmp_path, [[True, GLASS, False]])
    study = await intake.read([path], Limits())

    assert study.overview is not None
    picture = study.overview.picture
    width = picture.width / 3
    assert 2 == len(study.images) == len(study.overview.places)
    for (left, top, right, bottom), place in zip(study.overview.places, (0, 2), strict=True):
        assert left == pytest.approx(place * width, abs=1)
        assert right == pytest.approx((place + 1) * width, abs=1)
        assert 0 == top
        assert bottom == pytest.approx(picture.height, abs=1)
    glass = picture.pixels[:, round(width) + 4 : round(2 * width) - 4]
    assert glass.min() > 230


async def test_an_empty_slide_is_refused_at_the_door(tmp_path: Path) -> None:
    """Glass is never shown to a model, so there is nothing that it could say of it."""
    path = pyramids.aperio(tmp_path / "empty.svs", [pyramids.glass(1800, 1800)], mpp=1.0, power=10)

    with pytest.raises(NoTissue):
        await intake.read([path], Limits())


async def test_patches_of_glass_are_not_assessable() -> None:
    """Whoever cut them: the guard sees that they are empty, and no question is asked."""
    glass = Image(pyramids.glass(896, 896), Source("PNG", "RGB", 896, 896))
    engine = Scripted(())
    made = await examine(find("histology"), Study((glass, glass)), engine)

    assert Verdict.NOT_ASSESSABLE == verdict(made.conclusion)
    assert not engine.history


async def golden() -> Any:
    """The whole report on a slide of four patches, without what differs from run to run or between libraries."""
    with TemporaryDirectory() as folder:
        path = slides.slide(Path(folder), [[True, False, GLASS], [True, False, GLASS]])
        study = await intake.read([path], Limits(), Wanted(find("histology").modality))
    said = [reply for answer in ("yes", "no", "undecided", "not colon") for reply in SAID[answer]]
    made = await examine(find("histology"), study, Scripted(said))
    return steady(made, pictures=False)


async def test_the_golden_report() -> None:
    """The whole report on a slide, prompts included, is what it was when it was last looked at.

    Written again, after a look at the difference, by: python -m tests.workflows.test_histology_slide
    """
    assert kept(GOLDEN) == await golden()


if __name__ == "__main__":
    keep(GOLDEN, golden())
