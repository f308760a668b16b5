"""Only what tunes memory and speed is taken among the further arguments of vLLM's command.

It is a list of what is allowed. vLLM has hundreds, among them some that listen to the network, read files, run code of
others or write prompts into logs, and every release brings more.
"""

from collections.abc import Sequence

from medserve.errors import ModelFailed

OURS = {
    "--model": "path",
    "--max-model-len": "context",
    "--max-num-seqs": "slots",
    "--tensor-parallel-size": "parallel",
    "-tp": "parallel",
    "--dtype": "precision",
    "--limit-mm-per-prompt": "limits.images",
    "--enable-prefix-caching": "reuse",
    "--no-enable-prefix-caching": "reuse",
}
"""Arguments that are made from settings of the model."""
VALUED = frozenset(
    {
        "--attention-backend",
        "--block-size",
        "--cpu-offload-gb",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--kv-cache-memory-bytes",
        "--linear-backend",
        "--long-prefill-token-threshold",
        "--max-cudagraph-capture-size",
        "--max-num-batched-tokens",
        "--max-parallel-loading-workers",
        "--mm-encoder-attn-backend",
        "--mm-encoder-tp-mode",
        "--mm-processor-cache-gb",
        "--mm-processor-cache-type",
        "--optimization-level",
        "--performance-mode",
        "--pipeline-parallel-size",
        "--quantization",
        "--safetensors-load-strategy",
        "--seed",
        "--stream-interval",
    }
)
SWITCHES = frozenset(
    {
        "--async-scheduling",
        "--disable-cascade-attn",
        "--disable-chunked-mm-input",
        "--disable-custom-all-reduce",
        "--disable-hybrid-kv-cache-manager",
        "--enable-chunked-prefill",
        "--enable-flashinfer-autotune",
        "--enforce-eager",
        "--no-async-scheduling",
        "--no-enable-chunked-prefill",
        "--no-enforce-eager",
        "--numa-bind",
        "--skip-mm-profiling",
    }
)
"""Arguments that may be given, with a value or without."""


def further(arguments: Sequence[str]) -> tuple[str, ...]:
    """The further arguments of vLLM's command as they were given; raises ModelFailed for one that is not allowed."""
    rest = list(arguments)
    while rest:
        name, equals, given = rest.pop(0).partition("=")
        if name in OURS:
            raise ModelFailed(f"{name} is not an argument of its own: set `{OURS[name]}`", param="arguments")
        if name not in VALUED | SWITCHES or (name in SWITCHES and equals):
            raise ModelFailed(
                f"{name[:60]} is not taken among `arguments`: only what tunes memory and speed is, because others "
                "open vLLM to the network or to files, run code, or write prompts into logs; docs/vllm.md has the list",
                param="arguments",
            )
        if name in VALUED and not given and (equals or not rest or rest.pop(0).startswith("-")):
            raise ModelFailed(f"{name} needs a value after it", param="arguments")
    return tuple(arguments)
