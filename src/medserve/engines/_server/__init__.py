"""How an engine reaches a server that somebody else runs: at its own address, with its own key, and nowhere else.

A key is sent over TLS, or to this machine; to any other it would travel in clear, which is refused.
"""

import os
import ssl
import stat
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

import httpx

from medserve import addresses
from medserve.addresses import Address
from medserve.errors import ModelFailed
from medserve.settings import ModelSpec
from medserve.tcp_http import TcpClient
from medserve.threads import in_thread

KEY_SECONDS = 1.0
"""How long a key is used before it is looked whether its file holds another."""
MOST_KEY_BYTES = 8192


def connected(model: ModelSpec) -> TcpClient:
    """A client for the server at the model's `url`; raises ModelFailed for what cannot be or must not be asked there.

    Nothing is connected yet. A path of the address is kept; `/v1` at its end is what clients of OpenAI's put there.
    """
    if model.url is None:
        raise ModelFailed(f"{model.name} needs a url, such as http://127.0.0.1:8000", param="url")
    try:
        address = addresses.parsed(model.url.rstrip("/").removesuffix("/v1"))
    except ValueError as error:
        raise ModelFailed(f"the url of {model.name} cannot be used: {error}", param="url") from None
    if address.query:
        raise ModelFailed(f"the url of {model.name} must not have a query; a key belongs into key_file", param="url")
    keyed = model.key_file is not None or model.key_variable is not None
    if keyed and address.scheme == "http" and not _is_here(address):
        raise ModelFailed(
            f"the key of {model.name} would travel in clear; name an https address, or a tunnel that ends on this "
            "machine, or leave the key out",
            param="url",
        )
    return TcpClient(address, _trusted(model) if address.scheme == "https" else None, Key(model).headers)


def fingerprint(model: ModelSpec) -> str:
    """Which address a model is at, without telling it: a certificate of one server holds for no other."""
    return sha256((model.url or "").rstrip("/").removesuffix("/v1").encode()).hexdigest()[:16]


def _is_here(address: Address) -> bool:
    if address.host == "localhost":
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return False


def _trusted(model: ModelSpec) -> ssl.SSLContext:
    """Which certificates are believed: those of `ca`, else those that all programs here believe."""
    try:
        return ssl.create_default_context(cafile=model.ca) if model.ca else httpx.create_ssl_context(trust_env=False)
    except OSError:
        raise ModelFailed(
            f"the certificates of `ca` of {model.name} cannot be read; name a file of certificates in PEM", param="ca"
        ) from None


class Key:
    """The key of one model, from the environment or from a file that may be replaced while the service runs.

    It is read when it is needed and shown in no text: not in an error, not in a log, not in `repr`.
    """

    def __init__(self, model: ModelSpec) -> None:
        self._name = model.name
        self._variable = model.key_variable
        self._file = model.key_file
        self._looked = -KEY_SECONDS
        self._headers: Mapping[str, str] = {}

    async def headers(self) -> Mapping[str, str]:
        """What shows the key to the server; raises ModelFailed when there should be one and cannot be had."""
        if self._file is None and self._variable is None:
            return {}
        if monotonic() - self._looked >= KEY_SECONDS:
            secret = await in_thread(_of_file, self._file, self._name) if self._file else self._of_environment()
            self._headers = {"authorization": f"Bearer {self._fit(secret)}"}
            self._looked = monotonic()
        return self._headers

    def _of_environment(self) -> str:
        secret = os.environ.get(self._variable or "", "").strip()
        if not secret:
            raise ModelFailed(
                f"the environment variable with the key of {self._name} is not set; set it, or correct key_variable",
                param="key_variable",
            )
        return secret

    def _fit(self, secret: str) -> str:
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ModelFailed(
                f"the key of {self._name} holds characters that no header can carry; leave nothing there but the key",
                param="key_file",
            )
        return secret


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe that nobody writes to would never be open."""
    return os.open(path, flags | os.O_NONBLOCK)


def _of_file(file: Path, name: str) -> str:
    """The key in a file. Blocking. Other users must not be able to change it, nor to read it unless a group's may."""
    try:
        with open(file, "rb", opener=_at_once) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            secret = opened.read(MOST_KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise ModelFailed(
            f"the key file of {name} cannot be read: {error.strerror}; correct key_file, or let this user read it",
            param="key_file",
        ) from None
    if not stat.S_ISREG(mode) or len(secret) > MOST_KEY_BYTES:
        raise ModelFailed(
            f"the key file of {name} is no file that holds one key; name one with the key and nothing else",
            param="key_file",
        )
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ModelFailed(
            f"other users of this machine can read or change the key file of {name}; take that away: chmod 600",
            param="key_file",
        )
    text = secret.decode("utf-8", errors="replace").strip()
    if not text:
        raise ModelFailed(f"the key file of {name} is empty; write the key into it", param="key_file")
    return text
