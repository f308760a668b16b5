"""The one door for pictures: files, folders, archives and bytes go in, a study comes out or a refusal that says why.

What is behind it runs in another process (`medserve.imaging.isolation`). Command line, HTTP and evaluation all come in
here, so that the same files are the same study everywhere.
"""

from collections.abc import Sequence

from medserve.errors import ImageTooLarge, InvalidRequest
from medserve.images import Study
from medserve.imaging import isolation
from medserve.imaging.isolation import Reading
from medserve.imaging.material import DEFAULT, Material, Wanted, check_count, total_limit
from medserve.settings import Limits

__all__ = ["Material", "Reading", "Wanted", "read", "reading"]


async def read(materials: Sequence[Material], limits: Limits, wanted: Wanted = DEFAULT) -> Study:
    """One study from pictures, DICOM files, a DICOMDIR, NIfTI, a PDF, a slide, folders, zip or tar archives.

    Bytes are the content of a file; a path may be any file or folder that this process may read, so paths must come
    from somebody who may choose that. Raises InvalidRequest (mostly ImageUnreadable or ImageTooLarge), or WorkerCrashed
    when no decoder can be started.
    """
    return (await reading(materials, limits, wanted)).study


async def reading(materials: Sequence[Material], limits: Limits, wanted: Wanted = DEFAULT) -> Reading:
    """`read`, with the overview that a slide brings along."""
    if not materials:
        raise InvalidRequest("no file was given; give at least one", param="files")
    check_count(len(materials), limits)
    if sum(len(material) for material in materials if isinstance(material, bytes)) > total_limit(limits):
        raise ImageTooLarge(f"the files have more than {total_limit(limits)} bytes together", param="files")
    return await isolation.read(materials, limits, wanted)
