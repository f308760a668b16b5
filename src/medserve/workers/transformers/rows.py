"""One conversation on its way through the network: what it has read and said, and how it comes to its next token."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch

from medserve.errors import EngineError, MedserveError
from medserve.workers.transformers.cache import Key
from medserve.workers.transformers.grammar import Grammars
from medserve.workers.transformers.network import TEXT
from medserve.workers.transformers.prompts import Picture, Prompt
from medserve.workers.transformers.sampling import NEVER, Sampler
from medserve.workers.transformers.transcript import Spelling, Transcript
from medserve.workers.transformers.wishes import Alternative, Emit, End, Failure, Scores, Spent, Ticket, Token, Wish

NOT_FINITE = "the network gave no finite numbers for this request; load the model as bfloat16 or float32"


@dataclass(frozen=True, eq=False)
class Request:
    """What was handed in: an answer that is wished for, or labels to be scored after a prompt.

    Two that ask the same are two all the same.
    """

    prompt: Prompt
    keys: tuple[Key, ...]
    emit: Emit
    ticket: Ticket
    wish: Wish | None = None
    labels: tuple[tuple[int, ...], ...] = ()
    banned: tuple[int, ...] = ()


def keys_of(prompt: Prompt) -> tuple[Key, ...]:
    """What each token of a prompt is to the network: the soft tokens of one picture are not those of another."""
    keys: list[Key] = list(prompt.ids)
    for picture in prompt.pictures:
        for index in range(prompt.image_tokens):
            keys[picture.start + index] = (picture.digest, index)
    return tuple(keys)


def blocks_of(prompt: Prompt) -> list[int]:
    """The number of the picture that each token belongs to; TEXT for words."""
    blocks = [TEXT] * len(prompt.ids)
    for number, picture in enumerate(prompt.pictures):
        blocks[picture.start : picture.start + prompt.image_tokens] = [number] * prompt.image_tokens
    return blocks


def whole(prompt: Prompt, stop: int) -> int:
    """The last place up to `stop` at which a prompt can be cut: never inside a picture."""
    for picture in prompt.pictures:
        if picture.start < stop < picture.start + prompt.image_tokens:
            return picture.start
    return stop


class Row:
    """A request that has a slot.

    `held` counts the tokens whose keys and values the slot has, the first of `keys`. `pending` is the last token of an
    answer, which the network has not seen yet.
    """

    def __init__(self, request: Request, number: int, slot: int, held: int) -> None:
        self.request = request
        self.number = number
        self.slot = slot
        self.held = held
        self.pending: int | None = None
        self.keys: list[Key] = list(request.keys)
        self.blocks = blocks_of(request.prompt)
        self.features: dict[int, torch.Tensor] = {}
        self.encodes = 0
        self._cached = held
        self._entered = self._read = perf_counter()

    @property
    def prompt(self) -> Prompt:
        return self.request.prompt

    @property
    def reading(self) -> bool:
        """Whether tokens of the prompt are still to be read."""
        return self.held < len(self.prompt.ids)

    def pictures(self, part: range) -> list[Picture]:
        """The pictures in a part of the prompt."""
        return [picture for picture in self.prompt.pictures if picture.start in part]

    def part(self, most: int) -> range:
        """The next tokens of the prompt to read in one pass: at most so many, but a picture is read whole."""
        stop = whole(self.prompt, min(self.held + most, len(self.prompt.ids)))
        return range(self.held, stop if stop > self.held else self.held + self.prompt.image_tokens)

    def has_read(self, stop: int) -> None:
        """The slot has everything before `stop` now."""
        self.held = stop
        self.features = {}
        if not self.reading:
            self._read = perf_counter()

    def fail(self, error: MedserveError) -> None:
        self.request.emit(Failure(error))

    def cancel(self) -> None:
        self.request.emit(End("cancelled", "", self.spent()))

    def spent(self, completion: int = 0) -> Spent:
        """What this took until now."""
        now, read = perf_counter(), not self.reading
        return Spent(
            prompt=len(self.prompt.ids),
            completion=completion,
            cached=self._cached,
            image=len(self.prompt.pictures) * self.prompt.image_tokens,
            encodes=self.encodes,
            prompt_seconds=(self._read if read else now) - self._entered,
            completion_seconds=now - self._read if read else 0.0,
        )


class Scorer(Row):
    """A row whose labels are scored as soon as its prompt is read."""

    def tell(self, logprobs: Sequence[float]) -> None:
        self.request.emit(Scores(tuple(logprobs), self.spent()))


@dataclass(frozen=True)
class Choice:
    """The next token of a row, and what is to be said of its probability."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Language:
    """What all answers of a model have in common.

    `ends` are the tokens that end an answer, `vocabulary` is how many tokens the network knows, on `device` are its
    logits, and `context` is how many tokens a prompt and its answer may have together.
    """

    spelling: Spelling
    grammars: Grammars
    ends: frozenset[int]
    vocabulary: int
    device: torch.device
    context: int


class Writer(Row):
    """A row that answers."""

    def __init__(self, request: Request, wish: Wish, number: int, slot: int, held: int, language: Language) -> None:
        super().__init__(request, number, slot, held)
        self.wish = wish
        self.said = 0
        self.finished = False
        self._language = language
        self._sampler = Sampler(wish.sampling, request.prompt.ids, language.vocabulary, language.device)
        self._transcript = Transcript(language.spelling, wish.stop)
        self._matcher = language.grammars.matcher(wish.grammar) if wish.grammar is not None else None

    @property
    def plain(self) -> bool:
        """Whether the likeliest token that is not banned is the next one."""
        return self._sampler.plain and self._matcher is None

    def propose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token by the logits [vocabulary], an integer left on their device.

        It changes nothing, so a pass that fails can be repeated.
        """
        if self._matcher is not None:
            allowed = self._matcher.allowed(logits.shape[-1], logits.device)
            logits = logits.masked_fill(~allowed, NEVER)
        return self._sampler.choose(logits)

    def say(self, choice: Choice) -> None:
        """Take a token as the next one and tell of it; `finished` once it was the last."""
        self.said += 1
        if choice.token in self._language.ends:
            self._end("stop")
            return
        self._sampler.note(choice.token)
        if self._matcher is not None:
            self._matcher.accept(choice.token)
        piece = self._language.spelling.piece
        top = tuple(Alternative(piece(token), logprob) for token, logprob in choice.top)
        text = self._transcript.add(choice.token)
        self.request.emit(Token(choice.token, text, piece(choice.token), choice.logprob, top))
        self.keys.append(choice.token)
        self.pending = choice.token
        if self._transcript.stopped or (self._matcher is not None and self._matcher.finished):
            self._end("stop")
        elif self.said == self.wish.max_tokens or len(self.keys) == self._language.context:
            self._end("length")

    def cancel(self) -> None:
        self._end("cancelled")

    def _end(self, finish: Literal["stop", "length", "cancelled"]) -> None:
        self.finished = True
        self.request.emit(End(finish, self._transcript.finish(), self.spent(self.said)))


def choose(rows: Sequence[Writer], logits: torch.Tensor) -> list[Choice | MedserveError]:
    """The next token of each row by its raw logits [rows, vocabulary]; an error where there is none.

    Nothing is read back from the device before everything that is wanted is on its way there.
    """
    sayable = _without_banned(rows, logits)
    likeliest = sayable.argmax(-1)
    proposed: list[torch.Tensor] = []
    errors: dict[int, MedserveError] = {}
    for number, row in enumerate(rows):
        try:
            proposed.append(likeliest[number] if row.plain else row.propose(sayable[number]))
        except MedserveError as error:  # its grammar: the other rows have nothing to do with it
            errors[number] = error
            proposed.append(likeliest[number])
    chosen = torch.stack(proposed)
    told = _probabilities(rows, logits, chosen)
    tokens, finite = torch.stack([chosen, logits.amax(-1).isfinite().long()]).tolist()
    errors = {number: EngineError(NOT_FINITE) for number, fine in enumerate(finite) if not fine} | errors
    return [errors.get(number) or Choice(token, *told.get(number, ())) for number, token in enumerate(tokens)]


def _without_banned(rows: Sequence[Writer], logits: torch.Tensor) -> torch.Tensor:
    banned = [(number, token) for number, row in enumerate(rows) for token in row.wish.banned]
    if not banned:
        return logits
    numbers, tokens = torch.tensor(banned, device=logits.device).T
    return logits.index_put((numbers, tokens), logits.new_tensor(NEVER))


def _probabilities(
    rows: Sequence[Writer], logits: torch.Tensor, chosen: torch.Tensor
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """The log-probability of the chosen token and of the likeliest ones, for the rows that want to know."""
    wanted = {number: row.wish.top_logprobs for number, row in enumerate(rows) if row.wish.top_logprobs is not None}
    if not wanted:
        return {}
    lines = logits[list(wanted)].log_softmax(-1)
    own = lines.gather(1, chosen[list(wanted), None])
    best = lines.topk(max(wanted.values()))
    values, ids = torch.cat([own, best.values], dim=1).tolist(), best.indices.tolist()
    return {
        number: (line[0], tuple(zip(tokens[:count], line[1 : count + 1], strict=True)))
        for (number, count), line, tokens in zip(wanted.items(), values, ids, strict=True)
    }
