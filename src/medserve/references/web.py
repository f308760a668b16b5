"""An address is fetched only below an allowed prefix, and only from the machine that was checked.

The order is: take the address apart by one strict grammar, compare it with `settings.sources`, look its name up once,
refuse every answer that is not of the open internet, and connect to the very address that was checked, with the name
in the Host header and in the TLS handshake. So a name that changes its meaning between two look-ups gains nothing.
An IP address of the own machine or network is reached only if a prefix names that very address. Redirects are not
followed.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import httpx

from medserve import addresses
from medserve.addresses import Address
from medserve.errors import ReferenceRefused, SourceFailed
from medserve.references import download
from medserve.references.download import Allowance
from medserve.settings import Settings
from medserve.threads import in_thread

IP = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[list[IP]]]
LOOK_UP_SECONDS = 10.0


def allowed(reference: str, settings: Settings) -> Address:
    """The address, taken apart; raises ReferenceRefused where no prefix of the settings allows it."""
    if not settings.sources:
        raise ReferenceRefused(
            "addresses are not fetched here; send the picture itself, or allow its address in the setting `sources`",
            param="images",
        )
    try:
        address = addresses.parsed(reference)
    except ValueError as error:
        raise ReferenceRefused(f"the address is refused: {error}", param="images") from None
    if not addresses.is_below(address, settings.sources):
        raise ReferenceRefused("the address is not below one that the setting `sources` allows", param="images")
    return address


async def looked_up(host: str, port: int) -> list[IP]:
    """The IP addresses of a name, as the system knows them."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        raise SourceFailed("the name of the server with the pictures cannot be looked up", param="images") from None
    return [ip_address(entry[4][0]) for entry in found]


async def checked(address: Address, resolve: Resolver = looked_up) -> IP:
    """The one IP address to connect to; raises ReferenceRefused if the name leads into a private network."""
    if (literal := address.literal) is not None:
        return literal  # a prefix names it, or `allowed` would have refused it
    found = await resolve(address.host, address.port)
    if not found or not all(addresses.is_public(ip) for ip in found):
        raise ReferenceRefused(
            "the address leads into a private network; name its IP address in the setting `sources` if that is meant",
            param="images",
        )
    return found[0]


async def fetch(
    reference: str, settings: Settings, folder: Path, allowance: Allowance, resolve: Resolver = looked_up
) -> Path:
    """The file at an allowed address, written to `folder`; raises ReferenceRefused, SourceFailed or ImageTooLarge."""
    address = allowed(reference, settings)
    ip = await checked(address, resolve)
    url = httpx.URL(
        scheme=address.scheme, host=str(ip), port=address.port, raw_path=(address.path + address.query).encode()
    )
    headers = {"Host": address.authority, "Accept": "*/*"}
    extensions = {"sni_hostname": address.host} if address.literal is None else {}
    target = folder / "0"
    seconds = settings.limits.fetch_seconds
    async with download.answer(url, headers, seconds=seconds, extensions=extensions) as response:
        file = await in_thread(target.open, "xb")
        with file:
            async for piece in download.pieces(response, allowance):
                await in_thread(file.write, piece)
    return target
