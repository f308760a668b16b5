"""`medserve evaluate` on the real engine: drawings are measured, a calibration is kept and applied everywhere."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import drawings
from medserve import calibration
from medserve.calibration import Calibration
from tests.commands import Said
from tests.serving import serving
from tests.test_cli import medserve, refused
from tools.demo_model import gallery

COUNT = 24
FIRST = 6_100_000


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of lesions, with two of each other kind, and a file that is no picture."""
    folder = drawings.write("dermoscopy", tmp_path_factory.mktemp("Mustermann"), COUNT, others=2, first=FIRST)
    (folder / "broken.png").write_bytes(b"no picture")
    with (folder / "labels.csv").open("a") as table:
        table.write("broken.png,NV,\n")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calibrations are kept in this test."""
    monkeypatch.setenv("MEDSERVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, Said]:
    said = medserve(capsys, "evaluate", *arguments, "--json")
    assert 0 == said.code, said.err
    return json.loads(said.out), said


@pytest.mark.usefixtures("home")
def test_drawings_are_measured(capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path) -> None:
    """Defect 001-6: each one: lesions well, the others not answered, the broken file refused and in the numbers."""
    found, said = evaluated(capsys, "dermoscopy", pictures, "--out", tmp_path / "out")

    assert COUNT + 8 + 1 == found["n"] == sum(found["statuses"].values())
    assert 1 == found["statuses"]["refused"]
    assert found["accuracy_of_labels"]["count"] >= COUNT - 4
    assert found["better_than_majority"]
    assert "row 34: refused (image_unreadable)" in said.err
    texts = [file.read_text() for file in (tmp_path / "out").iterdir()]
    assert 4 == len(texts)
    assert not [text for text in (said.out, *texts) if "broken.png" in text or "Mustermann" in text]


@pytest.mark.usefixtures("home")
def test_a_finding_is_measured_in_place_of_the_label(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Against a table that spells the answers in its own way, and by its probabilities."""
    rows = ["image,label"]
    for number in range(FIRST, FIRST + 8):
        drawn = gallery.draw("dermoscopy", number, 256)
        drawn.image.save(tmp_path / f"{number}.png")
        rows.append(f"{number},{'YES' if drawn.truth['network'] else 'No'}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows[:-1], f"{number},perhaps"]))

    found, _ = evaluated(capsys, "dermoscopy", tmp_path, "--finding", "Pigment network")

    assert ("Pigment network", ["yes", "no"]) == (found["target"], found["labels"])
    assert (8, 7, 1) == (found["n"], found["accuracy_of_labels"]["n"], sum(found["confusion"]["rows"]["other"]))
    assert found["accuracy"]["count"] >= 6
    assert found["probabilities"]["n"] == 7


@pytest.mark.usefixtures("home")
def test_a_finding_that_there_is_not_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    """At the first picture, and not after the last."""
    assert "Pigment network" in refused(medserve(capsys, "evaluate", "dermoscopy", pictures, "--finding", "Network"))


def test_a_calibration_is_fitted_and_told(capsys: pytest.CaptureFixture[str], pictures: Path, home: Path) -> None:
    """Kept with the data set's hash when it helps on unseen cases, and else not kept."""
    found, _ = evaluated(capsys, "dermoscopy", pictures, "--calibrate", "temperature")

    fit = found["fitted"]
    kept = list((home / "calibrations").glob("*.json"))
    assert fit["helps"] == (fit["after"]["nll"] < fit["before"]["nll"]) == bool(kept)
    assert (COUNT, found["dataset"]) == (fit["calibration"]["n"], fit["calibration"]["dataset"])


def planted(capsys: pytest.CaptureFixture[str], home: Path, picture: Path, **other: object) -> dict[str, Any]:
    """Keep a calibration for the demonstration model as it is here, or with something that is not; and a report."""
    plain = reported(capsys, picture)
    made = plain["provenance"]
    fit = {
        "step": "Classification",
        "labels": list(plain["conclusion"]["probabilities"]),
        "method": "temperature",
        "parameters": {"temperature": 5.0},
        "dataset": "ef" * 32,
        "n": 123,
        "workflow": made["workflow"],
        "version": made["workflow_version"],
        "options": {"signs": False},
        "weights": calibration.identity(made["facts"]),
        "before": 1.0,
        "after": 0.5,
        "folds": 5,
    }
    calibration.keep(home, Calibration.model_validate({**fit, **other}))
    return plain


def reported(capsys: pytest.CaptureFixture[str], picture: Path, *arguments: str) -> dict[str, Any]:
    said = medserve(capsys, "run", "dermoscopy", picture, "--json", *arguments)
    assert 0 == said.code, said.err
    report: dict[str, Any] = json.loads(said.out)
    return report


def test_reports_apply_what_was_fitted(capsys: pytest.CaptureFixture[str], pictures: Path, home: Path) -> None:
    """On the command line; the report names the data set, and `calibrate=false` leaves it away."""
    picture = pictures / f"dermoscopy-{FIRST}.png"
    plain = planted(capsys, home, picture)

    calibrated, without = reported(capsys, picture), reported(capsys, picture, "-o", "calibrate=false")

    said = calibrated["conclusion"]["calibrated"]
    assert (123, "ef" * 32) == (said["n"], said["dataset"])
    assert said["before"] == pytest.approx(plain["conclusion"]["probabilities"], abs=1e-4)
    assert max(calibrated["conclusion"]["probabilities"].values()) < max(said["before"].values())
    assert without["conclusion"]["calibrated"] is None


@pytest.mark.parametrize("other", [{"version": "0"}, {"weights": "12" * 32}, {"options": {"signs": True}}])
def test_reports_apply_nothing_that_was_fitted_for_something_else(
    capsys: pytest.CaptureFixture[str], pictures: Path, home: Path, other: dict[str, object]
) -> None:
    """Another version of the workflow, other weights under the same name, or other questions."""
    picture = pictures / f"dermoscopy-{FIRST}.png"
    planted(capsys, home, picture, **other)

    assert reported(capsys, picture)["conclusion"]["calibrated"] is None


def test_the_service_applies_it_at_once_and_as_a_job(
    capsys: pytest.CaptureFixture[str], pictures: Path, home: Path
) -> None:
    """The same home, the same calibration."""
    picture = pictures / f"dermoscopy-{FIRST}.png"
    planted(capsys, home, picture)

    with (
        serving(environment={"MEDSERVE_HOME": str(home)}) as service,
        httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client,
    ):
        files = {"images": picture.read_bytes()}
        at_once = client.post("/v1/workflows/dermoscopy", files=files).json()
        job = client.post("/v1/workflows/dermoscopy", files=files, headers={"Prefer": "respond-async"}).json()
        client.get(f"/v1/jobs/{job['id']}", params={"wait": 30})
        later = client.get(f"/v1/jobs/{job['id']}/result").json()

    assert [123, 123] == [report["conclusion"]["calibrated"]["n"] for report in (at_once, later)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("radiology", "."), "--finding"),
        (("dermoscopy", "nowhere"), "folder"),
        (("dermoscopy", "{pictures}", "--calibrate", "platt"), "choose temperature"),
        (("dermoscopy", "{pictures}", "--calibrate", "temperature", "--limit", "5"), "at least 20"),
        (("dermoscopy", "{pictures}", "--finding", "Shape", "--calibrate", "temperature"), "no finding"),
        (("dermoscopy", "{pictures}", "--controls", "sideways"), "controls"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], pictures: Path, arguments: tuple[str, ...], words: str
) -> None:
    """In one line that says what to do."""
    given = [argument.format(pictures=pictures) for argument in arguments]

    assert words in refused(medserve(capsys, "evaluate", *given))
