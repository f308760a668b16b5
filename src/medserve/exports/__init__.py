"""Every module of this folder that defines `format` is a way for a report to leave: one file, one format.

Whatever the format says, it says what the report says: no export adds a word that the report does not hold.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from medserve.errors import InvalidRequest
from medserve.images import Study
from medserve.imaging.material import DEFAULT, Material, Wanted
from medserve.reports import Report
from medserve.settings import Limits


@dataclass(frozen=True)
class Original:
    """The study that a report is about, as far as it is at hand: as it was read, and the files it was read from."""

    study: Study | None = None
    materials: tuple[Material, ...] = ()
    limits: Limits = field(default_factory=Limits)
    wanted: Wanted = DEFAULT


NOTHING = Original()


@dataclass(frozen=True)
class Format:
    """A format by its name, its media type (without parameters) and its file suffix; `write` makes the file's bytes.

    One that `needs_files` cannot be written without the files that the study was read from.
    """

    name: str
    media_type: str
    suffix: str
    summary: str
    write: Callable[[Report, Original], Awaitable[bytes]]
    needs_files: bool = False

    @property
    def content_type(self) -> str:
        """The media type with the character set, where it is text."""
        return f"{self.media_type}; charset=utf-8" if self.media_type.startswith("text/") else self.media_type


@cache
def formats() -> Mapping[str, Format]:
    """All formats by name, in the order of their names."""
    found = sorted(_found(), key=lambda format_: format_.name)
    return MappingProxyType({format_.name: format_ for format_ in found})


def _found() -> Iterator[Format]:
    for info in iter_modules(__path__):
        format_ = getattr(import_module(f"{__name__}.{info.name}"), "format", None)
        if isinstance(format_, Format):
            yield format_


def find(name: str) -> Format:
    """The format of that name; raises InvalidRequest, which says which names exist."""
    try:
        return formats()[name]
    except KeyError:
        raise InvalidRequest(f"no format is called that; there are: {', '.join(formats())}", param="format") from None


async def written(report: Report, name: str, original: Original = NOTHING) -> bytes:
    """The report as a file of that format.

    Raises InvalidRequest where the study at hand is not the one that the report is about, by content, or where the
    format needs what is not there.
    """
    format_ = find(name)
    if original.study is not None and original.study.sha256 != report.study.sha256:
        raise InvalidRequest(
            "these are not the pictures that the report is about: their content differs", param="files"
        )
    if format_.needs_files and not original.materials:
        raise InvalidRequest(
            f"{format_.name} is written with what stands in the study's own files; give them beside the report",
            param="files",
        )
    return await format_.write(report, original)


def negotiated(accept: str) -> Format | None:
    """The format that an Accept header likes best (RFC 9110 12.5.1), JSON where it does not mind; None for none."""
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    if not ranges:
        return find("json")
    liked = [(_liking(format_, ranges), format_.name == "json", format_) for format_ in formats().values()]
    quality, _, best = max(liked, key=lambda one: one[:2])
    return best if quality > 0 else None


def _range(part: str) -> tuple[str, float]:
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    try:
        return kind, min(1.0, max(0.0, float(quality)))
    except ValueError:
        return kind, 0.0


def _liking(format_: Format, ranges: list[tuple[str, float]]) -> float:
    """The quality of the most specific range that covers the format's media type."""
    family = format_.media_type.partition("/")[0]
    for covering in (format_.media_type, f"{family}/*", "*/*"):
        for kind, quality in ranges:
            if kind == covering:
                return quality
    return 0.0
