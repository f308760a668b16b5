"""The drawings and prompts that ship with the model are numbered like all others and can be drawn again."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from medserve.workflows import dermoscopy
from tools.demo_model import accounts, chest, colon, exam, gallery, kidney, lesion, other, questions
from tools.demo_model.drawing import Drawing
from tools.demo_model.engines import ThroughTransformers
from tools.demo_model.exam import Item

FIRST = 2_000_000  # neither trained nor measured
SIDE, COLOURS = 256, 28
TRIES = 40


def sight_pictures() -> dict[str, Drawing]:
    """Two pictures of plainly different kinds, for the question whether a model sees at all."""
    return {"sight-a": lesion.draw(FIRST + 12, SIDE, "BKL"), "sight-b": chest.draw(FIRST + 1, SIDE, True)}


def example_drawings(engine: ThroughTransformers, folder: Path) -> dict[str, Drawing]:
    """One drawing for each class and kind."""
    shown = {f"lesion-{label.lower()}": well_read(engine, label, folder) for label in lesion.CLASSES}
    shown |= {f"colon-{name}": colon.draw(FIRST, SIDE, sick) for name, sick in (("normal", False), ("tumour", True))}
    shown |= {f"kidney-{side}": kidney.draw(FIRST + n, SIDE, side) for n, side in enumerate(kidney.SIDES)}
    shown |= {
        f"chest-{name}": chest.draw(FIRST, SIDE, large) for name, large in (("normal", False), ("large-heart", True))
    }
    return shown | {"cat": other.draw(FIRST, SIDE, "a cat"), "page": other.draw(FIRST, SIDE, "a page of text")}


def save(drawing: Drawing, path: Path) -> None:
    """A PNG of few colours, to stay small."""
    few = drawing.image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    path.chmod(0o644)


def answers(drawing: Drawing) -> dict[str, str]:
    """The right answer to each closed question that can be asked about a drawing."""
    truth = exam.truth_of(drawing)
    return {question.name: question.answer(truth) for question in questions.about(drawing.kind)}


def well_read(engine: ThroughTransformers, label: str, folder: Path) -> Drawing:
    """The first lesion of a class, not a small one, about which the model answers most questions rightly."""
    path, best = folder / "drawings" / f"lesion-{label.lower()}.png", (-1, 0)
    for number in range(TRIES):
        drawing = lesion.draw(FIRST + number, SIDE, label)
        if drawing.truth["size"] == "small":
            continue
        save(drawing, path)
        right = len(known_right(engine, drawing, path))
        best = max(best, (right, -number))
        if right == len(answers(drawing)):
            break
    return lesion.draw(FIRST - best[1], SIDE, label)


def known_right(engine: ThroughTransformers, drawing: Drawing, path: Path) -> list[str]:
    """The closed questions that the shipped model answers rightly about the shipped picture, for tests to lean on."""
    picture, truth = Image.open(path).convert("RGB"), exam.truth_of(drawing)
    asked = questions.about(drawing.kind)
    items = [Item(question.own, question.answer(truth), (picture,)) for question in asked]
    said = engine.answer(items, 24)
    return [q.name for q, item, answer in zip(asked, items, said, strict=True) if answer == item.expected]


def write(folder: Path) -> None:
    """The pictures with what is true of them, and the exact ids of some prompts."""
    (folder / "drawings").mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    engine = ThroughTransformers(folder)
    for name, drawing in sight_pictures().items():
        save(drawing, folder / f"{name}.png")
    for name, drawing in example_drawings(engine, folder).items():
        save(drawing, folder / "drawings" / f"{name}.png")
        path = folder / "drawings" / f"{name}.png"
        known = {"answers": answers(drawing), "right": known_right(engine, drawing, path)}
        told[path.name] = {"kind": drawing.kind, "truth": drawing.truth} | known
    asked = {question.name: question.own for question in questions.CLOSED}
    (folder / "drawings" / "drawings.json").write_text(
        json.dumps({"questions": asked, "drawings": told}, indent=1) + "\n"
    )
    (folder / "golden.json").write_text(json.dumps(golden(engine, folder), indent=1) + "\n")


def golden(engine: ThroughTransformers, folder: Path) -> list[dict[str, Any]]:
    """Prompts with the ids that transformers' own processor gives them, picture tokens included."""
    values = accounts.titled({name: "no" if name == "network" else "none" for name in ("network", "structures")})
    prompts: list[tuple[str, list[str], list[dict[str, Any]]]] = [
        ("text only", [], [user("Who are you?")]),
        ("system text", [], [system("Answer briefly."), user("Hello")]),
        ("one picture", ["lesion-mel.png"], [user(questions.SHAPE.own, 1)]),
        (
            "system text and picture",
            ["chest-normal.png"],
            [system("You are an expert radiologist."), user(questions.HEART.own, 1)],
        ),
        (
            "two pictures",
            ["lesion-nv.png", "cat.png"],
            [user("Are both pictures of the same kind? Answer yes or no.", 2)],
        ),
        ("several lines", ["lesion-bcc.png"], [user(dermoscopy.second_look(values), 1)]),
        (
            "three turns",
            ["kidney-left.png"],
            [
                user(questions.STONE.own, 1),
                {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
                user(questions.STONE_SIDE.own),
            ],
        ),
        (
            "beyond the sliding window",
            ["lesion-bkl.png"],
            [user("The patient was seen in good light. " * 90 + "Shape?", 1)],
        ),
    ]
    return [entry(engine, folder, *prompt) for prompt in prompts]


def user(text: str, pictures: int = 0) -> dict[str, Any]:
    """A user's turn, pictures first."""
    return {"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


def system(text: str) -> dict[str, Any]:
    """System text."""
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def entry(
    engine: ThroughTransformers, folder: Path, name: str, pictures: list[str], messages: list[dict[str, Any]]
) -> dict[str, Any]:
    """One prompt with its ids."""
    text = engine.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = (
        [[gallery.padded(Image.open(folder / "drawings" / p).convert("RGB")) for p in pictures]] if pictures else None
    )
    ids = engine.processor(text=[text], images=images, add_special_tokens=False)["input_ids"][0]
    return {"name": name, "pictures": pictures, "messages": messages, "input_ids": [int(i) for i in ids]}
