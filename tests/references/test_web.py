"""No trick with an address reaches what the settings do not allow: real servers listen, and the canary hears nothing."""
# ruff: noqa: E501, S104 - tables are read row by row, and no address here is bound

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest

from medserve import addresses, references
from medserve.errors import ImageTooLarge, InvalidRequest, MedserveError, ReferenceRefused, SourceFailed
from medserve.imaging import intake
from medserve.references import download, web
from medserve.references.download import Allowance
from medserve.settings import Limits, Settings
from tests.hostile import samples
from tests.references.servers import Answering, answering

pytestmark = pytest.mark.anyio


@dataclass
class Net:
    """The server that is allowed below /open/, and the canary that nobody may reach."""

    allowed: Answering
    canary: Answering

    @property
    def settings(self) -> Settings:
        return Settings(sources=(f"{self.allowed.url}/open/",), limits=Limits(fetch_seconds=2.0))

    def filled(self, trick: str) -> str:
        return trick.format(good=f"127.0.0.1:{self.allowed.port}", bad=f"127.0.0.1:{self.canary.port}", **self._ports)

    @property
    def _ports(self) -> dict[str, int]:
        return {"p": self.allowed.port, "q": self.canary.port}


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    """Both servers; each would answer with a picture."""
    async with answering() as allowed, answering() as canary:
        for server in (allowed, canary):
            server.answers(body=samples.picture("PNG"))
        yield Net(allowed, canary)


async def fetched(reference: str, settings: Settings) -> str:
    """The content of the study that a reference leads to."""
    async with references.gathered([reference], settings) as materials:
        return (await intake.read(materials, settings.limits)).sha256


LOOPBACK = (
    "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.01",
    "127.0.0.1.", "0", "0.0.0.0", "127.127.127.127", "localhost", "LOCALHOST", "localhost.", "localhost.localdomain",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[fe80::1]", "[::1%25lo]", "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1", "169.254.169.254",
    "10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "224.0.0.1", "255.255.255.255", "metadata.google.internal",
    "ip6-localhost", "spoofed.burpcollaborator.net", "127.0.0.1.nip.io", "0x7f000001.nip.io", "127.0.0.1%00", "127.0.0.1%2e",
    "127.0.0.1\u200b", "127.0.0.1\u00ad", "-127.0.0.1", "127..0.1", "+127.0.0.1", "127.0.0.1,127.0.0.2", "*", "127.0.0.*",
)  # fmt: skip
"""Hosts, each of which some program takes for this machine, this network, or anything at all."""

AUTHORITIES = (
    "http://{good}@{bad}/open/a.png", "http://{bad}@{good}/open/a.png", "http://user:pass@{good}/open/a.png",
    "http://@{good}/open/a.png", "http://:@{good}/open/a.png", "http://{good}:@{bad}/open/a.png",
    "http://{good}#@{bad}/open/a.png", "http://{bad}#@{good}/open/a.png", "http://{good}?@{bad}/open/a.png",
    "http://{good}\\@{bad}/open/a.png", "http://{bad}\\@{good}/open/a.png", "http://{bad}\\.{good}/open/a.png",
    "http://{good}%40{bad}/open/a.png", "http://{bad}%23@{good}/open/a.png", "http://{good}%2f@{bad}/open/a.png",
    "http:\\\\{bad}\\open\\a.png", "http:/{bad}/open/a.png", "http:{bad}/open/a.png", "http:///{bad}/open/a.png",
    "http:////{bad}/open/a.png", "//{bad}/open/a.png", "/\\{bad}/open/a.png", "http://{bad}/open/a.png",
    "http://{bad}:80/open/a.png", "http://127.0.0.1:{p}:{q}/open/a.png", "http://127.0.0.1:{q}{p}/open/a.png",
    "http://127.0.0.1:0{p}/open/a.png", "http://127.0.0.1:+{p}/open/a.png", "http://127.0.0.1: {p}/open/a.png",
    "http://127.0.0.1:{p}0/open/a.png", "http://127.0.0.1:/open/a.png", "http://127.0.0.1/open/a.png",
    "http://127.0.0.1:0/open/a.png", "http://127.0.0.1:65536/open/a.png", "http://127.0.0.1:{p}x/open/a.png",
    "http://127.0.0.1:-1/open/a.png", "http://127.0.0.1:１２３/open/a.png", "http://{good},{bad}/open/a.png",
    "http://{good} {bad}/open/a.png", "http://{good}\t{bad}/open/a.png", "http://{good}\r\nHost: {bad}/open/a.png",
    "http://{good}\n/open/a.png", "http://{good}\x00{bad}/open/a.png", "http://{good};{bad}/open/a.png",
    "http://[{good}]/open/a.png", "http://{good}]/open/a.png", "http://{good}.{bad}/open/",
    "http://{good}&@{bad}/open/a.png", "http://{good}/@{bad}/open/a.png", "http://a@b@{good}/open/a.png",
    "http://127.0.0.1:{p}@127.0.0.1:{q}/open/", "http://127.0.0.1:{q}?127.0.0.1:{p}/open/", "http://\u2100.{good}/open/",
)  # fmt: skip
"""Authorities that two parsers read differently, or that lead to the canary."""

PATHS = (
    "/", "", "/a.png", "/opena.png", "/open.png", "/Open/a.png", "/OPEN/a.png", "/secret/open/a.png", "/open/../secret.png",
    "/open/./a.png", "/open/%2e%2e/secret.png", "/open/%2E%2E/secret.png", "/open/.%2e/secret.png", "/open/%2e./secret.png",
    "/open/%252e%252e/secret.png", "/open/..%2fsecret.png", "/open/..%5csecret.png", "/open/..\\secret.png",
    "/open\\..\\secret.png", "/open/..;/secret.png", "/open/.;a=b/../secret.png", "/open/..;a=b/secret.png", "/open//a.png",
    "//open/a.png", "/open/%2fsecret.png", "/open/%00a.png", "/open/a%0d%0aHost:%20x", "/open/a.png#x", "/open/a b.png",
    "/open/ä.png", "/open/a\u2028.png", "/open/%zz.png", "/open/%", "/open/a.png\n", " /open/a.png", "/open/%c0%ae%c0%ae/%2e",
    "/open/%3f/../a", "/open/\u2024\u2024/secret.png", "/./open/a.png", "/x/../open/a.png", "/%6fpen/a.png",
    "/open/a.png?x=<>", "/open/a.png?\\", "/open/" + "a" * 3000, "/open/[a].png", "/open/{{a}}.png", "/open/|a.png",
)  # fmt: skip
"""Paths on the allowed server that leave the folder, or that may be read as leaving it."""

SCHEMES = (
    "ftp://{good}/open/a.png", "file:///open/a.png", "file://{good}/open/a.png", "gopher://{good}/open/a.png",
    "https://{good}/open/a.png", "httpx://{good}/open/a.png", "http+unix://{good}/open/a.png", "ws://{good}/open/a.png",
    "dict://{good}/open/a.png", "jar:http://{good}/open/a.png", "url:http://{good}/open/a.png", "view-source:http://{good}/",
    "javascript:http://{good}/open/a.png", "ldap://{good}/open/a.png", "http://http://{good}/open/a.png", "http:",
    "http://", "https://", "http://?", "http://#", "blob:http://{good}/open/a.png", "tftp://{good}/a", "s3://bucket/a",
)  # fmt: skip
"""Schemes that are not fetched, and addresses that are none."""

TRICKS = (
    *(f"http://{host}:{{q}}/open/a.png" for host in LOOPBACK),
    *AUTHORITIES,
    *(f"http://{{good}}{path}" for path in PATHS),
    *SCHEMES,
)


def test_there_are_tricks_enough() -> None:
    """Each is another one."""
    assert len(set(TRICKS)) == len(TRICKS) >= 150


async def test_no_trick_reaches_anything(net: Net) -> None:
    """Every one is refused as the caller's error before a byte is sent, and none is quoted."""
    wrong = {}
    for trick in TRICKS:
        reference = net.filled(trick)
        try:
            await fetched(reference, net.settings)
        except InvalidRequest as error:
            if len(reference) > 12 and reference in error.message:
                wrong[trick] = "quoted"
        except MedserveError as error:
            wrong[trick] = repr(error)
        else:
            wrong[trick] = "was fetched"

    assert {} == wrong
    assert (0, 0) == (net.canary.connections, net.allowed.connections)


async def test_what_is_allowed_is_reached(net: Net) -> None:
    """The same servers and the same path would have brought a picture."""
    expected = (await intake.read([samples.picture("PNG")], Limits())).sha256

    for path in ("/open/a.png", "/open/b/c.dcm?x=1", "/open/a%20b.png", "/open/", "/open"):
        assert expected == await fetched(f"HTTP://127.0.0.1:{net.allowed.port}{path}", net.settings)
    assert ["/open/a.png", "/open/b/c.dcm?x=1", "/open/a%20b.png"] == [one.path for one in net.allowed.requests[:3]]
    assert {f"127.0.0.1:{net.allowed.port}"} == {one.headers["host"] for one in net.allowed.requests}
    assert 0 == net.canary.connections


async def test_nothing_is_fetched_unless_told(net: Net) -> None:
    """The list is empty by default."""
    with pytest.raises(ReferenceRefused, match="not fetched"):
        await fetched(f"{net.allowed.url}/open/a.png", Settings())

    assert 0 == net.allowed.connections


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["{bad}/open/a.png", "{good}/open/b.png", "{good}/secret.png"])
async def test_redirects_are_not_followed(net: Net, status: int, target: str) -> None:
    """Neither to the canary nor to where a plain address would be allowed."""
    net.allowed.answers(status=status, headers={"Location": f"http://{net.filled(target)}"})
    with pytest.raises(SourceFailed, match="redirects are not followed"):
        await fetched(f"{net.allowed.url}/open/a.png", net.settings)

    assert (1, 0) == (net.allowed.connections, net.canary.connections)


async def test_a_proxy_of_the_environment_is_not_used(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look names up itself, and see what is fetched."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, net.canary.url)
    monkeypatch.delenv("NO_PROXY")
    await fetched(f"{net.allowed.url}/open/a.png", net.settings)

    assert 0 == net.canary.connections


PRIVATE = (
    "127.0.0.1", "10.1.2.3", "172.31.255.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "192.0.2.1", "198.18.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
)  # fmt: skip


@pytest.mark.parametrize("ip", PRIVATE)
@pytest.mark.parametrize("beside", [(), ("93.184.215.14",)], ids=["alone", "beside a public one"])
async def test_a_name_that_leads_into_a_private_network_is_refused(ip: str, beside: tuple[str, ...]) -> None:
    """Also if only one of its addresses does, because nobody knows which one is taken."""

    async def resolve(_host: str, _port: int) -> list[web.IP]:
        return [ip_address(one) for one in (*beside, ip)]

    address = addresses.parsed("https://pictures.example.org/a.png")
    with pytest.raises(ReferenceRefused, match="private network"):
        await web.checked(address, resolve)


async def test_a_name_is_looked_up_once_and_the_checked_address_is_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the name means a moment later makes no difference: DNS rebinding gains nothing."""
    answers = iter(["93.184.215.14", "127.0.0.1", "127.0.0.1"])
    seen: list[httpx.Request] = []

    async def resolve(_host: str, _port: int) -> list[web.IP]:
        return [ip_address(next(answers))]

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"picture"))

    client = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    monkeypatch.setattr(download, "_client", lambda _ca: client)
    settings = Settings(sources=("https://pictures.example.org/open/",))
    file = await web.fetch("https://pictures.example.org/open/a.png", settings, tmp_path, Allowance(100), resolve)

    assert b"picture" == file.read_bytes()
    assert "127.0.0.1" == next(answers)
    (request,) = seen
    assert ("93.184.215.14", "pictures.example.org") == (request.url.host, request.headers["host"])
    assert "pictures.example.org" == request.extensions["sni_hostname"]


async def test_a_name_that_nobody_knows_is_the_servers_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own error is not shown."""

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceFailed, match="cannot be looked up"):
        await web.looked_up("pictures.example.org", 443)


async def test_size_is_limited_whatever_the_server_declares(net: Net) -> None:
    """By the declared length, and by what really comes; over all references together."""
    small = net.settings.model_copy(update={"limits": Limits(body_bytes=5000)})
    chunked = b"1770\r\n" + bytes(6000) + b"\r\n0\r\n\r\n"
    answers: tuple[tuple[bytes, dict[str, str]], ...] = (
        (bytes(6000), {}),
        (b"", {"Content-Length": "6000"}),
        (chunked, {"Transfer-Encoding": "chunked"}),
    )
    for body, headers in answers:
        net.allowed.answers(body=body, headers=headers)
        with pytest.raises(ImageTooLarge, match="5000"):
            await fetched(f"{net.allowed.url}/open/a.png", small)
    net.allowed.answers(body=bytes(3000))
    with pytest.raises(ImageTooLarge, match="5000"):
        async with references.gathered([f"{net.allowed.url}/open/a.png"] * 2, small):
            pass


async def test_a_server_that_drips_is_left(net: Net) -> None:
    """The time counts for all of the answer, not for each byte."""
    net.allowed.answers(body=bytes(10_000), trickle=0.05)
    quick = net.settings.model_copy(update={"limits": Limits(fetch_seconds=0.5)})
    with pytest.raises(SourceFailed, match="in time"):
        await fetched(f"{net.allowed.url}/open/a.png", quick)


async def test_a_bomb_in_the_encoding_is_not_unpacked(net: Net) -> None:
    """Encodings are not asked for, and refused if they come all the same."""
    import gzip

    net.allowed.answers(body=gzip.compress(bytes(10_000_000)), headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceFailed, match="packed"):
        await fetched(f"{net.allowed.url}/open/a.png", net.settings)


async def test_what_a_file_is_is_told_by_its_content(net: Net) -> None:
    """A page that calls itself a picture is none, and a picture that calls itself a page is one."""
    net.allowed.answers(body=b"<html>secret</html>", headers={"Content-Type": "image/png"})
    with pytest.raises(InvalidRequest, match="not a file that is read here"):
        await fetched(f"{net.allowed.url}/open/a.png", net.settings)
    net.allowed.answers(body=samples.picture("PNG"), headers={"Content-Type": "text/html"})

    assert await fetched(f"{net.allowed.url}/open/a.png", net.settings)


async def test_nothing_stays_on_disk(net: Net) -> None:
    """What was fetched is gone when the study was read, or refused."""
    async with references.gathered([f"{net.allowed.url}/open/a.png"], net.settings) as materials:
        (path,) = materials
        assert isinstance(path, Path)
        assert samples.picture("PNG") == path.read_bytes()
        assert 0o700 == path.parents[1].stat().st_mode & 0o777

    assert not path.parents[1].exists()


@pytest.mark.parametrize(
    "prefix",
    [
        "pictures.example.org", "ftp://example.org/", "https://user@example.org/", "https://example.org/?a", "http://0x7f.1/",
        "https://example.org/../", "https://*.example.org/", "https://", "http://127.1/", "https://example.org/%2e/",
    ],
)  # fmt: skip
def test_a_prefix_that_is_none_is_refused_at_the_start(prefix: str) -> None:
    """Not when the first address comes."""
    with pytest.raises(ValueError, match="sources"):
        Settings(sources=(prefix,))
