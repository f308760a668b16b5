"""Folders of safetensors for tests: copies of the demo model's, with something changed, and its text part alone."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from medserve.settings import DEMO

BESIDE = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
WORDS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
Header = dict[str, Any]


def copied(folder: Path) -> Path:
    """The demo model's safetensors and what belongs to them, in a folder of their own."""
    folder.mkdir()
    for name in (*BESIDE, *WORDS, "model.safetensors"):
        shutil.copy(DEMO / name, folder)
    return folder


def change(file: Path, **values: Any) -> None:
    """Set entries of a JSON file; `text_config={"x": 1}` sets only x there, and None takes an entry out."""
    said = json.loads(file.read_text())
    for name, value in values.items():
        if value is None:
            said.pop(name)
        else:
            said[name] = {**said.get(name, {}), **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(said))


def parts(file: Path) -> tuple[Header, bytes]:
    """The header of a file of safetensors, and what follows it."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(file: Path, header: Header, content: bytes) -> None:
    """A file of safetensors from its parts."""
    said = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(said)) + said + content)


def in_two(folder: Path) -> Path:
    """The weights in two files with an index, as large models come."""
    header, content = parts(folder / "model.safetensors")
    names = [name for name in header if name != "__metadata__"]
    index = {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        told, kept = {}, b""
        for name in chosen:
            begin, end = header[name]["data_offsets"]
            told[name] = {**header[name], "data_offsets": [len(kept), len(kept) + end - begin]}
            kept += content[begin:end]
            index[name] = file
        write(folder / file, told, kept)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def text_alone(folder: Path) -> Path:
    """The language model without its eyes, as MedGemma 27B text is: another architecture and other names."""
    copied(folder)
    header, content = parts(folder / "model.safetensors")
    told, kept = {}, b""
    for name, entry in header.items():
        if name.startswith("language_model."):
            begin, end = entry["data_offsets"]
            plain = name.removeprefix("language_model.")
            told[plain] = {**entry, "data_offsets": [len(kept), len(kept) + end - begin]}
            kept += content[begin:end]
    write(folder / "model.safetensors", told, kept)
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "architectures": ["Gemma3ForCausalLM"], "eos_token_id": config["eos_token_id"]}
    (folder / "config.json").write_text(json.dumps(text))
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    return folder
