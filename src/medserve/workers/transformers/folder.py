"""A folder is a whole Gemma 3 model in safetensors, or it is said what is wrong with it, before anything is loaded.

Only JSON and the headers of the weights are read, within a second and without torch. Nothing in a folder is ever run:
pickles and code of its own are refused whatever they hold.
"""

import json
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isqrt, prod
from pathlib import Path
from typing import Any

from medserve import machine
from medserve.errors import ModelFailed, WeightsCorrupt, WeightsMissing
from medserve.reports import DEMO_WEIGHTS
from medserve.settings import DEMO

SEEING = "Gemma3ForConditionalGeneration"
READING = "Gemma3ForCausalLM"
ARCHITECTURES = (SEEING, READING)
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MARKS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
AROUND_IMAGES = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
MOST_HEADER_BYTES = 100 * 2**20
"""The limit of the format's own reader."""
MOST_LAYERS = 1000
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
WIDTHS = {"bfloat16": 2, "float32": 4}
SAMPLE_BYTES = 4096
KEPT_BYTES = 2**30
"""At most so much is kept of what was read for earlier answers; see `Need.kept`."""
KEPT_PICTURES = 64
"""How many pictures' features are kept at most."""
PROGRAM_BYTES = 512 * 2**20
"""What the process holds without any model: Python, torch and transformers, as measured on a CPU."""
RESULTS = 4
"""How many of the widest intermediate results are held at once, as measured for llama.cpp's same architecture."""
READ_AT_ONCE = 2048
"""Tokens of a prompt whose intermediate results are reckoned with."""
WEIGHED = 64
"""Tokens of labels that are weighed in one pass: each takes a row of logits as wide as the vocabulary."""

TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
"""What transformers takes for a number that a config.json leaves out, as Google's own do."""

BESIDE = re.compile(r"(?:language_model\.)?lm_head\.weight|.*(?:rotary_emb\.|position_ids$).*|vision_tower\.head\..*")
"""Tensors that may be there and are not needed: a head that is the embedding again, tables that are computed."""
QUANTISED = re.compile(r"layers\.\d+\.(?:self_attn|mlp)\.\w+_proj\.weight")
"""The weights that 8 and 4 bits are for: the matrices of the text layers."""


@dataclass(frozen=True)
class Spec:
    """What the parent asks for; the names and meanings are those of the model's settings.

    `causal_images` masks pictures as text is masked, which is wrong for Gemma 3: `verify` recognises by it what a
    faulty build does.
    """

    directory: Path
    folder: Path
    context: int
    slots: int
    threads: int
    precision: str = "auto"
    quantise: str | None = None
    device: str = "auto"
    reuse: bool = True
    causal_images: bool = False

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Spec":
        return cls(**{**said, "directory": Path(said["directory"]), "folder": Path(said["folder"])})


@dataclass(frozen=True)
class Tensor:
    """One tensor as a header tells of it, and the file that holds it."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def numbers(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Text:
    """The sizes of the language model."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    trained_context: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Text":
        sizes = [_size(config, key, default) for key, default in TEXT_DEFAULTS.items()]
        return cls(*sizes)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names and shapes of its weights, as `plain` writes names."""
        yield "embed_tokens.weight", (self.vocabulary, self.hidden)
        yield "norm.weight", (self.hidden,)
        matrices = {
            "self_attn.q_proj": (self.heads * self.head, self.hidden),
            "self_attn.k_proj": (self.kv_heads * self.head, self.hidden),
            "self_attn.v_proj": (self.kv_heads * self.head, self.hidden),
            "self_attn.o_proj": (self.hidden, self.heads * self.head),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        vectors = {f"{name}_layernorm": (self.hidden,) for name in norms}
        vectors |= {"self_attn.q_norm": (self.head,), "self_attn.k_norm": (self.head,)}
        for layer in range(self.layers):
            for name, shape in {**matrices, **vectors}.items():
                yield f"layers.{layer}.{name}.weight", shape


@dataclass(frozen=True)
class Vision:
    """The sizes of the vision tower; a picture of `size` pixels a side becomes `tokens` tokens."""

    hidden: int
    intermediate: int
    layers: int
    channels: int
    size: int
    patch: int
    tokens: int

    @classmethod
    def of(cls, config: Mapping[str, Any], tokens: int) -> "Vision":
        sizes = [_size(config, key, default) for key, default in VISION_DEFAULTS.items()]
        return cls(*sizes, *[tokens])

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.size // self.patch) ** 2

    def tensors(self, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names and shapes of the tower's weights and of the projector's to a language model `width` wide."""
        yield "multi_modal_projector.mm_input_projection_weight", (self.hidden, width)
        yield "multi_modal_projector.mm_soft_emb_norm.weight", (self.hidden,)
        yield "vision_tower.embeddings.patch_embedding.weight", (self.hidden, self.channels, self.patch, self.patch)
        yield "vision_tower.embeddings.patch_embedding.bias", (self.hidden,)
        yield "vision_tower.embeddings.position_embedding.weight", (self.patches, self.hidden)
        square = (self.hidden, self.hidden)
        matrices = {f"self_attn.{name}_proj": square for name in ("q", "k", "v", "out")}
        matrices |= {"mlp.fc1": (self.intermediate, self.hidden), "mlp.fc2": (self.hidden, self.intermediate)}
        for layer in range(self.layers):
            place = f"vision_tower.encoder.layers.{layer}"
            for name, shape in matrices.items():
                yield f"{place}.{name}.weight", shape
                yield f"{place}.{name}.bias", shape[:1]
            for name in ("layer_norm1", "layer_norm2"):
                yield f"{place}.{name}.weight", (self.hidden,)
                yield f"{place}.{name}.bias", (self.hidden,)
        yield "vision_tower.post_layernorm.weight", (self.hidden,)
        yield "vision_tower.post_layernorm.bias", (self.hidden,)


@dataclass(frozen=True)
class Need:
    """The bytes of memory that a model takes, by what takes them, for `context` tokens in every slot.

    `kept`, a part of `cache`, is what stays of earlier answers so that what begins like them is not read again;
    `pictures`, a part of `vision`, the features of pictures that were seen.
    """

    weights: int
    vision: int
    cache: int
    working: int
    context: int
    kept: int = 0
    pictures: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.vision + self.cache + self.working


@dataclass(frozen=True)
class Examined:
    """What a folder holds, once it is clear that it is a whole model."""

    architecture: str
    text: Text
    vision: Vision | None
    tensors: Mapping[str, Tensor]
    context: int
    fingerprint: str
    title: str

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(tensor.numbers for tensor in self.tensors.values())

    def need(self, spec: Spec, precision: str) -> Need:
        """What it takes at a precision, with as many bits as the spec wants for the text layers."""
        width = WIDTHS[precision]
        text = vision = 0
        for name, tensor in self.tensors.items():
            if name.startswith(("vision_tower.", "multi_modal_projector.")):
                vision += tensor.numbers * width
            elif not BESIDE.fullmatch(name):
                text += _held(name, tensor, spec.quantise, width)
        slots = self.cache_bytes(width) * self.context * spec.slots
        kept = min(KEPT_BYTES, slots) if spec.reuse else 0
        pictures = KEPT_PICTURES * self.vision.tokens * self.text.hidden * width if self.vision and spec.reuse else 0
        return Need(
            text,
            vision + pictures,
            slots + kept,
            self._working(spec, width),
            self.context,
            kept=kept,
            pictures=pictures,
        )

    def cache_bytes(self, width: int) -> int:
        """What one token takes in a slot: a key and a value of every layer, in layers with a sliding window too."""
        return 2 * self.text.layers * self.text.kv_heads * self.text.head * width

    def _working(self, spec: Spec, width: int) -> int:
        """Room to compute in: the libraries, the widest results of reading and of seeing, and the logits."""
        reading = min(self.context, READ_AT_ONCE) * self.text.intermediate
        seeing = self.vision.patches * self.vision.intermediate if self.vision else 0
        logits = max(spec.slots, WEIGHED) * self.text.vocabulary * WIDTHS["float32"]
        return PROGRAM_BYTES + RESULTS * (width * (reading + seeing) + logits)


def examine(spec: Spec) -> Examined:
    """Hold a folder against what it says of itself; raises ModelFailed with the reason why it cannot be a model."""
    folder = _folder(spec.folder)
    config = _config(folder)
    architecture = _architecture(config)
    text = Text.of(config.get("text_config", {}) if architecture == SEEING else config)
    vision = _vision(folder, config) if architecture == SEEING else None
    _vocabulary(folder, text, vision)
    tensors = _tensors(folder)
    _complete(tensors, text, vision)
    fingerprint = _fingerprint(folder, tensors)
    return Examined(
        architecture,
        text,
        vision,
        tensors,
        min(spec.context, text.trained_context),
        fingerprint,
        DEMO_WEIGHTS if fingerprint == _demonstration() else _title(folder, config),
    )


def precision(spec: Spec, *, gpu: bool) -> str:
    """The numbers to compute in; raises ModelFailed for those that Gemma 3 cannot be computed in.

    A GPU is taken to have bfloat16, as all since 2020 do; who loads looks again.
    """
    if spec.precision == "float16":
        raise ModelFailed(
            "Gemma 3 cannot be computed in float16: its activations exceed 65504, the largest number there, and the "
            "answers become noise; set precision to auto, bfloat16 or float32"
        )
    if spec.precision != "auto":
        return spec.precision
    return "bfloat16" if gpu or machine.computes_bfloat16() else "float32"


def smaller(found: Examined, spec: Spec, chosen: str) -> Iterator[tuple[str, Need]]:
    """Choices that take less than this one, the nearest first, as one would set them, with what each takes."""
    bits: tuple[str | None, ...] = {None: (None, "8bit", "4bit"), "8bit": ("8bit", "4bit"), "4bit": ("4bit",)}[
        spec.quantise
    ]
    for quantise in bits[1:]:
        yield f'quantise = "{quantise}"', found.need(replace(spec, quantise=quantise), chosen)
    least = replace(spec, quantise=bits[-1], slots=1)
    few = replace(found, context=min(found.context, 2048))
    said = "context = 2048, slots = 1" + (f', quantise = "{bits[-1]}"' if bits[-1] else "")
    yield said, few.need(least, chosen)


# --- what the folder says --------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Path:
    if folder.is_file():
        raise WeightsMissing(
            f"{folder.name} is a file; name the folder that holds config.json and the safetensors. GGUF files are run "
            "by the llama-cpp engine"
        )
    if not folder.is_dir():
        raise WeightsMissing(f"the folder {folder.name} does not exist; check the model's path in your settings")
    if not any(folder.glob("*.safetensors")):
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        reason = (
            "holds its weights as pickles, which can run any code when they are opened and are never loaded; take the "
            "same model as safetensors"
            if pickles
            else "holds no safetensors; pull the model again"
        )
        raise WeightsMissing(f"{folder.name} {reason}")
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise WeightsMissing(f"{path.name} is missing beside the weights; pull the model again") from None
    except (OSError, ValueError, RecursionError):
        raise WeightsCorrupt(f"{path.name} is no JSON; fetch it again") from None
    if not isinstance(said, dict):
        raise WeightsCorrupt(f"{path.name} is no JSON object; fetch it again")
    return said


def _config(folder: Path) -> dict[str, Any]:
    """config.json, once it is clear that nothing in the folder wants to run code of its own."""
    config = _json(folder / "config.json")
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in _json(folder / name):
            raise ModelFailed(
                f"{name} wants to run code that comes with the weights (auto_map), which is never done; take the "
                "weights of the original MedGemma, which need none"
            )
    if method := config.get("quantization_config"):
        named = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
        raise ModelFailed(
            f"the weights are quantised already (quant_method {str(named)[:40]!r}), which this engine does not load; "
            "take the original weights and set quantise to 8bit or 4bit, or take GGUF files"
        )
    return config


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    architecture = str(named[0])[:80] if isinstance(named, list) and len(named) == 1 else None
    if architecture not in ARCHITECTURES:
        raise WeightsCorrupt(
            f"config.json names the architecture {architecture!r}; this engine runs {' and '.join(ARCHITECTURES)} "
            "(MedGemma)"
        )
    return str(architecture)


def _size(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31:
        raise WeightsCorrupt(f"config.json says a {key} that cannot be; fetch it again")
    if key == "num_hidden_layers" and value > MOST_LAYERS:
        raise WeightsCorrupt(f"config.json says {value} layers, which cannot be; fetch it again")
    return value


def _vision(folder: Path, config: Mapping[str, Any]) -> Vision:
    said = config.get("vision_config")
    if not isinstance(said, dict):
        raise WeightsCorrupt(f"config.json names {SEEING} and describes no vision part; fetch it again")
    vision = Vision.of(said, _size(config, "mm_tokens_per_image", 256))
    side, rest = divmod(vision.size, vision.patch)
    if rest or isqrt(vision.tokens) ** 2 != vision.tokens or side % isqrt(vision.tokens):
        raise WeightsCorrupt(
            f"config.json says pictures of {vision.size} pixels, patches of {vision.patch} and {vision.tokens} tokens "
            "a picture, which do not go together; fetch it again"
        )
    _processor(folder, vision)
    return vision


def _processor(folder: Path, vision: Vision) -> None:
    """The image processor has to make the very pictures that the vision part takes."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            said = _json(folder / name)
            said = said.get("image_processor", said)
            size = said.get("size") if isinstance(said, dict) else None
            if size is not None and size != {"height": vision.size, "width": vision.size}:
                raise WeightsCorrupt(
                    f"{name} makes pictures of another size than the {vision.size} pixels that config.json says; "
                    "fetch both again"
                )
            if size is not None:
                return
    raise WeightsMissing("preprocessor_config.json is missing beside the weights; pull the model again")


def _vocabulary(folder: Path, text: Text, vision: Vision | None) -> None:
    """The tokenizer's file is whole and may be that of the weights; what it is loaded as is looked at again."""
    said = _json(folder / "tokenizer.json")
    model, added = said.get("model"), said.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise WeightsCorrupt("tokenizer.json holds no vocabulary; fetch it again")
    words = set(vocabulary) | {str(token.get("content")) for token in added or () if isinstance(token, dict)}
    check_words(words | _named(folder), text, vision, len(words))


def check_words(words: Collection[str], text: Text, vision: Vision | None, tokens: int) -> None:
    """Raise WeightsCorrupt where these words lack Gemma's marks, or there are more tokens than the weights know."""
    for mark in (*MARKS, *(AROUND_IMAGES if vision else ())):
        if mark not in words:
            raise WeightsCorrupt(f"the vocabulary lacks {mark}; tokenizer.json is not Gemma's: fetch it again")
    if tokens > text.vocabulary + 1:  # Gemma's soft token stands beyond the embedding
        raise WeightsCorrupt(
            f"tokenizer.json has {tokens} tokens and the weights {text.vocabulary}: they belong to different models; "
            "fetch both again"
        )


def _named(folder: Path) -> set[str]:
    """The special tokens that tokenizer_config.json names: transformers adds those which tokenizer.json lacks."""
    if not (folder / "tokenizer_config.json").is_file():
        return set()
    said = _json(folder / "tokenizer_config.json")
    named = {value for value in said.values() if isinstance(value, str)}
    added = said.get("added_tokens_decoder")
    entries = added.values() if isinstance(added, dict) else ()
    return named | {str(entry.get("content")) for entry in entries if isinstance(entry, dict)}


def _title(folder: Path, config: Mapping[str, Any]) -> str:
    """The name that the weights were saved under, where it is one of the hub's, else the folder's."""
    saved = config.get("_name_or_path")
    named = saved if isinstance(saved, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", saved) else ""
    return named or folder.resolve().name


# --- what the weights hold -------------------------------------------------------------------------------------------


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors by their plain names, once each file is known to be there and whole."""
    files = [SINGLE] if (folder / SINGLE).is_file() else sorted(set(_index(folder).values()))
    tensors: dict[str, Tensor] = {}
    for name in files:
        for tensor_name, tensor in _header(folder / name).items():
            tensors[plain(tensor_name)] = tensor
    if not (folder / SINGLE).is_file() and (lost := {plain(name) for name in _index(folder)} - set(tensors)):
        raise WeightsCorrupt(f"the index names {min(lost)}, which no file holds; fetch the weights again")
    return tensors


def _index(folder: Path) -> dict[str, str]:
    """Which file holds each tensor, by the index of a model in several files."""
    if not (folder / INDEX).is_file():
        raise WeightsMissing(f"neither {SINGLE} nor {INDEX} is there; pull the model again")
    index = _json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise WeightsCorrupt(f"{INDEX} names no weights; fetch it again")
    for name in sorted(set(index.values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise WeightsCorrupt(f"{INDEX} names files that are no safetensors of this folder; fetch it again")
        if not (folder / name).is_file():
            raise WeightsMissing(f"{name}, a part of the weights, is missing; pull the model again")
    return index


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, once it is as long as they need (safetensors' README, "Format")."""
    try:
        return _parsed(path)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        raise WeightsCorrupt(f"{path.name} is no safetensors file; fetch it again") from None


def _parsed(path: Path) -> dict[str, Tensor]:
    total = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER_BYTES:
            raise ValueError("no header is so long")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    needed = start = 8 + length
    for name, said in header.items():
        begin, end = said["data_offsets"]
        tensor = Tensor(path.name, said["dtype"], tuple(map(int, said["shape"])), start + begin)
        if tensor.numbers * DTYPE_BYTES[tensor.dtype] != end - begin:
            raise ValueError("a tensor is not as long as its shape")
        tensors[name] = tensor
        needed = max(needed, start + end)
    if needed > total:
        raise WeightsCorrupt(f"{path.name} is cut short: {total} bytes of {needed}; fetch it again")
    return tensors


def plain(name: str) -> str:
    """A tensor's name without the levels that differ from one version of transformers to the next."""
    name = re.sub(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?", "", name)
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


def _complete(tensors: Mapping[str, Tensor], text: Text, vision: Vision | None) -> None:
    """The weights are those that config.json describes: each one there, in its shape, and none beyond."""
    expected = dict(text.tensors())
    if vision is not None:
        expected |= dict(vision.tensors(text.hidden))
    for name, shape in expected.items():
        if name not in tensors:
            raise WeightsCorrupt(f"the weights lack {name}, which config.json calls for; fetch both again")
        if tensors[name].shape != shape:
            raise WeightsCorrupt(
                f"config.json calls for {name} of the shape {list(shape)} and the weights hold "
                f"{list(tensors[name].shape)}: they belong to different models; fetch both again"
            )
    strange = [name for name in tensors if name not in expected and not BESIDE.fullmatch(name)]
    if strange:
        raise WeightsCorrupt(
            f"the weights hold {min(strange)[:80]}, of which config.json says nothing: they belong to different "
            "models; fetch both again"
        )


def _held(name: str, tensor: Tensor, quantise: str | None, width: int) -> int:
    """The bytes that a tensor of the text takes once it is loaded.

    8 bits: a scale in 32 bits for each row. 4 bits: one in 8 bits for each 64 numbers, and one in 32 for each 256 of
    those (bitsandbytes, nf4 with double quantisation).
    """
    if quantise is None or not QUANTISED.fullmatch(name):
        return tensor.numbers * width
    if quantise == "8bit":
        return tensor.numbers + 4 * tensor.shape[0]
    return tensor.numbers // 2 + tensor.numbers // 64 + 4 * (tensor.numbers // (64 * 256))


def _demonstration() -> str | None:
    """The fingerprint of the demonstration model: its reports say what it is, whatever its folder is called."""
    try:
        return _fingerprint(DEMO, _tensors(DEMO))
    except (ModelFailed, OSError):
        return None


def _fingerprint(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and the beginning of every tensor: quick for any size, and other weights differ in it.

    Headers alone would not do: every fine-tune of a model has the same ones.
    """
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        with (folder / tensor.file).open("rb") as file:
            file.seek(tensor.begin)
            digest.update(file.read(min(SAMPLE_BYTES, tensor.numbers * DTYPE_BYTES[tensor.dtype])))
    return digest.hexdigest()
