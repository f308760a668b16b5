"""What a server is asked: short questions, answered as nobody would answer them who was not made to.

They are greedy unless a wish says otherwise, so that each answer can be held against the model's own.
"""

import json
from typing import Any

from medserve.generation import GenerationRequest, Message

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


def asked(text: str = QUESTION, **wishes: Any) -> GenerationRequest:
    """A question of a few words, with these wishes about its answer."""
    return GenerationRequest((Message("user", (text,)),), **{"max_tokens": TOKENS, **wishes})


def parsed(text: str) -> object:
    """The JSON of an answer, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
