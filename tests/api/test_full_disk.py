"""A disk without room is told of as such, and the service goes on."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import Service, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the limits of another process")
ROOM = 300_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for which every file is full after some bytes, from when it is ready."""
    config = tmp_path_factory.mktemp("full") / "medserve.toml"
    config.write_text('[[models]]\nname = "script"\nengine = "scripted"\nreplies = ["Round."]\n')
    with serving(environment={"MEDSERVE_CONFIG": str(config)}) as running:
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
        yield running


@pytest.mark.parametrize(
    ("path", "headers"), [("/v1/workflows/dermoscopy", {}), ("/v1/workflows/dermoscopy", {"Prefer": "respond-async"})]
)
def test_what_finds_no_room_is_refused_with_507(
    client: httpx.Client, service: Service, path: str, headers: dict[str, str]
) -> None:
    """Not as a fault of the program, and with when to come again."""
    answer = client.post(path, files={"images": bytes(2 * ROOM)}, headers=headers)

    assert (507, "disk_full") == (answer.status_code, answer.json()["error"]["code"])
    assert "no room" in answer.json()["error"]["message"]
    assert int(answer.headers["Retry-After"])


def test_once_there_is_room_the_same_request_is_served(
    client: httpx.Client, service: Service, dermoscopy: Path
) -> None:
    """Nothing has to be started again."""
    client.post("/v1/inspect", files={"images": bytes(2 * ROOM)})
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    assert 200 == client.post("/v1/inspect", files={"images": dermoscopy.read_bytes()}).status_code
    assert 200 == client.get("/livez").status_code
