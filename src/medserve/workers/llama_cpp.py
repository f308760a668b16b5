"""The process in which llama.cpp runs: it checks its files before loading them, and serves until its parent is gone.

Run by `medserve.process`, which describes the protocol. llama.cpp's own HTTP listener does the serving: this file only
decides with what settings, because several of its defaults are slow or silently wrong for Gemma 3 with pictures.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from medserve.errors import MedserveError, ModelFailed, ProjectorMissing, WeightsCorrupt, WeightsMissing
from medserve.workers import gguf_header
from medserve.workers.gguf_header import Header, Malformed
from medserve.workers.parent import Parent

ARCHITECTURE = "gemma3"
PROJECTOR = "gemma3"
DEFAULT_SCALE = 4
"""llama.cpp's: how many patches a side are pooled into one image token when the file does not say."""
SMALLEST_BATCH = 512
CACHE_MIB = 1024
FLOAT_BYTES = 4
RESULTS = 4
PROGRAM_BYTES = 64 * 2**20
"""What this process holds without any model: Python, the libraries and llama.cpp's code, as measured."""


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
    """A projector's picture, its side in pixels and the tokens it becomes; and which projector that is.

    `values` is how many numbers the widest intermediate result of one picture has.
    """

    size: int
    tokens: int
    kind: str
    fingerprint: str
    values: int


def main() -> None:
    """Load what standard input names, say so, and serve until standard input ends."""
    parent = Parent.taken()
    spec = Spec.of(json.loads(sys.stdin.readline()))
    watcher = parent.leave_with_it(spec.directory)
    try:
        server, facts = load(spec, parent)
    except MedserveError as error:
        parent.fail(error)
        sys.exit(1)
    parent.say({"ready": facts})
    watcher.join()
    del server


@dataclass(frozen=True)
class Need:
    """The bytes of memory that a model takes: its files, what its slots keep, and room to compute in."""

    weights: int
    vision: int
    cache: int
    working: int

    @property
    def files(self) -> int:
        return self.weights + self.vision

    @property
    def total(self) -> int:
        return self.files + self.cache + self.working


@dataclass(frozen=True)
class Examined:
    """What the headers of a model's files say, before anything of it is loaded; `context` counts tokens of a slot."""

    weights: Header
    vision: Vision | None
    context: int
    need: Need


def examine(spec: Spec) -> Examined:
    """Read the headers in milliseconds; raises ModelFailed with the reason why the files cannot be a model."""
    try:
        return _examined(spec)
    except (ArithmeticError, TypeError, ValueError):  # a patch of no pixels, a text for a number
        raise WeightsCorrupt(
            f"{spec.weights.name} or its vision part says of itself what cannot be; fetch them again"
        ) from None


def _examined(spec: Spec) -> Examined:
    weights = _header(spec.weights, "weights")
    if weights.get("general.architecture") != ARCHITECTURE:
        raise WeightsCorrupt(
            f"{spec.weights.name} holds a model of the architecture {weights.get('general.architecture')!r}; "
            f"this engine runs {ARCHITECTURE!r} (MedGemma)"
        )
    vision = _vision(spec, weights) if spec.projector else None
    context = min(spec.context, int(_entry(weights, spec.weights, f"{ARCHITECTURE}.context_length")))
    need = Need(
        weights=spec.weights.stat().st_size,
        vision=spec.projector.stat().st_size if spec.projector else 0,
        cache=_cache_bytes(weights, spec, context),
        working=_working_bytes(weights, vision),
    )
    return Examined(weights, vision, context, need)


def load(spec: Spec, parent: Parent) -> tuple[Any, dict[str, Any]]:
    """The running server, and the facts about what it serves; raises ModelFailed with the reason."""
    found = examine(spec)
    parent.ask_for(found.need.total)
    server = _serve(
        spec, found.context, found.vision, lambda: parent.tell(_stage(found.vision), reads=found.need.files)
    )
    return server, _facts(spec, found.weights, found.context, found.vision)


def _stage(vision: Vision | None) -> str:
    return "reading the weights and the vision part" if vision else "reading the weights"


def _cache_bytes(weights: Header, spec: Spec, context: int) -> int:
    """What the slots keep of what they have read: a key and a value of each layer, in 16 bits, for every token.

    Layers with a sliding window keep all of it too (`swa_full`).
    """
    key = weights.get(f"{ARCHITECTURE}.attention.key_length", 0)
    value = weights.get(f"{ARCHITECTURE}.attention.value_length", 0)
    heads = _entry(weights, spec.weights, f"{ARCHITECTURE}.attention.head_count_kv")
    layers = _entry(weights, spec.weights, f"{ARCHITECTURE}.block_count")
    return 2 * layers * heads * (int(key) + int(value)) * context * spec.slots


def _working_bytes(weights: Header, vision: Vision | None) -> int:
    """Room to compute in: the libraries, and as many of the widest intermediate results as were measured to be held."""
    tokens = _batch(vision) * int(weights.get(f"{ARCHITECTURE}.feed_forward_length", 0))
    return PROGRAM_BYTES + RESULTS * FLOAT_BYTES * (tokens + (vision.values if vision else 0))


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
    values = int(patches) ** 2 * int(projector.get("clip.vision.feed_forward_length", 0))
    return Vision(int(size), int(side * side), PROJECTOR, projector.fingerprint, values)


def _header(path: Path, role: str) -> Header:
    if path.is_dir():
        raise WeightsMissing(
            f"{path.name or path} is a folder; name the GGUF file that is meant, or, for safetensors, set `engine` to "
            "transformers or vllm"
        )
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


def _serve(spec: Spec, context: int, vision: Vision | None, begins: Callable[[], None]) -> Any:
    os.environ.setdefault("GOMP_SPINCOUNT", "600")  # before libgomp is loaded: its default starves shared cores
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an assertion would start a debugger
    import xllamacpp

    try:
        chosen = _parameters(xllamacpp, spec, context, vision)
        begins()
        return xllamacpp.Server(chosen)
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
            "architecture": str(weights["general.architecture"]),
            "trained_context": str(weights[f"{ARCHITECTURE}.context_length"]),
            "devices": _devices(),
            **_known(licence=weights.get("general.license")),
            **(_known(processor=vision.kind, projector_fingerprint=vision.fingerprint) if vision else {}),
        },
    }


def _known(**facts: object) -> dict[str, str]:
    """Those that the file tells."""
    return {name: str(value) for name, value in facts.items() if value is not None}


def _devices() -> str:
    """What the weights are computed on: the names of the devices that this build of llama.cpp found, or CPU."""
    import xllamacpp

    helpers = {"GGML_BACKEND_DEVICE_TYPE_CPU", "GGML_BACKEND_DEVICE_TYPE_ACCEL"}
    found = [device["name"] for device in xllamacpp.get_device_info() if device["type"].name not in helpers]
    return ",".join(found) or "CPU"


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


if __name__ == "__main__":
    main()
