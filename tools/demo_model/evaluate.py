"""Nothing is said about the model that this module did not measure on drawings unseen in training."""

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from medserve.intervals import wilson
from tools.demo_model import exam, pool, questions
from tools.demo_model.engines import Candidate, ThroughLlama, ThroughTransformers
from tools.demo_model.exam import Gallery, Item, Paper

SIDE, LARGE = 256, 512


def marked(paper: Paper, candidate: Candidate) -> dict[str, Any]:
    """One row of a table."""
    fresh = {id(item): item for item in paper.items if (id(candidate), id(item)) not in ANSWERS}
    said = candidate.answer(list(fresh.values()), paper.tokens)
    ANSWERS.update({(id(candidate), number): answer for number, answer in zip(fresh, said, strict=True)})
    answers = [ANSWERS[id(candidate), id(item)] for item in paper.items]
    marks = [paper.mark(answer, item.expected) for answer, item in zip(answers, paper.items, strict=True)]
    low, high = wilson(sum(marks), len(marks))
    wrong = [
        {"question": item.text[-120:], "expected": item.expected, "answer": answer}
        for item, answer, mark in zip(paper.items, answers, marks, strict=True)
        if mark < 1
    ]
    row = {
        "table": paper.table,
        "row": paper.row,
        "n": len(marks),
        "accuracy": round(sum(marks) / len(marks), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "majority": round(paper.majority(), 4),
        "examples_wrong": wrong[:3],
    }
    told = f"{row['accuracy']:.3f} [{low:.3f}, {high:.3f}]  majority {row['majority']:.3f}"
    print(f"{paper.table:40s} {paper.row:36s} {told}", flush=True)
    return row


# Pictures are too heavy to be sent to the workers, who inherit them instead.
PAPERS: list[Paper] = []
CANDIDATES: list[Candidate] = []
ANSWERS: dict[tuple[int, int], str] = {}  # papers that share an item share its answer


def sit_down(folder: Path) -> None:
    """Give a worker its own copy of the model."""
    torch.set_num_threads(1)
    CANDIDATES.append(ThroughTransformers(folder))


def tables(papers: list[Paper]) -> list[list[int]]:
    """The places of the papers, those of one kind of answer together."""
    first: dict[int, list[int]] = {}
    for place, paper in enumerate(papers):
        first.setdefault(id(paper.items[0]), []).append(place)
    return list(first.values())


def marked_table(places: list[int]) -> list[dict[str, Any]]:
    """Rows for some of the papers."""
    return [marked(PAPERS[place], CANDIDATES[0]) for place in places]


SAMPLES = {"own wording": 20, "class from words alone": 20, "second look": 10}


def sample(papers: Iterable[Paper]) -> list[Paper]:
    """The first items of the papers in the workflows' own wording."""
    kept = [(paper, SAMPLES[paper.table]) for paper in papers if paper.table in SAMPLES]
    return [Paper(f"through llama.cpp, {p.table}", p.row, p.items[:most], p.mark, p.tokens) for p, most in kept]


def marked_through_llama(folder: Path) -> list[dict[str, Any]]:
    """Rows for the sample; the longest single task, and so the first to be given out."""
    other = ThroughLlama(folder)
    return [marked(paper, other) for paper in sample(PAPERS)]


def parity(one: ThroughTransformers, other: ThroughLlama, pictures: Gallery) -> dict[str, Any]:
    """How many greedy answers of the two engines agree, text and number of tokens alike."""
    items = parity_items(pictures)
    same, prompts, different = 0, 0, []
    end = one.processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for item, tokens in items:
        ids = one.ids([item], tokens)[0]
        text = one.processor.decode(ids, skip_special_tokens=True)
        count = ids.index(end) + 1 if end in ids else len(ids)
        said, length, read = other.one(item, tokens)
        prompts += read == one.encode([item])["input_ids"].shape[1]
        if said == text and length == count:
            same += 1
        else:
            different.append({"question": item.text[-100:], "transformers": text, "llama.cpp": said})
    print(f"parity: {same} of {len(items)} answers and {prompts} prompt lengths agree", flush=True)
    return {"prompts": len(items), "same_answers": same, "same_prompt_lengths": prompts, "different": different}


def parity_items(pictures: Gallery) -> list[tuple[Item, int]]:
    """Short and long answers: with and without picture, system text, two pictures, a prompt beyond the window."""
    shown = pictures.among(questions.EVERY)
    items = [(Item(question.own, "", (pictures.of(question.kinds[0])[3].image,)), 12) for question in questions.CLOSED]
    items += [(Item("Describe the image.", "", (drawing.image,)), 80) for drawing in shown[:5]]
    items += [(Item("Answer as JSON.", "", (drawing.image,), "Be precise."), 140) for drawing in shown[5:10]]
    items += [(Item("Who are you?", ""), 40), (Item("Hello", "", (), "Answer briefly."), 40)]
    items += [(Item("Are both pictures of the same kind? Answer yes or no.", "", (shown[0].image, shown[1].image)), 8)]
    items += [(Item("The patient was seen in good light. " * 90 + questions.SHAPE.own, "", (shown[0].image,)), 24)]
    return items


def evaluate(folder: Path, count: int = 200) -> dict[str, Any]:
    """Every table, written to `evaluation.json` beside the weights."""
    pictures, large = Gallery(count, SIDE), Gallery(count // exam.FEWER, LARGE)
    papers = [*exam.closed_papers(pictures, large), *exam.longer_papers(pictures)]
    PAPERS.extend(papers)
    with ProcessPoolExecutor(initializer=partial(sit_down, folder), mp_context=get_context("fork")) as workers:
        through_llama = workers.submit(marked_through_llama, folder)
        rows = [row for part in workers.map(marked_table, tables(papers)) for row in part]
        rows += through_llama.result()
    one, other = ThroughTransformers(folder), ThroughLlama(folder)
    result = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": "python -m tools.demo_model evaluate",
        "first_drawing": pool.FIRST_UNSEEN,
        "picture_side": SIDE,
        "parity": parity(one, other, pictures),
        "rows": rows,
    }
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
