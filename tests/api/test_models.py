"""Models come and go over HTTP and by command: a real service, the demo model, and keys where they are asked for."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from medserve import cli
from medserve.settings import DEMO as SAFETENSORS
from medserve.settings import DEMO_MODEL
from tests.commands import command
from tests.serving import Service, serving, until

CONFIG = """
[[models]]
name = "script"
engine = "scripted"
replies = ["one", "two", "three"]

[[models]]
name = "cut/short"
path = "{cut}"
"""
DEMO = {"name": "org/demo", "path": str(DEMO_MODEL.path), "projector": str(DEMO_MODEL.projector), "context": 2048}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a script, and a model whose file is cut short."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "cut.gguf").write_bytes(b"GGUF")
    (folder / "medserve.toml").write_text(CONFIG.format(cut=folder / "cut.gguf"))
    environment = {"MEDSERVE_CONFIG": str(folder / "medserve.toml"), "MEDSERVE_HOME": str(folder / "home")}
    with serving(environment=environment) as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A plain client of that service."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def demo(http: httpx.Client) -> Iterator[httpx.Client]:
    """The demo model, added under a name with a slash, and removed afterwards."""
    assert 201 == http.post("/v1/models", json=DEMO).status_code
    yield http
    http.post("/v1/models/org/demo/unload")
    assert http.delete("/v1/models/org/demo").status_code in {200, 404}


def told(http: httpx.Client, name: str = "org/demo") -> Any:
    """What the service says of a model."""
    return http.get(f"/v1/models/{name}").json()


def ask(http: httpx.Client, model: str = "org/demo", **more: object) -> httpx.Response:
    """One short question."""
    body = {"model": model, "messages": [{"role": "user", "content": "Which colour?"}], "max_tokens": 4}
    return http.post("/v1/chat/completions", json=body | more)


def test_a_model_is_added_loaded_asked_unloaded_and_removed(http: httpx.Client) -> None:
    """The whole life of a model whose name holds a slash."""
    added = http.post("/v1/models", json=DEMO)
    assert (201, "cold", "org/demo") == (added.status_code, added.json()["state"], added.json()["id"])

    begun = http.post("/v1/models/org/demo/load")
    assert (202, "loading") == (begun.status_code, begun.json()["state"])
    assert begun.json()["elapsed"] < 60
    assert until(lambda: told(http)["state"] == "ready", 60)
    assert 200 == http.post("/v1/models/org/demo/load").status_code
    loaded = told(http)
    assert loaded["memory_bytes"] > 20 * 2**20
    assert (0, 0, 2, None) == tuple(loaded[name] for name in ("answering", "waiting", "slots", "stage"))
    assert 200 == ask(http).status_code

    unloaded = http.post("/v1/models/org/demo/unload")
    assert (200, "cold", None) == (unloaded.status_code, unloaded.json()["state"], unloaded.json()["memory_bytes"])
    assert 200 == ask(http).status_code  # and loads it again

    assert {"id": "org/demo", "object": "model", "deleted": True} == http.delete("/v1/models/org/demo").json()
    assert 404 == http.get("/v1/models/org/demo").status_code
    assert 404 == ask(http).status_code


def test_a_folder_of_safetensors_is_added_and_answers(http: httpx.Client) -> None:
    """Its engine takes a folder, as it does of the settings."""
    folder = {"name": "folder", "engine": "transformers", "path": str(SAFETENSORS), "device": "cpu", "threads": 1}
    added = http.post("/v1/models", json=folder | {"context": 2048, "precision": "float32"})
    try:
        assert (201, "cold") == (added.status_code, added.json()["state"]), added.text
        assert 202 == http.post("/v1/models/folder/load").status_code
        assert until(lambda: told(http, "folder")["state"] != "loading", 100)
        assert 200 == ask(http, "folder").status_code
        assert "float32" == told(http, "folder")["facts"]["precision"]
    finally:
        http.post("/v1/models/folder/unload")
        assert 200 == http.delete("/v1/models/folder").status_code


def test_unloading_gives_the_memory_back(service: Service, demo: httpx.Client) -> None:
    """The gateway and all its processes hold as much as before, not counting a tenth of what the model held."""

    def held() -> int:
        gateway = psutil.Process(service.process.pid)
        return sum(process.memory_info().rss for process in (gateway, *gateway.children(recursive=True)))

    assert 200 == ask(demo).status_code  # what the gateway itself keeps of a first load is not the model's
    demo.post("/v1/models/org/demo/unload")
    before = held()
    assert 200 == ask(demo).status_code
    loaded, model = held(), told(demo)["memory_bytes"]
    demo.post("/v1/models/org/demo/unload")

    assert loaded - before > 0.9 * model
    assert held() - before < 0.1 * model


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"name": "script"}, "name", "already"),
        ({"name": "n", "path": "weights.gguf"}, "path", "absolute"),
        ({"name": "n", "path": "/etc/../nowhere/secret.gguf"}, "path", "no file"),
        ({"name": "n", "path": str(SAFETENSORS)}, "path", "the engine llama-cpp takes a file"),
        (
            {"name": "n", "engine": "transformers", "path": DEMO["path"]},
            "path",
            "the engine transformers takes a folder",
        ),
        ({"name": "n", "engine": "vllm", "path": "/nowhere/secret"}, "path", "names no folder"),
        ({"name": "n", "engine": "warp"}, "engine", "no engine"),
        ({"name": "n", "engine": "warp", "path": DEMO["path"]}, "engine", "no engine"),
        ({"name": "n", "slots": "2"}, "slots", "integer"),
        ({"name": "n", "trust_remote_code": True}, None, "not known"),
        ({"path": "/x"}, "name", "required"),
    ],
)
def test_what_cannot_be_added_is_refused_by_its_field(
    http: httpx.Client, body: dict[str, object], param: str | None, words: str
) -> None:
    """400 in OpenAI's shape, and no path is repeated."""
    answer = http.post("/v1/models", json=body)

    assert (400, param) == (answer.status_code, answer.json()["error"]["param"])
    assert words in answer.json()["error"]["message"]
    assert "secret" not in answer.text


def test_a_model_of_the_settings_is_unloaded_but_not_removed(http: httpx.Client) -> None:
    """It is said why, and it answers afterwards."""
    assert "cold" == http.post("/v1/models/script/unload").json()["state"]
    refused = http.delete("/v1/models/script")
    assert (400, True) == (refused.status_code, "declared in the settings" in refused.text)
    assert 200 == ask(http, "script").status_code


def test_defect_003_1_a_failed_model_is_never_still_loading(http: httpx.Client) -> None:
    """System 003 said 202 for ever. Here the reason comes with 503, the state is failed, and `retry` tries again."""
    first = ask(http, "cut/short")
    again = http.post("/v1/models/cut/short/load")
    state = told(http, "cut/short")

    assert (503, "weights_corrupt") == (first.status_code, first.json()["error"]["code"])
    assert (503, "weights_corrupt") == (again.status_code, again.json()["error"]["code"])
    assert 0 < int(again.headers["Retry-After"]) <= 60
    assert ("failed", 1, True) == (state["state"], state["attempts"], "fetch it again" in state["error"])
    assert 0 < state["retry_seconds"] <= 60

    assert 202 == http.post("/v1/models/cut/short/retry").status_code
    assert until(lambda: told(http, "cut/short")["state"] == "failed", 20)


def test_a_full_waiting_room_is_429_with_the_time_to_come_again(http: httpx.Client) -> None:
    """One slot, nobody may wait: while one answer is written the next asker is told when to come."""
    name = "narrow"
    assert 201 == http.post("/v1/models", json=DEMO | {"name": name, "slots": 1, "waiting": 0}).status_code
    assert 200 == ask(http, name).status_code
    body = {"model": name, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 1900, "stream": True}
    schema = {"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 400}
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "endless", "schema": schema}}}
    with http.stream("POST", "/v1/chat/completions", json=body | wanted) as stream:
        assert 200 == stream.status_code
        lines = stream.iter_lines()  # held, because the stream ends with it
        next(lines)
        assert until(lambda: told(http, name)["answering"] == 1)
        refused = ask(http, name)
        busy = http.post(f"/v1/models/{name}/unload")

    assert (429, "model_busy") == (refused.status_code, refused.json()["error"]["code"])
    assert 1 <= int(refused.headers["Retry-After"]) < 60
    assert (429, True) == (busy.status_code, "at work" in busy.text)
    assert until(lambda: http.delete(f"/v1/models/{name}").status_code == 200)


def test_readiness_is_true_of_the_default_model(tmp_path: Path) -> None:
    """503 while it loads again after its worker was killed; 200 when it rests, for the next request loads it."""
    environment = {"MEDSERVE_HOME": str(tmp_path), "MEDSERVE_LIMITS__IDLE_SECONDS": "2"}
    with serving(environment=environment) as service, httpx.Client(base_url=service.url, trust_env=False) as http:
        name = http.get("/v1/models").json()["data"][0]["id"]
        workers = [pid for pid in service.workers if "llama" in " ".join(psutil.Process(pid).cmdline())]
        os.kill(workers[0], signal.SIGKILL)
        assert until(lambda: http.get("/readyz").status_code == 503, 10)
        assert until(lambda: http.get("/readyz").status_code == 200, 30)

        assert until(lambda: told(http, name)["state"] == "cold", 30)
        assert (200, {name: "cold"}) == ((rest := http.get("/readyz")).status_code, rest.json()["models"])
        assert 200 == ask(http, name).status_code


# --- by command ----------------------------------------------------------------------------------------------------


def test_models_are_shown_loaded_and_stopped_by_command(service: Service, demo: httpx.Client) -> None:
    """With the memory they hold and what they do."""
    loaded = command("load", "org/demo", "--url", service.url)
    shown = command("ps", "--url", service.url)
    stopped = command("stop", "org/demo", "--url", service.url)
    after = command("ps", "--url", service.url)

    assert (0, "org/demo: ready") == (loaded.code, loaded.err.splitlines()[-1])
    assert "org/demo: loading" in loaded.err
    row = next(line for line in shown.out.splitlines() if line.startswith("org/demo")).split()
    assert ["org/demo", "ready", "llama-cpp"] == row[:3]
    assert ("MiB", "0", "of", "2") == tuple(row[4:8])
    assert (0, "org/demo is unloaded\n") == (stopped.code, stopped.err)
    assert "cold" in next(line for line in after.out.splitlines() if line.startswith("org/demo"))


def test_a_command_says_why_a_model_does_not_load(service: Service) -> None:
    """In one line, with exit code 3 for the model and 2 for the person's mistake."""
    failed = command("load", "cut/short", "--url", service.url)
    unknown = command("stop", "nobody", "--url", service.url)

    assert (3, True) == (failed.code, "fetch it again" in failed.err)
    assert (2, True) == (unknown.code, "no model has that name; there are: script" in unknown.err)
    assert 1 == len(unknown.err.splitlines())


def test_only_an_admin_s_key_changes_models(tmp_path: Path) -> None:
    """A key for use may look and ask; adding, loading, unloading and removing are 403, and 401 without any key."""
    home = str(tmp_path / "home")
    (tmp_path / "medserve.toml").write_text('[[models]]\nname = "script"\nengine = "scripted"\nreplies = ["a"]\n')
    use = command("keys", "add", "clinic", MEDSERVE_HOME=home).out.strip()
    admin = command("keys", "add", "boss", "--scope", "admin", MEDSERVE_HOME=home).out.strip()
    config = {"MEDSERVE_CONFIG": str(tmp_path / "medserve.toml"), "MEDSERVE_HOME": home}
    orders = [
        ("POST", "/v1/models"),
        *(("POST", f"/v1/models/script/{order}") for order in ("load", "retry", "unload")),
        ("DELETE", "/v1/models/script"),
    ]
    with serving(environment=config) as service, httpx.Client(base_url=service.url, trust_env=False) as http:
        for key, status in ((None, 401), (use, 403)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            for method, path in orders:
                assert status == http.request(method, path, headers=headers).status_code, path
        assert 200 == http.get("/v1/models", headers={"Authorization": f"Bearer {use}"}).status_code

        refused = command("stop", "script", "--url", service.url, MEDSERVE_KEY=use)
        done = command("stop", "script", "--url", service.url, MEDSERVE_KEY=admin)
        assert (2, True) == (refused.code, "MEDSERVE_KEY" in refused.err)
        assert 0 == done.code, done.err


def test_help_of_the_commands_shows_how(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has an example."""
    for name in ("ps", "load", "stop"):
        monkeypatch.setattr(sys, "argv", ["medserve", name, "--help"])
        with pytest.raises(SystemExit):
            cli.main()
        assert f"medserve {name}" in capsys.readouterr().out.partition("Example")[2]
