"""The passes of the network that answering is made of: reading prompts, writing a token each, weighing labels.

A pass changes nothing but keys and values beyond what its rows hold, so one that fails can be repeated.
"""

from collections.abc import Sequence
from itertools import islice
from math import fsum

import torch

from medserve.workers.transformers.cache import Slots
from medserve.workers.transformers.folder import WEIGHED
from medserve.workers.transformers.network import TEXT, Network, masks, padded
from medserve.workers.transformers.rows import Row


def read(network: Network, slots: Slots, rows: Sequence[Row], parts: Sequence[range], *, causal: bool) -> torch.Tensor:
    """Read a part of the prompt of each of some rows in neighbouring slots, all in one pass, padded at the right.

    Returns the logits [rows, vocabulary] after the last token of each part. `causal` hides from a picture's tokens
    what comes after them in the picture, which Gemma 3 was not trained with.
    """
    device = network.device
    ids = [row.prompt.ids[part.start : part.stop] for row, part in zip(rows, parts, strict=True)]
    embeddings = network.embed(padded(ids, device))
    for number, (row, part) in enumerate(zip(rows, parts, strict=True)):
        for start, features in row.features.items():
            if start in part:
                place = slice(start - part.start, start - part.start + len(features))
                embeddings[number, place] = features.to(device, embeddings.dtype)
    first, extent = min(part.start for part in parts), max(part.stop for part in parts)
    view = slots.over(_neighbours(rows), padded(parts, device, slots.capacity), first=first, extent=extent)
    blocks = None
    if not causal and any(row.features for row in rows):
        queries = [row.blocks[part.start : part.stop] for row, part in zip(rows, parts, strict=True)]
        keys = [(row.blocks + [TEXT] * view.extent)[: view.extent] for row in rows]
        blocks = padded(queries, device, TEXT), padded(keys, device)
    # Padding stands where its row's last token stands, and sees what that sees.
    positions = padded([[*part, *[part.stop - 1] * (embeddings.shape[1] - len(part))] for part in parts], device)
    everything = torch.arange(view.extent, device=device)[None]
    seen = masks(positions, everything, network.window, low=view.low, blocks=blocks)
    states = network.states(embeddings, positions, seen, view)
    last = torch.tensor([len(part) - 1 for part in parts], device=states.device)
    return network.logits(states[torch.arange(len(rows), device=states.device), last])


def write(network: Network, slots: Slots, tokens: Sequence[int | None], held: Sequence[int]) -> torch.Tensor:
    """Give each slot from the first its next token, which follows the `held` ones: the logits [slots, vocabulary].

    None stands for a slot that writes nothing now; its logits mean nothing.
    """
    writing = [place for token, place in zip(tokens, held, strict=True) if token is not None]
    first = min(writing)
    rows = [
        (0, first, slots.capacity) if token is None else (token, place, place)
        for token, place in zip(tokens, held, strict=True)
    ]
    # One copy to the device, not three: each waits for it.
    ids, positions, indices = torch.tensor(rows, device=network.device).T[..., None]
    view = slots.over(range(len(rows)), indices, first=first, extent=max(writing) + 1)
    everything = torch.arange(view.extent, device=network.device)[None]
    seen = masks(positions, everything, network.window, low=view.low)
    return network.logits(network.states(network.embed(ids), positions, seen, view)[:, 0])


def weigh(
    network: Network,
    slots: Slots,
    row: Row,
    first: torch.Tensor,
    labels: Sequence[Sequence[int]],
    *,
    banned: Sequence[int] = (),
) -> list[float]:
    """log P of each label after a prompt that was read, from the raw logits of all its tokens.

    `first` [vocabulary] are the logits after the prompt; `banned` are tokens that the model cannot say. The labels
    stand side by side behind the prompt, each at the positions that follow it and blind to the others, so one pass
    weighs as many as there is room for.
    """
    barred = torch.tensor(banned, dtype=torch.long, device=first.device)
    opening = first.index_fill(-1, barred, -torch.inf).log_softmax(-1)
    logprobs: list[float] = []
    for group in _groups(labels, min(WEIGHED, slots.capacity - len(row.prompt.ids))):
        logprobs += _weigh(network, slots, row, opening, group, barred)
    return logprobs


def _groups(labels: Sequence[Sequence[int]], room: int) -> list[list[Sequence[int]]]:
    """The labels in order, as few groups as have room for all their tokens but the last of each."""
    groups: list[list[Sequence[int]]] = [[]]
    taken = 0
    for label in labels:
        taken += len(label) - 1
        if taken > room and groups[-1]:
            groups.append([])
            taken = len(label) - 1
        groups[-1].append(label)
    return groups


def _weigh(
    network: Network,
    slots: Slots,
    row: Row,
    opening: torch.Tensor,
    labels: Sequence[Sequence[int]],
    barred: torch.Tensor,
) -> list[float]:
    device, held = network.device, len(row.prompt.ids)
    # A label's last token is only foretold, never read.
    ids = [token for label in labels for token in label[:-1]]
    totals = opening[[label[0] for label in labels]].tolist()
    if not ids:
        return totals
    own = torch.tensor([n for n, label in enumerate(labels, 1) for _ in label[:-1]], device=device)[None]
    offsets = torch.tensor([offset for label in labels for offset in range(len(label) - 1)], device=device)[None]
    positions, extent = held + offsets, held + len(ids)
    indices = torch.arange(held, extent, device=device)[None]
    view = slots.over(range(row.slot, row.slot + 1), indices, first=held, extent=extent)
    after = torch.full((1, view.extent - extent), slots.capacity, device=device)  # later than all that is asked
    keys = torch.cat([torch.arange(held, device=device)[None], positions, after], dim=1)
    branches = own, torch.cat([own.new_zeros(1, held), own, torch.zeros_like(after)], dim=1)
    seen = masks(positions, keys, network.window, low=view.low, branches=branches)
    states = network.states(network.embed(torch.tensor([ids], device=device)), positions, seen, view)
    logits = network.logits(states[0]).index_fill_(-1, barred, -torch.inf)
    following = torch.tensor([token for label in labels for token in label[1:]], device=logits.device)[:, None]
    steps = iter((logits.gather(1, following)[:, 0] - logits.logsumexp(-1)).tolist())
    return [total + fsum(islice(steps, len(label) - 1)) for total, label in zip(totals, labels, strict=True)]


def _neighbours(rows: Sequence[Row]) -> range:
    return range(rows[0].slot, rows[-1].slot + 1)
