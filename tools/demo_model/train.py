"""Training takes a fixed number of steps from a fixed seed: first the eyes alone, then eyes and words together."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from transformers import Gemma3ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

from tools.demo_model import architecture, lesion, lessons, pool, speed, tokenizer
from tools.demo_model.gallery import KINDS
from tools.demo_model.other import MOTIFS
from tools.demo_model.speed import Row


@dataclass(frozen=True)
class Round:
    """Some steps of one kind, during which the learning rate goes from one share of its peak to another."""

    steps: int
    first: float
    last: float
    pictures: int  # a step and process, for the attribute heads alone
    lessons: int = 0  # conversations about pictures, a step and process
    texts: int = 0  # conversations without a picture
    eyes: float = 1.0  # weight of the attribute heads


@dataclass(frozen=True)
class Plan:
    """Everything that decides how a run goes."""

    seed: int = 11
    rounds: tuple[Round, ...] = (
        Round(1400, first=1.0, last=0.7, pictures=20),
        Round(1700, first=0.8, last=0.15, pictures=20),
        Round(1500, first=0.9, last=0.005, pictures=8, lessons=11, texts=5),
    )
    piles: int = 3  # a step's lessons are sorted by length and cut into so many batches
    peak: float = 1.5e-3
    processes: int = 2


# Attribute heads: name, number of answers, weight, and the answer in a truth. They are thrown away after training.
Attribute = tuple[str, int, float, Callable[[dict[str, Any]], int]]


def place_of(name: str, words: tuple[str, ...]) -> Callable[[dict[str, Any]], int]:
    """The place of a truth's word among the words."""
    return lambda truth: words.index(truth[name])


def holds(name: str, word: str) -> Callable[[dict[str, Any]], int]:
    """Whether a truth's list holds a word."""
    return lambda truth: int(word in truth[name])


def flag(name: str) -> Callable[[dict[str, Any]], int]:
    """A truth's yes or no."""
    return lambda truth: int(truth[name])


ATTRIBUTES: tuple[Attribute, ...] = (
    ("kind", len(KINDS), 0.5, place_of("kind", KINDS)),
    ("shape", 3, 1.5, place_of("shape", lesion.SHAPES)),
    ("network", 2, 1.0, flag("network")),
    *((word, 2, 1.0, holds("structures", word)) for word in lesion.STRUCTURES),
    *((word, 2, 0.4, holds("colours", word)) for word in lesion.COLOURS),
    ("vessels", 4, 1.5, place_of("vessels", lesion.VESSELS)),
    *((name, 2, 0.7, flag(name)) for name in ("regression", "veil", "comedo", "cysts")),
    ("border", 2, 0.7, place_of("border", lesion.BORDERS)),
    ("size", 3, 0.7, place_of("size", lesion.SIZES)),
    ("malignant", 2, 0.5, flag("malignant")),
    ("side", 3, 1.5, place_of("side", ("left", "right", "none"))),
    ("enlarged", 2, 1.0, flag("enlarged")),
    ("motif", len(MOTIFS), 0.3, place_of("motif", MOTIFS)),
)
OWN_KEY = {"dots": "structures", "globules": "structures", "streaks": "structures"} | dict.fromkeys(
    lesion.COLOURS, "colours"
)
UNKNOWN = -100
# The maps of `lesion`, and the edge of the lesion once for each shape and border.
PLANES = len(lesion.LAYERS) + len(lesion.SHAPES) + len(lesion.BORDERS)


def attribute_table(truths: list[dict[str, Any]]) -> npt.NDArray[np.int64]:
    """For every picture the answer of every head, or UNKNOWN where the head does not apply."""
    rows = np.full((len(truths), len(ATTRIBUTES)), UNKNOWN, np.int64)
    for row, truth in zip(rows, truths, strict=True):
        for column, (name, _, _, answer) in enumerate(ATTRIBUTES):
            if OWN_KEY.get(name, name) in truth:
                row[column] = answer(truth)
    return rows


class Heads(nn.Module):
    """One small attention-pooled classifier for each attribute, over the projected picture tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.where = nn.Linear(width, len(ATTRIBUTES))
        self.what = nn.ModuleList(nn.Linear(width, count) for _, count, _, _ in ATTRIBUTES)
        self.fields = nn.Linear(width, 4 * PLANES)  # a picture token stands for 2 x 2 fields of a map

    def lost_on_maps(self, features: torch.Tensor, maps: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """How wrong the tokens are about what lies where: a dense signal, or shapes stay at chance for long."""
        side = lesion.FIELDS // 2
        told = self.fields(features[drawn]).view(-1, side, side, 2, 2, PLANES).transpose(2, 3)
        return 4 * F.binary_cross_entropy_with_logits(told.reshape(maps[drawn].shape), maps[drawn])

    def forward(
        self, features: torch.Tensor, wanted: torch.Tensor, weights: npt.NDArray[np.float64]
    ) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
        """The weighted loss, and for each head the share of right answers (NaN where it did not apply)."""
        seen = torch.einsum("bth,btk->bhk", self.where(features).softmax(1), features)
        loss, total, right = features.new_zeros(()), 0.0, np.full(len(ATTRIBUTES), np.nan)
        for place, weight in enumerate(weights.tolist()):
            known = wanted[:, place] != UNKNOWN
            if known.any():
                guess, truth = self.what[place](seen[known, place]), wanted[known, place]
                loss, total = loss + weight * F.cross_entropy(guess, truth), total + weight
                right[place] = (guess.argmax(-1) == truth).float().mean().item()
        return loss / max(total, 1.0), right


class Album:
    """Hands out pictures as the model sees them, a little changed each time in ways that change no answer."""

    def __init__(self, pictures: pool.Pool, rng: np.random.Generator) -> None:
        self.pictures, self.rng = pictures, rng
        self.table = attribute_table(pictures.truths)
        names = [name for name, *_ in ATTRIBUTES]
        shapes, borders = (self.table[: len(pictures.maps), names.index(name)] for name in ("shape", "border"))
        self.edges = np.hstack([np.eye(len(lesion.SHAPES))[shapes], np.eye(len(lesion.BORDERS))[borders]])
        # turning or mirroring a body picture would swap left and right
        self.free = np.array([truth["kind"] in ("dermoscopy", "histology", "other") for truth in pictures.truths])

    def look(self, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixel values, attribute answers, maps, and which pictures have a map."""
        turned = [self.turned(n) for n in numbers]
        pixels = np.stack([picture for picture, _ in turned]).astype(np.float32) / 127.5 - 1
        layers = np.stack([map_ for _, map_ in turned]).astype(np.float32) / 255
        edge = (layers[..., :1] > 0.02) & (layers[..., :1] < 0.98)
        kinds = self.edges[[n if n < len(self.edges) else 0 for n in numbers], None, None]
        maps = torch.from_numpy(np.concatenate([layers, edge * kinds], -1).astype(np.float32))
        drawn = torch.tensor([n < len(self.pictures.maps) for n in numbers])
        count, rng = len(numbers), self.rng
        gain = rng.uniform(0.92, 1.08, (count, 1, 1, 1)) * rng.uniform(0.98, 1.02, (count, 1, 1, 3))
        pixels = pixels * gain.astype(np.float32) + rng.uniform(-0.06, 0.06, (count, 1, 1, 1)).astype(np.float32)
        noise = rng.normal(0, 1, pixels.shape) * rng.uniform(0, 0.03, (count, 1, 1, 1))
        tensor = torch.from_numpy(np.clip(pixels + noise, -1, 1).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
        blurred = F.avg_pool2d(F.pad(tensor, (1, 1, 1, 1), mode="replicate"), 3, 1)
        share = torch.from_numpy(np.where(rng.random(count) < 0.3, rng.uniform(0, 0.5, count), 0)).float()
        tensor = torch.lerp(tensor, blurred, share.view(-1, 1, 1, 1))
        return tensor, torch.from_numpy(self.table[numbers]), maps, drawn

    def turned(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """A picture and its map, in one of eight positions where that is allowed."""
        picture = self.pictures.pixels[number]
        map_ = self.pictures.maps[number if number < len(self.pictures.maps) else 0]
        if self.free[number]:
            turn = int(self.rng.integers(8))
            picture, map_ = np.rot90(picture, turn % 4), np.rot90(map_, turn % 4)
            if turn >= 4:
                picture, map_ = picture[:, ::-1], map_[:, ::-1]
        return picture, map_

    def mixed(self, count: int) -> list[int]:
        """Numbers of pictures for the looking lessons."""
        kinds = self.rng.choice(KINDS, count, p=(0.6, 0.08, 0.2, 0.08, 0.04))
        places = [self.pictures.places[str(kind)] for kind in kinds]
        return [int(self.rng.integers(p.start, p.stop)) for p in places]


@dataclass
class Batch:
    """Conversations as numbers, filled up to the same length."""

    ids: torch.Tensor
    weights: torch.Tensor  # how much each token counts as a target
    pictures: list[int]


def encode(words: GemmaTokenizer, talks: list[lessons.Conversation]) -> list[Row]:
    """Ids, target weights and pictures of each conversation; an answer counts by the root of its length."""
    pieces = [piece for talk in talks for piece in talk.pieces]
    encoded = iter(words.backend_tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False))
    rows = []
    for talk in talks:
        ids: list[int] = []
        weights: list[float] = []
        for _, learnt in talk.pieces:
            part = next(encoded).ids
            ids += part
            weights += [len(part) ** -0.5 if learnt else 0.0] * len(part)
        rows.append((ids, weights, talk.pictures))
    return rows


def batches(rows: list[Row], piles: int) -> Iterator[Batch]:
    """The conversations sorted by length in a few batches, so that little is filled up in vain."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    for pile in np.array_split(np.arange(len(rows)), piles):
        chosen = [rows[i] for i in pile]
        shape = len(chosen), max(len(ids) for ids, _, _ in chosen)
        batch = Batch(torch.zeros(shape, dtype=torch.long), torch.zeros(shape), [])
        for place, (ids, weights, pictures) in enumerate(chosen):
            batch.ids[place, : len(ids)] = torch.tensor(ids)
            batch.weights[place, : len(ids)] = torch.tensor(weights)
            batch.pictures += pictures
        yield batch


class Run:
    """One process of a training run."""

    def __init__(self, plan: Plan, work: Path, rank: int) -> None:
        self.plan, self.work, self.rank = plan, work, rank
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.pictures = pool.load(work)
        self.words = tokenizer.from_pieces(work / "tokenizer.model")
        self.model: Gemma3ForConditionalGeneration = architecture.build(self.words, plan.seed).to(self.device).train()
        if self.device.type == "cpu":  # 64 patches are too few for the fused kernel to pay there
            self.model.model.vision_tower.set_attn_implementation("eager")
            self.model.model.language_model.set_attn_implementation("plain")
            speed.hasten(self.model.model.language_model)
        self.heads = Heads(architecture.WIDTH).to(self.device)
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.soft = self.words.convert_tokens_to_ids(lessons.SOFT)
        self.right = np.full(len(ATTRIBUTES), np.nan)
        self.loss = float("nan")
        self.log: list[dict[str, Any]] = []
        self.earlier = 0.0  # seconds of the rounds that were taken over

    def begin(self, round_: int) -> None:
        """Start a round afresh, so that a run that was interrupted between rounds ends like one that was not."""
        self.round = round_
        self.album = Album(self.pictures, np.random.default_rng([self.plan.seed, round_, self.rank]))
        self.school = lessons.School(self.pictures, np.random.default_rng([self.plan.seed, round_]))
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.plan.peak, betas=(0.9, 0.98), weight_decay=0.02, fused=True
        )
        self.right[:] = np.nan

    def weights(self) -> npt.NDArray[np.float64]:
        """Weight of each head: it counts by how often it is still wrong."""
        own = np.array([weight for _, _, weight, _ in ATTRIBUTES])
        weights: npt.NDArray[np.float64] = own * (0.08 + 2 * (1 - np.nan_to_num(self.right, nan=0.5)))
        return weights

    def part(self, talks: list[lessons.Conversation]) -> list[Row]:
        """This process's part of a step's conversations, which all processes draw alike."""
        return speed.turns(encode(self.words, talks), self.rank, self.plan.processes)

    def amp(self) -> Any:
        """bf16 where the arithmetic allows it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Picture tokens."""
        seen: torch.Tensor = self.model.get_image_features(pixels.to(self.device), return_dict=True).pooler_output
        return seen

    def lose(self, now: Round) -> torch.Tensor:
        """The loss of one step: what the heads get wrong, and what is said wrong."""
        rows = self.part([self.school.lesson() for _ in range(self.plan.processes * now.lessons)])
        texts = self.part([self.school.text() for _ in range(self.plan.processes * now.texts)])
        piles = [*batches(rows, self.plan.piles), *batches(texts, 1)] if rows else []
        numbers = [number for pile in piles for number in pile.pictures]
        pixels, wanted, maps, drawn = (
            part.to(self.device) for part in self.album.look(numbers + self.album.mixed(now.pictures))
        )
        with self.amp():
            features = self.features(pixels)
            eyes, right = self.heads(features.float(), wanted, self.weights())
            eyes = eyes + self.heads.lost_on_maps(features.float(), maps, drawn)
            spoken = features.new_zeros((), dtype=torch.float32)
            at = 0
            for pile in piles:
                spoken = spoken + self.spoken(pile, features[at : at + len(pile.pictures)])
                at += len(pile.pictures)
        spoken = spoken / max(sum(float(pile.weights[:, 1:].sum()) for pile in piles), 1.0)
        self.remember(right, spoken.item() if piles else None)
        return spoken + now.eyes * eyes

    def spoken(self, pile: Batch, features: torch.Tensor) -> torch.Tensor:
        """Summed loss of one batch of conversations."""
        ids, weights = pile.ids.to(self.device), pile.weights.to(self.device)
        seen = (
            {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
            if len(features)
            else {}
        )
        hidden = self.model.model(
            input_ids=ids,
            attention_mask=speed.masks(ids == self.soft, architecture.WINDOW, torch.bfloat16),
            use_cache=False,
            **seen,
        ).last_hidden_state
        aim = weights[:, 1:] > 0
        logits = self.model.lm_head(hidden[:, :-1][aim]).float()
        loss: torch.Tensor = (F.cross_entropy(logits, ids[:, 1:][aim], reduction="none") * weights[:, 1:][aim]).sum()
        return loss

    def remember(self, right: npt.NDArray[np.float64], loss: float | None = None) -> None:
        """Running means for the log."""
        self.right = np.where(
            np.isnan(right), self.right, np.where(np.isnan(self.right), right, 0.98 * self.right + 0.02 * right)
        )
        if loss is not None:
            self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss

    def step(self, number: int) -> None:
        """Step `number` of the round: loss, gradient shared between the processes, update."""
        now = self.plan.rounds[self.round]
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.peak * pace(number / now.steps, now)
        loss = self.lose(now)
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if dist.is_initialized():
            flat = torch.cat([p.grad.reshape(-1) for p in self.parameters if p.grad is not None])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([p.numel() for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def checkpoint(self, round_: int) -> Path:
        """Where the state at the end of a round is kept."""
        return self.work / f"round-{round_}.pt"

    def resume(self) -> int:
        """Take over the last round that the folder holds; gives the round to go on with."""
        done = [r for r in range(len(self.plan.rounds)) if self.checkpoint(r).exists()]
        if done:
            state = torch.load(self.checkpoint(done[-1]), map_location=self.device)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.log, self.earlier = state["log"], state["seconds"]
        return len(done)

    def report(self, number: int, began: float) -> None:
        """Progress on the screen and in the log."""
        heads = {name: round(float(r), 3) for (name, *_), r in zip(ATTRIBUTES, self.right, strict=True)}
        entry = {
            "round": self.round,
            "step": number,
            "seconds": round(time.time() - began),
            "loss": round(self.loss, 4),
            "heads": heads,
        }
        self.log.append(entry)
        worst = sorted(heads.items(), key=lambda item: item[1])[:9]
        print(f"{entry['seconds']:5d} s  round {self.round} step {number}  loss {self.loss:.3f}  {worst}", flush=True)

    def keep(self, began: float) -> None:
        """The state at the end of a round."""
        seconds = self.earlier + time.time() - began
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "log": self.log,
            "seconds": seconds,
        }
        torch.save(state, self.checkpoint(self.round))

    def save(self, began: float) -> None:
        """The weights so far, and the log."""
        torch.save(self.model.state_dict(), self.work / "model.pt")
        told = {
            "plan": asdict(self.plan),
            "minutes": round((self.earlier + time.time() - began) / 60, 1),
            "machine": "one CUDA device" if self.device.type == "cuda" else f"{self.plan.processes} CPU cores",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "pictures": {kind: len(places) for kind, places in self.pictures.places.items()},
            "log": self.log,
        }
        (self.work / "training.json").write_text(json.dumps(told, indent=1) + "\n")


def pace(done: float, now: Round) -> float:
    """Learning rate as a share of its peak: three per cent of warming up, then half a cosine."""
    return min(1.0, done / 0.03 + 0.02) * (now.last + (now.first - now.last) * 0.5 * (1 + math.cos(math.pi * done)))


def work_on(rank: int, plan: Plan, work: Path) -> None:
    """All steps of one process."""
    torch.set_num_threads(1)
    if plan.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29517"))
        dist.init_process_group("gloo", rank=rank, world_size=plan.processes)
    run, began = Run(plan, work, rank), time.time()
    for round_ in range(run.resume(), len(plan.rounds)):
        run.begin(round_)
        for number in range(plan.rounds[round_].steps):
            run.step(number)
            if rank == 0 and (number + 1) % 50 == 0:
                run.report(number + 1, began)
        if rank == 0:
            run.keep(began)
            run.save(began)
    if dist.is_initialized():
        dist.destroy_process_group()


def prepare(work: Path, seed: int) -> None:
    """The tokenizer, from the lessons themselves."""
    school = lessons.School(pool.load(work), np.random.default_rng([seed, 99]))
    tokenizer.train_pieces(tokenizer.corpus(school), work / "tokenizer.model")


def train(work: Path, plan: Plan) -> None:
    """A whole run; on a machine with CUDA in one process."""
    prepare(work, plan.seed)
    processes = 1 if torch.cuda.is_available() else plan.processes
    plan = replace(plan, processes=processes)
    if processes == 1:
        work_on(0, plan, work)
    else:
        mp.start_processes(work_on, (plan, work), nprocs=processes, start_method="spawn")
