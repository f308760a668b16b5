"""What a clinical protocol is written in: a workflow asks its consult one question at a time and draws a conclusion."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medserve import observation
from medserve.calibration import Fit
from medserve.engines import Engine
from medserve.errors import ContextOverflow, InvalidRequest, NotSupported
from medserve.flags import Flag
from medserve.generation import (
    GREEDY,
    MAX_OUTPUT_TOKENS,
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
from medserve.images import Modality, Study
from medserve.planning import THOUGHT
from medserve.readers import Reader
from medserve.reports import Calibrated, Check, Conclusion, Finding, RemovedSentence, Step, TokenCounts
from medserve.text import Removed

T = TypeVar("T")
R = TypeVar("R")


def listed(names: object) -> object:
    """Names between commas are a list too, as a command line gives them."""
    return tuple(filter(None, map(str.strip, names.split(",")))) if isinstance(names, str) else names


class Options(BaseModel):
    """What a caller may choose about one run; a workflow adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guard: bool = Field(True, description="first hold the study against what the workflow takes")
    probabilities: bool = Field(False, description="also give the probability of each answer to every closed question")
    threshold: float | None = Field(
        None, ge=0, le=1, description="an answer less probable than this is indeterminate; asks for probabilities"
    )
    controls: tuple[Literal["blank", "swapped", "paraphrase"], ...] = Field(
        (), description="run again on an empty picture, on another picture, or in other words, and compare"
    )
    calibrate: bool = Field(True, description="apply the calibration that was fitted for this model, if there is one")
    thinking: int = Field(
        0,
        ge=0,
        le=MAX_OUTPUT_TOKENS - 1,
        exclude_if=lambda budget: not budget,  # a report that was made without it says nothing of it
        description="tokens to think for before each answer in words of its own; closed questions never think",
    )

    @field_validator("controls", mode="before")
    @classmethod
    def _listed(cls, controls: object) -> object:
        return listed(controls)


Look = Callable[[Study], Check]
"""Holds what can be computed of a study against what a workflow takes."""


@dataclass(frozen=True)
class Domain:
    """What a workflow takes: in words, by the modalities that files may state, by its looks, by the model's own word.

    No modalities means that how a picture was made does not matter. `kind` is the answer to "what kind of picture is
    this?" that such a picture should get; "" asks nothing. It is asked about the first picture, or about `each`.
    """

    takes: str
    modalities: frozenset[Modality] = frozenset()
    looks: tuple[Look, ...] = ()
    kind: str = ""
    each: bool = False


LONGEST_NAME = 40
"""An unknown option with more characters than these is no misspelling of one that there is."""


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
    domain: Domain | None = None

    @property
    def takes(self) -> str:
        """What the workflow is for, in words."""
        return self.domain.takes if self.domain is not None else self.modality.name.lower().replace("_", " ")

    @property
    def modalities(self) -> frozenset[Modality]:
        """How a picture may have been made; empty where that does not matter."""
        if self.domain is not None:
            return self.domain.modalities
        return frozenset() if self.modality is Modality.OTHER else frozenset({self.modality})

    def check(self, study: Study) -> None:
        """Raise InvalidRequest when the study has more pictures than are taken."""
        if len(study.images) > self.max_images:
            raise InvalidRequest(
                f"{self.name} takes at most {self.max_images} picture(s) a study, not {len(study.images)}",
                param="images",
            )

    def own(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """As JSON, the options that may change what the model is asked or says: this workflow's own, and thinking."""
        return self.chosen(options).model_dump(mode="json", exclude=set(Options.model_fields) - {"thinking"})

    def chosen(self, options: Mapping[str, Any]) -> Options:
        """The caller's options, checked."""
        try:
            return self.options.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            names = [field.alias or name for name, field in self.options.model_fields.items()]
            known = ", ".join(names) or "none"
            name = str(next(iter(first["loc"]), ""))
            if len(name) <= LONGEST_NAME and get_close_matches(name, names, 1):
                place, told = f"options.{name}", first["msg"].removeprefix("Value error, ")
            else:  # a name of the caller's own, which is not repeated
                place, told = "options", "one is not known"
            raise InvalidRequest(f"{place} of {self.name}: {told}; options are: {known}", param=place) from None


DOUBTS = frozenset({Flag.LABEL_DISAGREEMENT, Flag.LOW_LABEL_MASS, Flag.BLIND, Flag.TRUNCATED})
"""Flags of a closed answer with which it decides nothing."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a question brought: the value that was read (None when it cannot be read), the words, and the flags."""

    value: T | None
    text: str
    flags: tuple[Flag, ...] = ()
    step: str = ""
    removed: tuple[Removed, ...] = ()
    scores: LabelScores | None = None
    calibrated: Calibrated | None = None
    probabilities: dict[str, float] | None = None
    """The probability of each closed answer given that the answer is one of them, where it was asked for."""

    @property
    def decided(self) -> T | None:
        """The value where nothing speaks against it."""
        return None if DOUBTS & set(self.flags) else self.value

    @property
    def left_out(self) -> tuple[RemovedSentence, ...]:
        """The sentences that cleaning took out, as a report states them."""
        return tuple(RemovedSentence(sentence=gone.sentence, reason=gone.reason) for gone in self.removed)

    def finding(self, name: str = "") -> Finding:
        """The answer as a report states it, under the step's name unless another is given."""
        value: Any = self.value
        return Finding(
            name=name or self.step, value=value, step=self.step, probabilities=self.probabilities, flags=self.flags
        )


@dataclass(frozen=True)
class Question(Generic[T]):
    """A question as it will be asked: the step's name, the words, and how to read the answer.

    `look` shows the study's pictures with the question. `prefix` is a beginning that the answer is forced to have.
    `score` also asks for the probability of each of these labels as the whole answer. `otherwise` is the same question
    in other words, for the paraphrase control. `pictures` are the places of those pictures that are shown; all of them
    when it is empty. `constrain` binds the answer to the reader's JSON Schema where the engine can do that. `kind` is
    the name under which a calibration is kept for a question that is asked about several pictures, each in a step of
    its own. `traced` is what traces call a step whose name holds words of the caller's: a caller may write a patient's
    name, and traces leave the house.
    """

    step: str
    prompt: str
    read: Reader[T]
    max_tokens: int = 32
    look: bool = True
    prefix: str = ""
    score: tuple[str, ...] = ()
    otherwise: str = ""
    pictures: tuple[int, ...] = ()
    constrain: bool = False
    kind: str = ""
    traced: str = ""

    def of_picture(self, place: int, named: str) -> Self:
        """The question about one of several pictures, in a step of its own whose name begins with `named`."""
        return replace(self, step=f"{named}{self.step}", kind=self.step, pictures=(place,))


SCORED_READERS = frozenset({"one_of", "code_of"})
"""Readers whose closed answers exclude one another, so that probabilities over them mean something."""
LEAST_MASS = 0.5
"""The probability that the labels of a scored question should have together."""
TOGETHER = 16
"""Questions of one study that are asked at once at most: other callers want to wait for the same model too."""

Progress = Callable[[str, Step | None], None]
"""Told of each step as it begins (None) and as it ends (the step)."""


def quiet(_name: str, _step: Step | None) -> None:
    """Progress that tells nobody."""
    return


class Consult:
    """A workflow's only door to the model.

    Every question is a conversation of its own. The pictures come first and the words after them, so that all
    questions about one study begin alike and an engine may reuse the work on the pictures. Questions are asked one
    after another, which keeps each answer the very one that a cold run would give; only an engine that says so is
    asked independent ones together.
    """

    def __init__(
        self,
        engine: Engine,
        study: Study,
        *,
        sampling: Sampling = GREEDY,
        progress: Progress = quiet,
        options: Options | None = None,
        calibrations: Mapping[str, Fit] | None = None,
        paraphrase: bool = False,
    ) -> None:
        self._engine = engine
        self._study = study
        self._sampling = sampling
        self._progress = progress
        self._options = options or Options()
        self._calibrations = (calibrations or {}) if self._options.calibrate else {}
        self._paraphrase = paraphrase
        self.steps: list[Step] = []
        self.reworded: list[str] = []
        """The steps that the paraphrase control asked in other words."""

    @property
    def room(self) -> int:
        """Tokens that an answer may well take: half of the model's context, which leaves the rest to the pictures."""
        return self._engine.capabilities.context // 2

    def again(self, study: Study, *, paraphrase: bool = False) -> "Consult":
        """The same door with another study behind it, for a control; its steps are its own."""
        return Consult(
            self._engine,
            study,
            sampling=self._sampling,
            progress=self._progress,
            options=self._options,
            calibrations=self._calibrations,
            paraphrase=paraphrase,
        )

    def aside(self) -> "Consult":
        """The same door for a question that is not the workflow's own: no option applies, and its steps are its own."""
        return Consult(self._engine, self._study, sampling=self._sampling, progress=self._progress)

    async def ask(
        self, step: str, prompt: str, read: Reader[T], *, max_tokens: int = 32, look: bool = True, prefix: str = ""
    ) -> Answer[T]:
        """Ask one question and read the answer; what cannot be read is None with a flag."""
        return await self._put(Question(step, prompt, read, max_tokens, look, prefix))

    async def ask_all(self, questions: Sequence[Question[Any]]) -> list[Answer[Any]]:
        """Ask several independent questions; the answers, and the record's steps, come in the same order."""
        if not self._engine.capabilities.batches:
            return [await self._put(question) for question in questions]
        places = asyncio.Semaphore(TOGETHER)

        async def one(question: Question[Any]) -> tuple[Answer[Any], Step]:
            async with places:
                return await self._asked(question)

        told = await _together([one(question) for question in questions])
        self.steps += [step for _, step in told]
        return [answer for answer, _ in told]

    async def choose(
        self,
        step: str,
        prompt: str,
        read: Reader[str],
        labels: Sequence[str],
        *,
        max_tokens: int = 16,
        look: bool = True,
        otherwise: str = "",
    ) -> Answer[str]:
        """Ask for one of `labels`, in the model's words and as the probability its logits give to each label."""
        return await self._put(Question(step, prompt, read, max_tokens, look, score=tuple(labels), otherwise=otherwise))

    async def _put(self, question: Question[T]) -> Answer[T]:
        answer, step = await self._asked(question)
        self.steps.append(step)
        return answer

    async def _asked(self, question: Question[T]) -> tuple[Answer[T], Step]:
        if self._paraphrase and question.otherwise:
            question = replace(question, prompt=question.otherwise)
            self.reworded.append(question.step)
        self._progress(question.step, None)
        request = self._request(question)
        with observation.step(question.traced or question.step), self._as_options():
            result = await collect(self._engine.stream(request))
            scores = await self._scores(request, question.score or self._wanted(question.read))
        answer = self._sure(self._weighed(_read(question, result, scores), question.kind or question.step))
        step = _step(question, request, result, answer, scores)
        self._progress(question.step, step)
        return answer, step

    def _request(self, question: Question[T]) -> GenerationRequest:
        pictures = _pictures(self._study, question.pictures) if question.look else ()
        message = Message("user", (*pictures, question.prompt))
        bound = question.constrain and question.read.schema is not None and self._engine.capabilities.schema
        thinking = self._thinking(question)
        return GenerationRequest(
            (message,),
            question.max_tokens + (thinking or 0),
            self._sampling,
            prefix=question.prefix,
            schema=dict(question.read.schema or {}) if bound else None,
            thinking=thinking,
        )

    def _thinking(self, question: Question[Any]) -> int | None:
        """Tokens to think for: none where the answer is closed or scored, which a thought would only cut short.

        Raises NotSupported when the caller wants thoughts and the engine cannot be told how long they may be.
        """
        able, budget = self._engine.capabilities.thinking, self._options.thinking
        if budget and not able:
            raise NotSupported(
                f"{self._engine.name} cannot be told to think; leave the option thinking out", param="options.thinking"
            )
        if not able:
            return None
        if question.score or question.read.options:
            return 0
        if budget > (most := MAX_OUTPUT_TOKENS - question.max_tokens):
            raise InvalidRequest(
                f"the option thinking may be {most} at most, which leaves {question.max_tokens} tokens for the answer",
                param="options.thinking",
            )
        return budget

    @contextmanager
    def _as_options(self) -> Iterator[None]:
        """What does not fit into the context is told by the option that says how long it is, where there is one."""
        try:
            yield
        except ContextOverflow as error:
            own = {THOUGHT: "thinking", "max_tokens": "max_tokens"}.get(error.param or "")
            if own not in type(self._options).model_fields:
                raise
            raise ContextOverflow(error.message, param=f"options.{own}") from None

    def _wanted(self, read: Reader[Any]) -> tuple[str, ...]:
        """The closed answers whose probabilities the caller asked for; controls compare them too."""
        asked = self._weighs or bool(self._options.controls)
        return read.options if asked and read.kind in SCORED_READERS else ()

    @property
    def _weighs(self) -> bool:
        """Whether the caller asked for probabilities, or for what cannot be had without them."""
        return self._options.probabilities or self._options.threshold is not None

    def _weighed(self, answer: Answer[T], kind: str) -> Answer[T]:
        """The answer with its probabilities, calibrated where a calibration was fitted for this question.

        A calibration by a line may favour another answer than the words do; then the words are no longer believed.
        """
        if answer.scores is None:
            return answer
        own, fit = answer.scores.probabilities, self._calibrations.get(kind)
        if fit is None or set(fit.labels) != set(own):
            return replace(answer, probabilities=own)
        shares = fit.probabilities(answer.scores.logprobs)
        turned = shares.get(str(answer.value), 1.0) < max(shares.values())
        flags = once([*answer.flags, *([Flag.LABEL_DISAGREEMENT] if turned else [])])
        return replace(answer, probabilities=shares, calibrated=fit.record(own), flags=flags)

    def _sure(self, answer: Answer[T]) -> Answer[T]:
        """The answer, or none where it is less probable than the caller's threshold."""
        least, shares = self._options.threshold, answer.probabilities
        if least is None or shares is None or answer.value is None or shares.get(str(answer.value), 0.0) >= least:
            return answer
        return replace(answer, value=None, flags=(*answer.flags, Flag.INDETERMINATE))

    async def _scores(self, request: GenerationRequest, labels: tuple[str, ...]) -> LabelScores | None:
        if not labels:
            return None
        if self._engine.capabilities.score:
            return await self._engine.score(request, labels)
        if self._weighs:
            raise NotSupported(
                f"{self._engine.name} gives no probabilities of answers; leave out probabilities and threshold",
                param="options",
            )
        return None


async def _together(asked: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
    """What all of these bring, in their order; when one fails, the others are broken off first."""
    tasks = [asyncio.create_task(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _pictures(study: Study, places: Sequence[int]) -> tuple[Part, ...]:
    """The pictures at these places (all when there are none), each followed by its label where it has one."""
    chosen = places or range(len(study.images))
    if not study.labels:
        return tuple(study.images[place] for place in chosen)
    return tuple(part for place in chosen for part in (study.images[place], study.labels[place]))


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
    return Answer(reading.value, spoken, once(flags), question.step, reading.removed, scores)


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
        tokens=counts(usage),
        prompt_seconds=timings.prompt,
        completion_seconds=timings.completion,
    )


def counts(usage: Usage) -> TokenCounts:
    """Token counts as a report records them."""
    return TokenCounts(**asdict(usage))


def usage_of(step: Step) -> Usage:
    """What a recorded step took: the way back from `counts`."""
    return Usage(**step.tokens.model_dump())


def once(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    """The flags in their order, each named once."""
    return tuple(dict.fromkeys(flags))
