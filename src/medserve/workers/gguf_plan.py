"""A process that reads the headers of GGUF files from wherever, says what they need, and ends: it loads nothing.

One JSON line in, as the engine's worker takes it, one out: `{"need": {...}}` with bytes of memory and tokens of
context, or `{"error": {"code": ..., "message": ...}}`.
"""

from dataclasses import asdict
from typing import Any

from medserve.workers.llama_cpp import Spec, examine
from medserve.workers.parent import answer


def main() -> None:
    """Answer what standard input asks."""
    answer(lambda asked: planned(Spec.of(asked)))


def planned(spec: Spec) -> dict[str, Any]:
    """What the model of a spec needs; raises ModelFailed when its files are no model."""
    found = examine(spec)
    return {"need": {**asdict(found.need), "context": found.context}}


if __name__ == "__main__":
    main()
