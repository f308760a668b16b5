"""What the commands ask of a running service about models and jobs, with every way it can say no in words."""

from collections.abc import Iterator, Mapping
from time import sleep, time
from typing import Any
from urllib.parse import quote

import httpx

from medserve.errors import InvalidRequest, MedserveError, ModelFailed
from medserve.residency import size

PATIENCE = httpx.Timeout(10.0, read=60.0)
"""Unloading waits until the worker's process has ended."""
POLL_SECONDS = 0.25


class Service:
    """A service that listens somewhere, asked with the key that the settings name."""

    def __init__(self, base: str, key: str) -> None:
        self.base = base.rstrip("/")
        self._shown = {"Authorization": f"Bearer {key}"} if key else {}

    def models(self) -> list[dict[str, Any]]:
        """Every model as the service tells it."""
        listed: list[dict[str, Any]] = self._asked("GET", "/v1/models")["data"]
        return listed

    def unload(self, name: str) -> None:
        """Unload a model and wait until its memory is free."""
        self._asked("POST", f"/v1/models/{quote(name)}/unload")

    def loading(self, name: str, *, wait: bool) -> Iterator[str]:
        """Load a model whatever happened before, and say how it goes; raises ModelFailed when it fails."""
        model = self._asked("POST", f"/v1/models/{quote(name)}/retry")
        said = ""
        while wait and model["state"] == "loading":
            if (words := f"{name}: {state(model)}") != said:
                yield (said := words)
            sleep(POLL_SECONDS)
            model = self._asked("GET", f"/v1/models/{quote(name)}")
        if wait and model["state"] != "ready":
            raise ModelFailed(model["error"] or f"{name} was unloaded while it loaded", param="model")
        yield f"{name}: {state(model)}"

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The caller's latest jobs as the service tells of them, newest first."""
        listed: list[dict[str, Any]] = self._asked("GET", f"/v1/jobs?limit={limit}")["data"]
        return listed

    def job(self, name: str) -> dict[str, Any]:
        """One of the caller's jobs."""
        return self._asked("GET", f"/v1/jobs/{quote(name, safe='')}")

    def cancel(self, name: str) -> dict[str, Any]:
        """Stop one of the caller's jobs; the job as it is then."""
        return self._asked("POST", f"/v1/jobs/{quote(name, safe='')}/cancel")

    def _asked(self, method: str, path: str) -> dict[str, Any]:
        try:
            address = self.base + path
            answer = httpx.request(method, address, headers=self._shown, timeout=PATIENCE, trust_env=False)
            said: dict[str, Any] = answer.json()
            if answer.is_success and "object" in said:
                return said
            raise _refused(answer.status_code, said["error"]["message"])
        except (httpx.HTTPError, httpx.InvalidURL, KeyError, TypeError, ValueError):
            raise ModelFailed(f"no medserve answers at {self.base}; start one with: medserve serve") from None


def _refused(status: int, message: str) -> MedserveError:
    if status in {401, 403}:
        return InvalidRequest(f"{message}; name one in MEDSERVE_KEY")
    return InvalidRequest(message) if status < 500 and status != httpx.codes.TOO_MANY_REQUESTS else ModelFailed(message)


def row(model: Mapping[str, Any]) -> tuple[str, ...]:
    """A model as a line of a table; a dash stands for what is not known or does not apply."""
    held, loaded, idle = model["memory_bytes"], model["load_seconds"], model["idle_since"]
    return (
        model["id"] + (" (pinned)" if model["pinned"] else ""),
        state(model),
        model["engine"],
        "-" if held is None else size(held),
        f"{model['answering']} of {model['slots']}",
        str(model["waiting"]),
        "-" if idle is None else f"{max(0.0, time() - idle):.0f} s",
        "-" if loaded is None else f"{loaded:.1f} s",
        model["error"] or model["blind"] or "",
    )


def state(model: Mapping[str, Any]) -> str:
    """The state in words: how far a load is, and when a failed one may be tried again."""
    if model["state"] == "loading":
        share = "" if model["progress"] is None else f" {model['progress']:.0%}"
        return f"loading{share}, {model['stage']}, {model['elapsed']:.0f} s"
    if model["state"] == "failed" and model["retry_seconds"]:
        return f"failed, again in {model['retry_seconds']:.0f} s"
    return str(model["state"])


def job_row(job: Mapping[str, Any]) -> tuple[str, ...]:
    """A job as a line of a table; a dash stands for what is not known or does not apply."""
    progress, began = job["progress"], job["started"]
    took = None if began is None else (job["ended"] or time()) - began
    return (
        job["id"],
        job["kind"],
        "cancelling" if job["cancelling"] else job["state"],
        str(progress["done"]) if progress["total"] is None else f"{progress['done']} of {progress['total']}",
        progress["step"] or "-",
        "-" if took is None else f"{took:.0f} s",
        job["error"]["message"] if job["error"] else "",
    )
