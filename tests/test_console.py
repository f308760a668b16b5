"""Whatever a command's streams, disk and user are like, it ends with its work done or with one line that says why."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medserve.console import visible
from medserve.settings import Settings
from tests.commands import DERMOSCOPY, command, scripted

MEDSERVE = [sys.executable, "-m", "medserve"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives the answers of a clean dermoscopy report twice."""
    monkeypatch.setenv("MEDSERVE_CONFIG", str(scripted(tmp_path, *DERMOSCOPY * 2)))


def run(shell: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command as a shell starts it, where `"$@"` stands for medserve with its arguments."""
    command = ["bash", "-c", shell, "bash", *MEDSERVE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """What a command shows to a person who watches it."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*MEDSERVE, *arguments], stdout=theirs, stderr=theirs, env=os.environ | variables) as process:
        os.close(theirs)
        shown = bytearray()
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end was closed
            pass
        process.wait(60)
    os.close(ours)
    return shown.decode()


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_nothing_but_what_is_printed_there(closed: str, dermoscopy: Path, tmp_path: Path) -> None:
    """The report is written all the same, and no file is taken for a stream."""
    done = run(f'"$@" {closed}', "run", "dermoscopy", dermoscopy, "--out", tmp_path / "reports")

    assert 0 == done.returncode
    assert "Traceback" not in done.stderr
    assert [".json", ".txt"] == sorted(file.suffix for file in (tmp_path / "reports").iterdir())


def test_a_reader_who_leaves_is_no_error() -> None:
    """As in `medserve ls | head -1`."""
    done = run('"$@" | head -1', "ls")

    assert "MODEL" in done.stdout
    assert "" == done.stderr


def test_output_that_has_no_room_is_one_line_and_code_1() -> None:
    """The disk is full, and no trace is printed."""
    done = run('"$@" > /dev/full', "ls")

    assert (1, "error: No space left on device\n") == (done.returncode, done.stderr)


@pytest.mark.usefixtures("script")
def test_an_earlier_report_survives_a_full_disk(
    dermoscopy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same question asked again replaces a report only once the new one is whole."""
    asked = ("run", "dermoscopy", str(dermoscopy), "--out", str(tmp_path / "reports"))
    assert 0 == command(*asked).code
    before = {file.name: file.read_bytes() for file in (tmp_path / "reports").iterdir()}
    write: Callable[[Path, bytes], int] = Path.write_bytes

    def half(file: Path, content: bytes) -> int:
        write(file, content[: len(content) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", half)
    said = command(*asked)

    assert 2 == said.code
    assert "cannot be written" in said.err
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "reports").iterdir()}


@pytest.mark.usefixtures("script")
def test_a_report_is_closed_to_whom_the_earlier_one_was(dermoscopy: Path, tmp_path: Path) -> None:
    """Taking its place opens it to nobody."""
    asked = ("run", "dermoscopy", str(dermoscopy), "--out", str(tmp_path / "reports"))
    assert 0 == command(*asked).code
    for file in (tmp_path / "reports").iterdir():
        file.chmod(0o600)
    assert 0 == command(*asked).code

    assert {0o600} == {file.stat().st_mode & 0o777 for file in (tmp_path / "reports").iterdir()}


@pytest.mark.parametrize("arguments", [["run", "dermoscopy"], ["inspect"], ["deidentify", "--out", "copies"]])
@pytest.mark.usefixtures("script")
def test_an_empty_path_is_not_this_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell hands over a variable that is not set."""
    monkeypatch.chdir(tmp_path)
    said = command(*arguments, "")

    assert 2 == said.code
    assert "a path is empty" in said.err


@pytest.mark.usefixtures("script")
def test_a_name_too_long_for_the_system_stops_no_other_study(dermoscopy: Path) -> None:
    """It is one that cannot be read."""
    said = command("run", "dermoscopy", "x" * 300, str(dermoscopy), "--json")

    assert (2, 1) == (said.code, len(said.out.splitlines()))
    assert "File name too long" in said.err


@pytest.mark.parametrize("name", ["home", "host"])
def test_a_setting_with_a_nul_character_is_refused(name: str, tmp_path: Path) -> None:
    """TOML can write one, and no file or host has it."""
    (tmp_path / "settings.toml").write_text(f'{name} = "a\\u0000b"\n')
    said = command("ls", MEDSERVE_CONFIG=str(tmp_path / "settings.toml"))

    assert (2, f"error: setting {name}: holds a NUL character; remove it\n") == (said.code, said.err)


def test_a_setting_that_no_single_name_is_at_fault_for_blames_none(tmp_path: Path) -> None:
    """What is said of all settings names what it is about itself."""
    said = command("ls", MEDSERVE_WORKFLOWS=str(tmp_path / "none"))

    assert "error: the settings: workflows names no folder\n" == said.err


@pytest.mark.usefixtures("script")
def test_a_name_commands_no_terminal(dermoscopy: Path, tmp_path: Path) -> None:
    """Neither a file's, nor in an error nor in the progress."""
    name = str(tmp_path / "a\x1b]0;b\nc\udcff.jpg")
    told = command("run", "dermoscopy", name)
    Path(name).write_bytes(dermoscopy.read_bytes())
    shown = on_a_terminal("run", "dermoscopy", name, "--out", str(tmp_path / "reports"))

    assert 1 == len(told.err.splitlines())
    assert "a\\x1b]0;b\\nc\\udcff.jpg" in told.err
    assert "a\\x1b]0;b\\nc" in shown
    assert "\x1b]0;" not in told.err + shown


def test_a_model_commands_no_terminal(dermoscopy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is shown with its control characters written out."""
    look = "The shape is consistent with the picture. \x1b[2JThe border is sharp and a small scale lies in the middle."
    monkeypatch.setenv("MEDSERVE_CONFIG", str(scripted(tmp_path, *DERMOSCOPY[:5], look, DERMOSCOPY[6])))
    shown = on_a_terminal("run", "dermoscopy", str(dermoscopy))

    assert "\\x1b[2JThe border" in shown
    assert "\x1b[2J" not in shown


def test_visible_text_keeps_its_letters() -> None:
    """Only control characters are written out."""
    assert "é 日 \\x1b[0m \\n \\x85 \u2060" == visible("é 日 \x1b[0m \n \x85 \u2060")


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_errors_are_red_unless_colours_are_not_wanted(variables: dict[str, str], coloured: bool) -> None:
    """NO_COLOR is what all programs read (no-color.org); a dumb terminal has none."""
    shown = on_a_terminal("run", "astrology", "a.jpg", **({"TERM": "xterm"} | variables))

    assert "error: " in shown
    assert coloured == ("\x1b[31m" in shown)


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with any number for a user."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    said = command("ls")

    assert 2 == said.code
    assert "MEDSERVE_HOME" in said.err


def test_an_empty_setting_names_no_path() -> None:
    """It would be the folder that the command was started in."""
    said = command("ls", MEDSERVE_HOME="")

    assert (2, "error: setting home: is empty; name a file or a folder, or leave it out\n") == (said.code, said.err)


def test_paths_in_the_settings_begin_at_home_where_they_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell reads a settings file, so nobody else would know what ~ means."""
    (tmp_path / "settings.toml").write_text('home = "~/kept"\n[[models]]\nname = "a"\npath = "~/a.gguf"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDSERVE_CONFIG", str(tmp_path / "settings.toml"))
    settings = Settings()

    assert (tmp_path / "kept", tmp_path / "a.gguf") == (settings.home, settings.models[0].path)


def test_a_host_that_can_be_none_is_code_2() -> None:
    """A label of a host's name has 63 letters at most, in the form in which it travels."""
    said = command("serve", "--host", f"{'ä' * 64}.example", "--open-to-network")

    assert 2 == said.code
    assert "setting host: is no name of a host" in said.err
