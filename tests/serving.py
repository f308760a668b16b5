"""`medserve serve` as users start it: a process of its own on a free port of loopback, ended when the test is over."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import httpx

START_SECONDS = 60.0
"""Far more than a start takes, for machines that have much else to do."""


@dataclass
class Service:
    """A running service: where it listens, its process, and what it has logged so far."""

    process: "subprocess.Popen[bytes]"
    log: bytearray = field(default_factory=bytearray)

    @property
    def url(self) -> str:
        found = re.search(rb"listens at (http://\S+)", self.log)
        assert found, "the service has not said where it listens"
        return found[1].decode()

    @property
    def resident(self) -> int:
        """Bytes of memory that the gateway holds now."""
        return _kib(self.process.pid, "VmRSS") * 1024

    @property
    def workers(self) -> list[int]:
        """The processes that the gateway started and that still run."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End the gateway; its exit status."""
        self.process.send_signal(how)
        return self.process.wait(START_SECONDS)


@contextmanager
def serving(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Service]:
    """A service that is ready to answer."""
    command = [sys.executable, "-m", "medserve", "serve", "--port", "0", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MEDSERVE_")}
    # A home of its own: services that share one do each other's jobs.
    home = {"MEDSERVE_HOME": tempfile.mkdtemp(prefix="home-", dir=os.environ.get("HOME"))}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**inherited, **home, **(environment or {})})
    service = Service(process)
    reader = threading.Thread(target=_follow, args=(service,), daemon=True)
    reader.start()
    try:
        _wait(service)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def until(true: object, seconds: float = 10.0) -> bool:
    """Whether `true()` comes to hold within some seconds."""
    assert callable(true)
    end = monotonic() + seconds
    while not true():
        if monotonic() > end:
            return False
        sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _follow(service: Service) -> None:
    assert service.process.stderr is not None
    while piece := os.read(service.process.stderr.fileno(), 65536):
        service.log += piece


def _wait(service: Service) -> None:
    def ready() -> bool:
        assert service.process.poll() is None, service.log.decode()
        if b"listens at" not in service.log:
            return False
        try:
            answer = httpx.get(f"{service.url}/readyz", trust_env=False)
            assert "failed" not in answer.text, service.log.decode()
            return answer.status_code == 200
        except httpx.TransportError:
            return False

    assert until(ready, START_SECONDS), service.log.decode()


def _kib(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])
