"""docs/workflows/your-own.md is run as a reader runs it, on the demonstration model, and prints what it says."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "workflows" / "your-own.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NEAR = 0.02
"""Label probabilities of another processor may differ so much; everything else is the same."""
SECONDS = 300.0
"""Far more than it takes, for machines that have much else to do."""


def blocks() -> list[tuple[str, str]]:
    """The page's blocks: their language and what stands in them."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def printed(home: Path) -> dict[int, str]:
    """What each block of commands prints, by its place among the blocks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = [f'pip() {{ "{sys.executable}" "{ROOT / "tests" / "installing.py"}" "$2" "{home / "site"}"; }}']
    places = []
    for place, (language, text) in enumerate(blocks()):
        if language == "sh":
            places.append(place)
            script.append(f'{{\n{text}}} > "{home}/{place}" 2>&1')
        elif language != "text":
            file, content = text.removeprefix("# ").split("\n", 1)
            script.append(f'mkdir -p "$(dirname {file})"\ncat > {file} <<"END OF FILE"\n{content}END OF FILE')
    (home / "script.sh").write_text("\n".join(script).replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MEDSERVE_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(home / "site"),
        "MEDSERVE_HOME": str(home / "home"),
        "MEDSERVE_PORT": port,
        "NO_PROXY": "*",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(["bash", "script.sh"], cwd=home, env=environment, start_new_session=True)  # noqa: S607
    try:
        process.wait(SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {place: (home / str(place)).read_text(encoding="utf-8") for place in places}


def steady(text: str) -> str:
    """A text without what differs from run to run: identifiers of reports and times."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "0" * 32, text)
    return re.sub(r"\b[0-9]+\.[0-9] s\b", "0.0 s", text)


def parts(text: str) -> tuple[str, list[float]]:
    """The words of a text, and its probabilities."""
    shares = re.compile(r"\b[01]\.[0-9]{3}\b")
    return shares.sub("#", steady(text)), [float(share) for share in shares.findall(text)]


@pytest.mark.timeout(SECONDS + 10)
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="the page needs bash and curl")
def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Written again, after a look at the difference, by: python -m tests.workflows.test_the_tutorial"""
    found = printed(tmp_path)
    pairs = [(place, blocks()[place + 1]) for place in found if place + 1 < len(blocks())]
    shown = {place: text for place, (language, text) in pairs if language == "text"}

    assert len(shown) >= 7
    for place, text in found.items():
        words, shares = parts(text)
        expected, near = parts(shown.get(place, ""))
        assert expected == words
        assert near == pytest.approx(shares, abs=NEAR)


def test_the_first_file_is_as_short_as_a_first_file_should_be() -> None:
    """Fifteen lines or fewer."""
    first = next(text for language, text in blocks() if language == "yaml")

    assert len(first.splitlines()) <= 15


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        outputs = iter(
            [steady(text) for place, text in printed(Path(folder)).items() if blocks()[place + 1][0] == "text"]
        )
    page = re.sub(r"^```text\n.*?^```$", lambda _: f"```text\n{next(outputs)}```", PAGE.read_text(), flags=re.S | re.M)
    PAGE.write_text(page, encoding="utf-8")
