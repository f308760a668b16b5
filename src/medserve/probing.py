"""A server that somebody else runs is believed what it was seen to do, and nothing that it says it can.

Most servers that speak OpenAI's chat drop in silence what they do not know: an answer then looks as if it had been
bound by a schema, or had seen the picture. So every ability is asked for once, in the very words in which it will be
asked for later, and such that the answer shows whether it was honoured: a word that no model would write by itself, two
pictures that must be told apart, the model's own first words that it must go on from. What is not seen is not offered.

The questions are short and greedy, so that each answer can be held against the model's own.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any, Literal, Protocol

from medserve import thinking
from medserve.errors import EngineTimeout, InvalidRequest, MedserveError, ModelFailed, ServerLost
from medserve.generation import Finish, GenerationRequest, Message, Sampling, TokenLogprob
from medserve.images import Image
from medserve.process import Progress, tell
from medserve.text import CLOSING, OPENING

QUESTION = "Describe the image."
"""Asked with and without a picture: what the prompt has more with one is the picture."""
RANDOM = "Write ten random words."
"""A question with many answers, so that what is drawn shows."""
WORD = "violet-zq7"
OTHER = "violet-zq8"
SCHEMA = {
    "type": "object",
    "properties": {"zq7": {"type": "string", "enum": [WORD]}},
    "required": ["zq7"],
    "additionalProperties": False,
}
"""Nobody would answer so without being made to."""
TOKENS = 16
JSON_TOKENS = 64
SEEN_TOKENS = 8
AGAIN = 2
"""How often a draw is repeated before it is believed that it was no chance."""
SEEDS = range(7, 13)
LIKENESS = 1e-6
"""Log-probabilities closer than this are the same."""
COLDEST = 0.01
HOTTEST = 2.0
"""Drawn at this temperature, an answer of TOKENS tokens is not the likeliest one unless something else makes it so."""
OPENING_TOKENS = 5
"""Most tokens of the opening mark and its label where the mark is one token; written out, it takes more itself."""
PUSH = 100
"""OpenAI's largest bias of a token: it is written then, or never."""
SPARE = 64
LATE = 2
"""Probes without an answer after which a server counts as one that hangs."""

Choosing = Literal["structured_outputs", "guided_choice", "regex", "grammar", "schema"]
FLAGS = ("add_generation_prompt", "continue_final_message")
BOUND = ("schema", "choices")
SAMPLERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
NEUTRAL = Sampling()
OPEN: Mapping[str, float] = {"top_k": 1_000_000, "min_p": 0.0, "repetition_penalty": 1.0}
"""Values of each that change nothing, said where it is honoured: the server's own defaults would fill the gap. A server
of any kind takes this `top_k`; 0 is refused by some."""
NARROW: Mapping[str, Mapping[str, Any]] = {"top_p": {"top_p": 0.001}, "top_k": {"top_k": 1}, "min_p": {"min_p": 1.0}}
"""Values of each at which only the likeliest token is left."""


# --- how a server is asked -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manner:
    """In which words a server understands what OpenAI's chat has none for, or several.

    `whole`: it counts tokens only in answers that are not streamed. `flagged`: a forced beginning needs vLLM's flags.
    `echoes`: it says a forced beginning again. `repetition` is its name of the repetition penalty. `marks` are the ids
    of the marks of thinking, by which they are forbidden. `honoured` are the other wishes it was seen to follow: `stop`
    and those of `Sampling`. `after`: what it binds an answer by also after a forced beginning, "schema" or "choices".
    `cuts`: it may cut a prompt that is too long, in silence.
    """

    whole: bool = False
    choosing: Choosing | None = None
    flagged: bool = True
    echoes: bool = False
    repetition: str = "repetition_penalty"
    marks: Mapping[str, int] = field(default_factory=dict)
    honoured: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    cuts: bool = False

    def worded(self, body: Mapping[str, Any], request: GenerationRequest) -> dict[str, Any]:
        """A request's body in OpenAI's dialect, said as this server understands it."""
        said = dict(body)
        if self.whole:
            said["stream"] = False
            said.pop("stream_options", None)
        if not self.flagged:
            for flag in FLAGS:
                said.pop(flag, None)
        if request.choices and self.choosing:
            said |= _CHOOSING[self.choosing](request.choices)
        for name, neutral in OPEN.items():
            if name in self.honoured and (request.sampling.temperature or name == "repetition_penalty"):
                said.setdefault(name, neutral)
        if "repetition_penalty" in said:
            said[self.repetition] = said.pop("repetition_penalty")
        if banned := [self.marks[mark] for mark in thinking.banned(request) if mark in self.marks]:
            said["logit_bias"] = {str(token): -PUSH for token in banned}
        return said

    def ignored(self, request: GenerationRequest) -> list[str]:
        """The wishes of a request that this server would not follow."""
        sampling = request.sampling
        wished = [name for name in SAMPLERS if getattr(sampling, name) != getattr(NEUTRAL, name)]
        alone = [name for name in (*wished, *(["stop"] if request.stop else [])) if name not in self.honoured]
        begun = bool(request.prefix or request.thinking)
        return alone + [
            f"{kind} after a beginning" for kind in BOUND if begun and getattr(request, kind) and kind not in self.after
        ]


def _either(choices: Sequence[str]) -> str:
    """A regular expression that matches these texts and nothing else."""
    special = set("\\.^$|?*+()[]{}")
    escaped = ("".join("\\" + c if c in special else {"\n": "\\n"}.get(c, c) for c in choice) for choice in choices)
    return "(" + "|".join(escaped) + ")"


def literal(text: str) -> str:
    """A text as GBNF, the grammars of llama.cpp, writes it."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


def bound(schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's words for an answer that is JSON of a schema."""
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    }


_CHOOSING: Mapping[Choosing, Callable[[Sequence[str]], dict[str, Any]]] = {
    "structured_outputs": lambda choices: {"structured_outputs": {"choice": list(choices)}},
    "guided_choice": lambda choices: {"guided_choice": list(choices)},
    "regex": lambda choices: {"regex": _either(choices)},
    "grammar": lambda choices: {"grammar": "root ::= " + " | ".join(map(literal, choices))},
    "schema": lambda choices: bound({"type": "string", "enum": list(choices)}),
}
"""vLLM from 0.12 on, vLLM before that, SGLang, llama-server; and a text in JSON, which all that know schemas know."""


# --- what is heard -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """An answer as it came, before anything is made of it; counts are None where the server tells none."""

    text: str = ""
    thought: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None

    @property
    def counted(self) -> bool:
        return bool(self.prompt) and self.completion is not None


class Ask(Protocol):
    """Asks the server once, in a manner, with `more` in the body; raises MedserveError as an engine does."""

    async def __call__(self, request: GenerationRequest, manner: Manner, **more: Any) -> Heard: ...


Context = Callable[[], Awaitable[int | None]]
"""How many tokens the server says its model's context has; None where it does not say."""

Token = Callable[[str], Awaitable[int | None]]
"""The id of a text that is one token of the model, None where it is not, or the server cannot say."""


@dataclass(frozen=True)
class Found:
    """What a server was seen to do. `image_tokens` is 0 and `unseeing` says why where it does not see.

    `record` tells of every ability in words.
    """

    manner: Manner = Manner()
    abilities: frozenset[str] = frozenset()
    image_tokens: int = 0
    unseeing: str = ""
    context: int = 0
    record: Mapping[str, str] = field(default_factory=dict)


class _Unseen(Exception):
    """An ability was not seen; the reason."""


class _Late(_Unseen):
    """Nor was anything else: there was no answer in time."""


async def look(ask: Ask, drawings: tuple[Image, Image], *, assumed: int, context: Context, token: Token) -> Found:
    """Ask for everything once. Where the server does not tell its `context`, `assumed` is taken for it, in tokens.

    Raises ModelFailed when the server does not answer plain questions, does not count tokens, or hangs.
    """
    probing = _Probing(ask, drawings, Found(context=assumed), token)
    await probing.words()
    await probing.size(context)  # some servers know it only of a model that has been asked
    steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("vision", probing.vision),
        ("schema", probing.schema),
        ("choices", probing.choices),
        ("prefix", probing.prefix),
        ("thinking", probing.thinking),
        ("sampling", probing.sampling),
        ("overflow", probing.overflow),
    ]
    for number, (name, step) in enumerate(steps, 1):
        tell(Progress(f"probing: {name}", number / (len(steps) + 1)))
        await probing.tried(name, step)
    return probing.found


class _Probing:
    """One look at a server, as it goes."""

    def __init__(self, ask: Ask, drawings: tuple[Image, Image], found: Found, token: Token) -> None:
        self.found = found
        self._ask = ask
        self._drawings = drawings
        self._told = False
        self._token = token
        self._late = 0
        self._own = Heard()

    # --- plain words -----------------------------------------------------------------------------------------------

    async def words(self) -> None:
        """The model's own greedy answer, which the others are held against; with counts, and log-probabilities if any.

        The server's reason is passed on when even that fails.
        """
        tell(Progress("probing: words", 0.0))
        failed: MedserveError | None = None
        answered = False
        for manner in (Manner(), Manner(whole=True)):
            for detail in (2, None):
                try:
                    own = await self._ask(_asked(top_logprobs=detail), manner)
                except InvalidRequest as error:
                    failed = error
                    continue
                answered = True
                if own.counted:
                    self._own = own
                    self._learnt(own, manner)
                    return
        if failed is not None and not answered:
            raise failed
        raise ModelFailed("the server tells no counts of tokens, without which nothing that it sees can be checked")

    def _learnt(self, own: Heard, manner: Manner) -> None:
        told = _plausible(own.logprobs, 2)
        self.found = replace(
            self.found,
            manner=manner,
            abilities=frozenset({"logprobs"}) if told else frozenset(),
            record={
                "probed_counts": "told, but not in streams: answers come whole" if manner.whole else "told in streams",
                "probed_cached": "told" if own.cached is not None else "not told: counted as 0",
                "probed_logprobs": "honoured" if told else "not honoured",
            },
        )

    async def size(self, context: Context) -> None:
        """The context, as the server tells it."""
        told = await context()
        self._told = told is not None
        words = "told by the server" if self._told else "not told: that of the settings is assumed"
        record = {**self.found.record, "probed_context": words}
        self.found = replace(self.found, context=told or self.found.context, record=record)

    # --- each ability ----------------------------------------------------------------------------------------------

    async def tried(self, name: str, step: Callable[[], Awaitable[str]]) -> None:
        """One ability, and what to record of it."""
        try:
            words = await step()
        except _Unseen as unseen:
            words = f"not honoured: {unseen}"
            if name == "vision":
                self.found = replace(self.found, unseeing=str(unseen))
        self.found = replace(self.found, record={**self.found.record, f"probed_{name}": words})

    async def vision(self) -> str:
        """Two pictures take tokens, and get answers that differ in words or in log-probabilities."""
        first, second = [await self._shown(drawing) for drawing in self._drawings]
        more = min(first.prompt or 0, second.prompt or 0) - (self._own.prompt or 0)
        if more <= 0:
            raise _Unseen("a picture adds nothing to the prompt, so it was not read")
        if _alike(first, second):
            raise _Unseen("two different pictures got the same answer")
        self.found = replace(self.found, image_tokens=more)
        return f"honoured: two pictures were told apart, at {more} tokens each"

    async def schema(self) -> str:
        """The one object that the schema allows is the answer."""
        heard = await self._heard(_asked(schema=SCHEMA, max_tokens=JSON_TOKENS))
        if _json(heard.text) != {"zq7": WORD}:
            raise _Unseen("the answer was not bound by it")
        self._able("schema")
        return "honoured by response_format"

    async def choices(self) -> str:
        """One of two odd words is the answer; servers have their own names for this, and ignore the others'."""
        for choosing in _CHOOSING:
            manner = replace(self.found.manner, choosing=choosing)
            try:
                heard = await self._heard(_asked(choices=(WORD, OTHER), max_tokens=JSON_TOKENS), manner)
            except _Unseen:
                continue
            said = _json(heard.text) if choosing == "schema" else heard.text
            if said in (WORD, OTHER) and heard.finish is Finish.STOP:
                self._able("choices", choosing=choosing)
                return f"honoured by {choosing}"
        raise _Unseen("no way of asking that is known bound the answer")

    async def prefix(self) -> str:
        """The model goes on from its own first words as it did by itself; an odd word shows whether they are echoed."""
        begun, rest = _halves(self._own.text)
        if not rest:
            raise _Unseen("the model's answers are too short to tell")
        for flagged in (True, False):
            manner = replace(self.found.manner, flagged=flagged)
            try:
                odd = await self._heard(_asked(prefix=WORD), manner)
                own = await self._heard(_asked(prefix=begun), manner)
            except _Unseen:
                continue
            echoes = odd.text.startswith(WORD)
            said = own.text.removeprefix(begun) if echoes else own.text
            if said.startswith(rest) and (echoes or not own.text.startswith(begun)):
                self._able("prefix", flagged=flagged, echoes=echoes)
                await self._bound_after()
                after = self.found.manner.after
                alone = [kind for kind in BOUND if kind in self.found.abilities and kind not in after]
                return (
                    "honoured"
                    + (" by continue_final_message" if flagged else "")
                    + (", echoed" if echoes else "")
                    + (f"; not together with {' or '.join(alone)}" if alone else "")
                )
        raise _Unseen("the answer did not go on from it")

    async def _bound_after(self) -> None:
        """What binds a whole answer may be refused, or forgotten, after a beginning."""
        wishes: dict[str, dict[str, Any]] = {"schema": {"schema": SCHEMA}, "choices": {"choices": (WORD, OTHER)}}
        for kind in BOUND:
            if kind not in self.found.abilities:
                continue
            heard = await self._or_none(_asked(prefix=OTHER, max_tokens=JSON_TOKENS, **wishes[kind]))
            said = heard.text.removeprefix(OTHER if self.found.manner.echoes else "") if heard is not None else ""
            plain = kind == "choices" and self.found.manner.choosing != "schema"
            if (said if plain else _json(said)) in ({"zq7": WORD}, WORD, OTHER):
                manner = self.found.manner
                self.found = replace(self.found, manner=replace(manner, after=manner.after | {kind}))

    async def thinking(self) -> str:
        """The marks of thinking are tokens that can be put before an answer, seen in it, and forbidden."""
        if "prefix" not in self.found.abilities:
            raise _Unseen("an answer cannot be made to begin with a mark")
        marks = {mark: await self._token(mark) for mark in (OPENING, CLOSING)}
        known = {mark: token for mark, token in marks.items() if token is not None}
        if len(known) < len(marks):
            raise _Unseen("the server does not say which tokens the marks are")
        request = _asked(thinking=2, max_tokens=4)
        stage = replace(thinking.first_stage(request), stop=())
        heard = await self._heard(stage, logit_bias={str(known[CLOSING]): PUSH})
        plain = await self._heard(thinking.instructed(_asked(max_tokens=1)))
        more = (heard.prompt or 0) - (plain.prompt or 0)
        said = heard.text.removeprefix(thinking.beginning(stage))
        if not said.startswith(CLOSING) or not 0 < more <= OPENING_TOKENS:
            raise _Unseen("the marks are not taken, or not shown, as tokens")
        self._able("thinking", marks=known)
        return "honoured by marks"

    async def sampling(self) -> str:
        """What is asked of the choice of tokens changes an answer as it must.

        `presence_penalty` and `frequency_penalty` are OpenAI's own and may change nothing in a short answer: they are
        taken at the server's word.
        """
        self._follows("presence_penalty", "frequency_penalty")
        own, again = await self._heard(_asked(RANDOM)), await self._heard(_asked(RANDOM))
        if own.text != again.text:
            raise _Unseen("the likeliest answer is not the same each time, so that nothing can be held against it")
        hot = await self._drawn(own)
        for name, narrow in NARROW.items():
            await self._narrowed(name, own, hot, narrow)
        await self._penalised(own)
        await self._stopped(own)
        names = (*SAMPLERS, "stop")
        yes = [name for name in names if name in self.found.manner.honoured]
        no = [name for name in names if name not in self.found.manner.honoured]
        return f"honoured: {', '.join(yes) or 'none'}" + (f"; not honoured: {', '.join(no)}" if no else "")

    async def overflow(self) -> str:
        """A prompt that is too long is refused; servers that cut it in silence would answer about half a question."""
        tokens = self.found.context + SPARE
        try:
            heard = await self._heard(_asked(text=" 7" * tokens, max_tokens=1))
        except _Late:
            self._cuts(self.found.context)
            return "unknown: no answer in time; what may not fit is refused here"
        except _Unseen:
            return "honoured: a prompt that is too long is refused"
        if (heard.prompt or 0) >= tokens:
            return "holds more than it says"
        self._cuts(self.found.context if self._told else min(self.found.context, heard.prompt or 1))
        return "not honoured: a prompt that is too long is cut in silence; what may not fit is refused here"

    # --- sampling --------------------------------------------------------------------------------------------------

    async def _drawn(self, own: Heard) -> Sampling | None:
        """Drawn hot, an answer is not the likeliest, drawn cold it is, and one seed gives one answer.

        Returns what gave another answer, None where nothing did.
        """
        for seed in SEEDS:
            hot = Sampling(temperature=HOTTEST, seed=seed)
            first = await self._or_none(_asked(RANDOM, sampling=hot))
            if first is not None and first.text != own.text:
                cold = await self._or_none(_asked(RANDOM, sampling=replace(hot, temperature=COLDEST)))
                if cold is None or cold.text != own.text:
                    return None
                self._follows("temperature")
                others = [await self._or_none(_asked(RANDOM, sampling=hot)) for _ in range(AGAIN)]
                if all(other is not None and other.text == first.text for other in others):
                    self._follows("seed")
                return hot
        return None

    async def _narrowed(self, name: str, own: Heard, hot: Sampling | None, narrow: Mapping[str, Any]) -> None:
        """Narrowed to the likeliest token, the very draw that gave another answer gives the model's own.

        Without a seed it might by chance.
        """
        if hot is None:
            return
        request = _asked(RANDOM, sampling=replace(hot, **narrow))
        heard = [await self._or_none(request) for _ in range(1 if "seed" in self.found.manner.honoured else AGAIN)]
        if all(answer is not None and answer.text == own.text for answer in heard):
            self._follows(name)

    async def _penalised(self, own: Heard) -> None:
        """A question that holds the words of its likely answer is answered otherwise where these are penalised."""
        request = _asked(f"{RANDOM} {own.text}")
        free = await self._or_none(request)
        penalised = replace(request, sampling=Sampling(repetition_penalty=2.0))
        for name in ("repetition_penalty", "repeat_penalty"):
            manner = replace(self.found.manner, repetition=name)
            heard = await self._or_none(penalised, manner) if free is not None else None
            if heard is not None and free is not None and heard.text != free.text:
                self.found = replace(self.found, manner=manner)
                self._follows("repetition_penalty")
                return

    async def _stopped(self, own: Heard) -> None:
        """The answer ends before its own third word."""
        words = own.text.split()
        before, found, _ = own.text.partition(words[2]) if len(words) > 2 else ("", "", "")
        heard = await self._or_none(_asked(RANDOM, stop=(words[2],))) if found else None
        if heard is not None and heard.text == before and heard.finish is Finish.STOP:
            self._follows("stop")

    # --- asking ----------------------------------------------------------------------------------------------------

    async def _shown(self, drawing: Image) -> Heard:
        detail = 0 if "logprobs" in self.found.abilities else None
        message = Message("user", (drawing, QUESTION))
        return await self._heard(GenerationRequest((message,), max_tokens=SEEN_TOKENS, top_logprobs=detail))

    async def _or_none(self, request: GenerationRequest, manner: Manner | None = None) -> Heard | None:
        try:
            return await self._heard(request, manner)
        except _Unseen:
            return None

    async def _heard(self, request: GenerationRequest, manner: Manner | None = None, **more: Any) -> Heard:
        """The answer; raises _Unseen where there is none, and ServerLost or ModelFailed where there will be no more."""
        try:
            return await self._ask(request, manner or self.found.manner, **more)
        except (ServerLost, ModelFailed):
            raise
        except EngineTimeout:
            self._late += 1
            if self._late >= LATE:
                raise ModelFailed("the server answered at first and then hung; look at it and load again") from None
            raise _Late("no answer in time") from None
        except InvalidRequest:
            raise _Unseen("the server refuses it") from None
        except MedserveError:
            raise _Unseen("the server fails at it") from None

    def _able(self, ability: str, **manner: Any) -> None:
        found = self.found
        self.found = replace(
            found,
            abilities=found.abilities | {ability},
            manner=replace(found.manner, **manner) if manner else found.manner,
        )

    def _follows(self, *names: str) -> None:
        manner = self.found.manner
        self.found = replace(self.found, manner=replace(manner, honoured=manner.honoured | set(names)))

    def _cuts(self, context: int) -> None:
        self.found = replace(self.found, context=context, manner=replace(self.found.manner, cuts=True))


def _asked(text: str = QUESTION, **wishes: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", (text,)),), **{"max_tokens": TOKENS, **wishes})


def _plausible(logprobs: Sequence[TokenLogprob], alternatives: int) -> bool:
    """Whether these can be log-probabilities of likeliest tokens: some servers send empty ones, or zeros."""
    return bool(logprobs) and all(
        len(entry.top) == alternatives
        and entry.logprob <= 0
        and sum(exp(min(value, 1.0)) for _, value in entry.top) <= 1 + 1e-3
        for entry in logprobs
    )


def _alike(first: Heard, second: Heard) -> bool:
    if (first.text, first.thought) != (second.text, second.thought):
        return False
    pairs = zip(first.logprobs, second.logprobs, strict=False)
    return all(abs(one.logprob - other.logprob) <= LIKENESS for one, other in pairs)


def _halves(text: str) -> tuple[str, str]:
    """The first half of an answer, cut at a space, and the two words after it; both empty where there are too few.

    Where the answer repeats itself, going on could not be told from beginning anew, and both are empty too.
    """
    words = text.split(" ")
    middle = len(words) // 2
    begun, rest = " ".join(words[:middle]), " " + " ".join(words[middle : middle + 2])
    if len(words) < 5 or not begun.strip() or text.startswith(rest.strip()):
        return "", ""
    return begun, rest


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
