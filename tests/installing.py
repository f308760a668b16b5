"""What `pip install` of a distribution of plain modules leaves behind, made without pip and without a network."""

import shutil
import sys
import tomllib
from pathlib import Path


def install(source: Path, site: Path) -> None:
    """Copy the modules of `source` to `site`, with the metadata by which its entry points are found."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    facts = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(groups) + "\n")
    for module in source.glob("*.py"):
        shutil.copy(module, site)


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.argv[2]))
