"""Answers many conversations at once, each exactly as if it were alone, and computes what they share only once.

One thread owns the network and runs `Decoder.run`. In each round it gives free slots to those who wait, reads a part of
the prompts that are not read yet, in one pass, and writes one token of every answer, in another. So conversations join
and leave between any two tokens.

A conversation never reads what is known of its beginning: a slot at work, or one of the conversations that ended
lately, has its keys and values, and they are copied. One that comes while another is reading the same beginning waits
for it. Exact means: with float32 weights, greedy answers are token for token those of transformers' own `generate()`,
whatever was shared or batched; with fewer bits, sums are rounded otherwise when they are computed together, as in
transformers itself.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from itertools import count
from math import isnan
from typing import TYPE_CHECKING

import torch

from medserve.errors import (
    ContextOverflow,
    DeviceFull,
    EngineError,
    InvalidRequest,
    MedserveError,
    ModelFailed,
    NotSupported,
    ServiceStopping,
    WorkerCrashed,
)
from medserve.workers.transformers import passes
from medserve.workers.transformers.cache import Key, Prefixes, Slots, common
from medserve.workers.transformers.grammar import Grammars
from medserve.workers.transformers.network import Network
from medserve.workers.transformers.prompts import END_OF_TURN, Picture, Prompt
from medserve.workers.transformers.rows import (
    NOT_FINITE,
    Choice,
    Language,
    Request,
    Row,
    Scorer,
    Writer,
    choose,
    keys_of,
    whole,
)
from medserve.workers.transformers.transcript import Spelling
from medserve.workers.transformers.wishes import Emit, End, Failure, Spent, Ticket, Wish

if TYPE_CHECKING:
    from medserve.workers.transformers.loading import Loaded
    from medserve.workers.transformers.vision import Vision

log = logging.getLogger(__name__)

Outcome = Choice | list[float] | MedserveError
"""What a row comes to: its next token, the log-probabilities of its labels, or the reason why it fails."""

CHUNK = 2048
CHUNK_ON_CPU = 256
"""Tokens read in one pass, of all prompts together: those who write wait no longer than that for their next token, and
who is cancelled reads no longer. Both are enough to keep the device busy."""
WORTH_WAITING = 16
"""Shared tokens for which a conversation waits until another has read them: no picture has fewer."""

NO_MEMORY = (
    "the device has no memory left for this request; send fewer or smaller ones at a time, or lower the model's "
    "`slots` or `context`"
)


class Decoder:
    """Holds `slots` conversations of up to `context` tokens at a time, and `kept_bytes` of what ended ones left.

    `causal_images` hides from a picture's tokens what follows them in the picture: wrong for Gemma 3, and what
    `verify` recognises builds by that are wrong in this way.
    """

    def __init__(
        self,
        loaded: "Loaded",
        vision: "Vision | None",
        *,
        slots: int,
        context: int,
        kept_bytes: int,
        causal_images: bool = False,
        chunk: int | None = None,
    ) -> None:
        network = self._network = Network(loaded.model)
        ends = _ends(loaded)
        self.grammars = Grammars(loaded.tokenizer, network.vocabulary, ends)
        self._language = Language(
            Spelling(loaded.tokenizer), self.grammars, frozenset(ends), network.vocabulary, network.device, context
        )
        self._vision = vision
        self._causal = causal_images
        self._count = slots
        self._chunk = chunk or (CHUNK_ON_CPU if network.device.type == "cpu" else CHUNK)
        try:
            self._slots = Slots(network.config, network.devices, network.dtype, count=slots, capacity=context)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            raise ModelFailed(
                f"the device has no memory for {slots} slots of {context} tokens beside the weights; lower the model's "
                "`slots` or `context`, or end what else computes there"
            ) from None
        self._prefixes = Prefixes(kept_bytes)
        self._rows: list[Row] = []  # the row at index i has slot i
        self._turn = 0  # the slot from which on the next prompts are read
        self._numbers = count()
        self._waiting: list[Request] = []  # the model's thread alone; what others hand in comes through the inbox
        self._inbox: list[Request] = []
        self._news = threading.Condition()
        self._closed = False

    # --- any thread -----------------------------------------------------------------------------------------------

    def submit(self, wish: Wish, emit: Emit) -> Ticket:
        """Have a wish answered; raises ContextOverflow or NotSupported at once, everything later is an event."""
        self._check(wish.prompt, answer=1)
        return self._hand_in(Request(wish.prompt, keys_of(wish.prompt), emit, Ticket(), wish=wish))

    def score(
        self, prompt: Prompt, labels: Sequence[tuple[int, ...]], emit: Emit, *, banned: tuple[int, ...] = ()
    ) -> Ticket:
        """Have log P(label | prompt) told for each label, given as all its token ids, the end of turn included.

        The probabilities are those of a model that cannot say `banned` tokens.
        """
        if not labels or not all(labels):
            raise InvalidRequest("labels must not be empty", param="labels")
        self._check(prompt, answer=max(map(len, labels)))
        return self._hand_in(Request(prompt, keys_of(prompt), emit, Ticket(), labels=tuple(labels), banned=banned))

    def close(self) -> None:
        """Let `run` return after its round; what is not answered then fails."""
        with self._news:
            self._closed = True
            self._news.notify()

    @property
    def live(self) -> int:
        """How many conversations have a slot now."""
        return len(self._rows)

    @property
    def kept(self) -> int:
        """The bytes that ended conversations take."""
        return self._prefixes.bytes

    def _check(self, prompt: Prompt, answer: int) -> None:
        if prompt.pictures and self._vision is None:
            raise NotSupported("this model was loaded without a vision part and cannot see", param="images")
        if not prompt.ids:
            raise InvalidRequest("the prompt is empty", param="messages")
        if len(prompt.ids) + answer > self._slots.capacity:
            raise ContextOverflow(
                f"the prompt has {len(prompt.ids)} tokens and the context of {self._slots.capacity} must hold the "
                "answer too; shorten it or raise the model's `context`",
                param="messages",
            )

    def _hand_in(self, request: Request) -> Ticket:
        with self._news:
            if self._closed:
                raise ServiceStopping("the model is being unloaded; ask again when it is loaded")
            self._inbox.append(request)
            self._news.notify()
        return request.ticket

    # --- the model's thread ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        """Answer until `close`. Raises torch.AcceleratorError when the device is lost: the process must end then."""
        try:
            while self._gather():
                self._drop_cancelled()
                self._admit()
                self._read()
                self._write()
        except BaseException:
            self._fail_all(WorkerCrashed("the device failed; the worker is started anew by the next request"))
            raise
        self._fail_all(ServiceStopping("the model was unloaded before the answer was complete; ask again"))

    def _gather(self) -> bool:
        """Take in what was handed in, waiting for it when there is nothing to do; False once closed."""
        with self._news:
            self._news.wait_for(lambda: self._inbox or self._waiting or self._rows or self._closed)
            self._waiting += self._inbox
            self._inbox.clear()
            return not self._closed

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._waiting if request.ticket.cancelled]:
            self._waiting.remove(request)
            request.emit(End("cancelled", "", Spent(prompt=len(request.prompt.ids))))
        for row in [row for row in self._rows if row.request.ticket.cancelled]:
            row.cancel()
            self._leave(row)

    # --- joining and leaving --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free slots to those who wait, in their order; only who gains by waiting lets others go first."""
        for request in list(self._waiting):
            if len(self._rows) == self._count:
                return
            if self._gains_by_waiting(request):
                continue
            try:
                self._enter(request)
            except Exception as error:  # whatever it is, one request fails and the others go on
                if (told := self._told(error)) is None:
                    return
                request.emit(Failure(told))
            self._waiting.remove(request)

    def _gains_by_waiting(self, request: Request) -> bool:
        coming = [common(row.request.keys, request.keys) for row in self._rows if row.reading]
        return bool(coming) and max(coming) >= WORTH_WAITING + self._known(request.keys)[0]

    def _known(self, keys: Sequence[Key]) -> tuple[int, Row | None]:
        """The longest beginning that is known, and the row at work that has it; None for the ended conversations."""
        best, source = self._prefixes.match(keys), None
        for row in self._rows:
            if (shared := common(row.keys[: row.held], keys)) > best:
                best, source = shared, row
        return best, source

    def _enter(self, request: Request) -> None:
        """Give a request the next slot, and into it what is known of its beginning."""
        slot, (known, source) = len(self._rows), self._known(request.keys)
        held = whole(request.prompt, min(known, len(request.keys) - 1))  # the last token's logits are wanted
        row = self._row(request, slot, held)
        if source is not None:
            self._slots.prepare(held)
            self._slots.copy(source.slot, slot, held)
        elif held:
            self._prefixes.restore(request.keys[:held], self._slots, slot)
        self._rows.append(row)

    def _row(self, request: Request, slot: int, held: int) -> Row:
        if request.wish is None:
            return Scorer(request, next(self._numbers), slot, held)
        return Writer(request, request.wish, next(self._numbers), slot, held, self._language)

    def _leave(self, row: Row, *, clean: bool = False) -> None:
        """Take a row out, keep what it left, and close the gap so that the slots in use are the first ones."""
        if clean:
            self._slots.clean(row.slot)
        else:
            self._keep(row)
        last = self._rows.pop()
        if last is not row:
            self._slots.copy(last.slot, row.slot, last.held)
            last.slot = row.slot
            self._rows[last.slot] = last

    def _keep(self, row: Row) -> None:
        try:
            self._prefixes.keep(row.keys[: row.held], self._slots, row.slot)
        except Exception as error:  # it may have come half way; what was answered is right all the same
            self._told(error)
            self._prefixes.clear()

    # --- reading and writing --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read on in neighbouring slots; those between which others write take turns."""
        reading = [row for row in self._rows if row.reading]
        if reading:
            turn = next((number for number, row in enumerate(reading) if row.slot >= self._turn), 0)
            first = reading[turn].slot
            neighbours = [row for slot, row in enumerate(reading[turn:], first) if row.slot == slot]
            self._turn = first + len(neighbours)
            self._try(self._read_on, neighbours)

    def _read_on(self, rows: Sequence[Row]) -> None:
        """Read a part of the prompts of rows in neighbouring slots; those that are through say their first token."""
        parts = [row.part(max(1, self._chunk // len(rows))) for row in rows]
        for row, part in zip(rows, parts, strict=True):
            self._see(row, row.pictures(part))
        logits = passes.read(self._network, self._slots, rows, parts, causal=self._causal)
        ready = [number for number, row in enumerate(rows) if parts[number].stop == len(row.prompt.ids)]
        outcomes = self._outcomes([rows[number] for number in ready], logits[ready]) if ready else []
        for row, part in zip(rows, parts, strict=True):
            row.has_read(part.stop)
        self._tell(outcomes)

    def _see(self, row: Row, pictures: Sequence[Picture]) -> None:
        """Encode what is read now and no more: it can take seconds, in which nobody writes and none can leave."""
        row.features = {}
        if pictures:
            assert self._vision is not None  # noqa: S101 - `_check` refused pictures without it
            features, encodes = self._vision.features(pictures)
            row.features = {picture.start: one for picture, one in zip(pictures, features, strict=True)}
            row.encodes += encodes

    def _write(self) -> None:
        writing = [row for row in self._rows if row.pending is not None]
        if writing:
            self._try(self._write_on, writing)

    def _write_on(self, rows: Sequence[Row]) -> None:
        """The network sees each answer's last token and says what follows."""
        pending, held = [row.pending for row in self._rows], [row.held for row in self._rows]
        logits = passes.write(self._network, self._slots, pending, held)
        outcomes = self._outcomes(rows, logits[[row.slot for row in rows]])
        for row in rows:
            row.held += 1
        self._tell(outcomes)

    def _outcomes(self, rows: Sequence[Row], logits: torch.Tensor) -> list[tuple[Row, Outcome]]:
        """What the raw logits [rows, vocabulary] mean for each row; changes none of them."""
        found: dict[int, Outcome] = {}
        writers = {number: row for number, row in enumerate(rows) if isinstance(row, Writer)}
        if writers:
            found.update(zip(writers, choose(list(writers.values()), logits[list(writers)]), strict=True))
        for number, row in enumerate(rows):
            if isinstance(row, Scorer):
                asked = row.request
                weights = passes.weigh(
                    self._network, self._slots, row, logits[number], asked.labels, banned=asked.banned
                )
                found[number] = EngineError(NOT_FINITE) if any(map(isnan, weights)) else weights
        return [(row, found[number]) for number, row in enumerate(rows)]

    def _tell(self, outcomes: Sequence[tuple[Row, Outcome]]) -> None:
        for row, outcome in outcomes:
            if isinstance(outcome, MedserveError):
                row.fail(outcome)
                self._leave(row, clean=True)
            elif isinstance(row, Writer) and isinstance(outcome, Choice):
                self._say(row, outcome)
            elif isinstance(row, Scorer) and isinstance(outcome, list):
                row.tell(outcome)
                self._leave(row)

    def _say(self, row: Writer, choice: Choice) -> None:
        try:
            row.say(choice)
        except Exception as error:  # whatever it is, the other rows' tokens are still to be told
            row.fail(self._told(error) or DeviceFull(NO_MEMORY))
            self._leave(row)
            return
        if row.finished:
            self._leave(row)

    # --- failing --------------------------------------------------------------------------------------------------

    def _try(self, work: Callable[[Sequence[Row]], None], rows: Sequence[Row]) -> None:
        """Do a pass; when there is no memory for it, the newest of its rows gives way, otherwise all of them fail."""
        try:
            work(rows)
        except Exception as error:  # whatever it is, the rows of other passes go on
            if (told := self._told(error)) is None:
                return
            failed = [max(rows, key=lambda row: row.number)] if _out_of_memory(error) else rows
            for row in [row for row in failed if row in self._rows]:
                row.fail(told)
                self._leave(row, clean=True)

    def _told(self, error: Exception) -> MedserveError | None:
        """What to tell of an error; None when memory could be freed, so that trying again may help."""
        if isinstance(error, MedserveError):
            return error
        if _out_of_memory(error):
            return None if self._forget() else DeviceFull(NO_MEMORY)
        if isinstance(error, torch.AcceleratorError):
            raise error
        log.exception("a pass of the network failed")
        return EngineError("the network failed on this request; the worker's log says where")

    def _forget(self) -> bool:
        """Give back the memory of ended conversations and of pictures; whether there was any of the former."""
        had = self._prefixes.bytes > 0
        self._prefixes.clear()
        if self._vision is not None:
            self._vision.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return had

    def _fail_all(self, error: MedserveError) -> None:
        with self._news:
            self._closed = True
            waiting, self._inbox, self._waiting = self._waiting + self._inbox, [], []
        for request in [*waiting, *(row.request for row in self._rows)]:
            request.emit(Failure(error))
        self._rows.clear()


def _ends(loaded: "Loaded") -> tuple[int, ...]:
    """The tokens that end an answer: those that the weights name, and the end of a turn, which some forget."""
    named = loaded.model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys([*ends, loaded.tokenizer.convert_tokens_to_ids(END_OF_TURN)]))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
