"""An exam is a list of conversations with one right answer each, on drawings that training never saw."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from medserve.workflows import dermoscopy
from tools.demo_model import accounts, gallery, lessons, questions, talk
from tools.demo_model.drawing import Drawing
from tools.demo_model.pool import FIRST_UNSEEN

Message = dict[str, Any]
FEWER = 4  # side tables get one item for so many of the main tables


@dataclass(frozen=True)
class Item:
    """One conversation up to the model's turn, and what the model ought to say."""

    text: str
    expected: str
    pictures: tuple[Image.Image, ...] = ()
    system: str = ""
    begun: str = ""

    def messages(self) -> list[Message]:
        """The conversation as a chat."""
        content: list[Message] = [{"type": "image", "image": picture} for picture in self.pictures]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": self.text}]}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, *chat]


@dataclass
class Paper:
    """The items of one table row, and how an answer is marked: a share of 1 for every item."""

    table: str
    row: str
    items: list[Item] = field(default_factory=list)
    mark: Callable[[str, str], float] = lambda answer, expected: float(answer == expected)
    tokens: int = 24

    def majority(self) -> float:
        """How often the commonest right answer is right: what a model that never looks can reach."""
        return Counter(item.expected for item in self.items).most_common(1)[0][1] / len(self.items)


class Gallery:
    """Unseen drawings of every kind, each drawn once."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side
        self.drawn: dict[str, list[Drawing]] = {}

    def of(self, kind: str) -> list[Drawing]:
        """All drawings of a kind."""
        if kind not in self.drawn:
            numbers = range(FIRST_UNSEEN, FIRST_UNSEEN + self.count)
            with ProcessPoolExecutor() as artists:
                draw = partial(gallery.draw, kind, side=self.side)
                self.drawn[kind] = list(artists.map(draw, numbers, chunksize=10))
        return self.drawn[kind]

    def among(self, kinds: tuple[str, ...]) -> list[Drawing]:
        """As many drawings, the kinds taking turns."""
        return [self.of(kinds[place % len(kinds)])[place] for place in range(self.count)]


def truth_of(drawing: Drawing) -> dict[str, Any]:
    """Everything true of a drawing, its kind included."""
    return {"kind": drawing.kind} | drawing.truth


def sentences_right(answer: str, expected: str) -> float:
    """The share of the expected sentences that stand in the answer, in their places."""
    said, right = (text.split(". ") for text in (answer, expected))
    return sum(a == b for a, b in zip(said, right, strict=False)) / max(len(said), len(right))


def fields_right(answer: str, expected: str) -> float:
    """The share of the expected JSON fields that the answer has right; 0 where it is no JSON object."""
    said, right = accounts.read_json(answer), accounts.read_json(expected)
    if said is None or right is None:
        return 0.0
    return sum(said.get(key) == value for key, value in right.items()) / len(right)


def valid(answer: str, _expected: str) -> float:
    """Whether the answer is a JSON object."""
    return float(accounts.read_json(answer) is not None)


def closed_papers(pictures: Gallery, large: Gallery) -> Iterator[Paper]:
    """Every closed question in its own wording, trained and held-out paraphrases, system text, large pictures."""
    rng = np.random.default_rng(5)
    for question in questions.CLOSED:
        shown = pictures.among(question.kinds)
        answers = [question.answer(truth_of(drawing)) for drawing in shown]
        few = len(shown) // FEWER  # for tables that only show that a setting does no harm
        asked: dict[str, Callable[[int], str]] = {
            "own wording": lambda _, q=question: q.own,  # type: ignore[misc]
            "trained paraphrases": lambda _, q=question: q.paraphrase(rng),  # type: ignore[misc]
            "held-out paraphrases": lambda n, q=question: q.unseen(n),  # type: ignore[misc]
        }
        for table, words in asked.items():
            items = [Item(words(n), a, (d.image,)) for n, (d, a) in enumerate(zip(shown, answers, strict=True))]
            yield Paper(table, question.name, items[: few if table.startswith("trained") else None])
        spoken = [
            Item(question.own, answer, (drawing.image,), talk.SYSTEM[n % len(talk.SYSTEM)])
            for n, (drawing, answer) in enumerate(zip(shown, answers, strict=True))
        ]
        yield Paper("own wording with system text", question.name, spoken[:few])
        big = large.among(question.kinds)[:few]
        items = [Item(question.own, question.answer(truth_of(drawing)), (drawing.image,)) for drawing in big]
        yield Paper("own wording, 512 px", question.name, items)
        begun = [
            Item(question.own, " " + answer, (drawing.image,), begun="Answer:")
            for drawing, answer in zip(shown, answers, strict=True)
        ]
        yield Paper("answer begun with `Answer:`", question.name, begun[:few])


def longer_papers(pictures: Gallery) -> Iterator[Paper]:
    """Second looks, classes from words, JSON, accounts, reasons, thinking, pairs and talk."""
    rng = np.random.default_rng(6)
    lesions = pictures.of("dermoscopy")
    for length in (4, 7):
        papers = [
            Paper("second look", f"{length} observations, {what}", tokens=160) for what in ("whole", "by sentence")
        ]
        papers[1].mark = sentences_right
        for drawing in lesions:
            claimed = accounts.spoiled(accounts.findings(truth_of(drawing)), rng, 0.35)
            claimed = dict(list(claimed.items())[:length])
            text = dermoscopy.second_look(accounts.titled(claimed))
            item = Item(text, accounts.second_look(truth_of(drawing), claimed), (drawing.image,))
            for paper in papers:
                paper.items.append(item)
        yield from papers
        yield from words_papers(lesions, length, rng)
    for kind in gallery.KINDS:
        yield from account_papers(pictures.of(kind)[: pictures.count // FEWER], kind)
    yield from pair_and_talk_papers(pictures)


def words_papers(lesions: list[Drawing], length: int, rng: np.random.Generator) -> Iterator[Paper]:
    """Classes from words alone, with and without a second look."""
    for with_look in (False, True):
        paper = Paper(
            "class from words alone", f"{length} observations, {'with' if with_look else 'without'} second look"
        )
        for drawing in lesions:
            truth = truth_of(drawing)
            claimed = dict(list(accounts.spoiled(accounts.findings(truth), rng, 0.1).items())[:length])
            look = accounts.second_look(lessons.true_of(truth, claimed), claimed) if with_look else ""
            text = accounts.classification(accounts.titled(claimed), look)
            paper.items.append(Item(text, accounts.class_of_words(claimed, look)))
        yield paper


def account_papers(drawings: list[Drawing], kind: str) -> Iterator[Paper]:
    """Free descriptions, JSON and explained answers about one kind."""
    truths = [truth_of(drawing) for drawing in drawings]
    pairs = list(zip(drawings, truths, strict=True))
    told = [Item("Describe the image.", accounts.described(kind, truth), (d.image,)) for d, truth in pairs]
    yield Paper("free description, whole", kind, told, tokens=80)
    unseen = [
        Item(accounts.DESCRIBE_UNSEEN[n % 4], accounts.described(kind, truth), (d.image,))
        for n, (d, truth) in enumerate(pairs)
    ]
    yield Paper("free description, held-out paraphrases", kind, unseen, tokens=80)
    items = [Item("Answer as JSON.", accounts.as_json(accounts.fields(kind, truth)), (d.image,)) for d, truth in pairs]
    yield Paper("JSON, valid", kind, items, valid, 140)
    yield Paper("JSON, fields", kind, items, fields_right, 140)
    yield Paper("JSON, whole", kind, items, tokens=140)
    if kind in accounts.EXPLAINED:
        text = f"{accounts.EXPLAINED[kind][1][0]} {accounts.EXPLAIN[0]}"
        yield Paper(
            "answer and reason",
            kind,
            [Item(text, accounts.explained(kind, t), (d.image,)) for d, t in pairs],
            tokens=60,
        )


def pair_and_talk_papers(pictures: Gallery) -> Iterator[Paper]:
    """Two pictures, thinking, and turns without a picture."""
    mixed = pictures.among(gallery.KINDS)
    others = [*mixed[2:], *mixed[:2]]
    partners = [first if n % 2 else second for n, (first, second) in enumerate(zip(mixed, others, strict=True))]
    yield Paper(
        "other",
        "two pictures, same kind or not",
        [
            Item(talk.SAME_KIND[0], questions.yes(a.kind == b.kind), (a.image, b.image))
            for a, b in zip(mixed, partners, strict=True)
        ],
    )
    lesions = pictures.of("dermoscopy")
    yield Paper(
        "other",
        "shape, having thought first",
        [
            Item(questions.SHAPE.own, lessons.thought(questions.SHAPE) + d.truth["shape"], (d.image,), talk.THINK)
            for d in lesions[: pictures.count // FEWER]
        ],
        tokens=60,
    )
    said = [Item(way, answer) for answer, ways in talk.TALK for way in ways]
    yield Paper("other", "talk without a picture", said, tokens=60)
    asked = [Item(question.own, talk.NO_PICTURE) for question in questions.CLOSED]
    yield Paper("other", "question without its picture", asked, tokens=40)
