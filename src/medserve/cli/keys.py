"""`medserve keys`: make, list and revoke the keys that a service asks for."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medserve.cli import configured, terminal
from medserve.errors import InvalidRequest

if TYPE_CHECKING:
    from medserve.keys import Key, Scope

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys that a service asks for.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what the key is for.", show_default=False)],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="use, metrics or admin, which covers the others; repeatable. use, when left out."),
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="At most so many requests a minute.")
    ] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", min=1, help="At most so many requests at once.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="How long it is valid: 90d, 12h, 30m.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object with the key and what is kept of it.")] = False,
) -> None:
    """Make a key and print it, this once: only its SHA-256 is kept.

    A running service knows it within seconds. With the first key, the service asks everybody for one.

    \b
    Examples:
      medserve keys add clinic
      medserve keys add prometheus --scope metrics
      medserve keys add night-batch --per-minute 60 --at-once 4 --expires 90d
    """
    from medserve.keys import Scope

    known = [scope.value for scope in Scope]
    if unknown := next((scope for scope in scopes or () if scope not in known), None):
        raise InvalidRequest(f"there is no scope {unknown!r}; there are {', '.join(known)}", param="scope")
    wanted = [Scope(scope) for scope in scopes or ("use",)]
    key, secret = asyncio.run(_added_key(name, wanted, per_minute, at_once, _seconds(expires) if expires else None))
    if as_json:
        typer.echo(json.dumps({"key": secret, **_key_facts(key)}))
        return
    typer.echo("the key is shown this once; keep it where secrets are kept", err=True)
    typer.echo(secret)


@app.command()
def ls(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """List the keys: what each may do, until when, and when it was last used. Times are in UTC.

    \b
    Example:
      medserve keys ls
    """
    listed = [_key_facts(key) for key in asyncio.run(_listed_keys())]
    if as_json:
        for facts in listed:
            typer.echo(json.dumps(facts))
        return
    rows = [
        (
            facts["name"],
            facts["state"],
            ",".join(facts["scopes"]),
            *(str(facts[limit] or "-") for limit in ("per_minute", "at_once")),
            *((facts[when] or "-")[:16].replace("T", " ") for when in ("created", "expires", "last_used")),
        )
        for facts in listed
    ]
    head = ("NAME", "STATE", "SCOPES", "PER MINUTE", "AT ONCE", "CREATED", "EXPIRES", "LAST USED")
    typer.echo(terminal.table(head, rows))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name; `medserve keys ls` shows all.")],
    forget: Annotated[bool, typer.Option("--forget", help="Also remove its name and what is known of it.")] = False,
) -> None:
    """Make a key worthless, within five seconds also at a running service.

    Its name stays taken, and the service goes on asking for keys. With --forget the name is free; when no key is left,
    a service on this machine only is open to everybody on it again.

    \b
    Examples:
      medserve keys revoke clinic
      medserve keys revoke trial --forget
    """
    asyncio.run(_revoke_key(name, forget))
    typer.echo(f"{name} is revoked; a running service refuses it within five seconds", err=True)


async def _added_key(
    name: str, scopes: Sequence["Scope"], per_minute: int | None, at_once: int | None, seconds: float | None
) -> tuple["Key", str]:
    from medserve.keys import opened

    async with opened(configured.settings()) as keys:
        return await keys.add(name, scopes, per_minute=per_minute, at_once=at_once, seconds=seconds)


async def _listed_keys() -> list["Key"]:
    from medserve.keys import opened

    async with opened(configured.settings()) as keys:
        return await keys.listed()


async def _revoke_key(name: str, forget: bool) -> None:
    from medserve.keys import opened

    async with opened(configured.settings()) as keys:
        await (keys.forget(name) if forget else keys.revoke(name))


def _key_facts(key: "Key") -> dict[str, Any]:
    """What is kept of a key, as it is shown; the digest stays where it is."""
    from datetime import UTC, datetime
    from time import time

    def shown(when: float | None) -> str | None:
        return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")

    return {
        "name": key.caller.name,
        "id": key.caller.id,
        "state": key.state(time()),
        "scopes": sorted(key.caller.scopes),
        "per_minute": key.caller.per_minute,
        "at_once": key.caller.at_once,
        "created": shown(key.created),
        "expires": shown(key.expires),
        "revoked": shown(key.revoked),
        "last_used": shown(key.last_used),
    }


def _seconds(text: str) -> float:
    """A span of time such as 90d, 12h or 30m, in seconds; at most a hundred years."""
    found = re.fullmatch(r"([0-9]{1,8})([dhm])", text)
    seconds = int(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]] if found else 0
    if not 0 < seconds <= 36525 * 86400:
        raise InvalidRequest(f"a span of time is given as 90d, 12h or 30m, not {text!r}", param="expires")
    return float(seconds)
