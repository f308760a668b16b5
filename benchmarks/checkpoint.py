"""Writes a checkpoint of MedGemma's exact shapes in the Hub's layout with random weights, to measure time and memory.

    python -m benchmarks.checkpoint FOLDER                     MedGemma 4B, 8.6 GB of bfloat16
    python -m benchmarks.checkpoint FOLDER --shape 27b --device cuda
    python -m benchmarks.checkpoint FOLDER --shape tiny        a few megabytes, for tests

It is to safetensors what `benchmarks.full_size` is to GGUF: MedGemma's weights are licensed and cannot be shipped, and
speed does not depend on their values. Its answers are noise. Names, shards, index, configuration and processor files
are those of google/medgemma-4b-it. The tokenizer is the demonstration model's, whose 1,536 pieces read English, with
the special tokens at Gemma's places and made-up pieces up to the full 262,144, so that a logit row, a mask of a grammar
and a draw have their real size; a text has more tokens than Gemma's own tokenizer would make of it.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from benchmarks.full_size import Text, Vision
from medserve.settings import DEMO

Size = tuple[int, ...]

SHARD_BYTES = 5_000_000_000
"""The most that one file holds, as on the Hub."""
POOLED = 4
"""So many patches along a side become one image token."""
ROWS_PADDED = 64
"""The embedding's rows, the image's soft token included, are a multiple of it."""
FIRST = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]")
PLACES = {
    **{token: number for number, token in enumerate(FIRST)},
    "<unused94>": 100,
    "<unused95>": 101,
    "<start_of_turn>": 105,
    "<end_of_turn>": 106,
    **{"\n" * lines: 106 + lines for lines in range(1, 5)},
}
FROM_THE_END = {"<start_of_image>": -6145, "<end_of_image>": -6144, "<image_soft_token>": 0}
"""Where Gemma has the marks of an image, counted from the size of its vocabulary."""
FIRST_PIECE = 111


@dataclass(frozen=True)
class Shape:
    """The decoder and the vision tower of one model; `scale` is Gemma's query_pre_attn_scalar."""

    text: Text
    vision: Vision
    scale: int

    @property
    def image_tokens(self) -> int:
        return (self.vision.image // self.vision.patch // POOLED) ** 2

    @property
    def rows(self) -> int:
        """Of the embedding: the vocabulary and the image's soft token, padded."""
        return (self.text.vocabulary // ROWS_PADDED + 1) * ROWS_PADDED


SHAPES = {
    "4b": Shape(Text(), Vision(), 256),
    "27b": Shape(Text(width=5376, layers=62, inner=21_504, heads=32, kv_heads=16, head=128), Vision(), 168),
    "tiny": Shape(
        Text(8192, width=64, layers=6, inner=128, heads=4, kv_heads=2, head=16, window=64, context=8192),
        Vision(image=128, patch=8, width=48, layers=2, inner=96, heads=4),
        16,
    ),
}


# --- configuration --------------------------------------------------------------------------------------------------


def configuration(shape: Shape) -> dict[str, Any]:
    """config.json as it stands on the Hub, in the words of the transformers version that wrote it."""
    text, vision = shape.text, shape.vision
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": _place("<start_of_image>", text.vocabulary),
        "eoi_token_index": _place("<end_of_image>", text.vocabulary),
        "eos_token_id": [PLACES["<eos>"], PLACES["<end_of_turn>"]],
        "image_token_index": _place("<image_soft_token>", text.vocabulary),
        "initializer_range": 0.02,
        "mm_tokens_per_image": shape.image_tokens,
        "model_type": "gemma3",
        "text_config": {
            "head_dim": text.head,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": text.width,
            "intermediate_size": text.inner,
            "max_position_embeddings": text.context,
            "model_type": "gemma3_text",
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "num_key_value_heads": text.kv_heads,
            "query_pre_attn_scalar": shape.scale,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10_000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1_000_000,
            "sliding_window": text.window,
            "sliding_window_pattern": 6,
            "vocab_size": shape.rows,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.width,
            "image_size": vision.image,
            "intermediate_size": vision.inner,
            "layer_norm_eps": 1e-6,
            "model_type": "siglip_vision_model",
            "num_attention_heads": vision.heads,
            "num_channels": 3,
            "num_hidden_layers": vision.layers,
            "patch_size": vision.patch,
            "vision_use_head": False,
        },
    }


def processor(shape: Shape, name: str) -> dict[str, Any]:
    """One of the demonstration model's two processor files, for this shape's pictures."""
    facts: dict[str, Any] = json.loads((DEMO / name).read_text())
    for part in (facts, facts.get("image_processor", {})):
        if "size" in part:
            part["size"] = {"height": shape.vision.image, "width": shape.vision.image}
        if "image_seq_length" in part:
            part["image_seq_length"] = shape.image_tokens
    return facts


def generation(shape: Shape) -> dict[str, Any]:
    """generation_config.json: greedy, as MedGemma 1.5 has it."""
    stops = [PLACES["<eos>"], PLACES["<end_of_turn>"]]
    return {"bos_token_id": PLACES["<bos>"], "do_sample": False, "eos_token_id": stops, "pad_token_id": PLACES["<pad>"]}


# --- tokenizer ------------------------------------------------------------------------------------------------------


def vocabulary(source: Mapping[str, Any], size: int) -> dict[str, Any]:
    """tokenizer.json with `size` pieces and the soft token after them: those of `source` at Gemma's places, and filler.

    No merge leads to a piece of filler, so that no text is ever read as one; the model may say them.
    """
    marks = {token: _place(token, size) for token in (*PLACES, *FROM_THE_END)}
    pieces = [piece for piece in source["model"]["vocab"] if piece not in marks]
    taken = set(marks.values())
    free = (number for number in count(FIRST_PIECE) if number not in taken)
    numbers = {piece: next(free) for piece in pieces} | {token: at for token, at in marks.items() if at < size}
    if max(numbers.values()) >= size:
        raise ValueError(f"{len(numbers)} pieces at Gemma's places need a larger vocabulary than {size}")
    used = set(numbers.values())
    numbers |= {f"\u2581w{number}": number for number in range(size) if number not in used}
    added = [{**token, "id": marks[token["content"]]} for token in source["added_tokens"]]
    return {
        **source,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "model": {**source["model"], "vocab": dict(sorted(numbers.items(), key=lambda item: item[1]))},
    }


def _place(token: str, size: int) -> int:
    return PLACES[token] if token in PLACES else size + FROM_THE_END[token]


# --- weights --------------------------------------------------------------------------------------------------------


def tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, Size]]:
    """Names, as the Hub's files have them, and shapes of all weights; the head is the embedding and not among them."""
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config.from_dict(dict(config)))
    for name, weight in model.named_parameters():
        yield hub_name(name), tuple(weight.shape)


def hub_name(name: str) -> str:
    """What the Hub's files call a parameter of transformers' model."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.").removeprefix("vision_model.")
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.")
    return name


def shards(sizes: Mapping[str, Size], most: int) -> list[dict[str, Size]]:
    """The tensors in their order, divided into files of at most `most` bytes of bfloat16, or of one larger tensor."""
    files: list[dict[str, Size]] = [{}]
    room = most
    for name, size in sizes.items():
        taken = _bytes(size)
        if taken > room and files[-1]:
            files.append({})
            room = most
        files[-1][name] = size
        room -= taken
    return files


def _bytes(size: Size) -> int:
    return 2 * prod(size)


def random(name: str, size: Size, generator: torch.Generator) -> torch.Tensor:
    """One tensor in bfloat16, of a spread that keeps activations near 1; norms begin as a norm that changes nothing."""
    empty = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    if name.startswith("vision_tower.") and "norm" in name and name.endswith("weight"):
        return empty.fill_(1)
    if "norm" in name and not name.startswith("vision_tower."):
        return empty.zero_()  # Gemma adds the one itself
    return empty.normal_(0, _spread(name, size), generator=generator)


def _spread(name: str, size: Size) -> float:
    if len(size) == 1 or "position" in name:
        return 0.02
    if "embed_tokens" in name:
        return 0.35 * float(size[1] ** -0.5)
    fan_in = size[0] if "projection_weight" in name else prod(size[1:])
    return float(fan_in**-0.5)


def write(folder: Path, shape: Shape, device: str = "cpu", shard_bytes: int = SHARD_BYTES) -> int:
    """Write the checkpoint into `folder` and return the bytes of its weights; raises SystemExit where they do not fit.

    The values are the same each time on the same kind of device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(shape)
    sizes = dict(tensors(config))
    total = sum(map(_bytes, sizes.values()))
    if total > (free := shutil.disk_usage(folder).free):
        raise SystemExit(f"the weights take {total / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB: free some first")
    _write_texts(folder, shape, config)
    generator = torch.Generator(device).manual_seed(0)
    files = shards(sizes, shard_bytes)
    places: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors"
        weights = {name: random(name, size, generator) for name, size in part.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        places |= dict.fromkeys(part, file)
    if len(files) > 1:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    return total


def _write_texts(folder: Path, shape: Shape, config: Mapping[str, Any]) -> None:
    """Everything but the weights."""
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation(shape))
    for name in ("processor_config.json", "preprocessor_config.json"):
        _write_json(folder / name, processor(shape, name))
    pieces = json.loads((DEMO / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary(pieces, shape.text.vocabulary), ensure_ascii=False))
    words = json.loads((DEMO / "tokenizer_config.json").read_text())
    _write_json(folder / "tokenizer_config.json", {**words, "model_max_length": shape.text.context})
    shutil.copyfile(DEMO / "chat_template.jinja", folder / "chat_template.jinja")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--device", default="cpu", help="where the random numbers are drawn: cpu or cuda")
    chosen = parser.parse_args()
    written = write(chosen.folder, SHAPES[chosen.shape], chosen.device)
    print(f"{chosen.folder}  {written / 1e9:.3f} GB of weights")
