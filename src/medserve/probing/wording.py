"""What OpenAI's chat has no words for, or several, said so that it means itself in each server's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Choosing = Literal["structured_outputs", "guided_choice", "regex", "grammar", "schema"]
"""The names that servers have for an answer that is one of several texts."""


def literal(text: str) -> str:
    """A text as GBNF, the grammars of llama.cpp, writes it."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


def alternatives(choices: Sequence[str]) -> str:
    """A grammar in GBNF of these texts and nothing else."""
    return "root ::= " + " | ".join(map(literal, choices))


def bound(schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's words for an answer that is JSON of a schema."""
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    }


def _either(choices: Sequence[str]) -> str:
    """A regular expression that matches these texts and nothing else."""
    special = set("\\.^$|?*+()[]{}")
    escaped = ("".join("\\" + c if c in special else {"\n": "\\n"}.get(c, c) for c in choice) for choice in choices)
    return "(" + "|".join(escaped) + ")"


CHOOSING: Mapping[Choosing, Callable[[Sequence[str]], dict[str, Any]]] = {
    "structured_outputs": lambda choices: {"structured_outputs": {"choice": list(choices)}},
    "guided_choice": lambda choices: {"guided_choice": list(choices)},
    "regex": lambda choices: {"regex": _either(choices)},
    "grammar": lambda choices: {"grammar": alternatives(choices)},
    "schema": lambda choices: bound({"type": "string", "enum": list(choices)}),
}
"""vLLM from 0.12 on, vLLM before that, SGLang, llama-server; and a text in JSON, which all that know schemas know."""
