"""Drawings keep their word: same number, same picture; the class rules hold; no held-out wording is trained."""

# ruff: noqa: S101  (assert is what a test does)

import numpy as np
import pytest

from tools.demo_model import accounts, gallery, kidney, lesion, questions


@pytest.mark.parametrize("kind", gallery.KINDS)
def test_a_number_always_gives_the_same_drawing(kind: str) -> None:
    """Expected: equal pixels and truth for one number, other pixels for another."""
    first, again, other = (gallery.draw(kind, number, 64) for number in (7, 7, 8))
    assert first.truth == again.truth
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("kind", gallery.KINDS)
def test_size_changes_neither_truth_nor_picture(kind: str) -> None:
    """Expected: the large drawing, shrunk, is nearly the small one."""
    small, large = gallery.draw(kind, 11, 128), gallery.draw(kind, 11, 512)
    assert small.truth == large.truth
    difference = np.abs(np.asarray(gallery.shrunk(small.image), float) - np.asarray(gallery.shrunk(large.image), float))
    assert difference.mean() < 6


@pytest.mark.parametrize("label", lesion.CLASSES)
def test_a_lesion_of_a_class_shows_the_signs_of_that_class_alone(label: str) -> None:
    """Expected: the rules give back the class that was asked for, and no second rule applies."""
    for number in range(60):
        signs = lesion.draw(number, 16, label).truth
        assert signs["class"] == label
        melanoma = (
            signs["regression"] or signs["veil"] or (signs["shape"] == "irregular" and "streaks" in signs["structures"])
        )
        assert sum([signs["vessels"] == "arborizing", signs["comedo"] or signs["cysts"], melanoma]) == (label != "NV")


def test_no_two_marks_that_look_alike_meet() -> None:
    """Expected: no dots beside dotted vessels or openings, no streaks beside lines, no red ground under red vessels."""
    for number in range(400):
        signs = lesion.draw(number, 8).truth
        marks = {*signs["structures"], signs["vessels"], *(w for w in ("comedo", "cysts") if signs[w])}
        for pair in ({"dots", "dotted"}, {"dots", "comedo"}, {"globules", "comedo"}, {"streaks", "linear"}):
            assert not pair <= marks
        assert signs["vessels"] == "none" or not {"red", "pink", "black"} & {*signs["colours"]}
        assert ("white" in signs["colours"]) == (signs["regression"] or signs["veil"])


def test_no_lesion_touches_the_frame() -> None:
    """Expected: one plain ground all along the frame."""
    for number in range(120):
        picture = np.asarray(lesion.draw(number, 64).image, float)
        frame = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.abs(frame - frame.mean(0)).max() < 40


def test_a_map_shows_the_marks_that_are_there_and_no_others() -> None:
    """Expected: a layer of the map is empty unless the truth has its sign."""
    for number in range(60):
        drawing = lesion.draw(number, 64)
        truth, map_ = drawing.truth, drawing.map
        assert map_ is not None
        there = {*truth["structures"], truth["vessels"], "inside"}
        there |= {name for name in ("network", "veil", "regression", "comedo", "cysts") if truth[name]}
        assert all((map_[..., place] > 0).any() == (name in there) for place, name in enumerate(lesion.LAYERS))


def test_the_parts_of_a_second_look_are_the_whole() -> None:
    """Expected: cut before blanks only, so that the pieces of the tokenizer do not change."""
    truth = {"kind": "dermoscopy"} | gallery.draw("dermoscopy", 5, 8).truth
    claimed = accounts.findings(truth)
    parts = accounts.parts_of_second_look(truth, claimed)
    assert "".join(parts) == accounts.second_look(truth, claimed)
    assert all(part.startswith(" ") for part in parts[1:])


def test_classes_are_about_equally_frequent() -> None:
    """Expected: each of four classes between a fifth and a third."""
    drawn = [lesion.draw(number, 8).truth["class"] for number in range(300)]
    assert all(60 < drawn.count(label) < 100 for label in lesion.CLASSES)


def test_a_left_stone_is_on_the_right_of_the_picture() -> None:
    """Expected: the slices with and without the stone differ on the side that radiology calls left."""
    with_stone, without = (np.asarray(kidney.draw(3, 64, side).image, float) for side in ("left", "none"))
    changed = np.abs(with_stone - without).sum(-1) > 60
    assert changed[:, 32:].any()
    assert not changed[:, :32].any()


def test_no_held_out_wording_is_trained() -> None:
    """Expected: the two lists never meet, and both are long enough."""
    for question in questions.CLOSED:
        assert len(question.trained) >= 12
        assert len(question.held_out) >= 4
        assert not {*question.trained, question.own} & {*question.held_out}


def test_a_class_can_be_read_from_words() -> None:
    """Expected: the class of the true observations is the class of the drawing."""
    for number in range(80):
        truth = {"kind": "dermoscopy"} | gallery.draw("dermoscopy", number, 8).truth
        claimed = accounts.findings(truth)
        assert accounts.class_of_words(claimed, accounts.second_look(truth, claimed)) == truth["class"]


def test_a_sign_called_inconsistent_does_not_count() -> None:
    """Expected: NV, because the vessels were doubted."""
    claimed = {"shape": "round", "vessels": "arborizing"}
    doubted = accounts.noun("vessels", "arborizing") + accounts.INCONSISTENT
    assert accounts.class_of_words(claimed, "") == "BCC"
    assert accounts.class_of_words(claimed, doubted) == "NV"


def test_a_second_look_answers_every_observation() -> None:
    """Expected: one sentence for each and one more."""
    truth = {"kind": "dermoscopy"} | gallery.draw("dermoscopy", 5, 8).truth
    claimed = accounts.spoiled(accounts.findings(truth), np.random.default_rng(0), 1.0)
    sentences = accounts.second_look(truth, claimed).split(". ")
    assert len(sentences) == len(claimed) + 1
    assert all("inconsistent" in sentence for sentence in sentences[:-1])
