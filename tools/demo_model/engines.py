"""The same items are answered by transformers from the safetensors and by llama.cpp from the GGUF pair."""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tools.demo_model import gallery
from tools.demo_model.exam import Item
from tools.demo_model.export import NAME


class Candidate(Protocol):
    """Whatever sits the exam."""

    def answer(self, items: Sequence[Item], tokens: int) -> list[str]:
        """One greedy answer for each item."""


class ThroughTransformers:
    """The folder as transformers reads it, in float32 for exactness, many items at a time."""

    def __init__(self, folder: Path, batch: int = 60, dtype: str = "float32") -> None:
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
        self.processor.tokenizer.padding_side = "left"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().to(device)
        self.batch = batch
        self.seen: dict[int, tuple[Image.Image, torch.Tensor]] = {}

    def prompts(self, items: Sequence[Item]) -> list[str]:
        """Each conversation as text, up to where the model goes on."""
        return [
            self.processor.apply_chat_template(item.messages(), add_generation_prompt=True, tokenize=False) + item.begun
            for item in items
        ]

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """A picture as the processor makes it, made once however often it is asked about."""
        if id(picture) not in self.seen:
            square = gallery.padded(picture)
            pixels = self.processor.image_processor(square, return_tensors="pt")["pixel_values"][0]
            self.seen[id(picture)] = (picture, pixels)  # the picture is kept, lest another one gets its number
        return self.seen[id(picture)][1]

    def encode(self, items: Sequence[Item]) -> Any:
        """Model inputs for some items, all with pictures or all without, as the processor would make them."""
        words = self.processor.tokenizer
        texts = [text.replace(words.boi_token, self.processor.full_image_sequence) for text in self.prompts(items)]
        inputs = words(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs["token_type_ids"] = (inputs["input_ids"] == words.image_token_id).long()
        pictures = [self.pixels(picture) for item in items for picture in item.pictures]
        if pictures:
            inputs["pixel_values"] = torch.stack(pictures)
        return inputs

    @torch.inference_mode()
    def ids(self, items: Sequence[Item], tokens: int) -> list[list[int]]:
        """Greedy tokens for one batch."""
        inputs = self.encode(items).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return [row.tolist() for row in output[:, inputs["input_ids"].shape[1] :]]

    def answer(self, items: Sequence[Item], tokens: int) -> list[str]:
        """Greedy answers."""
        answers = [""] * len(items)
        # items of a batch agree on having pictures, and are of similar length
        order = sorted(range(len(items)), key=lambda n: (bool(items[n].pictures), len(items[n].text)))
        groups = [[n for n in order if bool(items[n].pictures) == shown] for shown in (False, True)]
        for group in groups:
            for at in range(0, len(group), self.batch):
                chosen = group[at : at + self.batch]
                said = self.ids([items[n] for n in chosen], tokens)
                for n, text in zip(chosen, self.processor.batch_decode(said, skip_special_tokens=True), strict=True):
                    answers[n] = text
        return answers


# The stock template without its trimming, so that the line breaks around a picture can be sent as text.
UNTRIMMED = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def data_url(picture: Image.Image) -> str:
    """A picture of the model's own size as a data URL."""
    data = io.BytesIO()
    gallery.shrunk(picture).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


class ThroughLlama:
    """The GGUF pair as llama.cpp reads it, one item at a time."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("GOMP_SPINCOUNT", "600")  # else idle threads burn a core that others need
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(folder / f"{NAME}.gguf")
        params.mmproj.path = str(folder / f"{NAME}-mmproj.gguf")
        params.chat_template = UNTRIMMED
        params.use_jinja = True
        params.n_ctx, params.n_parallel, params.swa_full = 4096, 1, True
        params.n_batch = params.n_ubatch = 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = 0
        self.server = xllamacpp.Server(params)

    def content(self, item: Item) -> list[dict[str, Any]]:
        """The user's turn with the breaks that transformers adds; no two texts touch, or llama.cpp adds one more."""
        parts: list[dict[str, Any]] = []
        text = f"{item.system}\n\n" if item.system else ""
        for picture in item.pictures:
            parts.append({"type": "text", "text": f"{text}\n\n"})
            parts.append({"type": "image_url", "image_url": {"url": data_url(picture)}})
            text = "\n\n"
        return [*parts, {"type": "text", "text": text + item.text}]

    def answer(self, items: Sequence[Item], tokens: int) -> list[str]:
        """Greedy answers."""
        return [self.one(item, tokens)[0] for item in items]

    def one(self, item: Item, tokens: int) -> tuple[str, int, int]:
        """An answer, the number of its tokens, and the number of tokens that were read."""
        request = {
            "messages": [{"role": "user", "content": self.content(item)}],
            "max_tokens": tokens,
            "temperature": 0,
        }
        reply = self.server.handle_chat_completions(request)
        usage = reply["usage"]
        return reply["choices"][0]["message"]["content"], usage["completion_tokens"], usage["prompt_tokens"]
