"""The parts of the decoder that need no network: drawing, spelling, forms, and what is kept of conversations."""

import gc
import weakref
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medserve.generation import Sampling
from medserve.text import CLOSING, OPENING
from medserve.workers.transformers.cache import Prefixes, Slots, common
from medserve.workers.transformers.sampling import Sampler, min_p, repetition, top_k, top_p
from medserve.workers.transformers.transcript import Spelling, Transcript
from tests.engines.gemma import demo, seeing

CPU = torch.device("cpu")
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).map(torch.tensor)


# --- drawing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(LOGITS, st.integers(1, 50))
def test_top_k(logits: torch.Tensor, count: int) -> None:
    """It cuts what transformers' warper cuts, equals at the edge included."""
    assert torch.equal(top_k(logits, count), TopKLogitsWarper(count)(None, logits[None])[0])


@settings(deadline=None)
@given(LOGITS, st.floats(0, 1))
def test_top_p(logits: torch.Tensor, mass: float) -> None:
    """It cuts what transformers' warper cuts."""
    assert torch.equal(top_p(logits, mass), TopPLogitsWarper(mass)(None, logits[None])[0])


@settings(deadline=None)
@given(LOGITS, st.floats(0, 1))
def test_min_p(logits: torch.Tensor, share: float) -> None:
    """It cuts what transformers' warper cuts."""
    assert torch.equal(min_p(logits, share), MinPLogitsWarper(share)(None, logits[None])[0])


@settings(deadline=None)
@given(LOGITS, st.floats(0.1, 10), st.data())
def test_repetition(logits: torch.Tensor, penalty: float, data: st.DataObject) -> None:
    """It weighs what transformers' processor weighs, each token once."""
    ids = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1))
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[ids] = True

    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits[None])[0]
    assert torch.equal(repetition(logits, seen, penalty), expected)


@settings(deadline=None)
@given(LOGITS, st.floats(0.1, 2), st.integers(0, 10), st.floats(0.05, 1), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_only_tokens_that_are_left_are_drawn(
    logits: torch.Tensor, temperature: float, count: int, mass: float, share: float, seed: int
) -> None:
    """The cuts come in transformers' order, and what they cut is never drawn."""
    sampler = Sampler(Sampling(temperature, mass, count, share, seed=seed), [], len(logits), CPU)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if count:
        warpers.append(TopKLogitsWarper(count))
    if mass < 1:
        warpers.append(TopPLogitsWarper(mass))
    if share > 0:
        warpers.append(MinPLogitsWarper(share))

    left = warpers(None, logits[None])[0]
    for _ in range(5):
        token = int(sampler.choose(logits))
        assert left[token].isfinite()
        sampler.note(token)


def test_draws_follow_the_probabilities() -> None:
    """In many draws each token comes as often as its probability says."""
    logits = torch.tensor([2.0, 1.0, 0.0, float("-inf")])
    sampler = Sampler(Sampling(temperature=1.0, seed=1), [], 4, CPU)
    drawn: Counter[int] = Counter()
    for _ in range(4000):
        token = int(sampler.choose(logits))
        drawn[token] += 1
        sampler.note(token)

    assert drawn[3] == 0
    for token, probability in enumerate(logits.softmax(-1).tolist()):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.025)


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 5e-324])
def test_temperature_next_to_nothing(temperature: float) -> None:
    """The likeliest token is drawn, as with none at all."""
    sampler = Sampler(Sampling(temperature=temperature, seed=1), [], 4, CPU)

    assert int(sampler.choose(torch.tensor([19.9, 20.0, 0.0, -20.0]))) == 1


def test_asked_twice_for_the_same_token() -> None:
    """A step that has to be repeated draws the same token; the next step draws anew."""
    logits = torch.zeros(1000)
    sampler = Sampler(Sampling(temperature=1.0, seed=5), [], 1000, CPU)
    first = int(sampler.choose(logits))

    assert int(sampler.choose(logits)) == first
    sampler.note(first)
    assert int(sampler.choose(logits)) != first


# --- spelling --------------------------------------------------------------------------------------------------------


@cache
def _bytes() -> dict[int, int]:
    """The token of each byte in the demo model's vocabulary."""
    vocabulary = demo().tokenizer.get_vocab()
    return {value: vocabulary[f"<0x{value:02X}>"] for value in range(256)}


def spelt(ids: list[int], *stops: str) -> tuple[list[str], str]:
    """The pieces shown for each token, and what came at the end."""
    transcript = Transcript(Spelling(demo().tokenizer), stops)
    pieces = []
    for token in ids:
        pieces.append(transcript.add(token))
        if transcript.stopped:
            break
    return pieces, transcript.finish()


def test_characters_of_several_bytes() -> None:
    """They are shown when they are whole, and never as half of one."""
    text = "naïve 皮膚 🙂 ok"
    ids = [_bytes()[value] for value in text.encode()]

    pieces, rest = spelt(ids)

    assert "".join(pieces) + rest == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert pieces[2:4] == ["", "ï"]


def test_character_that_is_never_completed() -> None:
    """Its bytes come at the end, as the tokenizer shows them."""
    ids = demo().tokenizer("ab", add_special_tokens=False).input_ids
    ids += [_bytes()[value] for value in "皮".encode()[:-1]]

    pieces, rest = spelt(ids)

    assert "".join(pieces) == "ab"
    assert "".join(pieces) + rest == demo().tokenizer.decode(ids)


def test_bytes_that_are_no_character() -> None:
    """A run of them is shown while it is written: it is no character in the making, however long it gets."""
    ids = [_bytes()[0xE7]] * 40

    pieces, rest = spelt(ids)

    assert "".join(pieces) + rest == demo().tokenizer.decode(ids)
    assert len(rest) < 8


def test_marks() -> None:
    """The marks of thinking are shown, for others tell the thinking from the answer by them; control tokens are not."""
    vocabulary = demo().tokenizer.get_vocab()
    marks = [vocabulary[mark] for mark in (OPENING, CLOSING, "<start_of_turn>", "<end_of_image>")]

    pieces, rest = spelt(marks)

    assert pieces == [OPENING, CLOSING, "", ""]
    assert rest == ""


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_pieces_add_up(text: str) -> None:
    """Whatever is written, the pieces are the text that the tokenizer makes of all tokens."""
    ids = demo().tokenizer(text, add_special_tokens=False).input_ids
    pieces, rest = spelt(ids)

    assert "".join(pieces) + rest == demo().tokenizer.decode(ids, skip_special_tokens=True)


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_texts(text: str, stops: list[str]) -> None:
    """What is shown ends before the first stop text, and no piece ever held a part of it."""
    ids = [_bytes()[ord(character)] for character in text]
    pieces, rest = spelt(ids, *stops)

    # Fed a character at a time, the stop text that is complete first ends the answer.
    complete = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if complete:
        heard = text[: complete[0]]
        expected = heard[: min(heard.find(stop) for stop in stops if stop in heard)]
    else:
        expected = text
    assert "".join(pieces) + rest == expected


# --- what is kept ----------------------------------------------------------------------------------------------------


def slots(count: int = 2, capacity: int = 300) -> Slots:
    return Slots(seeing().model.config, [CPU] * 4, torch.float32, count=count, capacity=capacity)


def written(keys: list[int]) -> Slots:
    """Slots whose first holds numbers that tell of each key and of all before it."""
    made = slots()
    made.prepare(len(keys))
    for position in range(len(keys)):
        for layer, states in enumerate(made._states):
            states[:, 0, :, position] = float(hash((layer, *keys[: position + 1])) % 1000)
    return made


KEYS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=8), KEYS)
def test_prefixes_are_found_and_restored(kept: list[list[int]], other: list[int]) -> None:
    """The longest beginning of all that was kept is found, and what it left is put back as it was."""
    prefixes = Prefixes(2**20)
    for keys in kept:
        prefixes.keep(keys, written(keys), 0)

    for asked in (other, *kept):
        known = prefixes.match(asked)
        target, expected = slots(), written(asked)
        prefixes.restore(asked[:known], target, 1)

        assert known == max(common(keys, asked) for keys in kept)
        for mine, right in zip(target._states, expected._states, strict=True):
            assert torch.equal(mine[:, 1, :, :known], right[:, 0, :, :known])


@settings(deadline=None)
@given(st.lists(KEYS, max_size=12), st.integers(0, 12))
def test_prefixes_are_bounded(kept: list[list[int]], tokens: int) -> None:
    """They never take more than they may, hold what two share once, and count right what they take."""
    size = slots().token_bytes
    prefixes = Prefixes(tokens * size)
    for keys in kept:
        prefixes.keep(keys, written(keys), 0)

        assert prefixes.bytes <= tokens * size
    if tokens == 12 and len({tuple(keys) for keys in kept}) == 1:
        assert prefixes.bytes == len(kept[0]) * size


def test_the_oldest_goes_first() -> None:
    """What was used lately stays when room is made."""
    size = slots().token_bytes
    prefixes = Prefixes(4 * size)
    prefixes.keep([1, 1], written([1, 1]), 0)
    prefixes.keep([2, 2], written([2, 2]), 0)
    prefixes.restore([1, 1], slots(), 1)
    prefixes.keep([3, 3], written([3, 3]), 0)

    assert [prefixes.match([number, number]) for number in (1, 2, 3)] == [2, 0, 2]


def test_a_conversation_that_grew_word_by_word() -> None:
    """However often one was kept, room is made for another."""
    rows = slots(capacity=1200)
    prefixes = Prefixes(1100 * rows.token_bytes)
    for length in range(1, 1101):
        prefixes.keep([1] * length, rows, 0)
    prefixes.keep([2, 2], rows, 0)

    assert prefixes.match([2, 2]) == 2
    assert prefixes.match([1] * 1100) == 1098


def test_what_is_cleared_is_free_at_once() -> None:
    """Not when the garbage is collected some day: it is cleared where memory has run out."""
    prefixes = Prefixes(2**20)
    for keys in ([1, 2, 3], [1, 2, 4], [1, 5]):
        prefixes.keep(keys, written(keys), 0)
    held = [weakref.ref(branch) for branch in prefixes._branches()]
    gc.disable()
    try:
        prefixes.clear()

        assert len(held) == 5
        assert not any(one() for one in held)
    finally:
        gc.enable()
    assert prefixes.match([1, 2, 3]) == prefixes.bytes == 0


def test_slots_are_safe_to_read() -> None:
    """Memory that held anything before is wiped before a masked place in it can be read."""
    dirty = slots()
    for states in dirty._states:
        states.fill_(float("nan"))

    view = dirty.over(range(2), torch.tensor([[0], [300]]), first=0, extent=10)
    new = torch.ones(2, 2, 1, 32)
    keys, values = view.update(new, new, 0)

    assert keys.isfinite().all()
    assert values.isfinite().all()
    assert float(keys[0, 0, 0, 0]) == 1.0
    assert float(keys[1].abs().sum()) == 0.0  # written beyond what is read
