"""A workflow of one's own, as a file or as code, is found, served, run, queued and replayed as any other."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from medserve import workflows
from medserve.api import create_app
from medserve.cli import app, main
from medserve.errors import InvalidRequest, UnknownWorkflow
from medserve.settings import DEMO, Settings
from tests.installing import install
from tests.serving import serving

KIDNEY = DEMO / "drawings" / "kidney-left.png"
FILE = """medserve: 1
name: stone-file
version: "1"
title: Stone by file
summary: Whether a stone is visible.
modality: CT
takes: {what: one axial CT slice of the abdomen}
labels: {yes: a stone is visible, no: no stone is visible}
options:
  wording: {type: string, default: a kidney stone, choices: [a kidney stone, any stone]}
steps:
  - ask: stone
    name: Kidney stone
    prompt: Is {options.wording} visible? Answer yes or no.
    read: {one_of: [yes, no]}
    probabilities: true
conclude: {label: stone}
"""
CODE = '''"""A workflow in one file."""

from medserve.images import Modality
from medserve.readers import one_of
from medserve.reports import Conclusion
from medserve.workflow import Workflow


async def run(study, consult, options):
    answer = await consult.ask("Kidney stone", "Is a kidney stone visible? Answer yes or no.", one_of("yes", "no"))
    return Conclusion(findings=(answer.finding(),), label=answer.value)


workflow = Workflow("stone-code", "Stone by code", "Whether a stone is visible.", Modality.CT, run, labels={"yes": "a"})
'''


def distribution(folder: Path, name: str = "stone", code: str = CODE, value: str = "") -> Path:
    """The source of a distribution whose only module is `code`."""
    folder.mkdir()
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1"\n[project.entry-points."medserve.workflows"]\n'
        f'{name} = "{value or f"{module}:workflow"}"\n'
    )
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions that this process imports from."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    workflows.known.cache_clear()
    yield tmp_path / "site"
    workflows.known.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("stone"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of workflow files with one file."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    (folder / "stone.yaml").write_text(FILE)
    monkeypatch.setenv("MEDSERVE_WORKFLOWS", str(folder))
    monkeypatch.setenv("MEDSERVE_HOME", str(tmp_path / "home"))
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that has one workflow as a file, and one as code of another distribution."""
    home = tmp_path_factory.mktemp("service")
    install(distribution(home / "source"), home / "site")
    (home / "workflows").mkdir()
    (home / "workflows" / "stone.yaml").write_text(FILE)
    path = os.pathsep.join(filter(None, (str(home / "site"), os.environ.get("PYTHONPATH"))))
    environment = {"MEDSERVE_WORKFLOWS": str(home / "workflows"), "PYTHONPATH": path}
    with (
        serving(environment=environment) as service,
        httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize("name", ["stone-file", "stone-code"])
def test_it_has_an_endpoint_and_a_form(name: str, client: httpx.Client) -> None:
    """Listed with its options, and answering as any other; an option of another type is refused."""
    listed = {one["name"] for one in client.get("/v1/workflows").json()["data"]}
    form = client.get(f"/v1/workflows/{name}").json()["options"]["properties"]
    files = {"images": KIDNEY.read_bytes()}
    report = client.post(f"/v1/workflows/{name}", files=files).json()
    refused = client.post(f"/v1/workflows/{name}", files=files, data={"options": '{"wording": 3}'})

    assert {name, "dermoscopy"} <= listed
    assert ("wording" in form) == (name == "stone-file")
    assert ("yes", name) == (report["conclusion"]["label"], report["provenance"]["workflow"])
    assert 400 == refused.status_code


@pytest.mark.parametrize("name", ["stone-file", "stone-code"])
def test_it_is_taken_as_a_job_and_as_a_batch(name: str, client: httpx.Client) -> None:
    """Whoever works on it later finds the workflow too."""
    files = {"images": KIDNEY.read_bytes()}
    job = client.post(f"/v1/workflows/{name}", files=files, headers={"Prefer": "respond-async"}).json()["id"]
    batch = client.post("/v1/batches", files=files, data={"workflow": name}).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running"):
        sleep(0.05)
    while client.get(f"/v1/batches/{batch}").json()["status"] not in ("completed", "failed"):
        sleep(0.05)
    line = json.loads(client.get(f"/v1/batches/{batch}/results").text.splitlines()[0])

    assert "yes" == client.get(f"/v1/jobs/{job}/result").json()["conclusion"]["label"]
    assert name in json.dumps(line)
    assert '"label": "yes"' in json.dumps(line)


def test_a_file_runs_and_is_replayed_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    """And a replay with another file says so: still the same report, or no longer."""
    made = run("run", "stone-file", KIDNEY, "--json", "-q", "-o", "wording=a kidney stone")
    report = tmp_path / "report.json"
    report.write_text(made.stdout)
    same = run("replay", report, KIDNEY)
    workflows.known.cache_clear()
    (folder / "stone.yaml").write_text(FILE + "# a remark\n")
    remarked = run("replay", report, KIDNEY)
    workflows.known.cache_clear()
    (folder / "stone.yaml").write_text(FILE.replace("Is {", "Is perhaps {"))
    other = run("replay", report, KIDNEY)

    assert "yes" == json.loads(made.stdout)["conclusion"]["label"]
    assert (0, "") == (same.exit_code, same.stderr)
    assert 0 == remarked.exit_code
    assert "note: stone-file has changed: version 1+" in remarked.stderr
    assert 1 == other.exit_code
    assert "note: stone-file has changed" in other.stderr


def test_a_file_is_evaluated(folder: Path, tmp_path: Path) -> None:
    """On labelled pictures, as any workflow with labels."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, truth in (("kidney-left", "yes"), ("kidney-none", "no")):
        (pictures / f"{name}.png").write_bytes((DEMO / "drawings" / f"{name}.png").read_bytes())
        with (pictures / "labels.csv").open("a") as table:
            table.write(f"{name}.png,{truth}\n" if table.tell() else f"image,label\n{name}.png,{truth}\n")
    found = run("evaluate", "stone-file", pictures, "--json", "-q")

    assert 0 == found.exit_code
    assert "stone-file" in found.stdout


def test_ls_tells_what_cannot_be_used_and_goes_on(folder: Path) -> None:
    """Each with file, line and reason; a workflow without a fault still runs."""
    (folder / "broken.yaml").write_text(FILE.replace("one_of", "one_off"))
    (folder / "copy.yaml").write_text(FILE)
    (folder / "taken.yml").write_text(FILE.replace("stone-file", "dermoscopy"))
    found = run("ls")

    assert 2 == found.exit_code
    assert "error: broken.yaml:15: steps.0.read.one_off: is not known here" in found.stderr
    assert "error: stone.yaml: name: there is a workflow 'stone-file' already" in found.stderr
    assert "error: taken.yml: name: there is a workflow 'dermoscopy' already" in found.stderr
    assert "stone-file" in found.stdout


def test_a_service_does_not_start_with_a_file_that_it_would_lack(folder: Path) -> None:
    """Its callers would be told that there is no such workflow."""
    (folder / "broken.yaml").write_text("medserve: 2\n")

    with pytest.raises(InvalidRequest, match=r"^a workflow cannot be used: broken\.yaml:1: medserve: "):
        create_app(Settings(workflows=folder))


def test_an_unknown_name_is_not_repeated_and_broken_files_are_hinted_at(folder: Path) -> None:
    """What a caller sends may be anything."""
    (folder / "broken.yaml").write_text("medserve: 2\n")

    with pytest.raises(UnknownWorkflow, match="some cannot be used, and `medserve ls` says why") as refused:
        workflows.find("Mustermann", folder)
    assert "Mustermann" not in refused.value.message


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A misspelled setting is no empty folder."""
    with pytest.raises(ValueError, match="workflows names no folder"):
        Settings(workflows=tmp_path / "none")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("raise RuntimeError('at once')", "RuntimeError: at once"),
        ("workflow = 3", "is no medserve.workflow.Workflow"),
        ("", "AttributeError"),
        (CODE.replace("stone-code", "dermoscopy"), "there is a workflow 'dermoscopy' already"),
    ],
)
def test_code_that_cannot_be_used_is_told_of_and_stops_no_other(code: str, reason: str, site: Path) -> None:
    """It may fail in any way when it is imported."""
    install(distribution(site.parent / "source", "stone-bad", code), site)
    install(distribution(site.parent / "good", "stone-good"), site)
    found = workflows.known()

    assert 1 == len(found.faults)
    assert found.faults[0].startswith("entry point stone-bad (stone_bad:workflow): ")
    assert reason in found.faults[0]
    assert {"stone-code", "dermoscopy"} <= set(found.workflows)
    assert "Dermoscopy report" == workflows.find("dermoscopy").title


def test_a_new_file_is_complete_and_never_written_over(folder: Path) -> None:
    """It can be run at once; a name that is taken or no name at all is refused."""
    made = run("workflow", "new", "mine")
    workflows.known.cache_clear()

    assert 0 == made.exit_code
    assert "mine" in workflows.workflows(folder)
    assert 0 == run("workflow", "check", folder / "mine.yaml").exit_code
    for name, out, reason in (
        ("mine", "", "already"),
        ("Mine", "", "small letters"),
        ("other", "mine.yaml", "there already"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            run("workflow", "new", name, *(["--out", folder / out] if out else []))


def test_check_tells_every_fault_and_a_taken_name(folder: Path, tmp_path: Path) -> None:
    """One line each, with exit code 2; a file of the folder is not in its own way."""
    broken = tmp_path / "broken.yaml"
    broken.write_text(FILE.replace("one_of", "one_off").replace("title", "titel"))
    copy = tmp_path / "copy.yaml"
    copy.write_text(FILE)
    found = run("workflow", "check", folder / "stone.yaml", broken, copy)

    assert 2 == found.exit_code
    assert found.stdout.startswith(f"{folder / 'stone.yaml'}: stone-file 1+")
    assert 4 == len(found.stderr.splitlines())
    assert f"error: {broken}:4: titel: is not known here" in found.stderr
    assert f"error: {copy}: name: there is a workflow 'stone-file' already" in found.stderr


@pytest.mark.parametrize("name", ["dermoscopy", "histology"])
def test_show_gives_the_questions_of_code_word_for_word(name: str, folder: Path) -> None:
    """What the module declares, with how it is read."""
    shown = run("workflow", "show", name).stdout
    prompts = {
        "dermoscopy": "What is the overall shape of the lesion?",
        "histology": "Are malignant gland changes visible? Answer yes or no.",
    }

    assert prompts[name] in shown
    assert "read as one_of: " in shown
    assert f"is code: medserve.workflows.{name}" in shown


def test_show_gives_a_file_as_it_is_written(folder: Path) -> None:
    """Behind a line that says where it lies and which version it is."""
    shown = run("workflow", "show", "stone-file").stdout

    assert shown.startswith(f"# {folder / 'stone.yaml'}, version 1+")
    assert shown.endswith(FILE)


def test_a_broken_file_is_one_line_of_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`medserve serve` ends with code 2 before it listens."""
    (folder / "broken.yaml").write_text("medserve: 2\n")
    monkeypatch.setattr(sys, "argv", ["medserve", "serve", "--port", "0"])

    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert 2 == ended.value.code
    assert told.startswith("error: a workflow cannot be used: broken.yaml:1: ")
    assert "listens" not in told
