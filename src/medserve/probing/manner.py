"""A request is said in the words that its server understands, and what it would not follow is known before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medserve import thinking
from medserve.generation import GenerationRequest, Sampling
from medserve.probing.wording import CHOOSING, Choosing

FLAGS = ("add_generation_prompt", "continue_final_message")
BOUND = ("schema", "choices")
SAMPLERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
NEUTRAL = Sampling()
OPEN: Mapping[str, float] = {"top_k": 1_000_000, "min_p": 0.0, "repetition_penalty": 1.0}
"""Values of each that change nothing, said where it is honoured: the server's own defaults would fill the gap. A server
of any kind takes this `top_k`; 0 is refused by some."""
PUSH = 100
"""OpenAI's largest bias of a token: it is written then, or never."""


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
            said |= CHOOSING[self.choosing](request.choices)
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
