"""Loads a Gemma 3 that `folder.py` found whole: at the precision, in the bits and on the devices that were asked for.

Nothing is fetched and nothing in the folder is run. Pictures are made by the processor on Pillow, which gives the same
pixels on every machine.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from medserve.errors import ModelFailed, WeightsCorrupt
from medserve.residency import size
from medserve.workers.transformers import folder
from medserve.workers.transformers.folder import SEEING, Examined, Need, Spec
from medserve.workers.transformers.prompts import Prompts

GPU_BYTES = 3 * 2**30
"""What is asked of the machine's memory for a model on GPUs: CUDA's libraries, and the weights on their way there."""
SPARED = 0.02
"""The share of a GPU's memory that is left alone: the driver's own, and what fragments."""
BFLOAT16_SINCE = (8, 0)
"""The compute capability from which NVIDIA's GPUs compute in bfloat16."""
NEW_BOUND = 50
"""How often, at most, it is told how far the reading is."""

MISSING = 'transformers or torch is not installed here; run: pip install "medserve[transformers]"'

Tell = Callable[[str, float | None], None]
"""Takes what is being done, and which share of it is, 0 to 1, where that is known."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to compute, and what makes its prompts.

    `model` is a Gemma3ForConditionalGeneration, or a Gemma3ForCausalLM, which has no vision part. `context`
    is how many tokens a slot holds, `kept` and `kept_pictures` how many bytes may be kept of earlier answers and of
    pictures.
    """

    model: Any
    tokenizer: Any
    prompts: Prompts
    image_tokens: int
    image_size: int
    context: int
    kept: int
    kept_pictures: int
    facts: dict[str, str]


@dataclass(frozen=True)
class Place:
    """Where a model computes and in what: the GPUs' numbers (none: the processor), and the precision's name."""

    gpus: tuple[int, ...]
    precision: str

    @property
    def device_map(self) -> Any:
        """As accelerate takes it; a model is spread by its layers where there are several GPUs."""
        if not self.gpus:
            return {"": "cpu"}
        return "auto" if len(self.gpus) > 1 else {"": self.gpus[0]}


@contextmanager
def packages() -> Iterator[None]:
    """Where a package cannot be imported, the error says how to get it."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("medserve"):  # our own mistake, for which nothing can be installed
            raise
        raise ModelFailed(f"{MISSING} ({error.name} is missing)") from None


def load(spec: Spec, ask_for: Callable[[int], None], tell: Tell) -> Loaded:
    """The model of a spec; raises ModelFailed with the reason and what would work instead.

    `ask_for` is called with the bytes of the machine's memory that this takes, before any of it is taken.
    """
    found = folder.examine(spec)
    folder.precision(spec, gpu=True)  # refused before torch is imported, which takes seconds
    tell("importing torch and transformers", None)
    place = place_of(spec)
    need = found.need(spec, place.precision)
    if place.gpus:
        _fits(found, spec, place, need)
    ask_for(GPU_BYTES if place.gpus else need.total)
    tokenizer, processor = _reader(found, spec)
    model = _model(found, spec, place, tell)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        prompts=_prompts(tokenizer, processor, found),
        image_tokens=found.vision.tokens if found.vision else 0,
        image_size=found.vision.size if found.vision else 0,
        context=found.context,
        kept=need.kept,
        kept_pictures=need.pictures if spec.reuse else 0,
        facts=_facts(found, spec, place),
    )


def place_of(spec: Spec) -> Place:
    """Where torch can compute as wanted; raises ModelFailed when it sees no such device."""
    import torch

    torch.set_num_threads(spec.threads)
    there = torch.cuda.device_count() if spec.device != "cpu" and torch.cuda.is_available() else 0
    if spec.device.startswith("cuda") and not there:
        raise ModelFailed(
            f"torch {torch.__version__} sees no GPU; install a build of torch with CUDA and NVIDIA's driver, or set "
            "device to cpu"
        )
    wanted = tuple(range(there))
    if ":" in spec.device:
        number = int(spec.device.partition(":")[2])
        if number >= there:
            raise ModelFailed(f"there is no {spec.device}: torch sees {there} GPU(s), counted from 0; set device")
        wanted = (number,)
    elif spec.device == "cuda":
        wanted = (0,)
    return Place(wanted, _precision(spec, wanted))


def _precision(spec: Spec, gpus: tuple[int, ...]) -> str:
    import torch

    chosen = folder.precision(spec, gpu=bool(gpus))
    old = [number for number in gpus if torch.cuda.get_device_capability(number) < BFLOAT16_SINCE]
    if not old or chosen != "bfloat16":
        return chosen
    if spec.precision == "auto":
        return "float32"
    raise ModelFailed(
        f"GPU {old[0]} does not compute in bfloat16, which takes compute capability 8.0; set precision to float32"
    )


def _fits(found: Examined, spec: Spec, place: Place, need: Need) -> None:
    """Raise ModelFailed, with the next smaller choice, when the GPUs have less free than the model takes."""
    import torch

    free = sum(int(torch.cuda.mem_get_info(number)[0] * (1 - SPARED)) for number in place.gpus)
    if need.total <= free:
        return
    fitting = (said for said, less in folder.smaller(found, spec, place.precision) if less.total <= free)
    instead = next((f"set {said}" for said in fitting), "take a smaller model, or GGUF files on the processor")
    raise ModelFailed(
        f"the model needs about {size(need.total)} of GPU memory and {size(free)} are free on {len(place.gpus)} "
        f"GPU(s); {instead}, or end what else computes there"
    )


def _reader(found: Examined, spec: Spec) -> tuple[Any, Any | None]:
    """The tokenizer and, for a model that sees, the image processor on Pillow."""
    from transformers import AutoTokenizer
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.folder, **here)
        processor = Gemma3ImageProcessorPil.from_pretrained(spec.folder, **here) if found.vision else None
    except Exception as error:  # tokenizers raises bare Exceptions
        raise WeightsCorrupt(
            f"the tokenizer or the image processor of the model cannot be read ({type(error).__name__}); fetch "
            "tokenizer.json and preprocessor_config.json again"
        ) from None
    return tokenizer, processor


def _prompts(tokenizer: Any, processor: Any | None, found: Examined) -> Prompts:
    """What makes prompts, once it is clear that the vocabulary is Gemma's and the weights' own."""
    folder.check_words(tokenizer.get_vocab(), found.text, found.vision, len(tokenizer))
    vision = found.vision
    return Prompts(tokenizer, processor, image_tokens=vision.tokens if vision else 0, size=vision.size if vision else 0)


# --- the weights -----------------------------------------------------------------------------------------------------


def _model(found: Examined, spec: Spec, place: Place, tell: Tell) -> Any:
    import torch
    import transformers
    from transformers.utils import logging

    kind = getattr(transformers, found.architecture)
    logging.set_verbosity_error()
    logging.set_tqdm_hook(lambda _factory, arguments, _named: _Watched(arguments[0], tell))
    tell("reading the weights", 0.0)
    try:
        model, read = kind.from_pretrained(
            spec.folder,
            dtype=getattr(torch, place.precision),
            device_map=place.device_map,
            max_memory=_most(place),
            attn_implementation="sdpa",
            quantization_config=_quantisation(found, spec, place),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.cuda.OutOfMemoryError:
        raise ModelFailed(
            "the GPU's memory was full before the model was loaded; end what else computes there, or set quantise, a "
            "smaller context or fewer slots"
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelFailed(f"transformers could not load the weights: {_told(error)}") from None
    finally:
        logging.set_tqdm_hook(None)
    _read_whole(read)
    _on_devices(model, place)
    return model.eval().requires_grad_(False)


class _Watched:
    """The weights while they are read, one after another; tells how far that is."""

    def __init__(self, weights: Iterable[Any], tell: Tell) -> None:
        self._weights = list(weights)
        self._tell = tell

    def __iter__(self) -> Iterator[Any]:
        total = len(self._weights)
        step = max(1, total // NEW_BOUND)
        for number, weight in enumerate(self._weights, 1):
            yield weight
            if number % step == 0:
                self._tell("reading the weights", number / total)


def _most(place: Place) -> dict[int, int] | None:
    """What accelerate may put on each of several GPUs; nothing is ever left to the processor or the disk."""
    if len(place.gpus) < 2:
        return None
    import torch

    return {number: int(torch.cuda.mem_get_info(number)[0] * (1 - SPARED)) for number in place.gpus}


def _quantisation(found: Examined, spec: Spec, place: Place) -> Any:
    """How bitsandbytes packs the layers of the text; vision part, projector and head stay as they are.

    The names are full paths: transformers 5 takes no others.
    """
    if spec.quantise is None:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    seeing = ["model.vision_tower", "model.multi_modal_projector"] if found.architecture == SEEING else []
    skipped = {"llm_int8_skip_modules": [*seeing, "lm_head"]}
    if spec.quantise == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, place.precision),
        **skipped,
    )


def _read_whole(read: Any) -> None:
    """Weights that were made up because none were found would answer, and nobody would know."""
    for what in ("missing_keys", "mismatched_keys"):
        if names := list(getattr(read, what, None) or (read.get(what) if isinstance(read, dict) else None) or ()):
            raise WeightsCorrupt(
                f"{len(names)} weights that config.json calls for were not found in the files, {str(names[0])[:80]} "
                "among them; fetch both again"
            )


def _on_devices(model: Any, place: Place) -> None:
    """Accelerate moves what does not fit to the processor or the disk, where it would answer a hundred times slower."""
    spread = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    if place.gpus and spread & {"cpu", "disk"}:
        raise ModelFailed(
            f"the layers do not fit on {len(place.gpus)} GPU(s); set quantise, a smaller context or fewer slots, or "
            "take a smaller model"
        )


def _told(error: Exception) -> str:
    """The last line of a library's words, without folders."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(word.rpartition("/")[2] if word.count("/") > 1 else word for word in lines[-1].split())[:200]


# --- the record ------------------------------------------------------------------------------------------------------


def _facts(found: Examined, spec: Spec, place: Place) -> dict[str, str]:
    """What a report says of the model that answered."""
    facts = {
        "weights": found.title,
        "fingerprint": found.fingerprint,
        "parameters": str(found.parameters),
        "precision": place.precision,
        "quantisation": spec.quantise or "none",
        "build": ", ".join(_versions(spec)),
        "context": str(found.context),
        "trained_context": str(found.text.trained_context),
        "vocabulary": str(found.text.vocabulary),
        "threads": str(spec.threads),
        "architecture": "gemma3",
        "devices": _devices(place),
    }
    if found.vision is not None:
        facts |= {"processor": "Gemma3ImageProcessorPil"}
    return facts | ({"image_mask": "causal"} if spec.causal_images else {})


def _versions(spec: Spec) -> Iterator[str]:
    import torch

    yield f"torch {torch.__version__}"
    for name in ("transformers", "llguidance", "accelerate", *(["bitsandbytes"] if spec.quantise else [])):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _devices(place: Place) -> str:
    import torch

    return ", ".join(torch.cuda.get_device_name(number) for number in place.gpus) or "CPU"
