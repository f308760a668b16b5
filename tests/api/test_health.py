"""What /health says: the default model's state in the words of older services, and the GPU that the driver names."""

import httpx
import pytest

from medserve import machine
from medserve.api.routes.health import STATES
from medserve.machine import Gpu, Gpus
from medserve.models import State
from tests.api.conftest import Slow, gateway


def test_a_loaded_model_is_healthy(client: httpx.Client) -> None:
    """With the version, and the state of every model."""
    told = client.get("/health").raise_for_status().json()

    assert ("healthy", True, None) == (told["status"], told["model_loaded"], told["error"])
    assert {"script": "ready"} == told["models"]
    assert told["version"]


def test_the_gpu_is_the_drivers_word(client: httpx.Client) -> None:
    """Its name where there is one, and the reason where there is none."""
    told, found = client.get("/health").json(), machine.gpus()

    assert bool(found.devices) == told["gpu_available"] == (told["gpu_name"] is not None)
    assert (found.reason or None) == told["gpu_reason"]


async def test_every_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may lie on several."""
    devices = tuple(Gpu(place, name, 2**30, 0, 0.0) for place, name in enumerate(("NVIDIA L4", "NVIDIA H200")))
    monkeypatch.setattr(machine, "gpus", lambda: Gpus(devices))
    async with gateway(Slow(), monkeypatch) as service:
        told = (await service.client.get("/health")).json()

    assert (True, "NVIDIA L4, NVIDIA H200", None) == (told["gpu_available"], told["gpu_name"], told["gpu_reason"])


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/health/live", "/v1/health/ready", "/health"])
def test_a_probe_may_ask_for_the_head_alone(client: httpx.Client, path: str) -> None:
    """Load balancers do; the answer is that of GET without its body."""
    head, whole = client.head(path), client.get(path)

    assert (200, b"") == (head.status_code, head.content)
    assert whole.headers["content-length"] == head.headers["content-length"]


def test_every_state_has_a_word() -> None:
    """Also failed and cold, which system 004 could not say."""
    assert set(State) == set(STATES)
