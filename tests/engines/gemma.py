"""What tests of the decoder share: Gemma 3 models small enough to be asked hundreds of questions, and plain answers.

The yardstick is transformers' own `generate()`, one question at a time.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from queue import Queue
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers

from medserve.workers.transformers.decoding import Decoder
from medserve.workers.transformers.prompts import Picture, Prompt
from medserve.workers.transformers.vision import Vision
from medserve.workers.transformers.wishes import End, Failure, Scores, Ticket, Token, Wish

Event = Token | End | Scores | Failure
DEMO = Path(str(files("medserve") / "demo"))
WINDOW = 64
"""The sliding window of the small models: prompts of many times its length take milliseconds."""


@dataclass(frozen=True)
class Subject:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def ends(self) -> list[int]:
        return cast(list[int], self.model.generation_config.eos_token_id)

    def prompt(self, *parts: str | int) -> Prompt:
        """A question of texts and pictures; a picture is given as the number from which its noise is made."""
        ids = [2, *self._ids("<start_of_turn>user\n")]
        pictures = []
        config = self.model.config
        for part in parts:
            if isinstance(part, str):
                ids += self._ids(part)
                continue
            ids.append(config.boi_token_index)
            noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(part)) * 2 - 1
            pictures.append(Picture(str(part), len(ids), noise))
            ids += [config.image_token_id] * config.mm_tokens_per_image + [config.eoi_token_index]
        ids += self._ids("<end_of_turn>\n<start_of_turn>model\n")
        return Prompt(tuple(ids), tuple(pictures), 16)

    def words(self, count: int, *, seed: int = 0) -> str:
        """A text of just so many tokens, of words drawn at random."""
        drawn = torch.randint(300, 1400, (4 * count,), generator=torch.Generator().manual_seed(seed)).tolist()
        ids = self._ids(str(self.tokenizer.decode(drawn)))[:count]
        assert len(ids) == count
        return str(self.tokenizer.decode(ids))

    def _ids(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False).input_ids)

    def inputs(self, prompt: Prompt, *, types: bool = True) -> dict[str, Any]:
        """What transformers' model takes; without `types` it does not know which tokens are a picture's."""
        ids = torch.tensor([prompt.ids])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if hasattr(self.model.config, "image_token_id"):
            if types:
                inputs["token_type_ids"] = (ids == self.model.config.image_token_id).long()
            if prompt.pictures:
                inputs["pixel_values"] = torch.stack([picture.pixels for picture in prompt.pictures])
        return inputs

    @torch.inference_mode()
    def generated(self, prompt: Prompt, tokens: int, *, types: bool = True, **wishes: Any) -> list[int]:
        """The tokens of transformers' own greedy answer, without the one that ends it."""
        inputs = self.inputs(prompt, types=types)
        ids = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **wishes)[0, len(prompt.ids) :]
        return [token for token in ids.tolist() if token not in self.ends]

    @torch.inference_mode()
    def logits(self, prompt: Prompt, answer: Sequence[int] = (), *, types: bool = True) -> torch.Tensor:
        """transformers' logits [1 + tokens, vocabulary] after the prompt and after each token of an answer."""
        told = Prompt((*prompt.ids, *answer), prompt.pictures, prompt.image_tokens)
        logits: torch.Tensor = self.model(**self.inputs(told, types=types)).logits[0, len(prompt.ids) - 1 :]
        return logits


@cache
def demo(dtype: torch.dtype = torch.float32) -> Subject:
    """The demo model that ships with the package."""
    torch.set_num_threads(1)
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(DEMO, dtype=dtype)
    return Subject(model.eval(), transformers.AutoTokenizer.from_pretrained(DEMO))


def _config() -> Any:
    config = transformers.Gemma3Config.from_pretrained(DEMO)
    text = config.text_config
    text.sliding_window = WINDOW
    text.num_hidden_layers = 4
    text.layer_types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config.vision_config.num_hidden_layers = 1
    config._attn_implementation = "sdpa"
    return config


def _random(model: Any) -> Any:
    """Weights from a fixed seed; small embeddings, lest each word be followed by itself."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.01 if "embed_tokens" in name else 0.08, generator=generator)
    model.generation_config.eos_token_id = [1, 7]
    model.generation_config.pad_token_id = 0
    return model.eval()


@cache
def seeing() -> Subject:
    """A Gemma 3 with eyes, random weights and a window of 64 tokens."""
    return Subject(_random(transformers.Gemma3ForConditionalGeneration(_config())), demo().tokenizer)


@cache
def blind() -> Subject:
    """The same without eyes, as MedGemma 27B text is, and with a cap on its logits, which Gemma 3's class may have."""
    config = _config().text_config
    config.final_logit_softcapping = 4.0
    config._attn_implementation = "sdpa"
    return Subject(_random(transformers.Gemma3ForCausalLM(config)), demo().tokenizer)


@dataclass
class Answer:
    """What came back for one request, while it comes and when it is complete."""

    ticket: Ticket | None = None
    events: list[Event] = field(default_factory=list)
    _last: Queue[Event] = field(default_factory=Queue)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Token):
            self._last.put(event)

    def wait(self) -> "Answer":
        self._last.put(self._last.get(timeout=60))
        return self

    @property
    def tokens(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, Token)]

    @property
    def said(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]

    @property
    def end(self) -> End:
        last = self.wait().events[-1]
        assert isinstance(last, End), last
        return last

    @property
    def scores(self) -> Scores:
        last = self.wait().events[-1]
        assert isinstance(last, Scores), last
        return last

    @property
    def failure(self) -> Failure:
        last = self.wait().events[-1]
        assert isinstance(last, Failure), last
        return last

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Token | End))


class Asked:
    """A decoder to which questions are put; those put before it is started join it in its first round."""

    def __init__(self, subject: Subject, **settings: Any) -> None:
        self.subject = subject
        eyes = Vision(subject.model, kept_bytes=2**20) if hasattr(subject.model.config, "vision_config") else None
        settings = {"slots": 4, "context": 1024, "kept_bytes": 2**26, **settings}
        loaded = SimpleNamespace(model=subject.model, tokenizer=subject.tokenizer)
        self.decoder = Decoder(cast(Any, loaded), eyes, **settings)
        self.vision = eyes
        self._thread = threading.Thread(target=self.decoder.run, daemon=True)

    def ask(self, prompt: Prompt, tokens: int = 16, **wishes: Any) -> Answer:
        answer = Answer()
        answer.ticket = self.decoder.submit(Wish(prompt, tokens, **wishes), answer.take)
        return answer

    def score(self, prompt: Prompt, labels: Sequence[tuple[int, ...]], **wishes: Any) -> Answer:
        answer = Answer()
        answer.ticket = self.decoder.score(prompt, labels, answer.take, **wishes)
        return answer

    def settled(self) -> Decoder:
        """The decoder once no conversation has a slot; what an ended one left is kept just after its last event."""
        until = monotonic() + 30
        while self.decoder.live and monotonic() < until:
            sleep(0.001)
        return self.decoder

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.decoder.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=60)
            assert not self._thread.is_alive()


@contextmanager
def asking(subject: Subject, *, started: bool = True, **settings: Any) -> Iterator[Asked]:
    """A decoder of one's own for as long as the context lasts."""
    asked = Asked(subject, **settings)
    if started:
        asked.start()
    try:
        yield asked
    finally:
        asked.stop()
