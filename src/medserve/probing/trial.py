"""What a server was seen to do is gathered question by question; one that hangs in the middle is left."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from medserve.errors import EngineTimeout, InvalidRequest, MedserveError, ModelFailed, ServerLost
from medserve.generation import Finish, GenerationRequest, TokenLogprob
from medserve.probing.manner import Manner

LATE = 2
"""Probes without an answer after which a server counts as one that hangs."""


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

    manner: Manner = field(default_factory=Manner)
    abilities: frozenset[str] = frozenset()
    image_tokens: int = 0
    unseeing: str = ""
    context: int = 0
    record: Mapping[str, str] = field(default_factory=dict)


class Unseen(Exception):
    """An ability was not seen; the reason."""


class Late(Unseen):
    """Nor was anything else: there was no answer in time."""


class Trial:
    """One look at a server, as it goes: what was found until now, and `own`, the model's answer by itself."""

    def __init__(self, ask: Ask, found: Found) -> None:
        self.ask = ask
        self.found = found
        self.own = Heard()
        self._late = 0

    async def tried(self, name: str, ability: Callable[[], Awaitable[str]]) -> None:
        """One ability, and what to record of it."""
        try:
            words = await ability()
        except Unseen as unseen:
            words = f"not honoured: {unseen}"
            if name == "vision":
                self.found = replace(self.found, unseeing=str(unseen))
        self.note(name, words)

    async def heard(self, request: GenerationRequest, manner: Manner | None = None, **more: Any) -> Heard:
        """The answer; raises Unseen where there is none, and ServerLost or ModelFailed where there will be no more."""
        try:
            return await self.ask(request, manner or self.found.manner, **more)
        except (ServerLost, ModelFailed):
            raise
        except EngineTimeout:
            self._late += 1
            if self._late >= LATE:
                raise ModelFailed("the server answered at first and then hung; look at it and load again") from None
            raise Late("no answer in time") from None
        except InvalidRequest:
            raise Unseen("the server refuses it") from None
        except MedserveError:
            raise Unseen("the server fails at it") from None

    async def heard_if_any(self, request: GenerationRequest, manner: Manner | None = None) -> Heard | None:
        """The same, None where there is no answer."""
        try:
            return await self.heard(request, manner)
        except Unseen:
            return None

    def note(self, name: str, words: str) -> None:
        """What to record of an ability."""
        self.found = replace(self.found, record={**self.found.record, f"probed_{name}": words})

    def able(self, ability: str, **manner: Any) -> None:
        """It was seen, when asked in this manner."""
        found = self.found
        self.found = replace(
            found,
            abilities=found.abilities | {ability},
            manner=replace(found.manner, **manner) if manner else found.manner,
        )

    def follows(self, *names: str) -> None:
        """These wishes were seen to be followed."""
        manner = self.found.manner
        self.found = replace(self.found, manner=replace(manner, honoured=manner.honoured | set(names)))

    def cuts(self, context: int) -> None:
        """What is longer than this context may be cut in silence."""
        self.found = replace(self.found, context=context, manner=replace(self.found.manner, cuts=True))
