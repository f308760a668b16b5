"""The MedGemma models by their short names: where Google's weights are, and where GGUF files of them are."""

from collections.abc import Mapping
from dataclasses import dataclass

TERMS = "https://developers.google.com/health-ai-developer-foundations/terms"
"""Google's terms of use, which hold for every file made of MedGemma's weights, whoever made it."""
DEFAULT_QUANT = "Q4_K_M"
"""The smallest that is commonly used: 3.3 GB with the vision part for a model of 4 billion parameters."""


@dataclass(frozen=True)
class Member:
    """One model: Google's repository of safetensors, for which its terms have to be accepted, and one of GGUF files.

    `sees` says whether it has a vision part.
    """

    name: str
    safetensors: str
    gguf: str
    sees: bool = True


FAMILY: Mapping[str, Member] = {
    "4b": Member("medgemma-4b", "google/medgemma-4b-it", "unsloth/medgemma-4b-it-GGUF"),
    "1.5-4b": Member("medgemma-1.5-4b", "google/medgemma-1.5-4b-it", "unsloth/medgemma-1.5-4b-it-GGUF"),
    "27b": Member("medgemma-27b", "google/medgemma-27b-it", "unsloth/medgemma-27b-it-GGUF"),
    "27b-text": Member(
        "medgemma-27b-text", "google/medgemma-27b-text-it", "unsloth/medgemma-27b-text-it-GGUF", sees=False
    ),
}
"""By short name, as `medserve pull` takes it."""


def short_name(text: str) -> str | None:
    """The short name that a text means, such as 4b, medgemma-4b or medgemma-4b-it; None when it means none."""
    bare = text.lower().removeprefix("medgemma-").removesuffix("-it")
    return bare if bare in FAMILY else None
