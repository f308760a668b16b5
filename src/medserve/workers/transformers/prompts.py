"""A chat becomes the very tokens that Hugging Face's template and processor make of it, whatever its words say.

The template is Gemma 3's and written here: the one in a model's folder is a program, and nothing in a folder is run.
Texts are trimmed, the system's words come before the first user's, a picture stands between empty lines. Words that
look like control tokens are made data, the beginning of an answer excepted where the caller asks for it (`raw`).
"""

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

import PIL.Image

from medserve.errors import ImageUnreadable, InvalidRequest, NotSupported
from medserve.text import neutralise

if TYPE_CHECKING:
    import torch

BEGIN = "<bos>"
ANSWER = "<start_of_turn>model\n"
END_OF_TURN = "<end_of_turn>"
IMAGE_BEGIN, IMAGE_TOKEN, IMAGE_END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"


@dataclass(frozen=True)
class Picture:
    """A picture in a prompt: the hash of its pixels, where its first token stands, and what the vision part takes.

    `pixels` is float32 [3, size, size], as the image processor gives it.
    """

    digest: str
    start: int
    pixels: "torch.Tensor"


@dataclass(frozen=True)
class Prompt:
    """What the model reads: token ids and the pictures among them, each of `image_tokens` tokens."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    image_tokens: int = 0


@dataclass(frozen=True)
class Beginning:
    """What an answer is made to begin with; `raw` leaves control tokens in it what they are."""

    text: str = ""
    raw: bool = False

    @property
    def written(self) -> str:
        return self.text if self.raw else neutralise(self.text)


class Prompts:
    """Makes prompts for one model, by its tokenizer and, where it sees, its image processor on Pillow."""

    def __init__(self, tokenizer: Any, processor: Any | None, *, image_tokens: int, size: int) -> None:
        self._tokenizer = tokenizer
        # A folder that was trained in may say where texts are cut off and how they are filled up.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self._processor = processor
        self._image_tokens = image_tokens
        self._size = size
        self._image_begin = self.control(IMAGE_BEGIN)
        self._image = f"\n\n{IMAGE_BEGIN}{IMAGE_TOKEN * image_tokens}{IMAGE_END}\n\n"

    def control(self, mark: str) -> int:
        """The id of a control token."""
        return int(self._tokenizer.convert_tokens_to_ids(mark))

    def known(self, mark: str) -> int | None:
        """The id of a control token that not every vocabulary has."""
        found = self._tokenizer.backend_tokenizer.token_to_id(mark)
        return None if found is None else int(found)

    def ids(self, text: str) -> tuple[int, ...]:
        """The token ids of a text in which control tokens count as such."""
        # By the library beneath: the tokenizer of transformers sets its own state at every call, and threads share it.
        return tuple(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        """How many tokens a caller's words take in a prompt."""
        return len(self.ids(neutralise(text)))

    def prompt(self, messages: Sequence[Mapping[str, Any]], beginning: Beginning) -> Prompt:
        """The prompt of a conversation in OpenAI's form; raises InvalidRequest for what it cannot hold."""
        written, seen = _conversation(messages)
        if seen and self._processor is None:
            raise NotSupported("these weights have no vision part and take no images", param="images")
        text = BEGIN + "".join(self._image if part is None else part for part in written) + ANSWER
        ids = self.ids(text + beginning.written)
        starts = [place + 1 for place, token in enumerate(ids) if token == self._image_begin]
        if len(starts) != len(seen):  # a raw beginning that says there is a picture where none is
            raise InvalidRequest("an answer cannot begin with a picture", param="prefix")
        pictures = tuple(self._picture(url, start) for url, start in zip(seen, starts, strict=True))
        return Prompt(ids, pictures, self._image_tokens)

    def label(self, beginning: Beginning, label: str) -> tuple[int, ...]:
        """The tokens of a label after the beginning of an answer, and the end of turn.

        A space at the end of the beginning belongs to the label's first token, as in any text: `stem` is what the
        prompt then ends with.
        """
        begun, said = stem(beginning).written, neutralise(label)
        spaces = beginning.written[len(begun) :]
        whole, known = self.ids(ANSWER + begun + spaces + said), self.ids(ANSWER + begun)
        if whole[: len(known)] != known:  # the two grow together; then the label stands for itself
            whole, known = self.ids(spaces + said), ()
        return (*whole[len(known) :], self.control(END_OF_TURN))

    def _picture(self, url: str, start: int) -> Picture:
        """One picture, which the gateway has padded and resized already: here no pixel is moved."""
        assert self._processor is not None  # noqa: S101 - the caller has looked
        try:
            file = PIL.Image.open(BytesIO(b64decode(url.partition("base64,")[2], validate=True)), formats=["PNG"])
            if file.size != (self._size, self._size):
                raise ImageUnreadable(f"a picture is not {self._size} pixels wide and high", param="images")
            image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError):
            raise ImageUnreadable("a picture is no PNG file in base64", param="images") from None
        made = self._processor(images=[image], return_tensors="pt", do_pan_and_scan=False)
        return Picture(sha256(image.tobytes()).hexdigest(), start, made["pixel_values"][0])


def stem(beginning: Beginning) -> Beginning:
    """The beginning without the spaces at its end."""
    return Beginning(beginning.text.rstrip(" "), beginning.raw)


def _conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[str | None], list[str]]:
    """The turns as they are written, None for a picture, and the pictures' addresses in their order."""
    written: list[str | None] = []
    seen: list[str] = []
    system = ""
    for message in messages:
        parts = list(_parts(message))
        if message["role"] == "system":
            system = "".join(text for text, _ in parts) + "\n\n"
            continue
        seen += [url for _, url in parts if url]
        written += _turn("model" if message["role"] == "assistant" else "user", system, parts)
        system = ""
    return written, seen


def _turn(role: str, system: str, parts: Sequence[tuple[str, str]]) -> Iterator[str | None]:
    """One turn. Neighbouring texts are joined before control tokens are made data, lest two halves make one."""
    said = [system]
    yield f"<start_of_turn>{role}\n"
    for text, url in parts:
        if not url:
            said.append(text.strip())
            continue
        yield neutralise("".join(said))
        yield None
        said = []
    yield neutralise("".join(said)) + f"{END_OF_TURN}\n"


def _parts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each part of a message as (text, ""), or ("", address) for a picture."""
    content = message["content"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        if part["type"] == "text":
            yield part["text"], ""
        elif part["type"] == "image_url":
            yield "", part["image_url"]["url"]
        else:
            raise InvalidRequest("a message holds texts and pictures only", param="messages")
