"""Where a command is to write is tried before it works: what is named wrongly is told at once, and left as it is."""

import os
from pathlib import Path

import pytest

from medserve import calibration, certificates, outputs
from medserve.errors import InvalidRequest
from medserve.hub.store import Store
from tests.commands import command

CERTAINLY_NOT = Path("/proc/self/task")
"""A folder in which nobody makes files, whoever asks: rights mean nothing to the user who runs tests in a container."""

in_linux = pytest.mark.skipif(not CERTAINLY_NOT.is_dir(), reason="this system has no /proc")


# --- what is tried ---------------------------------------------------------------------------------------------------


def test_a_file_that_may_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    """One that is there keeps its content and its time; one that is not there is not there afterwards."""
    there = tmp_path / "there.json"
    there.write_text("kept")
    os.utime(there, (1_000_000, 1_000_000))

    outputs.try_file(there)
    outputs.try_file(tmp_path / "new.json")

    assert ("kept", 1_000_000) == (there.read_text(), there.stat().st_mtime)
    assert [there] == list(tmp_path.iterdir())


def test_a_link_to_a_file_that_is_not_there_yet_stays(tmp_path: Path) -> None:
    """What is written later goes where it leads."""
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "later.json")

    outputs.try_file(link)

    assert [link] == list(tmp_path.iterdir())
    assert link.is_symlink()


def test_a_link_that_leads_to_itself_is_told(tmp_path: Path) -> None:
    """In the system's own words."""
    link = tmp_path / "link.json"
    link.symlink_to(link)

    with pytest.raises(OSError, match="symbolic links"):
        outputs.try_file(link)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """To its reader, opening and closing it would be all that comes; without a reader it would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    outputs.try_file(pipe)
    outputs.try_file(Path("/dev/null"))


@pytest.mark.parametrize("name", ["none/a.json", "folder", "file/a.json", "x" * 300])
def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    """A missing folder, a folder in its place, a file in the place of its folder, and a name that is too long."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(OSError, match=r"."):
        outputs.try_file(tmp_path / name)
    assert before == sorted(tmp_path.rglob("*"))


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    """With the folders above it."""
    outputs.try_folder(tmp_path / "a" / "b", 0o700)

    assert [] == list((tmp_path / "a" / "b").iterdir())
    assert 0o700 == (tmp_path / "a" / "b").stat().st_mode & 0o777


@in_linux
def test_a_folder_in_which_no_file_can_be_made_is_told() -> None:
    """Though it is there."""
    with pytest.raises(OSError, match=r"."):
        outputs.try_folder(CERTAINLY_NOT)
    with pytest.raises(OSError, match=r"."):
        outputs.try_file(CERTAINLY_NOT / "a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be written by this user")
def test_what_may_not_be_written_is_told(tmp_path: Path) -> None:
    """A file that may only be read, and a folder."""
    (tmp_path / "file").touch(0o400)
    tmp_path.chmod(0o500)
    try:
        for name in ("file", "new"):
            with pytest.raises(PermissionError):
                outputs.try_file(tmp_path / name)
        with pytest.raises(PermissionError):
            outputs.try_folder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_home_where_nothing_can_be_kept_is_told(tmp_path: Path) -> None:
    """Before a model is downloaded, verified or calibrated; the remedy names the variable, and no path is repeated."""
    (tmp_path / "home").write_text("a file")

    for prepared in (certificates.prepared, calibration.prepared, lambda home: Store(home).prepared()):
        with pytest.raises(InvalidRequest, match="set MEDSERVE_HOME to a folder that is") as refused:
            prepared(tmp_path / "home")
        assert "home" == refused.value.param
        assert str(tmp_path) not in refused.value.message


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["verify", "medserve-demo", "--out"], "out"),
        (["verify", "medserve-demo", "--page"], "page"),
        (["export", "none.json", "--out"], "out"),
        (["inspect", "none.dcm", "--sheet"], "sheet"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
@pytest.mark.parametrize("name", ["none/a", "folder"])
def test_a_command_refuses_a_file_that_it_could_not_write(
    tmp_path: Path, arguments: list[str], option: str, name: str
) -> None:
    """Before it reads or loads anything, by the option, and without the path, which may hold a patient's name."""
    (tmp_path / "folder").mkdir()

    said = command(*arguments, str(tmp_path / name), MEDSERVE_HOME=str(tmp_path / "home"))

    assert (2, "") == (said.code, said.out)
    assert f"nothing can be written to the place that --{option} names" in said.err
    assert 1 == len(said.err.splitlines())
    assert str(tmp_path) not in said.err
    assert [tmp_path / "folder"] == list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["file", pytest.param("proc", marks=in_linux)])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "dermoscopy", "none.jpg", "--out"],
        ["evaluate", "dermoscopy", "{folder}", "--out"],
        ["deidentify", "none.dcm", "--out"],
    ],
    ids=lambda value: value[0],
)
def test_a_command_refuses_a_folder_that_it_could_not_write_to(
    tmp_path: Path, arguments: list[str], where: str
) -> None:
    """Before it reads or loads anything; that what it was to read is not there would be told later."""
    (tmp_path / "file").write_text("")
    (tmp_path / "pictures").mkdir()
    folder = CERTAINLY_NOT if where == "proc" else tmp_path / "file"
    given = [argument.format(folder=tmp_path / "pictures") for argument in arguments]

    said = command(*given, str(folder), MEDSERVE_HOME=str(tmp_path / "home"))

    assert (2, "") == (said.code, said.out)
    assert "nothing can be written to the place that --out names" in said.err
    assert 1 == len(said.err.splitlines())
    assert not (tmp_path / "home").exists()


def test_a_calibration_that_could_not_be_kept_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    """Its studies would take hours; the model that is named here could not even be loaded."""
    (tmp_path / "home").write_text("a file")
    (tmp_path / "pictures").mkdir()
    rows = [f"{number}.png,{('MEL', 'NV')[number % 2]}" for number in range(60)]
    (tmp_path / "pictures" / "labels.csv").write_text("\n".join(["image,label", *rows, ""]))
    for number in range(60):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(b"no picture")
    (tmp_path / "broken.gguf").write_bytes(b"no model")

    said = command(
        "evaluate", "dermoscopy", str(tmp_path / "pictures"), "--calibrate", "temperature",
        "--model", str(tmp_path / "broken.gguf"), MEDSERVE_HOME=str(tmp_path / "home"),
    )  # fmt: skip

    assert 2 == said.code
    assert "calibrations cannot be kept in MEDSERVE_HOME" in said.err
