"""The commands that start a service, and those that look after the models of one that runs."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

from medserve.cli import configured, options, terminal
from medserve.errors import InvalidRequest

if TYPE_CHECKING:
    from socket import socket

    from medserve.remote import Service
    from medserve.settings import Settings

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name; `ps` shows them.")]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless told.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    model: options.Model = "",
    mmproj: options.Projector = None,
    context: options.Context = None,
    threads: options.Threads = None,
    open_to_network: Annotated[
        bool,
        typer.Option(
            "--open-to-network", help="Allow an address that other machines reach also while there are no keys."
        ),
    ] = False,
) -> None:
    """Serve models and workflows over HTTP until stopped.

    Once there are keys (`medserve keys add`), every request but the probes' needs one. Without keys only this machine
    is served, unless --open-to-network is given.

    \b
    Examples:
      medserve serve
      medserve serve --port 9000 --model medgemma-4b-it-Q8_0.gguf --mmproj mmproj-F16.gguf
    """
    from medserve import telemetry
    from medserve.api import create_app, server

    given = {"host": host, "port": port, "open_to_network": open_to_network or None}
    settings = configured.with_model(
        configured.settings(**{name: value for name, value in given.items() if value is not None}),
        model,
        mmproj,
        context,
        threads,
    )
    _check_reach(settings)
    telemetry.configure(settings.log_level)
    telemetry.guard_process()
    service = create_app(settings)
    listener = _listener(settings)
    typer.echo(f"medserve listens at {_url(settings.host, listener.getsockname()[1])} (research use only)", err=True)
    server.Server(server.config(settings, service)).run(sockets=[listener])


def _check_reach(settings: "Settings") -> None:
    from medserve import keys
    from medserve.api.limits import is_loopback

    if settings.admin_key_file is None and (is_loopback(settings.host) or settings.open_to_network):
        return
    if not asyncio.run(keys.any_valid(settings)):
        raise InvalidRequest(
            f"{settings.host} can be reached by other machines and there is no valid key; make one with: "
            "medserve keys add NAME, listen on 127.0.0.1, or add --open-to-network if everybody on a guarded "
            "network is meant",
            param="host",
        )


def _listener(settings: "Settings") -> "socket":
    """The socket to serve on, bound before anything is loaded: a port in use is told at once."""
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except OSError as error:
        where, why = _url(settings.host, settings.port), str(error.strerror).partition(" (while")[0]
        raise InvalidRequest(
            f"cannot listen at {where}: {why}; choose another with --port or --host", param="port"
        ) from None


def ps(
    url: options.Url = "",
    as_json: Annotated[bool, typer.Option("--json", help="What the service says, as JSON.")] = False,
) -> None:
    """Show the models of the running service: state and progress, memory, answers at work and waiting, idle time.

    A service that asks for keys is shown the one in MEDSERVE_KEY; that holds for `load` and `stop` too.

    \b
    Examples:
      medserve ps
      medserve ps --url http://127.0.0.1:9000 --json
    """
    from medserve import remote

    models = reached(url).models()
    head = ("MODEL", "STATE", "ENGINE", "MEMORY", "ANSWERING", "WAITING", "IDLE", "LOADED IN", "NOTE")
    typer.echo(json.dumps(models) if as_json else terminal.table(head, [remote.row(model) for model in models]))


def load(
    name: ModelName,
    url: options.Url = "",
    wait: Annotated[bool, typer.Option(help="Wait until it is loaded.")] = True,
) -> None:
    """Load a model of the running service, also one whose last load failed. The exit code is 3 when it fails.

    \b
    Examples:
      medserve load medgemma-4b
      MEDSERVE_KEY=ms-... medserve load medgemma-4b --url http://10.0.0.5:8080 --no-wait
    """
    for step in reached(url).loading(name, wait=wait):
        typer.echo(step, err=True)


def stop(
    name: ModelName,
    url: options.Url = "",
) -> None:
    """Unload a model of the running service and give its memory back. The next request loads it again.

    A model that is answering is not unloaded; the exit code is then 3.

    \b
    Example:
      medserve stop medgemma-4b
    """
    reached(url).unload(name)
    typer.echo(f"{name} is unloaded", err=True)


def reached(url: str) -> "Service":
    """The service at `url`, else where the settings say that it listens, asked with their key."""
    from medserve.remote import Service

    settings = configured.settings()
    return Service(url or _url(settings.host, settings.port), settings.key.get_secret_value())


def _url(host: str, port: int) -> str:
    """Where a client on this machine reaches a service that listens at `host`."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"http://[{near.strip('[]')}]:{port}" if ":" in near else f"http://{near}:{port}"
