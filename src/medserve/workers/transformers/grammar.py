"""Answers that cannot break their form: llguidance says before each token which ones the schema or choices allow."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch

from medserve.errors import EngineError, InvalidRequest
from medserve.generation import JSON_LAYOUT

REMEMBERED = 16
"""Grammars that are remembered ready for use."""


class Grammars:
    """Makes grammars for one vocabulary; building it takes seconds for a large one.

    Who asks for a grammar, in whatever thread, makes it ready: one of thousands of words takes as long as a hundred
    tokens, and the model's thread only copies it.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._words = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(ends))
        self._ready = lru_cache(REMEMBERED)(self._made)

    def schema(self, schema: Mapping[str, Any]) -> str:
        """The grammar of JSON texts that fit a schema; raises InvalidRequest for what cannot be enforced."""
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_LAYOUT)
        except ValueError:
            grammar = ""
        if not grammar or self._ready(grammar).is_error():
            raise InvalidRequest(
                "the schema uses a keyword, type or reference that cannot be enforced; use a simpler one",
                param="schema",
            )
        return grammar

    def choices(self, choices: Sequence[str]) -> str:
        """The grammar of exactly these texts."""
        lark = "start: " + " | ".join(json.dumps(choice) for choice in choices)
        grammar = llguidance.LLMatcher.grammar_from_lark(lark)
        if not choices or self._ready(grammar).is_error():
            raise InvalidRequest("the choices cannot be enforced; use plain words", param="choices")
        return grammar

    def matcher(self, grammar: str) -> "Matcher":
        """One answer's own; raises EngineError for what is no grammar."""
        return Matcher(self._ready(grammar).deep_copy())

    def _made(self, grammar: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(self._words, grammar, log_level=0)


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._matcher.is_stopped()

    def allowed(self, vocabulary: int, device: torch.device) -> torch.Tensor:
        """Which tokens may come next: bool [vocabulary]. The bits are unpacked on the device, an eighth to carry."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        if not packed.any():
            raise EngineError("no word of the model continues an answer of the wanted form; use a simpler schema")
        bits = torch.from_numpy(packed.copy()).to(device)[:, None] >> torch.arange(8, dtype=torch.uint8, device=device)
        return (bits & 1).flatten()[:vocabulary].bool()

    def accept(self, token: int) -> None:
        """This token was said."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():  # its own words quote the schema and the answer
            raise EngineError("the answer could not be held to the wanted form; use a simpler schema")
