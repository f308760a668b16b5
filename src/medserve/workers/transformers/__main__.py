"""The process in which transformers runs: it loads what its parent names, and serves until its parent is gone.

Run by `medserve.process`, which describes the protocol. The main thread owns the model and computes; another one
serves HTTP on a socket in the private directory, a third waits for the end of standard input.
"""

import json
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette

from medserve.errors import MedserveError
from medserve.workers.parent import Parent
from medserve.workers.transformers import loading
from medserve.workers.transformers.folder import Spec

if TYPE_CHECKING:
    from medserve.workers.transformers.decoding import Decoder
    from medserve.workers.transformers.loading import Loaded

SOCKET = "http.sock"
BACKLOG = 512


def main() -> None:
    """Load what standard input names, say so, and serve until standard input ends."""
    parent = Parent.taken()
    spec = Spec.of(json.loads(sys.stdin.readline()))
    parent.leave_with_it(spec.directory)
    try:
        run(spec, parent)
    except MedserveError as error:
        parent.fail(error)
        sys.exit(1)


def run(spec: Spec, parent: Parent) -> None:
    """Load and serve; raises ModelFailed with the reason when it cannot."""
    decoder, app, facts = load(spec, parent)
    listener = _listener(spec.directory / SOCKET)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", backlog=BACKLOG)
    server = threading.Thread(target=uvicorn.Server(config).run, kwargs={"sockets": [listener]}, daemon=True)
    server.start()
    parent.say({"ready": {"socket": str(spec.directory / SOCKET), **facts}})
    try:
        decoder.run()
    finally:  # the device is lost: threads that still serve would keep a process alive that cannot answer
        traceback.print_exc()
        os._exit(1)


def load(spec: Spec, parent: Parent) -> tuple["Decoder", Starlette, dict[str, Any]]:
    """What answers, what listens, and the facts about both."""
    with loading.packages():
        loaded = loading.load(spec, parent.ask_for, parent.tell)
        parent.tell("preparing to answer")
        return answering(loaded, spec)


def answering(loaded: "Loaded", spec: Spec) -> tuple["Decoder", Starlette, dict[str, Any]]:
    """What answers with a loaded model, what listens, and the facts about both."""
    from medserve.workers.transformers.decoding import Decoder
    from medserve.workers.transformers.serving import create_app
    from medserve.workers.transformers.vision import Vision

    vision = Vision(loaded.model, kept_bytes=loaded.kept_pictures) if loaded.image_tokens else None
    decoder = Decoder(
        loaded,
        vision,
        slots=spec.slots,
        context=loaded.context,
        kept_bytes=loaded.kept,
        causal_images=spec.causal_images,
    )
    seen = {"size": loaded.image_size, "tokens": loaded.image_tokens} if vision else None
    facts = {"context": loaded.context, "vision": seen, "record": loaded.facts}
    return decoder, create_app(decoder, loaded.prompts, loaded.facts["weights"]), facts


def _listener(path: Path) -> socket.socket:
    """Bound before it is said that the model is ready, so that nobody comes too early."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


if __name__ == "__main__":
    main()
