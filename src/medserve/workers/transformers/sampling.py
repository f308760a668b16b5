"""How one conversation's next token is drawn: penalties and cuts as transformers has them, chance from its own seed.

Every function takes the logits [vocabulary] of one place and gives new ones, minus infinity where a token is cut off.
The cuts and their order are those of transformers' generation (`logits_process.py`, 5.23): temperature, top-k, top-p,
min-p. The repetition penalty (Keskar et al. 2019, arXiv:1909.05858) counts the prompt too, as there; presence and
frequency penalties count the answer only, as OpenAI's interface defines them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from medserve.generation import Sampling

NEVER = float("-inf")
LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken: float32 tells no finer differences, and logits over it can overflow."""


def repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Tokens `seen` [vocabulary], bool, become less likely by a factor above 1, more likely by one below."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Only the `count` likeliest tokens, and those that are as likely as the last of them."""
    least = torch.topk(logits, min(count, logits.shape[-1])).values[-1]
    return logits.masked_fill(logits < least, NEVER)


def top_p(logits: torch.Tensor, mass: float) -> torch.Tensor:
    """Only the likeliest tokens that together have at least this probability; always one."""
    ascending, order = torch.sort(logits)
    cut = ascending.softmax(-1).cumsum(-1) <= 1 - mass
    cut[-1] = False
    return logits.masked_fill(torch.empty_like(cut).scatter_(0, order, cut), NEVER)


def min_p(logits: torch.Tensor, share: float) -> torch.Tensor:
    """Only tokens with at least this share of the likeliest one's probability."""
    probabilities = logits.softmax(-1)
    cut = probabilities < share * probabilities.amax()
    cut[probabilities.argmax()] = False
    return logits.masked_fill(cut, NEVER)


class Sampler:
    """Draws the tokens of one answer. The same seed and the same logits give the same tokens, on every device."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self._sampling = sampling
        self._chance = np.random.default_rng(sampling.seed)
        self._drawn = self._chance.random()
        penalised = sampling.repetition_penalty != 1.0
        counted = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        self._seen = self._mask(prompt, vocabulary, device) if penalised else None
        self._said = torch.zeros(vocabulary, device=device) if counted else None
        self._greedy = sampling.temperature < LEAST_TEMPERATURE
        self.plain = self._greedy and not penalised and not counted

    @staticmethod
    def _mask(ids: Sequence[int], vocabulary: int, device: torch.device) -> torch.Tensor:
        seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        seen[[token for token in set(ids) if token < vocabulary]] = True
        return seen

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token, an integer left on the logits' device; asked again before `note`, the same one."""
        logits = self._penalised(logits)
        if self._greedy:
            return logits.argmax()
        # By the inverse of the distribution function, in double precision: rounding must not favour a token.
        mass = self._cut(logits / self._sampling.temperature).double().softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(mass, self._drawn * mass[-1:], right=True)[0]
        return chosen.clamp(max=logits.shape[-1] - 1)

    def note(self, token: int) -> None:
        """This token was said; the next one is drawn anew."""
        self._drawn = self._chance.random()
        if self._seen is not None:
            self._seen[token] = True
        if self._said is not None:
            self._said[token] += 1

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        if self._seen is not None:
            logits = repetition(logits, self._seen, self._sampling.repetition_penalty)
        if self._said is not None:
            logits = logits - self._sampling.presence_penalty * (self._said > 0)
            logits = logits - self._sampling.frequency_penalty * self._said
        return logits

    def _cut(self, logits: torch.Tensor) -> torch.Tensor:
        wish = self._sampling
        if wish.top_k > 0:
            logits = top_k(logits, wish.top_k)
        if wish.top_p < 1.0:
            logits = top_p(logits, wish.top_p)
        return min_p(logits, wish.min_p) if wish.min_p > 0.0 else logits
