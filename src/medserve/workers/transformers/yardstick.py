"""A process that says what Hugging Face's own processor makes of pictures and conversations, and ends.

It loads no weights and knows nothing of how medserve prepares either: pictures are decoded, padded and resized here by
Pillow and the processor alone, prompts are written by the model's own template. One JSON line in,

    {"folder": ..., "pictures": [{"file": base64} or {"rgb": base64, "width": ..., "height": ...}],
     "conversations": [[{"role": ..., "content": [{"type": "text", "text": ...} or {"type": "image"}]}]]}

and one out: `{"sees", "size", "image_tokens", "pictures": [base64 of uint8 RGB], "prompts": [[id or null]], "lengths",
"versions"}`, where null stands for a picture with the marks around it; or `{"error": {"code": ..., "message": ...}}`.
"""

import json
import os
import sys
from base64 import b64decode, b64encode
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Conversation = list[dict[str, Any]]
UNLOADABLE = (
    "the reference's processor or tokenizer cannot be loaded: to compare with, its folder needs chat_template.jinja, "
    "preprocessor_config.json, tokenizer.json and tokenizer_config.json as they were published; fetch them again"
)


def main() -> None:
    """Answer what standard input asks."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    asked = json.loads(sys.stdin.readline())
    try:
        said = answer(Path(asked["folder"]), asked["pictures"], asked["conversations"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # what a folder may lack has no common error
        said = {"error": {"code": "weights_missing", "message": UNLOADABLE}}
    sys.stdout.write(json.dumps(said) + "\n")


def answer(folder: Path, pictures: list[dict[str, Any]], conversations: list[Conversation]) -> dict[str, Any]:
    """All that is asked of the processor in that folder."""
    sees = "vision_config" in json.loads((folder / "config.json").read_bytes())
    versions = {"transformers": version("transformers"), "pillow": version("pillow")}
    if sees:
        return {"sees": True, **_seeing(folder, pictures, conversations), "versions": versions}
    return {
        "sees": False,
        "size": 0,
        "image_tokens": 0,
        "pictures": [],
        **_read(_tokenizer(folder), None, conversations),
        "versions": versions,
    }


def _seeing(folder: Path, pictures: list[dict[str, Any]], conversations: list[Conversation]) -> dict[str, Any]:
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    images = processor.image_processor
    return {
        "size": int(images.size["height"]),
        "image_tokens": int(processor.image_seq_length),
        "pictures": [b64encode(_levels(images, _padded(_opened(one))).tobytes()).decode() for one in pictures],
        **_read(processor, processor.tokenizer, conversations),
    }


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _opened(picture: dict[str, Any]) -> PIL.Image.Image:
    if "file" in picture:
        return PIL.Image.open(BytesIO(b64decode(picture["file"]))).convert("RGB")
    shape = picture["height"], picture["width"], 3
    return PIL.Image.fromarray(np.frombuffer(b64decode(picture["rgb"]), np.uint8).reshape(shape))


def _padded(picture: PIL.Image.Image) -> PIL.Image.Image:
    """In the middle of a black square; of an odd rest the right or the bottom gets one pixel more."""
    side = max(picture.size)
    page = PIL.Image.new("RGB", (side, side))
    page.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return page


def _levels(images: Any, picture: PIL.Image.Image) -> NDArray[np.uint8]:
    """What the model is given, in grey levels: uint8 [size, size, 3]."""
    values = np.asarray(images(picture, return_tensors="np")["pixel_values"], np.float64)[0].transpose(1, 2, 0)
    values = (values * images.image_std + images.image_mean) / images.rescale_factor
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _read(template: Any, marks: Any, conversations: list[Conversation]) -> dict[str, Any]:
    """The tokens of each conversation, pictures as one null each, and how many there are in all."""
    prompts = [_ids(template, conversation) for conversation in conversations]
    return {
        "prompts": [_folded(ids, marks) if marks else ids for ids in prompts],
        "lengths": [len(ids) for ids in prompts],
    }


def _ids(template: Any, conversation: Conversation) -> list[int]:
    blank = PIL.Image.new("RGB", (16, 16))
    shown: Conversation = [
        {
            "role": message["role"],
            "content": [{**part, "image": blank} if part["type"] == "image" else part for part in message["content"]],
        }
        for message in conversation
    ]
    read = template.apply_chat_template(shown, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = read["input_ids"]
    return [int(token) for token in (ids[0] if isinstance(ids[0], list) else ids)]


def _folded(ids: list[int], marks: Any) -> list[int | None]:
    """The ids with each picture, from its opening mark to its closing one, as one None."""
    folded: list[int | None] = []
    inside = False
    for token in ids:
        if token == marks.boi_token_id:
            inside = True
            folded.append(None)
        elif not inside:
            folded.append(token)
        inside = inside and token != marks.eoi_token_id
    return folded


if __name__ == "__main__":
    main()
