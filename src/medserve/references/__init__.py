"""Pictures that are named instead of sent: fetched from where the settings allow, to a folder that is gone afterwards.

A reference is an address below one of `settings.sources`, or `dicomweb:NAME/studies/UID/series/UID` with a server of
`settings.dicomweb`. Both lists are empty unless somebody fills them. No refusal and no log quotes a reference: it may
hold a patient's number.
"""

import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from medserve import scratch
from medserve.errors import InvalidRequest, ReferenceRefused, SourceFailed
from medserve.imaging.material import Material
from medserve.references import dicomweb, web
from medserve.references.download import Allowance
from medserve.settings import Settings
from medserve.threads import in_thread

__all__ = ["Given", "SourceFailed", "check", "fetch", "gathered", "is_address", "is_reference", "spool"]

Given = Material | str
"""What a caller hands over: bytes, a path, or a reference."""

_SCHEME = re.compile(r"(?!data:)([a-z][a-z0-9+.-]*):", re.IGNORECASE)


def is_reference(text: str) -> bool:
    """Whether a text names something to be fetched rather than a file of this machine."""
    return text.lower().startswith(("http:", "https:", "dicomweb:"))


def is_address(text: str) -> bool:
    """Whether a text where a picture is expected is an address of any kind, and no data."""
    return _SCHEME.match(text[:64]) is not None


@asynccontextmanager
async def spool() -> AsyncIterator[Path]:
    """A folder that only this user can read, for what a request brings; it is removed with all that lies in it."""
    folder = await in_thread(scratch.folder)
    try:
        yield folder
    finally:
        await in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))


@asynccontextmanager
async def gathered(given: Sequence[Given], settings: Settings) -> AsyncIterator[list[Material]]:
    """Everything as bytes and paths, in its order, what is named fetched one after the other.

    Raises ReferenceRefused (nothing was sent then) or SourceFailed.
    """
    named = [one for one in given if isinstance(one, str)]
    if not named:
        yield [one for one in given if not isinstance(one, str)]
        return
    if len(named) > settings.limits.images:
        raise InvalidRequest(
            f"{len(named)} addresses are given; at most {settings.limits.images} are taken", param="images"
        )
    for reference in named:
        check(reference, settings)
    allowance = Allowance(settings.limits.body_bytes)
    async with spool() as folder:
        materials: list[Material] = []
        for number, one in enumerate(given):
            if not isinstance(one, str):
                materials.append(one)
                continue
            place = folder / str(number)
            await in_thread(place.mkdir)
            materials += await fetch(one, settings, place, allowance)
        yield materials


def check(reference: str, settings: Settings) -> None:
    """Refuse a reference that the settings do not allow, before any connection is made."""
    match _scheme(reference):
        case "http" | "https":
            web.allowed(reference, settings)
        case "dicomweb":
            dicomweb.parsed(reference, settings)
        case _:
            raise ReferenceRefused("addresses of this kind are not fetched; send the picture itself", param="images")


async def fetch(reference: str, settings: Settings, folder: Path, allowance: Allowance) -> list[Path]:
    """The files that a reference names, written to `folder`, within what is left of `allowance`."""
    check(reference, settings)
    if _scheme(reference) == "dicomweb":
        return await dicomweb.fetch(reference, settings, folder, allowance)
    return [await web.fetch(reference, settings, folder, allowance)]


def _scheme(reference: str) -> str:
    found = _SCHEME.match(reference[:64])
    return found[1].lower() if found else ""
