"""Keys and values of the conversations being answered: a slot each, where the token at position p stands at index p."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch

Key = int | tuple[str, int]
"""What a token is to the network: its id, or the picture and the place in it that a soft token stands for."""
Segment = tuple[torch.Tensor, ...]
"""Keys and values of neighbouring tokens: per layer [2, heads, tokens, head_dim]."""
STEP = 64
"""What a pass sees begins and ends at a multiple of this, so that shapes seldom change."""
READY = 4 * STEP
"""Slots are made ready for reading by so many positions at a time."""


def token_bytes(config: Any, itemsize: int) -> int:
    """What one token's keys and values take over all layers, for a model's config and the bytes of one number."""
    text = config.get_text_config()
    return int(text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * itemsize)


class Slots:
    """Room for `count` conversations of `capacity` tokens each, allocated once, on the device of each layer.

    One index beyond the capacity takes what has to be written somewhere and is never read: padding.
    """

    def __init__(
        self, config: Any, devices: Sequence[torch.device], dtype: torch.dtype, *, count: int, capacity: int
    ) -> None:
        text = config.get_text_config()
        shape = (2, count, text.num_key_value_heads, capacity + 1, text.head_dim)
        # One tensor a layer, keys before values. Not filled with zeros here: on a CPU that would take all the memory
        # at once, which conversations may never need.
        self._states = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self._slides = [kind == "sliding_attention" for kind in text.layer_types]
        self._window: int = text.sliding_window
        self._ready = 0
        self.capacity = capacity
        self.token_bytes = token_bytes(config, dtype.itemsize)

    def prepare(self, extent: int) -> None:
        """Make the first `extent` indices of every slot safe to read: what is masked must still be finite."""
        if extent > self._ready:
            until = min(-(-extent // READY) * READY, self.capacity)
            for states in self._states:
                states[..., self._ready : until, :].zero_()
            self._ready = until

    def clean(self, slot: int) -> None:
        """Wipe a slot that may hold numbers that are not finite, which would reach others through a mask."""
        for states in self._states:
            states[:, slot, :, : self._ready].zero_()

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give slot `target` the first tokens of slot `source`."""
        for states in self._states:
            states[:, target, :, :tokens] = states[:, source, :, :tokens]

    def segment(self, slot: int, start: int, stop: int) -> Segment:
        """A copy of what tokens [start, stop) of a slot left."""
        return tuple(states[:, slot, :, start:stop].clone() for states in self._states)

    def place(self, slot: int, start: int, segment: Sequence[torch.Tensor]) -> None:
        """Put a segment into a slot so that its first token stands at `start`."""
        self.prepare(start + segment[0].shape[2])
        for states, part in zip(self._states, segment, strict=True):
            states[:, slot, :, start : start + part.shape[2]] = part

    def over(self, slots: range, indices: torch.Tensor, *, first: int, extent: int) -> "View":
        """What a pass of the network over some neighbouring slots reads and writes.

        `indices` [slots, tokens] says where each new token goes. The pass sees the first `extent` indices; in sliding
        layers only what the window of its first position can reach.
        """
        extent = min(-(-extent // STEP) * STEP, self.capacity)
        self.prepare(extent)
        low = max(0, first - self._window + 1) // STEP * STEP
        return View(self._states, slots, indices, [range(low if slides else 0, extent) for slides in self._slides])


class View:
    """The slots during one pass, in the place of a cache of transformers, whose attention calls `update`."""

    def __init__(self, states: list[torch.Tensor], slots: range, indices: torch.Tensor, seen: Sequence[range]) -> None:
        self._states = states
        self._slots = slots
        self._indices = indices
        self._rows = torch.arange(slots.start, slots.stop, device=indices.device)[:, None].expand_as(indices)
        self._seen = seen

    @property
    def extent(self) -> int:
        """How many indices the pass sees."""
        return self._seen[0].stop

    @property
    def low(self) -> int:
        """The first index that sliding layers see."""
        return max(seen.start for seen in self._seen)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens' keys and values [slots, heads, tokens, head_dim]; give back all that the layer sees."""
        states, seen = self._states[layer_idx], self._seen[layer_idx]
        rows, indices = self._rows.to(states.device), self._indices.to(states.device)
        for held, new in zip(states, (keys, values), strict=True):
            held[rows, :, indices] = new.transpose(1, 2)
        told = states[:, self._slots.start : self._slots.stop, :, seen.start : seen.stop]
        return told[0], told[1]


class Prefixes:
    """What was read and written before, kept for conversations that begin alike; at most `limit` bytes of it.

    A tree of branches: what two conversations share is held once. The leaf that was not used for the longest time goes
    first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clock = count(1)
        self._root = _Branch((), [], None)
        self.bytes = 0

    def match(self, keys: Sequence[Key]) -> int:
        """How many of the first keys are known."""
        return sum(known for _, known in self._walk(keys))

    def restore(self, keys: Sequence[Key], slots: Slots, slot: int) -> None:
        """Put the keys and values of these tokens, which are all known, into a slot."""
        start = 0
        for branch, known in self._used(keys):
            slots.place(slot, start, [part[:, :, :known] for part in branch.states])
            start += known

    def keep(self, keys: Sequence[Key], slots: Slots, slot: int) -> None:
        """Remember what a slot holds of these tokens, unless it is known or larger than the whole limit."""
        path = self._used(keys)
        known = sum(tokens for _, tokens in path)
        needed = {id(branch) for branch, _ in path}
        if known == len(keys) or not self._make_room((len(keys) - known) * slots.token_bytes, needed):
            return
        parent, at = path[-1] if path else (self._root, 0)
        if at < len(parent.keys):
            parent = parent.split(at)
        branch = _Branch(tuple(keys[known:]), list(slots.segment(slot, known, len(keys))), parent)
        branch.used = next(self._clock)
        self.bytes += branch.bytes

    def clear(self) -> None:
        """Forget everything; its memory is free when this returns."""
        for branch in [self._root, *self._branches()]:  # a branch and those that grow on it hold one another
            branch.children.clear()
        self.bytes = 0

    def _walk(self, keys: Sequence[Key]) -> list[tuple["_Branch", int]]:
        """The branches along these keys and how many keys each of them knows: all of its own but in the last."""
        path, branch, start = [], self._root, 0
        while start < len(keys) and (onward := branch.children.get(keys[start])) is not None:
            known = common(onward.keys, keys[start:])
            path.append((onward, known))
            start += known
            if known < len(onward.keys):
                break
            branch = onward
        return path

    def _used(self, keys: Sequence[Key]) -> list[tuple["_Branch", int]]:
        path, now = self._walk(keys), next(self._clock)
        for branch, _ in path:
            branch.used = now
        return path

    def _make_room(self, wanted: int, needed: set[int]) -> bool:
        """Drop the oldest leaves but the needed ones until so many bytes are free; whether that was possible."""
        if wanted > self._limit:
            return False
        while self.bytes + wanted > self._limit:
            leaves = [one for one in self._branches() if not one.children and id(one) not in needed]
            if not leaves:
                return False
            oldest = min(leaves, key=lambda leaf: leaf.used)
            oldest.cut()
            self.bytes -= oldest.bytes
        return True

    def _branches(self) -> Iterator["_Branch"]:
        """Every branch; not by recursion, for a conversation can have grown by one token a thousand times."""
        coming = list(self._root.children.values())
        while coming:
            branch = coming.pop()
            coming += branch.children.values()
            yield branch


class _Branch:
    """Tokens that follow those of their parent, and what they left; it grows on its parent as soon as it is made."""

    def __init__(self, keys: tuple[Key, ...], states: list[torch.Tensor], parent: "_Branch | None") -> None:
        self.keys = keys
        self.states = states
        self.parent = parent
        self.used = 0
        self.children: dict[Key, _Branch] = {}
        if parent is not None:
            parent.children[keys[0]] = self

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self.states)

    def split(self, at: int) -> "_Branch":
        """Make this branch begin at its key `at`, on a new one that has the keys before it and is returned."""
        lower = _Branch(self.keys[:at], [], self.parent)  # takes this one's place on the parent
        lower.used = self.used
        for number, part in enumerate(self.states):  # layer by layer, so that little is held twice
            lower.states.append(part[:, :, :at].clone())
            self.states[number] = part[:, :, at:].clone()
        self.keys = self.keys[at:]
        self.parent = lower
        lower.children[self.keys[0]] = self
        return lower

    def cut(self) -> None:
        assert self.parent is not None  # noqa: S101 - the root is no leaf
        del self.parent.children[self.keys[0]]


def common(one: Sequence[Key], other: Sequence[Key]) -> int:
    """How many first keys two sequences share."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
