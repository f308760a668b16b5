"""`medserve jobs`: look at the jobs of the running service, and stop them."""

import json
from typing import Annotated

import typer

from medserve.cli import options, service, terminal

app = typer.Typer(no_args_is_help=True, help="Look at the jobs of the running service, and stop them.")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name; `jobs ls` shows them.")]
JOB_HEAD = ("JOB", "KIND", "STATE", "DONE", "STEP", "TOOK", "NOTE")


@app.command()
def ls(
    url: options.Url = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="The latest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="What the service says, as JSON.")] = False,
) -> None:
    """List your jobs, newest first: state, progress, and why one failed.

    A service that asks for keys is shown the one in MEDSERVE_KEY, and tells of the jobs of that key.

    \b
    Example:
      medserve jobs ls
    """
    from medserve import remote

    jobs = service.reached(url).jobs(limit)
    typer.echo(json.dumps(jobs) if as_json else terminal.table(JOB_HEAD, [remote.job_row(job) for job in jobs]))


@app.command()
def show(job: JobName, url: options.Url = "") -> None:
    """Show one of your jobs, as JSON.

    \b
    Example:
      medserve jobs show job_0f3a1c52e9b07d445d1c09aa0f3a1c52
    """
    typer.echo(json.dumps(service.reached(url).job(job), indent=2))


@app.command()
def cancel(job: JobName, url: options.Url = "") -> None:
    """Stop one of your jobs. What a batch has done so far stays; a job that has ended stays as it is.

    \b
    Example:
      medserve jobs cancel job_0f3a1c52e9b07d445d1c09aa0f3a1c52
    """
    from medserve import remote

    typer.echo(terminal.table(JOB_HEAD, [remote.job_row(service.reached(url).cancel(job))]))
