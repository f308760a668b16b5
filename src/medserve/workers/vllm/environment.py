"""vLLM inherits no folder of modules of ours and nobody else's address, and has nothing to tell to its makers."""

import os

from medserve.errors import ModelFailed
from medserve.workers.vllm.spec import Spec


def inherited() -> dict[str, str]:
    """What any program of another environment inherits."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return {**kept, "PYTHONSAFEPATH": "1"}


def environment(spec: Spec, *, cpu: bool) -> dict[str, str]:
    """What vLLM inherits and is told besides."""
    kept = inherited()
    said = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        # Its processes speak to one another here and nowhere else.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "VLLM_RPC_BASE_PATH": str(spec.directory),
        "TMPDIR": str(spec.directory),
    }
    if spec.device.startswith("cuda:"):
        said["CUDA_VISIBLE_DEVICES"] = one_gpu(spec.device, kept.get("CUDA_VISIBLE_DEVICES"))
    if cpu and spec.threads:
        said |= {"OMP_NUM_THREADS": str(spec.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return kept | said


def one_gpu(device: str, visible: str | None) -> str:
    """What CUDA calls the GPU that `device` names among those that are visible; raises ModelFailed for none of them."""
    number = int(device.removeprefix("cuda:"))
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if number >= len(names):
        raise ModelFailed(f"device is {device} and CUDA_VISIBLE_DEVICES leaves {len(names)} GPUs; name one of them")
    return names[number]
