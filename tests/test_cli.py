"""The command line: reports on standard output, words for people on standard error, and exit codes for scripts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from medserve import __version__, cli
from medserve.cli import configured
from medserve.settings import Settings
from tests.commands import DERMOSCOPY, Said, scripted
from tests.hostile import samples
from tests.imaging import phantoms
from tests.pictures import drawn
from tests.serving import serving


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives the seven answers of a clean dermoscopy report, four times over."""
    monkeypatch.setenv("MEDSERVE_CONFIG", str(scripted(tmp_path, *DERMOSCOPY * 4)))


def medserve(capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    """Run a command in this process."""
    code = 0
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["medserve", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        patch.undo()
    out, err = capsys.readouterr()
    return Said(code, out, err)


def refused(said: Said) -> str:
    """What a command said that refused with one line, exit code 2, nothing on standard output and no traceback."""
    assert (2, "") == (said.code, said.out)
    assert said.err.startswith("error: ")
    assert 1 == len(said.err.splitlines())
    return said.err


@pytest.mark.usefixtures("script")
def test_a_report_is_printed_for_people(capsys: pytest.CaptureFixture[str], dermoscopy: Path) -> None:
    """The text on standard output, and nothing else anywhere when nobody watches."""
    said = medserve(capsys, "run", "dermoscopy", dermoscopy)

    assert (0, "") == (said.code, said.err)
    assert said.out.startswith("Dermoscopy report\n====")
    assert "NV (melanocytic nevus)" in said.out


@pytest.mark.usefixtures("script")
def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str], dermoscopy: Path) -> None:
    """However many pictures: each line is a whole report."""
    said = medserve(capsys, "run", "dermoscopy", dermoscopy, dermoscopy, "--json")

    reports = [json.loads(line) for line in said.out.splitlines()]
    assert ["NV", "NV"] == [report["conclusion"]["label"] for report in reports]


@pytest.mark.usefixtures("script")
def test_reports_are_written_under_the_name_of_their_content(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """As JSON and as text, in a folder that is made, and without the name of the patient's file."""
    patient = tmp_path / "Mustermann.jpg"
    patient.write_bytes(dermoscopy.read_bytes())
    said = medserve(capsys, "run", "dermoscopy", patient, "--json", "--out", tmp_path / "new" / "reports")

    report = json.loads(said.out)
    name = f"dermoscopy-{report['study']['sha256'][:16]}-"
    written = sorted((tmp_path / "new" / "reports").iterdir())
    assert [".json", ".txt"] == [file.suffix for file in written]
    assert [True, True] == [file.name.startswith(name) for file in written]
    assert report == json.loads(written[0].read_text())
    assert "Mustermann" not in written[0].read_text() + written[1].read_text()


@pytest.mark.usefixtures("script")
def test_another_question_about_the_same_study_replaces_no_report(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """Other options or another sampling have a file of their own; the same question again has the same."""
    for more in ([], ["-o", "signs=true"], ["--temperature", "0.5", "--seed", "3"], []):
        medserve(capsys, "run", "dermoscopy", dermoscopy, "--out", tmp_path / "reports", *more)

    assert 3 == len(list((tmp_path / "reports").glob("*.json")))


@pytest.mark.usefixtures("script")
def test_one_bad_file_stops_no_other(capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path) -> None:
    """Each is told of with its reason, the others are reported, and the exit code says that something was wrong."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.txt").write_text("no picture")
    bad = [tmp_path / name for name in ("empty.jpg", "text.jpg", "none.jpg", "folder")]
    files = (bad[0], dermoscopy, *bad[1:], dermoscopy)
    said = medserve(capsys, "run", "dermoscopy", *files, "--json")

    assert (2, 2) == (said.code, len(said.out.splitlines()))
    reasons = (
        "empty (0 bytes)",
        "not a file that is read here",
        "No such file or directory",
        "no file that is read here",
    )
    for line, reason in zip(said.err.splitlines(), reasons, strict=True):
        assert reason in line


@pytest.mark.usefixtures("script")
def test_a_model_that_fails_on_a_picture_is_code_3(capsys: pytest.CaptureFixture[str], dermoscopy: Path) -> None:
    """The script is out of answers at the fifth picture: the others are there."""
    said = medserve(capsys, "run", "dermoscopy", *[dermoscopy] * 5, "--json")

    assert (3, 4) == (said.code, len(said.out.splitlines()))
    assert "none left" in said.err


@pytest.mark.usefixtures("script")
def test_strict_is_code_4_when_a_report_needs_review(capsys: pytest.CaptureFixture[str], dermoscopy: Path) -> None:
    """A clean report passes; with three more questions the script answers the wrong ones, and that is noticed."""
    clean = medserve(capsys, "run", "dermoscopy", dermoscopy, "--strict")
    unclean = medserve(capsys, "run", "dermoscopy", dermoscopy, "--strict", "-o", "signs=true")
    lenient = medserve(capsys, "run", "dermoscopy", dermoscopy, "-o", "signs=true")

    assert (0, 4, 0) == (clean.code, unclean.code, lenient.code)
    assert "NEEDS REVIEW" in unclean.out


@pytest.mark.usefixtures("script")
def test_progress_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dermoscopy: Path
) -> None:
    """Each step with its answer, on standard error; --quiet leaves it out."""
    silent = medserve(capsys, "run", "dermoscopy", dermoscopy)
    monkeypatch.setattr("medserve.batch.sys.stderr.isatty", lambda: True, raising=False)
    watched = medserve(capsys, "run", "dermoscopy", dermoscopy)
    quiet = medserve(capsys, "run", "dermoscopy", dermoscopy, "--quiet")

    assert "" == silent.err
    assert "  Shape: round  (0.0 s)" in watched.err
    assert "Shape: round" not in quiet.err


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "astrology", "a.jpg"], "dermoscopy"),
        (["run", "dermoscopy", "a.jpg", "--model", "gpt-9"], "script"),
        (["run", "dermoscopy", "a.jpg", "--model", "none.gguf"], "no file none.gguf"),
        (["run", "dermoscopy", "a.jpg", "--mmproj", "a.gguf"], "--model"),
        (["run", "dermoscopy", "a.jpg", "--context", "22000"], "--model"),
        (["serve", "--threads", "2", "--model", "script"], "--model"),
        (["run", "dermoscopy", "a.jpg", "--modality", "tarot"], "modality"),
        (["run", "dermoscopy", "a.jpg", "--mpp", "-1"], "mpp"),
        (["run", "dermoscopy", "a.jpg", "--temperature", "nan"], "temperature"),
        (["run", "dermoscopy", "a.jpg", "--temperature", "-1"], "temperature"),
        (["run", "dermoscopy", "a.jpg", "--seed", "-1"], "seed"),
        (["run", "dermoscopy", "a.jpg", "-o", "signs"], "name=value"),
        (["run", "dermoscopy", "a.jpg", "-o", "signs=perhaps"], "signs"),
        (["run", "dermoscopy", "a.jpg", "-o", "zodiac=1"], "signs"),
        (["run", "dermoscopy", "a.jpg", "-o", "signs=true", "-o", "signs=false"], "more than once"),
        (["run", "dermoscopy", "a.jpg", "--out", "/dev/null/reports"], "nothing can be written to"),
        (["replay", "none.json", "a.jpg"], "none.json"),
        (["replay", __file__, "a.jpg"], "not a report"),
        (["serve", "--host", "192.0.2.1"], "--open-to-network"),
        (["serve", "--host", "hospital.example.org"], "--open-to-network"),
        (["serve", "--port", "70000"], "port"),
    ],
    ids=lambda value: " ".join(value[:5]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """The line names what is wrong or what to do, before any model is loaded."""
    assert words in refused(medserve(capsys, *arguments))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MEDSERVE_PORT", "many", "setting port"),
        ("MEDSERVE_MODELS", "[[", "models"),
        ("MEDSERVE_CONFIG", "/none/medserve.toml", "MEDSERVE_CONFIG"),
        ("MEDSERVE_LIMITS__IMAGES", "0", "limits.images"),
    ],
)
def test_bad_settings_are_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """The line names the setting."""
    monkeypatch.setenv(name, value)

    assert words in refused(medserve(capsys, "ls"))


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "dermoscopy"], ["walk"], ["ls", "--colour"], ["serve", "--port", "x"]]
)
def test_wrong_usage_is_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """With the usage on standard error."""
    said = medserve(capsys, *arguments)

    assert (2, "") == (said.code, said.out)
    assert said.err.startswith("Usage: ")


def test_a_model_that_cannot_be_loaded_is_code_3(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """A file that is no model: one line with the reason."""
    (tmp_path / "page.gguf").write_text("<!doctype html>")
    said = medserve(capsys, "run", "dermoscopy", dermoscopy, "--model", tmp_path / "page.gguf")

    assert (3, "", 1) == (said.code, said.out, len(said.err.splitlines()))
    assert "page.gguf is not a whole GGUF file" in said.err


@pytest.mark.usefixtures("script")
def test_a_report_is_replayed_word_for_word(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """The recorded answers make the same report; a changed answer makes another, which is shown."""
    medserve(capsys, "run", "dermoscopy", dermoscopy, "--out", tmp_path / "reports")
    (file,) = (tmp_path / "reports").glob("*.json")
    same = medserve(capsys, "replay", file, dermoscopy)
    file.write_text(file.read_text().replace('"reply": "round"', '"reply": "oval"'))
    other = medserve(capsys, "replay", file, dermoscopy)

    assert (0, 1) == (same.code, other.code)
    assert "the same report word for word: 7 steps" in same.out
    assert "differs from the recorded one" in other.err


@pytest.mark.usefixtures("script")
def test_controls_are_named_on_the_command_line(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """Between commas or as a JSON list; the report is replayed with them."""
    for given in ("blank,paraphrase", '["blank", "paraphrase"]'):
        said = medserve(capsys, "run", "dermoscopy", dermoscopy, "-o", f"controls={given}", "--out", tmp_path)
        assert re.search(r"Controls\n  paraphrase: .*\n  blank: ", said.out)
    (report,) = tmp_path.glob("*.json")

    assert 0 == medserve(capsys, "replay", report, dermoscopy).code


@pytest.mark.usefixtures("script")
def test_a_report_is_not_replayed_on_another_picture(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """By content, not by name."""
    medserve(capsys, "run", "dermoscopy", dermoscopy, "--out", tmp_path)
    (report,) = tmp_path.glob("*.json")
    others = [file for file in dermoscopy.parent.glob("*.jpg") if file != dermoscopy]

    assert "not the pictures" in refused(medserve(capsys, "replay", report, others[0]))


@pytest.mark.usefixtures("script")
def test_models_and_workflows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """One a line, the default marked, and what each workflow takes in words."""
    said = medserve(capsys, "ls")

    assert ["script", "scripted", "-", "default"] in [line.split() for line in said.out.splitlines()]
    assert re.search(r"^dermoscopy +a dermoscopic photograph of one skin lesion  ", said.out, re.MULTILINE)


def test_a_service_is_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: None, tmp_path: Path
) -> None:
    """While it runs its models are shown; a port in use is told; afterwards nobody answers."""
    with serving(environment={"MEDSERVE_CONFIG": str(tmp_path / "medserve.toml")}) as service:
        running = medserve(capsys, "ps", "--url", service.url)
        taken = medserve(capsys, "serve", "--port", service.url.rpartition(":")[2])
        url = service.url
    gone = medserve(capsys, "ps", "--url", url)

    assert ["script", "ready", "scripted"] == running.out.splitlines()[1].split()[:3]
    assert f"cannot listen at {url}: Address already in use; choose another" in refused(taken)
    assert (3, f"error: no medserve answers at {url}; start one with: medserve serve\n") == (gone.code, gone.err)


def test_jobs_are_looked_at_and_stopped(
    capsys: pytest.CaptureFixture[str], script: None, tmp_path: Path, dermoscopy: Path
) -> None:
    """A table of all, one as JSON, and a word for one that does not exist."""
    with serving(environment={"MEDSERVE_CONFIG": str(tmp_path / "medserve.toml")}) as service:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
            later = {"Prefer": "respond-async"}
            files = {"images": dermoscopy.read_bytes()}
            told = client.post("/v1/workflows/dermoscopy", files=files, headers=later).json()
            client.get(f"/v1/jobs/{told['id']}", params={"wait": 20})
        listed = medserve(capsys, "jobs", "ls", "--url", service.url)
        shown = medserve(capsys, "jobs", "show", told["id"], "--url", service.url)
        stopped = medserve(capsys, "jobs", "cancel", told["id"], "--url", service.url)
        unknown = medserve(capsys, "jobs", "show", "../models", "--url", service.url)

    assert [told["id"], "workflow"] == listed.out.splitlines()[1].split()[:2]
    assert json.loads(shown.out)["state"] in {"done", "failed"}
    assert json.loads(shown.out)["state"] in stopped.out
    assert "no such" in refused(unknown)


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp://127.0.0.1", "http://127.0.0.1:1"])
def test_an_address_without_service_is_code_3(capsys: pytest.CaptureFixture[str], url: str) -> None:
    """Whatever is wrong with it."""
    said = medserve(capsys, "ps", "--url", url)

    assert (3, 1) == (said.code, len(said.err.splitlines()))


def test_the_version_is_told_by_both_names_of_the_command() -> None:
    """`medserve --version` and `python -m medserve --version`, and without loading what a report needs."""
    command = [sys.executable, "-X", "importtime", "-m", "medserve", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert f"medserve {__version__}\n" == done.stdout
    assert set() == loaded & {"numpy", "PIL", "fastapi", "uvicorn", "pydantic", "jsonschema", "httpx"}


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """And its help is free of marks."""
    for name in ("run", "inspect", "deidentify", "replay", "serve", "ls", "ps", "doctor"):
        said = medserve(capsys, name, "--help")
        assert 0 == said.code
        assert f"\n    medserve {name}" in said.out, name
        assert not set("\b\x1b") & set(said.out)


def series(folder: Path) -> Path:
    """A folder with a CT series."""
    folder.mkdir()
    for number, data in enumerate(phantoms.series(phantoms.abdomen())):
        (folder / f"IM{number:03}").write_bytes(data)
    return folder


def test_studies_are_inspected(capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path) -> None:
    """Each path is a study: a picture, a folder, a zip; as text and as JSON lines."""
    folder = series(tmp_path / "series")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "export.zip").write_bytes(samples.zipped(files))
    text = medserve(capsys, "inspect", dermoscopy, folder, tmp_path / "export.zip")
    told = medserve(capsys, "inspect", dermoscopy, folder, tmp_path / "export.zip", "--json")
    picture, loose, zipped = map(json.loads, told.out.splitlines())

    assert (0, "") == (text.code, text.err)
    assert 2 == text.out.count("12 slices of 48 x 48, 2 x 0.8 x 0.7 mm")
    assert ("OT", "CT") == (picture["modality"], loose["modality"])
    assert loose == zipped
    assert not any(secret in text.out + told.out for secret in phantoms.SECRETS.values())


def test_files_are_one_study_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without --together each slice is a study of its own."""
    files = sorted(series(tmp_path / "series").iterdir())
    together = medserve(capsys, "inspect", *files, "--together", "--json")
    alone = medserve(capsys, "inspect", *files, "--json")

    assert 12 == len(json.loads(together.out)["pictures"])
    assert [1] * 12 == [len(json.loads(line)["pictures"]) for line in alone.out.splitlines()]


def test_a_contact_sheet_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of a slide also the overview with the patches that were drawn."""
    (tmp_path / "slide.svs").write_bytes(samples.slide(side=2048))
    said = medserve(
        capsys, "inspect", tmp_path / "slide.svs", "--magnification", "20", "--patches", "2", "--slide-seed", "1",
        "--sheet", tmp_path / "seen.png",
    )  # fmt: skip

    assert "the model sees 2 x 896 x 896 pixels, 512 tokens" in said.out
    assert ["seen-overview.png", "seen.png"] == sorted(file.name for file in tmp_path.glob("*.png"))
    assert 2 == said.err.count("written: ")


def test_what_cannot_be_inspected_is_told(capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path) -> None:
    """The others are shown; the exit code says that something was wrong."""
    (tmp_path / "text").write_text("no picture")
    said = medserve(capsys, "inspect", tmp_path / "text", dermoscopy, "dicomweb:pacs/studies/1.2/series/1.3", "--json")

    assert (2, 1) == (said.code, len(said.out.splitlines()))
    assert "not a file that is read here" in said.err
    assert "there are: none" in said.err
    assert "one study" in refused(medserve(capsys, "inspect", dermoscopy, dermoscopy, "--sheet", tmp_path / "a.png"))
    assert "modality" in refused(medserve(capsys, "inspect", dermoscopy, "--modality", "tarot"))
    assert "patches" in refused(medserve(capsys, "inspect", dermoscopy, "--patches", "0"))


def test_a_server_that_fails_stops_no_other_inspection(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dermoscopy: Path
) -> None:
    """The other studies are shown; the exit code says that a server failed."""
    monkeypatch.setenv("MEDSERVE_DICOMWEB", json.dumps([{"name": "pacs", "url": "http://127.0.0.1:9/dicom-web"}]))
    said = medserve(capsys, "inspect", "dicomweb:pacs/studies/1.2/series/1.3", dermoscopy, "--json")

    assert (3, 1) == (said.code, len(said.out.splitlines()))
    assert "cannot be reached" in said.err


def test_a_slide_that_does_not_tell_its_pixel_size_is_told_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """--mpp is what the refusal asks for."""
    (tmp_path / "slide.svs").write_bytes(samples.slide(side=2048))
    said = medserve(capsys, "inspect", tmp_path / "slide.svs", "--mpp", "0.25", "--json")

    assert "0.25 micrometres" == json.loads(said.out)["facts"]["pixel size"]


@pytest.mark.usefixtures("script")
def test_what_is_said_of_the_files_counts_in_a_report_and_its_replay(
    capsys: pytest.CaptureFixture[str], dermoscopy: Path, tmp_path: Path
) -> None:
    """A picture that is said to be a photograph is one, and the same words replay it."""
    said = medserve(capsys, "run", "dermoscopy", dermoscopy, "--modality", "XC", "--json")
    (tmp_path / "report.json").write_text(said.out)
    again = medserve(capsys, "replay", tmp_path / "report.json", dermoscopy, "--modality", "XC")

    assert "XC" == json.loads(said.out)["study"]["modality"]
    assert 0 == again.code


def test_context_and_threads_are_the_named_files(tmp_path: Path) -> None:
    """They are set for a GGUF file given by --model; left out, they are the usual ones."""
    (tmp_path / "model.gguf").touch()
    given = configured.with_model(Settings(), str(tmp_path / "model.gguf"), None, 22_000, 3).models[0]
    usual = configured.with_model(Settings(), str(tmp_path / "model.gguf"), None, None, None).models[0]

    assert (22_000, 3) == (given.context, given.threads)
    assert (8192, None) == (usual.context, usual.threads)


def test_copies_without_identity_are_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A whole series that still belongs together, under names that say nothing; what is no DICOM is left out."""
    pytest.importorskip("dicomanonymizer", reason="the extra `deidentify` is not installed")
    folder = series(tmp_path / "Mustermann")
    (folder / "README.TXT").write_text("start me")
    said = medserve(capsys, "deidentify", folder, "--out", tmp_path / "copies")
    seen = json.loads(medserve(capsys, "inspect", tmp_path / "copies", "--json").out)
    names = [file.name for file in (tmp_path / "copies").iterdir()]
    written = b"".join(file.read_bytes() for file in (tmp_path / "copies").iterdir())

    assert (0, 12) == (said.code, len(names))
    assert "1 files" in said.err
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16}\.dcm", name) for name in names)
    assert 1 == len({name[:16] for name in names})
    assert not any(secret.encode() in written for secret in phantoms.SECRETS.values())
    assert 12 == seen["volume"]["slices"]


def test_what_may_show_a_name_is_not_copied(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is told of by the path that was given, and the others are copied."""
    pytest.importorskip("dicomanonymizer", reason="the extra `deidentify` is not installed")
    screenshot = phantoms.dicom(samples.drawing(64, 64), sop_class=phantoms.SCREENSHOT, modality="OT")
    (tmp_path / "shot").write_bytes(screenshot)
    (tmp_path / "text").write_text("no picture")
    (tmp_path / "scan").write_bytes(phantoms.series(phantoms.abdomen(1))[0])
    paths = [tmp_path / name for name in ("shot", "text", "scan")]
    said = medserve(capsys, "deidentify", *paths, "--out", tmp_path / "copies")

    assert (2, 1) == (said.code, len(list((tmp_path / "copies").iterdir())))
    assert 2 == len(said.err.splitlines())
    assert "text may be drawn" in said.err


def test_without_the_extra_copies_are_refused_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line, nothing written."""
    monkeypatch.setitem(sys.modules, "dicomanonymizer", None)
    (tmp_path / "scan").write_bytes(phantoms.series(phantoms.abdomen(1))[0])
    said = medserve(capsys, "deidentify", tmp_path / "scan", "--out", tmp_path / "copies")

    assert "medserve[deidentify]" in refused(said)
    assert [] == list((tmp_path / "copies").iterdir())


@pytest.mark.usefixtures("script")
def test_a_dicom_file_and_a_folder_are_studies(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A report of each, with what the files give cause for; they are replayed from the same paths."""
    lesion = drawn("lesion-nv").images[0].pixels
    data = phantoms.dicom(lesion, sop_class=phantoms.SCREENSHOT, modality="OT", BurnedInAnnotation="NO")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "IM1").write_bytes(data)
    (tmp_path / "folder" / "README.TXT").write_text("start me")
    said = medserve(capsys, "run", "dermoscopy", tmp_path / "folder" / "IM1", tmp_path / "folder", "--json")
    alone, among = map(json.loads, said.out.splitlines())

    assert ([], ["not_a_picture_dropped"]) == tuple(
        [c["name"] for c in one["study"]["concerns"]] for one in (alone, among)
    )
    assert [False, True] == [one["needs_review"] for one in (alone, among)]
    (tmp_path / "report.json").write_text(json.dumps(among))
    assert 0 == medserve(capsys, "replay", tmp_path / "report.json", tmp_path / "folder").code
