"""The process in which llama.cpp runs: it checks its files before loading them, and serves until its parent is gone.

Run by `medserve.process`, which describes the protocol. llama.cpp's own HTTP listener does the serving: this file only
decides with what settings, because several of its defaults are slow or silently wrong for Gemma 3 with pictures.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from gguf import LlamaFileType

from medserve.errors import MedserveError, ModelFailed, ProjectorMissing, WeightsCorrupt, WeightsMissing
from medserve.workers import gguf_header
from medserve.workers.gguf_header import Header, Malformed

ARCHITECTURE = "gemma3"
PROJECTOR = "gemma3"
DEFAULT_SCALE = 4
"""llama.cpp's: how many patches a side are pooled into one image token when the file does not say."""
SMALLEST_BATCH = 512
CACHE_MIB = 1024


@dataclass(frozen=True)
class Spec:
    """What the parent asks for."""

    directory: Path
    weights: Path
    projector: Path | None
    context: int
    slots: int
    threads: int

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Spec":
        projector = Path(said["projector"]) if said.get("projector") else None
        return cls(
            directory=Path(said["directory"]),
            weights=Path(said["weights"]),
            projector=projector,
            context=int(said["context"]),
            slots=int(said["slots"]),
            threads=int(said["threads"]),
        )


@dataclass(frozen=True)
class Vision:
    """A projector's picture: its side in pixels and the tokens it becomes."""

    size: int
    tokens: int


def main() -> None:
    """Load what standard input names, say so, and serve until standard input ends."""
    parent = _private_stdout()
    spec = Spec.of(json.loads(sys.stdin.readline()))
    watcher = threading.Thread(target=_leave_with_parent, args=(spec.directory,), daemon=True)
    watcher.start()
    try:
        server, facts = load(spec)
    except MedserveError as error:
        _say(parent, {"error": {"code": error.code, "message": error.message}})
        sys.exit(1)
    _say(parent, {"ready": facts})
    watcher.join()
    del server


def load(spec: Spec) -> tuple[Any, dict[str, Any]]:
    """The running server, and the facts about what it serves; raises ModelFailed with the reason."""
    weights = _header(spec.weights, "weights")
    if weights.get("general.architecture") != ARCHITECTURE:
        raise WeightsCorrupt(
            f"{spec.weights.name} holds a model of the architecture {weights.get('general.architecture')!r}; "
            f"this engine runs {ARCHITECTURE!r} (MedGemma)"
        )
    vision = _vision(spec, weights) if spec.projector else None
    context = min(spec.context, int(_entry(weights, spec.weights, f"{ARCHITECTURE}.context_length")))
    server = _serve(spec, context, vision)
    return server, _facts(spec, weights, context, vision)


def _vision(spec: Spec, weights: Header) -> Vision:
    """The projector's facts, once it is clear that it is one and that it fits the weights."""
    assert spec.projector is not None  # noqa: S101 - the caller asked
    projector = _header(spec.projector, "projector")
    name = spec.projector.name
    if projector.get("clip.projector_type", projector.get("clip.vision.projector_type")) != PROJECTOR:
        raise WeightsCorrupt(
            f"{name} is no vision projector of {ARCHITECTURE!r}; use the mmproj file of the same model"
        )
    width = _entry(projector, spec.projector, "clip.vision.projection_dim")
    expected = _entry(weights, spec.weights, f"{ARCHITECTURE}.embedding_length")
    if width != expected:
        raise WeightsCorrupt(
            f"{name} belongs to another model: it is {width} wide and the weights are {expected}; "
            "use the mmproj file of the same model"
        )
    size = _entry(projector, spec.projector, "clip.vision.image_size")
    patches = size // _entry(projector, spec.projector, "clip.vision.patch_size")
    side, rest = divmod(patches, projector.get("clip.vision.projector.scale_factor", DEFAULT_SCALE))
    if rest or not side:  # llama.cpp would abort the whole process
        raise WeightsCorrupt(f"{name} pools {patches} x {patches} patches unevenly; it is damaged")
    return Vision(int(size), int(side * side))


def _header(path: Path, role: str) -> Header:
    if not path.is_file():
        kind = ProjectorMissing if role == "projector" else WeightsMissing
        raise kind(f"the {role} file {path.name} does not exist; check the model's paths in your settings")
    try:
        return gguf_header.read(path)
    except Malformed as error:
        raise _corrupt(path, error) from None


def _entry(header: Header, path: Path, key: str) -> int:
    try:
        return int(header[key])
    except (Malformed, TypeError, ValueError) as error:
        raise _corrupt(path, error) from None


def _corrupt(path: Path, reason: Exception) -> WeightsCorrupt:
    return WeightsCorrupt(f"{path.name} is not a whole GGUF file: {reason}; fetch it again")


def _serve(spec: Spec, context: int, vision: Vision | None) -> Any:
    os.environ.setdefault("GOMP_SPINCOUNT", "600")  # before libgomp is loaded: its default starves shared cores
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an assertion would start a debugger
    import xllamacpp

    try:
        return xllamacpp.Server(_parameters(xllamacpp, spec, context, vision))
    except RuntimeError:
        raise ModelFailed(f"llama.cpp could not load {spec.weights.name}") from None


def _parameters(library: Any, spec: Spec, context: int, vision: Vision | None) -> Any:
    chosen = library.CommonParams()
    chosen.model.path = str(spec.weights)
    if spec.projector:
        chosen.mmproj.path = str(spec.projector)
    chosen.hostnames = [str(socket(spec.directory))]  # the listener cannot be switched off: keep it private
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = spec.threads
    chosen.n_threads_http = 4 + 2 * spec.slots
    chosen.n_parallel = spec.slots
    chosen.n_ctx = spec.slots * context
    chosen.kv_unified = False  # one pool for all slots fails all of them when it is full
    chosen.swa_full = True  # without it no Gemma 3 prefix is ever reused
    chosen.cache_prompt = True
    chosen.cache_ram_mib = CACHE_MIB  # returning to an earlier picture is free
    chosen.cache_idle_slots = False
    chosen.slot_prompt_similarity = _similarity(context, vision)
    chosen.n_batch = chosen.n_ubatch = _batch(vision)
    chosen.load_mode = library.llama_load_mode.LLAMA_LOAD_MODE_NONE  # weights are repacked: a mapped copy is waste
    chosen.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO
    chosen.ctx_shift = False  # an overflow is an error, not a forgotten beginning
    chosen.fit_params = False  # the context is what was asked for
    chosen.use_jinja = True
    chosen.ui = False
    chosen.cors_origins = ""
    chosen.verbosity = 1
    return chosen


def _batch(vision: Vision | None) -> int:
    """Image tokens attend to one another, so a picture split over two batches would be silently wrong."""
    tokens = vision.tokens if vision else 0
    return max(SMALLEST_BATCH, -(-tokens // 256) * 256)


def _similarity(context: int, vision: Vision | None) -> float:
    """The share of a prompt that a slot must already hold to be chosen: one picture in a full context is enough."""
    return min(0.1, vision.tokens / context / 2) if vision else 0.1


def _facts(spec: Spec, weights: Header, context: int, vision: Vision | None) -> dict[str, Any]:
    return {
        "socket": str(socket(spec.directory)),
        "context": context,
        "vision": {"size": vision.size, "tokens": vision.tokens} if vision else None,
        "end_of_turn": weights.get("tokenizer.ggml.eot_token_id"),
        "record": {
            "weights": _title(spec.weights, weights),
            "file": spec.weights.name,
            "fingerprint": weights.fingerprint,
            "parameters": str(weights.parameters),
            "quantisation": _quantisation(weights),
            "build": f"xllamacpp {version('xllamacpp')}",
            "context": str(context),
            "vocabulary": str(weights.lengths.get("tokenizer.ggml.tokens", 0)),
            "threads": str(spec.threads),
        },
    }


def _title(path: Path, weights: Header) -> str:
    """The name inside the file, unless only the file's own name says that these are MedGemma's weights."""
    inside = str(weights.get("general.name") or path.stem)
    return path.stem if "medgemma" in path.stem.lower() and "medgemma" not in inside.lower() else inside


def _quantisation(weights: Header) -> str:
    try:
        return LlamaFileType(weights.get("general.file_type")).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return "unknown"


def socket(directory: Path) -> Path:
    return directory / "http.sock"


def _private_stdout() -> TextIO:
    """The pipe to the parent, out of reach of native code that prints: what it prints goes to standard error."""
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return parent


def _say(parent: TextIO, what: dict[str, Any]) -> None:
    parent.write(json.dumps(what) + "\n")
    parent.flush()


def _leave_with_parent(directory: Path, leave: Callable[[int], Any] = os._exit) -> None:
    """Standard input ends when the parent closes it, or when the parent ends however suddenly."""
    while os.read(0, 4096):
        pass
    shutil.rmtree(directory, ignore_errors=True)
    leave(0)


if __name__ == "__main__":
    main()
