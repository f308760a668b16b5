"""Stored schemas over HTTP and by command: kept, used in a report, and forgotten; changed only by who may."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from medserve import cli
from medserve.keys import Scope, opened
from medserve.settings import Settings
from tests.hostile import samples
from tests.serving import serving
from tests.test_schemas import STONES

CONFIG = """
[[models]]
name = "script"
engine = "scripted"
replies = ['{"stones": [{"side": "left"}]}', '{"stones": [{"side": "left"}]}']
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def keys(home: Path) -> tuple[str, str]:
    """A key that may use the service, and one that may change it."""

    async def made() -> tuple[str, str]:
        async with opened(Settings(home=home)) as keys:
            _key, use = await keys.add("use", [Scope.USE])
            _key, admin = await keys.add("admin", [Scope.ADMIN])
        return use, admin

    return asyncio.run(made())


@pytest.fixture(scope="module")
def http(home: Path, keys: tuple[str, str]) -> Iterator[httpx.Client]:
    """The administrator's client of a service whose script answers two analyses."""
    (home / "medserve.toml").write_text(CONFIG)
    environment = {"MEDSERVE_CONFIG": str(home / "medserve.toml"), "MEDSERVE_HOME": str(home)}
    headers = {"Authorization": f"Bearer {keys[1]}"}
    with (
        serving(environment=environment) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=60, headers=headers) as client,
    ):
        yield client


def test_a_schema_is_put_shown_listed_and_removed(http: httpx.Client) -> None:
    """201 for a new name, 200 for one that is replaced, 404 for one that is no more."""
    assert 201 == http.put("/v1/schemas/kidney", json=STONES).status_code
    assert 200 == http.put("/v1/schemas/kidney", json=STONES).status_code
    assert {"name": "kidney", "schema": STONES} == http.get("/v1/schemas/kidney").json()
    assert "kidney" in http.get("/v1/schemas").json()["data"]
    assert {"name": "kidney", "deleted": True} == http.delete("/v1/schemas/kidney").json()
    gone = http.get("/v1/schemas/kidney")
    assert (404, "schema_not_found") == (gone.status_code, gone.json()["error"]["code"])


def test_a_report_uses_a_stored_schema(http: httpx.Client) -> None:
    """By its name; the answer is held against it."""
    http.put("/v1/schemas/stones", json=STONES)
    answer = http.post(
        "/v1/workflows/radiology",
        files={"images": samples.picture("PNG")},
        data={"options": json.dumps({"schema": "stones", "instruction": "Where are stones?"})},
    )

    assert 200 == answer.status_code
    assert {"stones": [{"side": "left"}]} == answer.json()["conclusion"]["data"]


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("stones", b"{", 400),
        ("stones", b"[]", 400),
        ("stones", b'{"$ref": "#"}', 400),
        ("stones", b'{"items": {"pattern": "(a+)+"}}', 400),
        ("Stones", b"{}", 400),
        (".hidden", b"{}", 400),
    ],
)
def test_what_is_no_harmless_schema_is_not_kept(http: httpx.Client, name: str, body: bytes, status: int) -> None:
    """And what was kept stays as it was."""
    answer = http.put(f"/v1/schemas/{name}", content=body, headers={"Content-Type": "application/json"})

    assert status == answer.status_code
    assert "Stones" not in http.get("/v1/schemas").json()["data"]


def test_an_unknown_name_is_refused_before_any_work(http: httpx.Client) -> None:
    """With the option's name."""
    answer = http.post(
        "/v1/workflows/radiology",
        files={"images": samples.picture("PNG")},
        data={"options": '{"schema": "nobody"}'},
    )

    assert (400, "options.schema") == (answer.status_code, answer.json()["error"]["param"])


def test_who_may_use_may_read_and_only_admin_may_change(http: httpx.Client, keys: tuple[str, str]) -> None:
    """A schema is what everybody's answers are held against."""
    http.put("/v1/schemas/stones", json=STONES)
    as_user = {"Authorization": f"Bearer {keys[0]}"}

    assert 401 == http.get("/v1/schemas", headers={"Authorization": ""}).status_code
    assert 200 == http.get("/v1/schemas/stones", headers=as_user).status_code
    assert 403 == http.put("/v1/schemas/stones", json=STONES, headers=as_user).status_code
    assert 403 == http.delete("/v1/schemas/stones", headers=as_user).status_code


def test_the_commands_keep_what_the_service_serves(
    http: httpx.Client, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same files: what is added is served at once."""
    monkeypatch.setenv("MEDSERVE_HOME", str(home))
    (tmp_path / "s.json").write_text(json.dumps(STONES))

    assert 0 == run(monkeypatch, "add", "mine", str(tmp_path / "s.json"))
    assert STONES == http.get("/v1/schemas/mine").json()["schema"]
    capsys.readouterr()
    assert 0 == run(monkeypatch, "ls")
    assert "mine" in capsys.readouterr().out.split()
    assert 0 == run(monkeypatch, "show", "mine")
    assert STONES == json.loads(capsys.readouterr().out)
    assert 0 == run(monkeypatch, "rm", "mine")
    assert 404 == http.get("/v1/schemas/mine").status_code


@pytest.mark.parametrize("text", ["", "[]", '{"type": 3}', '{"$ref": "#"}'])
def test_a_file_that_is_no_schema_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    """In one line, with exit code 2."""
    monkeypatch.setenv("MEDSERVE_HOME", str(tmp_path))
    (tmp_path / "s.json").write_text(text)

    assert 2 == run(monkeypatch, "add", "mine", str(tmp_path / "s.json"))
    assert 1 == len(capsys.readouterr().err.splitlines())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `medserve schemas` with these arguments."""
    monkeypatch.setattr("sys.argv", ["medserve", "schemas", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)
