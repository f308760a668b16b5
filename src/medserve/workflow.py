"""What a clinical protocol is written in: a workflow asks its consult one question at a time and draws a conclusion."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medserve.engines import Engine
from medserve.errors import InvalidRequest
from medserve.flags import Flag
from medserve.generation import (
    GREEDY,
    Finish,
    GenerationRequest,
    LabelScores,
    Message,
    Part,
    Result,
    Sampling,
    Usage,
    collect,
)
from medserve.images import Concern, Modality, Study
from medserve.readers import Reader
from medserve.reports import Conclusion, Provenance, Report, Step, StudyFacts, TokenCounts, is_demonstration, notice_for
from medserve.text import Removed

T = TypeVar("T")


class Options(BaseModel):
    """What a caller may choose about one run; a workflow adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Workflow:
    """A clinical protocol with a name: what it takes, the labels it may conclude with, and how it runs.

    One that `measures` is given the voxels of a series (`Study.volume`) beside its pictures.
    """

    name: str
    title: str
    summary: str
    modality: Modality
    run: Callable[[Study, "Consult", Any], Awaitable[Conclusion]]
    version: str = "1"
    labels: Mapping[str, str] = field(default_factory=dict)
    options: type[Options] = Options
    max_images: int = 1
    measures: bool = False

    def check(self, study: Study) -> None:
        """Raise InvalidRequest when the study has more pictures than are taken."""
        if len(study.images) > self.max_images:
            raise InvalidRequest(
                f"{self.name} takes at most {self.max_images} picture(s) a study, not {len(study.images)}",
                param="images",
            )

    def chosen(self, options: Mapping[str, Any]) -> Options:
        """The caller's options, checked."""
        try:
            return self.options.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            known = ", ".join(self.options.model_fields) or "none"
            raise InvalidRequest(
                f"option {place!r} of {self.name}: {first['msg']}; options are: {known}", param=f"options.{place}"
            ) from None


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a question brought: the value that was read (None when it cannot be read), the words, and the flags."""

    value: T | None
    text: str
    flags: tuple[Flag, ...] = ()
    step: str = ""
    removed: tuple[Removed, ...] = ()
    scores: LabelScores | None = None


@dataclass(frozen=True)
class Question(Generic[T]):
    """A question as it will be asked: the step's name, the words, and how to read the answer.

    `look` shows the study's pictures with the question. `prefix` is a beginning that the answer is forced to have.
    `score` also asks for the probability of each of these labels as the whole answer.
    """

    step: str
    prompt: str
    read: Reader[T]
    max_tokens: int = 32
    look: bool = True
    prefix: str = ""
    score: tuple[str, ...] = ()


LEAST_MASS = 0.5
"""The probability that the labels of a scored question should have together."""

Progress = Callable[[str, Step | None], None]
"""Told of each step as it begins (None) and as it ends (the step)."""


def _quiet(_name: str, _step: Step | None) -> None:
    return None


class Consult:
    """A workflow's only door to the model.

    Every question is a conversation of its own. The pictures come first and the words after them, so that all
    questions about one study begin alike and an engine may reuse the work on the pictures; questions are asked one
    after another, which keeps each answer the very one that a cold run would give.
    """

    def __init__(
        self, engine: Engine, study: Study, *, sampling: Sampling = GREEDY, progress: Progress = _quiet
    ) -> None:
        self._engine = engine
        self._study = study
        self._sampling = sampling
        self._progress = progress
        self.steps: list[Step] = []

    async def ask(
        self, step: str, prompt: str, read: Reader[T], *, max_tokens: int = 32, look: bool = True, prefix: str = ""
    ) -> Answer[T]:
        """Ask one question and read the answer; what cannot be read is None with a flag."""
        return await self._put(Question(step, prompt, read, max_tokens, look, prefix))

    async def ask_all(self, questions: Sequence[Question[Any]]) -> list[Answer[Any]]:
        """Ask several independent questions; the answers come in the same order."""
        return [await self._put(question) for question in questions]

    async def choose(
        self,
        step: str,
        prompt: str,
        read: Reader[str],
        labels: Sequence[str],
        *,
        max_tokens: int = 16,
        look: bool = True,
    ) -> Answer[str]:
        """Ask for one of `labels`, in the model's words and as the probability its logits give to each label."""
        return await self._put(Question(step, prompt, read, max_tokens, look, score=tuple(labels)))

    async def _put(self, question: Question[T]) -> Answer[T]:
        self._progress(question.step, None)
        request = self._request(question)
        result = await collect(self._engine.stream(request))
        scores = await self._scores(request, question.score)
        answer = _read(question, result, scores)
        step = _step(question, request, result, answer, scores)
        self.steps.append(step)
        self._progress(question.step, step)
        return answer

    def _request(self, question: Question[T]) -> GenerationRequest:
        pictures = _pictures(self._study) if question.look else ()
        message = Message("user", (*pictures, question.prompt))
        return GenerationRequest((message,), question.max_tokens, self._sampling, prefix=question.prefix)

    async def _scores(self, request: GenerationRequest, labels: tuple[str, ...]) -> LabelScores | None:
        if not labels or not self._engine.capabilities.score:
            return None
        return await self._engine.score(request, labels)


def _pictures(study: Study) -> tuple[Part, ...]:
    """The study as a prompt shows it: each picture, followed by its label where it has one."""
    if not study.labels:
        return study.images
    return tuple(part for pair in zip(study.images, study.labels, strict=True) for part in pair)


def _read(question: Question[T], result: Result, scores: LabelScores | None) -> Answer[T]:
    flags: list[Flag] = []
    if result.finish is Finish.LENGTH:
        flags.append(Flag.TRUNCATED)
    if question.look and not result.usage.image:
        flags.append(Flag.BLIND)
    if not result.text.strip():
        flags += [Flag.EMPTY, *_doubts(None, scores)]
        return Answer(None, result.text, tuple(flags), question.step, scores=scores)
    spoken = result.text.removeprefix(question.prefix)
    reading = question.read.read(spoken)
    flags += [*reading.flags, *_doubts(reading.value, scores)]
    return Answer(reading.value, spoken, _once(flags), question.step, reading.removed, scores)


def _doubts(value: object, scores: LabelScores | None) -> list[Flag]:
    """What the label probabilities of a scored question say against the answer in words, or against any label."""
    doubts: list[Flag] = []
    if scores is None:
        return doubts
    if value in scores.logprobs and value != scores.best:
        doubts.append(Flag.LABEL_DISAGREEMENT)
    if scores.mass < LEAST_MASS:
        doubts.append(Flag.LOW_LABEL_MASS)
    return doubts


def _step(
    question: Question[T], request: GenerationRequest, result: Result, answer: Answer[T], scores: LabelScores | None
) -> Step:
    usage = result.usage + (scores.usage if scores else Usage())
    timings = result.timings + scores.timings if scores else result.timings
    return Step(
        name=question.step,
        prompt=question.prompt,
        images=tuple(image.sha256 for image in request.images),
        prefix=question.prefix,
        max_tokens=question.max_tokens,
        temperature=request.sampling.temperature,
        seed=request.sampling.seed,
        reply=result.text,
        thinking=result.thinking,
        finish=result.finish,
        value=answer.value,
        flags=answer.flags,
        label_logprobs=scores.logprobs if scores else None,
        tokens=_counts(usage),
        prompt_seconds=timings.prompt,
        completion_seconds=timings.completion,
    )


def _counts(usage: Usage) -> TokenCounts:
    return TokenCounts(**asdict(usage))


def _once(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    return tuple(dict.fromkeys(flags))


async def examine(
    workflow: Workflow,
    study: Study,
    engine: Engine,
    *,
    options: Mapping[str, Any] | None = None,
    sampling: Sampling = GREEDY,
    progress: Progress = _quiet,
) -> Report:
    """Run `workflow` on `study` with `engine` and report all of it.

    Raises InvalidRequest when the study or the options are not what the workflow takes, ModelError or EngineError
    when the model cannot answer; an answer that cannot be read is no error but a flag.
    """
    chosen = workflow.chosen(options or {})
    workflow.check(study)
    study = _seen_as(study, workflow.modality)
    consult = Consult(engine, study, sampling=sampling, progress=progress)
    began = perf_counter()
    conclusion = await workflow.run(study, consult, chosen)
    seconds = perf_counter() - began
    facts = dict(engine.capabilities.facts)
    demonstration = [Flag.DEMONSTRATION] if is_demonstration(facts) else []
    flags = _once([*(flag for step in consult.steps for flag in step.flags), *conclusion.flags, *demonstration])
    usage = sum((_usage(step) for step in consult.steps), Usage())
    return Report(
        title=workflow.title,
        study=StudyFacts.of(study),
        conclusion=conclusion,
        flags=flags,
        needs_review=bool(flags or study.concerns) or (bool(workflow.labels) and conclusion.label is None),
        steps=tuple(consult.steps),
        tokens=_counts(usage),
        seconds=seconds,
        provenance=Provenance(
            workflow=workflow.name,
            workflow_version=workflow.version,
            options=chosen.model_dump(mode="json"),
            model=engine.name,
            engine=facts.get("engine", "unknown"),
            facts=facts,
        ),
        notice=notice_for(facts),
    )


AKIN = {Modality.DERMOSCOPY: Modality.PHOTOGRAPH}
"""DICOM knew dermoscopy as photography (XC) before it had a modality of its own."""
UNSAID = frozenset({"", "OT", "unknown"})
"""What a DICOM file says when it does not say how the picture was made."""


def _seen_as(study: Study, wanted: Modality) -> Study:
    """The study with what its files say of their making; what contradicts the workflow is a concern, not a change.

    Only where the files say nothing is it taken to be what the workflow is for.
    """
    stated = dict(study.facts).get("modality", "")
    if study.modality is Modality.OTHER and stated in UNSAID:
        return replace(study, modality=wanted)
    if study.modality in (wanted, AKIN.get(wanted)):
        return study
    return replace(study, concerns=tuple(dict.fromkeys((*study.concerns, Concern.WRONG_MODALITY))))


def _usage(step: Step) -> Usage:
    return Usage(**step.tokens.model_dump())
