"""An address is taken apart in one way only, and whatever two readers could understand differently is refused.

What is accepted is a small part of RFC 3986: http or https, a host name or a plain IP address, a plain path and a plain
query. Users, backslashes, encoded dots and slashes, dot segments, fragments, and numbers that some programs take for IP
addresses are all no part of it: those are the tricks by which an address leads elsewhere than it seems to.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

PORTS = {"http": 80, "https": 443}
LONGEST = 2048

_ADDRESS = re.compile(
    r"(?P<scheme>[hH][tT][tT][pP][sS]?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*)"
    r"(?P<query>\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ENCODED = re.compile(r"%(?:2[eEfF5]|5[cC]|3[bBfF]|23|[01][0-9A-Fa-f]|7[fF])")
"""In a path: an encoded dot, slash, percent sign, backslash, semicolon, question mark, hash or control character."""


@dataclass(frozen=True)
class Address:
    """Where a reference leads. `host` is in lower case, without brackets; `path` begins with a slash."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    @property
    def literal(self) -> IPv4Address | IPv6Address | None:
        """The IP address that the host is, None for a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def is_below(self, prefix: "Address") -> bool:
        """Whether this is the prefix itself or lies in the folder that it names."""
        if (self.scheme, self.host, self.port) != (prefix.scheme, prefix.host, prefix.port):
            return False
        folder = prefix.path.rstrip("/")
        return self.path == folder or self.path.startswith(f"{folder}/")


def parsed(text: str) -> Address:
    """The address in a text; raises ValueError, which quotes nothing of it."""
    found = _ADDRESS.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        raise ValueError("it is not a plain http or https address")
    scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
    port = int(found["port"]) if found["port"] else PORTS[scheme]
    if port > 65535:
        raise ValueError("its port is none")
    _check_host(found["host"])
    _check_path(found["path"])
    return Address(scheme, host, port, found["path"] or "/", found["query"] or "")


def checked_prefix(text: str) -> str:
    """The text, if it can stand for all addresses below it; raises ValueError."""
    address = parsed(text)
    if address.query:
        raise ValueError("an address prefix has no query")
    return text


def is_below(address: Address, prefixes: Iterable[str]) -> bool:
    """Whether one of the prefixes allows the address."""
    return any(address.is_below(parsed(prefix)) for prefix in prefixes)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an IP address is one of the open internet: not of this machine, this network, or a wrapping of such."""
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.sixtofour or address.teredo):
        return False
    if isinstance(address, IPv6Address) and address.packed[:4] == b"\x00\x64\xff\x9b":  # NAT64 (RFC 6052, 8215)
        return False
    reserved = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not (reserved or address.is_private or address.is_link_local)


def _check_host(host: str) -> None:
    """An IP address as it is usually written, or a name whose last label is no number (WHATWG URL, 3.5)."""
    if host.startswith("["):
        address = ip_address(host[1:-1])
        if host[1:-1].lower() != str(address):
            raise ValueError("its IP address is not written in the usual way")
        return
    labels = host.split(".")
    if not all(_NAME.fullmatch(label) for label in labels) or len(host) > 253:
        raise ValueError("its host is no plain name")
    if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", labels[-1]) and host != str(ip_address(host)):
        raise ValueError("its IP address is not written in the usual way")


def _check_path(path: str) -> None:
    if _ENCODED.search(path):
        raise ValueError("its path holds an encoded character that changes its meaning")
    segments = path.split("/")[1:]
    if any(segment.partition(";")[0] in (".", "..") for segment in segments) or "" in segments[:-1]:
        raise ValueError("its path holds a dot segment or an empty one")
