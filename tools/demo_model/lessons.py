"""One lesson is one whole conversation, drawn at random from everything that the model is meant to do."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from medserve.workflows import dermoscopy
from tools.demo_model import accounts, questions, talk
from tools.demo_model.drawing import Rng
from tools.demo_model.pool import Pool
from tools.demo_model.questions import Question, Truth, yes

BEGIN, END = "<start_of_turn>", "<end_of_turn>"
SOFT, TOKENS_A_PICTURE = "<image_soft_token>", 16
PICTURE = f"\n\n<start_of_image>{SOFT * TOKENS_A_PICTURE}<end_of_image>\n\n"
BARE_PICTURE = PICTURE.strip()  # as llama.cpp writes it when nobody adds the line breaks
THOUGHT = ("<unused94>thought\n", "<unused95>")


@dataclass
class Conversation:
    """Text in pieces, each either to be learnt or only to be read, and the pictures in the order they appear."""

    system: str = ""
    pictures: list[int] = field(default_factory=list)
    pieces: list[tuple[str, bool]] = field(default_factory=list)

    def turn(self, question: str, answer: str | list[str], begun: str = "") -> None:
        """Add a question and its answer; `begun` is a beginning of the answer that was not the model's choice.

        An answer may come in parts, cut before blanks; each part weighs as much as an answer of its length.
        """
        opening = "<bos>" if not self.pieces else "\n"
        system = f"{self.system}\n\n" if self.system and not self.pieces else ""
        self.pieces.append((f"{opening}{BEGIN}user\n{system}{question}{END}\n{BEGIN}model\n{begun}", False))
        parts = [answer] if isinstance(answer, str) else answer
        self.pieces += [(part, True) for part in parts[:-1]]
        self.pieces.append((parts[-1] + END, True))


def shown(picture: str, question: str, late: bool = False) -> str:
    """The text of a user turn with a picture before (or, rarely, after) the question."""
    return question + picture if late else picture + question


Lesson = Callable[[], Conversation]


CHANCES = {"kind": 0.35, "tissue": 0.35, "border": 0.5, "size": 0.4, "colours": 3.0, "vessels": 2.0}
"""How much more or less often than others a closed question is asked; colours and vessels took longest to be told."""


class School:
    """Draws lessons from a pool of pictures; the same seed gives the same lessons."""

    def __init__(self, pool: Pool, rng: Rng) -> None:
        self.pool, self.rng = pool, rng
        self.about_pictures: dict[str, tuple[float, Lesson]] = {
            "lesion": (0.40, lambda: self.closed("dermoscopy")),
            "second look": (0.24, self.second_look),
            "histology": (0.04, lambda: self.closed("histology")),
            "CT": (0.07, lambda: self.closed("CT")),
            "chest": (0.04, lambda: self.closed("chest X-ray")),
            "other": (0.02, lambda: self.closed("other")),
            "account": (0.07, self.account),
            "JSON": (0.07, self.json),
            "reason": (0.03, self.reason),
            "pair": (0.04, self.pair),
        }
        self.of_words: dict[str, tuple[float, Lesson]] = {
            "class in words": (0.82, self.class_in_words),
            "talk": (0.12, self.talk),
            "no picture": (0.06, self.no_picture),
        }

    def lesson(self) -> Conversation:
        """The next lesson about a picture."""
        return self.one_of(self.about_pictures)

    def text(self) -> Conversation:
        """The next lesson without a picture."""
        return self.one_of(self.of_words)

    def one_of(self, plans: dict[str, tuple[float, Lesson]]) -> Conversation:
        """A lesson from one of several kinds, each as often as its share says."""
        shares = np.array([share for share, _ in plans.values()])
        return plans[str(self.rng.choice(list(plans), p=shares / shares.sum()))][1]()

    def system(self) -> str:
        """System text for a third of the lessons."""
        return str(self.rng.choice(talk.SYSTEM)) if self.rng.random() < 0.33 else ""

    def start(self, kind: str) -> tuple[Conversation, Truth, str]:
        """A conversation about a random picture of a kind, and the text that stands for the picture."""
        places = self.pool.places[kind]
        number = int(self.rng.integers(places.start, places.stop))
        picture = BARE_PICTURE if self.rng.random() < 0.1 else PICTURE
        return Conversation(self.system(), [number]), self.pool.truths[number], picture

    def anything(self) -> str:
        """A kind, lesions half of the time."""
        return "dermoscopy" if self.rng.random() < 0.5 else str(self.rng.choice(questions.EVERY))

    def wording(self, question: Question) -> str:
        """The workflow's own wording for nearly half of the questions."""
        return question.own if self.rng.random() < 0.45 else question.paraphrase(self.rng)

    def closed(self, kind: str) -> Conversation:
        """Several closed questions about one picture."""
        talk_, truth, picture = self.start(kind)
        asked = list(questions.about(kind))
        chances = np.array([CHANCES.get(question.name, 1.0) for question in asked])
        if kind == "dermoscopy":
            count = int(self.rng.integers(3, 8))
        else:
            count = int(self.rng.integers(1, len(asked) + 1))
        thinking = self.rng.random() < 0.06
        if thinking:
            role = f" {self.rng.choice(talk.SYSTEM)}" if self.rng.random() < 0.5 else ""
            talk_.system, count = talk.THINK + role, min(count, 2)
        order = self.rng.choice(len(asked), min(count, len(asked)), replace=False, p=chances / chances.sum())
        late = self.rng.random() < 0.07
        for place, chosen in enumerate(order):
            question = asked[int(chosen)]
            words, answer, begun = self.wording(question), question.answer(truth), ""
            if thinking:
                answer = thought(question) + answer
            elif self.rng.random() < 0.06:
                begun, answer = "Answer:", " " + answer
            talk_.turn(shown(picture, words, late) if place == 0 else words, answer, begun)
        return talk_

    def claims(self, truth: Truth, share: float) -> dict[str, str]:
        """A list of four or seven observations, or any few of them, some wrong."""
        values = accounts.spoiled(accounts.findings(truth), self.rng, share)
        length = int(self.rng.choice(3, p=(0.45, 0.45, 0.1)))
        if length == 2:
            kept = self.rng.random(len(values)) < 0.6
            return {name: value for (name, value), keep in zip(values.items(), kept, strict=True) if keep} or values
        return dict(list(values.items())[: (4, 7)[length]])

    def second_look(self) -> Conversation:
        """A list to be compared with the picture."""
        talk_, truth, picture = self.start("dermoscopy")
        claimed = self.claims(truth, float(self.rng.choice((0.0, 0.35, 0.5), p=(0.15, 0.55, 0.3))))
        question = dermoscopy.second_look(accounts.titled(claimed, self.rng))
        talk_.turn(shown(picture, question), accounts.parts_of_second_look(truth, claimed))
        return talk_

    def class_in_words(self) -> Conversation:
        """A list, with or without a description, to be classified without a picture."""
        places = self.pool.places["dermoscopy"]
        truth = self.pool.truths[int(self.rng.integers(places.start, places.stop))]
        claimed = self.claims(truth, float(self.rng.choice((0.0, 0.2, 0.5), p=(0.4, 0.35, 0.25))))
        if {"shape", "structures"} <= claimed.keys() and self.rng.random() < 0.25:  # else too rare to be learnt
            claimed |= {"shape": "irregular", "structures": str(self.rng.choice(("streaks", "dots, streaks", "dots")))}
        description = self.description(truth, claimed)
        for name in claimed:
            if self.rng.random() < 0.03:
                claimed[name] = accounts.UNREAD
        way = 0 if self.rng.random() < 0.7 else int(self.rng.integers(len(accounts.WAYS_TO_ASK)))
        talk_ = Conversation(self.system())
        question = accounts.classification(accounts.titled(claimed, self.rng), description, way)
        begun = "Answer:" if self.rng.random() < 0.06 else ""
        talk_.turn(question, (" " if begun else "") + accounts.class_of_words(claimed, description), begun)
        return talk_

    def description(self, truth: Truth, claimed: dict[str, str]) -> str:
        """Nothing, a second look, its last sentence, or some of its sentences."""
        look = accounts.second_look(truth if self.rng.random() < 0.6 else true_of(truth, claimed), claimed)
        form = int(self.rng.choice(4, p=(0.3, 0.4, 0.15, 0.15)))
        sentences = look.replace(". ", ".\n").split("\n")
        some = [s for s in sentences if self.rng.random() < 0.6]
        return ("", look, sentences[-1], " ".join(some))[form]

    def account(self) -> Conversation:
        """A free description."""
        kind = self.anything()
        talk_, truth, picture = self.start(kind)
        talk_.turn(shown(picture, str(self.rng.choice(accounts.DESCRIBE))), accounts.described(kind, truth))
        return talk_

    def json(self) -> Conversation:
        """All attributes or some of them as JSON, now and then without blanks."""
        kind = self.anything()
        talk_, truth, picture = self.start(kind)
        values = accounts.fields(kind, truth)
        if self.rng.random() < 0.25:
            values = {k: v for k, v in values.items() if self.rng.random() < 0.5} or values
            question = str(self.rng.choice(accounts.AS_JSON)).format(", ".join(values))
        elif self.rng.random() < 0.5:
            question = str(self.rng.choice(accounts.AS_JSON)).format(", ".join(values))
        else:
            question = str(self.rng.choice(accounts.AS_JSON_FREE))
        talk_.turn(shown(picture, question), accounts.as_json(values, bool(self.rng.random() < 0.12)))
        return talk_

    def reason(self) -> Conversation:
        """Yes or no with one sentence of explanation."""
        kind = str(self.rng.choice(list(accounts.EXPLAINED)))
        talk_, truth, picture = self.start(kind)
        stem = str(self.rng.choice(accounts.EXPLAINED[kind][1], p=(0.6, 0.2, 0.2)))
        ending = str(self.rng.choice(accounts.EXPLAIN, p=(0.6, 0.2, 0.1, 0.1)))
        talk_.turn(shown(picture, f"{stem} {ending}"), accounts.explained(kind, truth))
        return talk_

    def pair(self) -> Conversation:
        """Two pictures in one turn."""
        first, second = self.anything(), self.anything()
        if self.rng.random() < 0.3:
            second = first
        talk_, truth, picture = self.start(first)
        other, also, _ = self.start(second)
        talk_.pictures += other.pictures
        ask = int(self.rng.integers(3))
        question = (
            str(self.rng.choice(talk.SAME_KIND)),
            "What kind of picture is the first one?",
            "What kind is the second picture?",
        )
        answer = (yes(truth["kind"] == also["kind"]), truth["kind"], also["kind"])
        talk_.turn(picture + picture + question[ask], answer[ask])
        return talk_

    def talk(self) -> Conversation:
        """A turn or two without any picture."""
        talk_ = Conversation(self.system())
        for _ in range(int(self.rng.integers(1, 3))):
            answer, ways = talk.TALK[int(self.rng.integers(len(talk.TALK)))]
            talk_.turn(str(self.rng.choice(ways)), answer)
        return talk_

    def no_picture(self) -> Conversation:
        """A question that needs a picture, asked without one."""
        talk_ = Conversation(self.system())
        question = questions.CLOSED[int(self.rng.integers(len(questions.CLOSED)))]
        words = self.wording(question) if self.rng.random() < 0.8 else str(self.rng.choice(accounts.DESCRIBE))
        talk_.turn(words, talk.NO_PICTURE)
        return talk_


def thought(question: Question) -> str:
    """What the model writes when it has been told that it may think."""
    told = f"The question is about the {question.name}. I look at the picture and choose the word that fits."
    return THOUGHT[0] + told + THOUGHT[1]


def true_of(truth: Truth, claimed: dict[str, str]) -> Truth:
    """A picture for which every claim is right, so that nothing in the second look is doubted."""
    said = dict(truth)
    if "shape" in claimed:
        said["shape"] = claimed["shape"]
    if "network" in claimed:
        said["network"] = claimed["network"] == "yes"
    for name in ("structures", "colours"):
        if name in claimed:
            said[name] = () if claimed[name] == "none" else tuple(claimed[name].split(", "))
    if "vessels" in claimed:
        said["vessels"] = claimed["vessels"]
    if "regression" in claimed:
        said |= {"regression": claimed["regression"] == "yes", "veil": False}
    if "keratosis" in claimed:
        said |= {"comedo": claimed["keratosis"] == "yes", "cysts": False}
    return said
