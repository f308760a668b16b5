"""A series comes from a configured DICOMweb server as the files that were stored there, in whatever transfer syntax.

WADO-RS (PS3.18 10.4) of a series or of one instance, asked for with `transfer-syntax=*` so that the server recodes
nothing. A caller names a configured server and UIDs, never an address, so the server may stand in a private network.
"""

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from medserve.errors import InvalidRequest, ReferenceRefused, SourceFailed
from medserve.imaging.material import most_files
from medserve.multipart import Malformed, Parts
from medserve.references import download
from medserve.references.download import Allowance
from medserve.settings import DicomWeb, Limits, Settings
from medserve.threads import in_thread

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FORM = "dicomweb:NAME/studies/UID/series/UID or dicomweb:NAME/studies/UID/series/UID/instances/UID"

_UID = r"(?=[0-9.]{3,64}(?:/|\Z))[0-9]+(?:\.[0-9]+)+"
_REFERENCE = re.compile(
    rf"[dD][iI][cC][oO][mM][wW][eE][bB]:(?P<name>[A-Za-z0-9_-]{{1,64}})"
    rf"(?P<path>/studies/{_UID}/series/{_UID}(?:/instances/{_UID})?)"
)


@dataclass(frozen=True)
class Place:
    """A series or an instance on a server."""

    server: DicomWeb
    path: str


def parsed(reference: str, settings: Settings) -> Place:
    """What a reference names; raises ReferenceRefused where it is badly formed or names no configured server."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ReferenceRefused(f"a DICOMweb reference is written {FORM}", param="images")
    for server in settings.dicomweb:
        if server.name == found["name"]:
            return Place(server, found["path"])
    known = ", ".join(server.name for server in settings.dicomweb) or "none"
    raise ReferenceRefused(
        f"no DICOMweb server of that name is in the setting `dicomweb`; there are: {known}", param="images"
    )


async def fetch(reference: str, settings: Settings, folder: Path, allowance: Allowance) -> list[Path]:
    """The files of a series or instance, written to `folder`; raises SourceFailed, InvalidRequest or ImageTooLarge."""
    place = parsed(reference, settings)
    headers = {"Accept": ACCEPT, **await in_thread(_authorization, place.server)}
    url = httpx.URL(place.server.url.rstrip("/") + place.path)
    seconds = settings.limits.fetch_seconds
    async with download.answer(url, headers, seconds=seconds, ca=place.server.ca) as response:
        return await _written(response, folder, allowance, settings.limits)


async def _written(response: httpx.Response, folder: Path, allowance: Allowance, limits: Limits) -> list[Path]:
    kind = response.headers.get("Content-Type", "")
    if not kind.lower().startswith("multipart/related"):
        raise SourceFailed("the DICOMweb server did not answer with multipart/related DICOM", param="images")
    try:
        with Parts(kind, folder, files=most_files(limits), only_files=True) as parts:
            async for piece in download.pieces(response, allowance):
                await in_thread(parts.feed, piece)
            files = [part.path for part in parts.finish() if part.path is not None]
    except Malformed as error:
        raise SourceFailed(f"the answer of the DICOMweb server cannot be read: {error}", param="images") from None
    if not files:
        raise InvalidRequest("the DICOMweb server has no pictures there", param="images")
    return files


def _authorization(server: DicomWeb) -> dict[str, str]:
    """The header that identifies us, from where the settings say the credentials are. Blocking."""
    text = _credentials(server)
    if text is None:
        return {}
    if text.lower().startswith("bearer "):
        return {"Authorization": f"Bearer {text[7:].strip()}"}
    if ":" not in text:
        raise SourceFailed(f"the credentials of {server.name} are neither user:password nor Bearer TOKEN")
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def _credentials(server: DicomWeb) -> str | None:
    if server.credentials_file is not None:
        try:
            text = server.credentials_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise SourceFailed(f"the file with the credentials of {server.name} cannot be read") from None
    elif server.credentials_variable is not None:
        text = os.environ.get(server.credentials_variable, "").strip()
        if not text:
            raise SourceFailed(f"the environment variable with the credentials of {server.name} is not set")
    else:
        return None
    if not text.isprintable():
        raise SourceFailed(f"the credentials of {server.name} hold characters that no header can carry")
    return text
