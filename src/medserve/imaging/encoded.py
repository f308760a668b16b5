"""Files that arrive inside a JSON text, as data URIs or plain base64, are decoded exactly or refused.

The media type of a data URI is not believed: what a file is, `medserve.imaging.intake` tells from its content.
"""

import re
from binascii import a2b_base64

from medserve.errors import ImageTooLarge, ImageUnreadable, InvalidRequest
from medserve.settings import Limits
from medserve.threads import in_thread

BLOCK = 2**20
"""Characters that are decoded at once; a multiple of four, which are three bytes."""
_DATA_URI = re.compile(r"data:(?P<type>[\w.+/-]*)(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)


async def read(text: str, limits: Limits) -> bytes:
    """The file in a data URI (`data:application/dicom;base64,...`) or in bare base64.

    Raises ImageUnreadable, ImageTooLarge, or InvalidRequest for an address, which is never followed here.
    """
    return await in_thread(_decoded, text, limits)


def _decoded(text: str, limits: Limits) -> bytes:
    if _ADDRESS.match(text):
        raise InvalidRequest("addresses are not fetched; send the picture itself as a data URI with base64")
    # Base64 holds three bytes in four characters, so too long a text is refused without decoding it.
    if len(text) > limits.image_bytes // 3 * 4 + 1024:
        raise ImageTooLarge(
            f"the file is larger than {limits.image_bytes} bytes, the most inside JSON (limits.image_bytes); "
            "send a smaller one, or a form"
        )
    head = _DATA_URI.match(text)
    if head is None and ":" in text[:5]:
        raise ImageUnreadable("a data URI must be of the form data:image/png;base64,...")
    try:
        return _base64(text[head.end() if head else 0 :])
    except ValueError:
        raise ImageUnreadable("the base64 is broken; encode the whole file again") from None


def _base64(text: str) -> bytes:
    """Decoded a block at a time: one call for all would hold the interpreter, and the event loop with it."""
    if any(space in text for space in " \r\n\t"):
        text = "".join(text.split())
    if "=" in text[:-2]:
        raise ValueError("padding stands at the end only")
    blocks = range(0, len(text), BLOCK)
    return b"".join(a2b_base64(text[start : start + BLOCK], strict_mode=True) for start in blocks)
