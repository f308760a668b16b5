"""`medserve schemas`: JSON Schemas under names."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medserve.cli import configured
from medserve.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Keep JSON Schemas under names, for answers as JSON.")

SchemaName = Annotated[str, typer.Argument(metavar="NAME", help="The schema's name.", show_default=False)]


@app.command()
def add(
    name: SchemaName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON Schema (draft 2020-12).", show_default=False)],
) -> None:
    """Keep a schema under a name, in place of the one that has it. A running service knows it at once.

    References may lead to places in the schema itself; patterns, and schemas within themselves, are not taken.

    \b
    Examples:
      medserve schemas add stones stones.json
      medserve run radiology series/ -o schema=stones -o instruction="Where are stones?"
    """
    from medserve.schemas import Schemas

    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}", param="file") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{file} is no JSON", param="file") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{file} is no JSON Schema: it must be an object", param="file")
    new = Schemas(configured.settings().home).put(name, schema)
    typer.echo(f"{name} is {'kept' if new else 'replaced'}", err=True)


@app.command()
def ls() -> None:
    """List the names of all schemas.

    \b
    Example:
      medserve schemas ls
    """
    from medserve.schemas import Schemas

    for name in Schemas(configured.settings().home).names():
        typer.echo(name)


@app.command()
def show(name: SchemaName) -> None:
    """Print a schema.

    \b
    Example:
      medserve schemas show stones
    """
    from medserve.schemas import Schemas

    typer.echo(json.dumps(Schemas(configured.settings().home).get(name), indent=2, ensure_ascii=False))


@app.command()
def rm(name: SchemaName) -> None:
    """Forget a schema. Reports that used it keep it.

    \b
    Example:
      medserve schemas rm stones
    """
    from medserve.schemas import Schemas

    Schemas(configured.settings().home).remove(name)
    typer.echo(f"{name} is forgotten", err=True)
