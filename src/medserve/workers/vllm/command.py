"""vLLM's command line makes it exact, keeps it private, and leaves the last word to the model's own arguments."""

import json
from pathlib import Path

from medserve.workers.transformers.folder import WIDTHS, Examined
from medserve.workers.vllm.build import Build
from medserve.workers.vllm.memory import CPU_BLOCK, cache_bytes
from medserve.workers.vllm.spec import Spec

SERVED = "model"
"""The name of the model at vLLM's socket."""
TEMPLATE = Path(__file__).with_name("chat.jinja")
MOST_LOGPROBS = 20


def command(spec: Spec, found: Examined, build: Build, precision: str) -> list[str]:
    """What is run; the further arguments come last, so that they win."""
    return [
        *(str(spec.python), "-m", build.launcher),
        *("--model", str(spec.folder), "--served-model-name", SERVED),
        *("--uds", str(spec.socket), "--disable-uvicorn-access-log", "--disable-fastapi-docs"),
        *("--chat-template", str(TEMPLATE), "--chat-template-content-format", "openai"),
        *("--generation-config", "vllm"),  # requests say how to sample; the weights' own habits would fill the gaps
        *("--dtype", precision, "--max-model-len", str(found.context), "--max-num-seqs", str(spec.slots)),
        *("--tensor-parallel-size", str(spec.parallel)),
        *_for_pictures(spec, found),
        *("--structured-outputs-config", json.dumps({"backend": "guidance", "disable_any_whitespace": True})),
        *("--max-logprobs", str(MOST_LOGPROBS), "--logprobs-mode", "raw_logprobs"),
        *("--enable-prompt-tokens-details", "--enable-per-request-metrics"),
        "--enable-prefix-caching" if spec.reuse else "--no-enable-prefix-caching",
        *_for_device(spec, found, build, precision),
        *spec.arguments,
    ]


def _for_pictures(spec: Spec, found: Examined) -> list[str]:
    if not found.vision:
        return []
    most = max(1, min(spec.images, found.context // found.vision.tokens))
    return ["--limit-mm-per-prompt", json.dumps({"image": most})]


def _for_device(spec: Spec, found: Examined, build: Build, precision: str) -> list[str]:
    if not build.cpu:
        return ["--async-scheduling"]
    cache = cache_bytes(spec, found, WIDTHS[precision])
    # Compiling takes minutes and a C++ compiler; --no-enforce-eager among the arguments asks for it.
    return ["--enforce-eager", "--block-size", str(CPU_BLOCK), "--kv-cache-memory-bytes", str(cache)]
