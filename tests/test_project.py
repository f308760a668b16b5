"""The promises of the repository's own files: versions, pins, links, licences and the bundled picture."""

import re
import socket
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import medserve
from medserve import errors
from tests.required import need

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"default": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [
        ({}, pytest.skip.Exception),
        ({"CI": "true"}, pytest.fail.Exception),
        ({"CI": "true", "CI_WITHOUT_SERVERS": "true"}, pytest.skip.Exception),
    ],
)
def test_a_test_whose_server_is_missing_fails_in_ci(
    environment: dict[str, str], outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There nobody reads what was skipped; a developer's machine need not have every server."""
    for name in ("CI", "CI_WITHOUT_SERVERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    need(True, "there")
    with pytest.raises(outcome, match="apt install"):
        need(False, "not there: apt install it")


def test_the_changelog_has_a_section_for_this_version() -> None:
    """Whoever has this version can read what is in it."""
    assert f"\n## [{medserve.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_changelog_fits_its_columns() -> None:
    """It is read in a terminal, and half of its lines had grown beyond."""
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert [] == [line for line in lines if len(line) > 120]


def test_the_constraints_are_exact_and_name_no_index() -> None:
    """Every line pins one version, and none says where packages come from."""
    text = (ROOT / "constraints.txt").read_text()

    assert "://" not in text
    assert [] == [line for line in text.splitlines() if line.startswith("-")]
    assert [] == [str(pin) for pin in pins() if not re.fullmatch(r"==[0-9][^,*]*", str(pin.specifier))]


@pytest.mark.parametrize("group", GROUPS)
def test_every_dependency_is_pinned_within_its_range(group: str) -> None:
    """What was tested is what pyproject.toml allows."""
    versions: dict[str, list[str]] = {}
    for pin in pins():
        versions.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))

    for dependency in map(Requirement, GROUPS[group]):
        found = versions.get(canonicalize_name(dependency.name), [])
        assert found, f"{dependency.name} is not in constraints.txt; run: make constraints"
        assert all(dependency.specifier.contains(version) for version in found), f"{dependency} is pinned to {found}"


def test_the_default_install_has_no_tensor_library() -> None:
    """A laptop needs no gigabyte of torch to run a model."""
    names = {canonicalize_name(Requirement(dependency).name) for dependency in PROJECT["dependencies"]}

    assert set() == names & {"torch", "transformers", "tensorflow", "jax", "ray", "vllm"}


def test_the_bundled_photograph_can_be_read_and_names_its_licence() -> None:
    """`make demo` works from an installed package, with a picture that may be shipped."""
    examples = resources.files("medserve") / "examples"
    with resources.as_file(examples / "dermoscopy.jpg") as path, Image.open(path) as picture:
        picture.load()
        assert ((1022, 767), "RGB") == (picture.size, picture.mode)
        assert {} == dict(picture.getexif())

    assert "CC0" in (examples / "ATTRIBUTION.txt").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    """A page never sends its reader to a file that is not there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]

    assert [] == [link for link in links if link and not (page.parent / link).exists()]


def test_every_decision_is_listed() -> None:
    """The index of the decisions is complete."""
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()

    assert [] == [
        page.name for page in (ROOT / "docs" / "decisions").glob("[0-9]*.md") if f"({page.name})" not in index
    ]


def test_the_tree_of_errors_shows_every_error_below_its_own() -> None:
    """Who looks up what can go wrong finds all of it, in the place that decides its status."""
    above: dict[int, str] = {}
    shown = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"( +[│ ]*[├└]── |    )([A-Z][A-Za-z]+)\b", line):
            depth, name = len(found[1]), found[2]
            shown[name] = next((above[near] for near in sorted(above, reverse=True) if near < depth), "Exception")
            above = {near: kept for near, kept in above.items() if near < depth} | {depth: name}

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.__name__: kind.__bases__[0].__name__ for kind in kinds} == shown


def test_a_test_cannot_reach_another_machine() -> None:
    """The suite's guard refuses an address of another machine (a documentation address) and any look-up of a name."""
    with socket.socket() as connection, pytest.raises(PermissionError, match="loopback only"):
        connection.connect(("192.0.2.1", 80))
    with pytest.raises(PermissionError, match="loopback only"):
        socket.getaddrinfo("example.org", 443)
