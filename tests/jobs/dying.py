"""A gateway whose only kind of job ends it, as a crash in native code or a lack of memory would: run by a test.

It is begun again as often as it is told. Each time is a process of its own, forked: to start an interpreter takes
longer than all that it does.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from medserve.database import Database
from medserve.jobs import Jobs, Work
from medserve.models import Models
from medserve.settings import Settings


async def work(_work: Work, _models: Models, _settings: Settings) -> dict[str, Any]:
    """End this process without any warning."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


async def main(settings: Settings) -> None:
    """Serve jobs until the first one is done, which it never is; add one where there is none, and tell of it."""
    database = await Database.opened(settings)
    jobs = await Jobs.opened(database, Models(settings), settings, {"work": work})
    known = await jobs.listed("")
    job = known[0] if known else await jobs.submit("work", {})
    print(job.id, job.state, flush=True)  # noqa: T201 - read by the test
    if not job.state.ended:
        jobs.start()
        await asyncio.sleep(60)


def begun(settings: Settings) -> int:
    """How a gateway's process ended."""
    child = os.fork()
    if not child:
        status = 1
        try:
            asyncio.run(main(settings))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    chosen = Settings(home=Path(sys.argv[1]), database=sys.argv[2])
    for _ in range(int(sys.argv[3])):
        print("ended", begun(chosen), flush=True)  # noqa: T201
