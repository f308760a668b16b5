"""The server in front of the application, where it differs from uvicorn's own."""

import gc
import signal
import socket

from medserve.api import create_app, server
from medserve.settings import Settings


async def test_what_stays_for_ever_is_not_searched_for_garbage() -> None:
    """A search through all of it answers nobody for a tenth of a second; it is left out from the start on."""
    before = gc.get_freeze_count()
    settings = Settings(preload=False)
    service = server.Server(server.config(settings, create_app(settings)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service.handle_exit(signal.SIGTERM, None)  # it ends as soon as it has begun
        await service.serve(sockets=[listener])
    frozen = gc.get_freeze_count()
    gc.unfreeze()

    assert frozen > before + 10_000
