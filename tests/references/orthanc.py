"""A real Orthanc with its DICOMweb plug-in, on free ports of loopback, and gone when the test is over."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.required import need
from tests.serving import until

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLUGIN = next((path for path in Path("/usr/share/orthanc/plugins").glob("*DicomWeb*.so*")), None)
MISSING = "Orthanc and its DICOMweb plug-in are not installed (Debian: apt install orthanc orthanc-dicomweb)"
USER, PASSWORD = "medserve", "geheim"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Orthanc:
    """Where it listens; it asks for USER and PASSWORD."""

    url: str

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def store(self, files: Sequence[bytes]) -> None:
        """Store DICOM files through Orthanc's own interface."""
        with httpx.Client(auth=(USER, PASSWORD), trust_env=False, timeout=60) as client:
            for data in files:
                client.post(f"{self.url}/instances", content=data).raise_for_status()


@contextmanager
def running(folder: Path) -> Iterator[Orthanc]:
    """An Orthanc that keeps what it has in `folder`."""
    need(PROGRAM is not None and PLUGIN is not None, MISSING)
    assert PROGRAM is not None  # or nobody would be here
    port = _free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomServerEnabled": False,
        "HttpsVerifyPeers": True,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, str(config)], stdout=log, stderr=log, cwd=folder)
        try:
            orthanc = Orthanc(f"http://127.0.0.1:{port}")
            assert until(lambda: _answers(orthanc, process), START_SECONDS), (folder / "orthanc.log").read_text()
            yield orthanc
        finally:
            process.terminate()
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(orthanc: Orthanc, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "Orthanc ended by itself"
    try:
        answer = httpx.get(f"{orthanc.dicomweb}/studies", auth=(USER, PASSWORD), trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
