"""What several commands take, said and read in one place.

A value that cannot be meant raises InvalidRequest, which names the option.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medserve.errors import InvalidRequest

if TYPE_CHECKING:
    from medserve.imaging.material import Wanted
    from medserve.reports import Report

WorkflowName = Annotated[
    str, typer.Argument(metavar="WORKFLOW", help="The workflow's name; `medserve ls` shows them.", show_default=False)
]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the workflow; repeatable."),
]
ReportFile = Annotated[
    Path, typer.Argument(metavar="REPORT", help="A report that `run --out` or the HTTP API wrote, as JSON.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A declared or pulled model's name, a GGUF file, a folder, or a server's address.",
        show_default=False,
    ),
]
Projector = Annotated[
    Path | None, typer.Option("--mmproj", help="The vision part of a GGUF file; found beside it when left out.")
]
Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Files, folders, zip or tar archives, or references (dicomweb:NAME/studies/...); each is a study.",
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=256,
        max=131_072,
        help="Tokens of context of a GGUF file given with --model; 85 slices need about 22,000.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=512, help="Threads for a GGUF file given with --model.")
]
Url = Annotated[
    str,
    typer.Option(
        "--url", help="Where the service listens; your settings' host and port by default.", show_default=False
    ),
]
Modality = Annotated[str, typer.Option("--modality", help="For files that do not say it: CT, MR, DX, SM, ...")]
Patches = Annotated[int, typer.Option("--patches", help="Of a slide: at most so many patches.")]
Magnification = Annotated[
    float, typer.Option("--magnification", help="Of a slide: 5, 10 or 20; 0 is 10 or what there is.")
]
SlideSeed = Annotated[int, typer.Option("--slide-seed", help="Of a slide: which patches are drawn.")]
Mpp = Annotated[
    float, typer.Option("--mpp", help="Of a slide: micrometres a pixel, where it does not say; 0 is what it says.")
]
Together = Annotated[bool, typer.Option("--together", help="All paths are one study, such as a series' files.")]


def wanted(modality: str, patches: int, magnification: float, slide_seed: int, mpp: float) -> "Wanted":
    """What is wanted of the files."""
    from medserve import inspection
    from medserve.imaging.material import Wanted

    return Wanted(inspection.modality(modality) if modality else None, patches, magnification, slide_seed, mpp)


def studies(paths: Sequence[str], together: bool) -> list[tuple[str, ...]]:
    """The paths of each study."""
    return [tuple(paths)] if together else [(path,) for path in paths]


def recorded(file: Path) -> "Report":
    """The report in a file."""
    from pydantic import ValidationError

    from medserve.reports import Report

    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}", param="report") from None
    except ValidationError:
        raise InvalidRequest(f"{file} is not a report of this version of medserve", param="report") from None


def chosen(pairs: Iterable[str]) -> dict[str, Any]:
    """Options from name=value; a value that is JSON is that (true, 3), any other is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise InvalidRequest(f"an option is given as name=value, not {pair!r}", param="option")
        if name in options:
            raise InvalidRequest(f"the option {name!r} is given more than once", param="option")
        try:
            options[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            options[name] = value
    return options


def to_folder(folder: Path | None, option: str = "out") -> None:
    """See to it that there is a folder to write to, where one is wanted; to be asked before any work is done."""
    from medserve import outputs

    if folder is not None:
        with writing(option, "a folder that may be written to"):
            outputs.try_folder(folder)


def to_file(file: Path | None, option: str = "out") -> None:
    """See that a file can be written, where one is wanted; to be asked before any work is done."""
    from medserve import outputs

    if file is not None:
        with writing(option):
            outputs.try_file(file)


def write(content: bytes, file: Path, option: str = "out") -> None:
    """Write what came of the work to the file that `to_file` has tried, and say so."""
    with writing(option):
        file.write_bytes(content)
    typer.echo(f"written: {file}", err=True)


@contextmanager
def writing(option: str, wanted: str = "a file in a folder that is there and may be written to") -> Iterator[None]:
    """A place where nothing can be written is a matter of the person who named it: InvalidRequest with the option."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(
            f"nothing can be written to the place that --{option} names: {error.strerror}; name {wanted}", param=option
        ) from None
