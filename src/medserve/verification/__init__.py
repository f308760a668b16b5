"""A build is held against the reference, and no fault that is known of builds passes: what comes out is a certificate.

The reference is the same model in safetensors on the transformers engine, which is token for token transformers' own.
One engine is loaded at a time, each is asked the same, and what they said is compared when all is known.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medserve import engines, machine, process, scratch
from medserve.certificates import (
    PARITY,
    Cause,
    Certificate,
    Check,
    Outcome,
    Speed,
    Verdict,
    keep,
    prepared,
    verdict,
)
from medserve.engines import Engine, Start, transformers
from medserve.errors import InvalidRequest, ModelFailed
from medserve.images import Image
from medserve.imaging import intake
from medserve.imaging.preprocess import VisionInput
from medserve.process import Progress
from medserve.residency import size
from medserve.settings import ModelSpec, Settings
from medserve.threads import in_thread
from medserve.verification import causes, checks, observing, pictures, yardstick
from medserve.verification.causes import CAUSAL, FAULTS, Fault
from medserve.verification.observing import Answer, Eyes, Matter, Prompted, Say
from medserve.verification.pictures import Charted, Gathered, Shown
from medserve.verification.questions import QUESTIONS, REPORTS, Conversation, conversations
from medserve.verification.reference import folder_of
from medserve.verification.yardstick import Expected

DEFAULT_COUNT = 24
"""Pictures that are shown unless told otherwise: 144 answers, four times what makes agreement certain enough."""
DEPENDENT = (
    "Answers about one picture are not independent of one another: the true interval of agreement is somewhat wider."
)
UNTOLD = (PARITY, "file")
"""Facts of an engine that are left out: what an earlier certificate said, and the name of a file."""
DRAWN = "The pictures are drawings but for one photograph: they show parity with the reference, not medical quality."


class Launch(Protocol):
    """Starts the reference, or the reference with its pictures masked as text is."""

    def __call__(
        self, model: ModelSpec, settings: Settings, /, *, causal_images: bool = False
    ) -> Awaitable[Engine]: ...


@dataclass(frozen=True)
class Order:
    """What is to be verified, against what, and by how many pictures; without `pictures` the package's own."""

    model: ModelSpec
    reference: Path | None = None
    pictures: Path | None = None
    count: int = DEFAULT_COUNT
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class _Plan:
    """What every engine is shown and asked."""

    gathered: Gathered
    chart: Sequence[Charted]
    charted: Sequence[Image]
    talk: Sequence[Conversation]
    expected: Expected

    @property
    def matters(self) -> list[Matter]:
        """What the questions are about, in their order."""
        return [shown.image for shown in self.gathered.pictures] if self.expected.sees else list(REPORTS)

    @property
    def digest(self) -> str:
        """SHA-256 of the content of what is asked about and of the questions."""
        about = [matter if isinstance(matter, str) else matter.sha256 for matter in self.matters]
        return sha256(json.dumps([about, [(one.text, one.labels) for one in QUESTIONS]]).encode()).hexdigest()


@dataclass(frozen=True)
class _Observed:
    """What the build did."""

    facts: Mapping[str, str]
    scores: bool
    eyes: Eyes
    handed: Sequence[NDArray[np.uint8] | None]
    prompted: Sequence[Prompted]
    answers: Sequence[Answer]
    speed: Speed


async def verify(
    order: Order,
    settings: Settings,
    say: Say = lambda _: None,
    *,
    start: Start | None = None,
    launch: Launch | None = None,
) -> Certificate:
    """The certificate of a build, which is kept too; `start` and `launch` are how the two sides are started.

    Raises InvalidRequest where nothing can be compared, and ModelError or EngineError where a side fails to answer.
    """
    folder = folder_of(order.model, settings, order.reference)
    await in_thread(prepared, settings.home)
    say("gathering pictures")
    plan = await _planned(order, folder, settings)
    say(f"loading {order.model.name}")
    begin = start or engines.find(order.model.engine)
    async with _loaded(order.model.name, begin(order.model, _unbiased(settings)), settings, say) as engine:
        subject = await _observed(engine, plan, say)
    compared = await _compared(order, folder, plan, subject, settings, say, launch or transformers.launch)
    made = _certified(order, plan, subject, compared)
    await in_thread(keep, settings.home, made)
    return made


@asynccontextmanager
async def _loaded(name: str, begun: Awaitable[Engine], settings: Settings, say: Say) -> AsyncIterator[Engine]:
    """An engine for as long as the context lasts: two large models need not be in memory at once."""
    alone = process.ONLOOKER.set(_Alone(name, settings, say))
    try:
        engine = await begun
    finally:
        process.ONLOOKER.reset(alone)
    try:
        yield engine
    finally:
        await engine.close()


class _Alone:
    """Whoever loads has all memory that is free, and is refused where that is too little."""

    def __init__(self, name: str, settings: Settings, say: Say) -> None:
        self._name = name
        self._limit = settings.limits.memory_bytes
        self._say = say

    def progress(self, progress: Progress) -> None:
        self._say(f"loading {self._name}: {progress.stage}")

    async def make_room(self, memory_bytes: int) -> None:
        free = self._limit if self._limit is not None else await in_thread(machine.memory_available)
        if memory_bytes > free:
            raise ModelFailed(
                f"{self._name} needs about {size(memory_bytes)} and {size(free)} are free for it; unload other models, "
                "give it a smaller context, or let the reference take half with --precision bfloat16",
                param="model",
            )


def _unbiased(settings: Settings) -> Settings:
    """The settings with a home in which there is no certificate yet: a build that failed once may be asked again."""
    return settings.model_copy(update={"home": scratch.folder()})


async def _planned(order: Order, folder: Path, settings: Settings) -> _Plan:
    if order.pictures is None:
        gathered = await pictures.bundled(order.count)
    else:
        gathered = await pictures.given(order.pictures, order.count, settings.limits)
    chart = await in_thread(pictures.chart)
    charted = [(await intake.read([one.file], settings.limits)).images[0] for one in chart]
    talk = conversations(charted[0], charted[1])
    return _Plan(gathered, chart, charted, talk, await yardstick.expected(folder, chart, talk))


async def _observed(engine: Engine, plan: _Plan, say: Say) -> _Observed:
    """All that is asked of the build."""
    able = engine.capabilities
    if able.vision is not None and not plan.expected.sees:
        raise InvalidRequest(
            f"the reference has no vision part and {engine.name} has one; name the folder of the same model's "
            "safetensors with --reference",
            param="reference",
        )
    found = await observing.eyes(engine) if plan.expected.sees else Eyes()
    looks = able.vision is not None and plan.expected.sees
    say("comparing pixels and prompts")
    handed = [await observing.handed(engine, image) for image in plan.charted] if looks else []
    talk = [one for one in plan.talk if looks or not one.images]
    prompted = [await observing.prompted(engine, one) for one in talk]
    if found.fault:
        answers: list[Answer] = []
    else:
        asking = _prefixed(say, "asking the build about picture")
        answers = await observing.answers(engine, plan.matters, QUESTIONS, scored=able.score, say=asking)
    say("measuring its speed")
    return _Observed(
        dict(able.facts), able.score, found, handed, prompted, answers, await observing.speed(engine, "subject")
    )


@dataclass(frozen=True)
class _Compared:
    """What the reference said, and what became of the known faults."""

    facts: Mapping[str, str]
    labels: Check
    causes: tuple[Cause, ...]
    guilt: Check
    speed: Speed


async def _compared(
    order: Order, folder: Path, plan: _Plan, subject: _Observed, settings: Settings, say: Say, launch: Launch
) -> _Compared:
    if subject.eyes.fault:
        labels, guilt = checks.unasked("the build does not see: there is nothing to compare")
        idle = Speed(side="reference", reason="it was not started")
        return _Compared({}, labels, (), guilt, idle)
    model = ModelSpec(
        name=f"{order.model.name}-reference"[:64],
        engine="transformers",
        path=folder,
        context=order.model.context,
        threads=order.model.threads,
        slots=1,
        precision=order.precision,
    )
    say("loading the reference")
    async with _loaded("the reference", launch(model, settings), settings, say) as engine:
        facts = dict(engine.capabilities.facts)
        scored = subject.scores and engine.capabilities.score
        asking = _prefixed(say, "asking the reference about picture")
        right = await observing.answers(engine, plan.matters, QUESTIONS, scored=scored, say=asking)
        vision = engine.capabilities.vision
        changed = await in_thread(_planted, plan.gathered.pictures, vision) if vision else {}
        tried = {
            fault.name: await _faulty(engine, fault, changed[fault.name], scored=scored, say=say)
            for fault in FAULTS
            if changed.get(fault.name) and fault is not CAUSAL
        }
        speed = await observing.speed(engine, "reference")
    if changed:
        say("loading the reference with causal pictures")
        begun = launch(model, settings, causal_images=True)
        async with _loaded("the reference with causal pictures", begun, settings, say) as engine:
            tried[CAUSAL.name] = await _faulty(engine, CAUSAL, changed[CAUSAL.name], scored=scored, say=say)
    found = tuple(_judged(fault, subject.answers, right, tried) for fault in FAULTS) if vision else ()
    return _Compared(
        facts,
        checks.labels(subject.answers, right, pictures=len(plan.matters), scored=scored),
        found,
        checks.causes(found),
        speed,
    )


def _planted(shown: Sequence[Shown], vision: VisionInput) -> dict[str, dict[int, Image]]:
    return {fault.name: causes.plant(fault, shown, vision) for fault in FAULTS}


async def _faulty(
    engine: Engine, fault: Fault, changed: Mapping[int, Image], *, scored: bool, say: Say
) -> dict[int, Answer]:
    """The reference's answers under a fault, by their place among all answers."""
    asking = _prefixed(say, f"planting {fault.name} into the reference, picture")
    said = await observing.answers(engine, list(changed.values()), QUESTIONS, scored=scored, say=asking)
    places = [place * len(QUESTIONS) + index for place in changed for index in range(len(QUESTIONS))]
    return dict(zip(places, said, strict=True))


def _judged(
    fault: Fault, subject: Sequence[Answer], right: Sequence[Answer], tried: Mapping[str, Mapping[int, Answer]]
) -> Cause:
    if fault.name not in tried:
        return causes.untried(fault, "no picture of the set looks different by it; give others with --pictures")
    return causes.judged(fault, dict(enumerate(subject)), dict(enumerate(right)), tried[fault.name])


def _prefixed(say: Say, words: str) -> Say:
    return lambda said: say(f"{words} {said}")


# --- what it comes to ------------------------------------------------------------------------------------------------


def _certified(order: Order, plan: _Plan, subject: _Observed, compared: _Compared) -> Certificate:
    found = (
        checks.sees(subject.eyes, plan.expected),
        checks.pixels([one.kind for one in plan.chart], subject.handed, plan.expected),
        checks.template(plan.talk, subject.prompted, plan.expected),
        compared.labels,
        compared.guilt,
    )
    notes = [DEPENDENT, *([DRAWN] if order.pictures is None and plan.expected.sees else [])]
    return Certificate(
        model=order.model.name,
        verdict=verdict(found),
        summary=_summary(found),
        subject={name: value for name, value in subject.facts.items() if name not in UNTOLD},
        reference={
            **{name: value for name, value in compared.facts.items() if name not in UNTOLD},
            **{f"{name}_processor": said for name, said in plan.expected.versions.items()},
        },
        settings={
            "count": order.count,
            "questions": len(QUESTIONS),
            "asked_by": "label scores" if subject.scores else "answers in words",
            "reference_precision": order.precision,
            "pictures_from": "the package" if order.pictures is None else "a folder",
        },
        pictures=len(plan.matters),
        pictures_refused=plan.gathered.refused,
        picture_set=plan.digest,
        checks=found,
        causes=compared.causes,
        speeds=(subject.speed, compared.speed),
        notes=tuple(notes),
    )


def _summary(found: Sequence[Check]) -> str:
    """The verdict in a sentence: a known fault is named first, because it explains the others."""
    came = verdict(tuple(found))
    if came is Verdict.PASSED:
        labels = next(check for check in found if check.name == "labels")
        return f"the build answers as the reference does: {labels.reason}"
    failed = [check for check in found if check.outcome is Outcome.FAILED]
    if failed:
        failed.sort(key=lambda check: check.name != "causes")
        return "the build does not answer as the reference does; " + "; ".join(
            f"{check.name}: {check.reason}" for check in failed
        )
    open_ = [check for check in found if check.needed and check.outcome is Outcome.NOT_DONE]
    return "not enough was compared; " + "; ".join(f"{check.name}: {check.reason}" for check in open_)
