"""`medserve verify`: whether a build answers as the reference does."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medserve.cli import configured, options

if TYPE_CHECKING:
    from medserve.certificates import Certificate
    from medserve.settings import Settings
    from medserve.verification import Order


def _show_schema(wanted: bool) -> None:
    if wanted:
        from medserve.certificates import Certificate

        typer.echo(json.dumps(Certificate.model_json_schema(), indent=2))
        raise typer.Exit


def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A declared or pulled model's name, a GGUF file, a folder, or a server's address.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(help="The folder of the same model's safetensors; found for models that were pulled."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of pictures to ask about, in place of the package's own.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many pictures.")] = 24,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="How the reference computes; float32 takes twice the memory.")
    ] = "float32",
    mmproj: options.Projector = None,
    context: options.Context = None,
    threads: options.Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The certificate as one JSON object instead of text.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the certificate to this file, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write it to this file, as a page of HTML.")] = None,
    quiet: options.Quiet = False,
    _: Annotated[
        bool,
        typer.Option("--schema", callback=_show_schema, is_eager=True, help="Print the certificate's JSON Schema."),
    ] = False,
) -> None:
    """Check that a build of a model sees, reads and answers as the reference does, and name what is wrong with it.

    The reference is the same model in safetensors on transformers. Compared are the pixels that the model is handed,
    the tokens of prompts, and the probabilities of closed questions' answers; known faults of builds are planted into
    the reference to see whether one explains a difference. The certificate is kept, and says for which build it holds.
    The exit code is 0 when the build passed and 1 when it did not, or not enough could be compared.

    \b
    Examples:
      medserve verify medserve-demo
      medserve verify medgemma-1.5-4b --page certificate.html
      medserve verify model-Q4_K_M.gguf --reference medgemma-4b-it/ --pictures films/ --json
    """
    from medserve import telemetry
    from medserve.verification import Order
    from medserve.verification import page as pages

    options.to_file(out)
    options.to_file(page, "page")
    settings = configured.with_model(configured.settings(), model, mmproj, context, threads)
    spec = next(one for one in settings.models if one.name == settings.default)
    order = Order(spec, reference, pictures, count, precision)
    telemetry.configure("critical")
    made = asyncio.run(_verified(order, settings, quiet))
    typer.echo(made.model_dump_json() if as_json else pages.as_text(made))
    if out is not None:
        options.write(made.model_dump_json(indent=1).encode() + b"\n", out)
    if page is not None:
        options.write(pages.as_html(made).encode(), page, "page")
    if not made.passed:
        raise typer.Exit(1)


async def _verified(order: "Order", settings: "Settings", quiet: bool) -> "Certificate":
    from medserve.batch import progress_display
    from medserve.verification import verify

    with progress_display(quiet) as progress:
        return await verify(order, settings, progress.say)
