"""A process that reads the headers of GGUF files from wherever, says what they need, and ends: it loads nothing.

One JSON line in, as the engine's worker takes it, one out: `{"need": {...}}` with bytes of memory and tokens of
context, or `{"error": {"code": ..., "message": ...}}`.
"""

import json
import sys
from dataclasses import asdict

from medserve.errors import MedserveError
from medserve.workers.llama_cpp import Spec, examine


def main() -> None:
    """Answer what standard input asks."""
    spec = Spec.of(json.loads(sys.stdin.readline()))
    try:
        found = examine(spec)
    except MedserveError as error:
        said: dict[str, object] = {"error": {"code": error.code, "message": error.message}}
    else:
        said = {"need": {**asdict(found.need), "context": found.context}}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
