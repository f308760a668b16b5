"""Longer answers are put together from what is true of the picture, sentence by sentence."""

import json
from typing import Any

from medserve.workflows import dermoscopy
from tools.demo_model import questions
from tools.demo_model.drawing import Rng
from tools.demo_model.lesion import COLOURS, SHAPES, STRUCTURES, VESSELS
from tools.demo_model.questions import Truth, listed, yes

CONSISTENT, INCONSISTENT = " is consistent with the picture.", " is inconsistent with the picture."
NAMES = ("shape", "network", "structures", "colours", "vessels", "regression", "keratosis")
# The workflow may name an observation in more than one way; the first is the usual one.
TITLES = {
    "shape": ("Shape", "shape", "Overall shape"),
    "network": ("Pigment network", "network", "Network"),
    "structures": ("Structures", "structures"),
    "colours": ("Colours", "colours", "Colors"),
    "vessels": ("Vessels", "vessels"),
    "regression": ("Regression or blue-white veil", "regression", "Regression or veil", "Regression"),
    "keratosis": ("Comedo-like openings or milia-like cysts", "keratosis", "Openings or cysts", "Keratosis"),
}
UNREAD = "not readable"  # what the workflow writes where an answer could not be read


def joined(words: tuple[str, ...] | list[str]) -> str:
    """Words as English lists them."""
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else "".join(words)


def findings(truth: Truth) -> dict[str, str]:
    """The true answer to each of the seven questions."""
    return {question.name: question.answer(truth) for question in questions.OBSERVED}


def another(name: str, value: str, rng: Rng) -> str:
    """A different answer that the question also allows."""
    if name in ("network", "regression", "keratosis"):
        return "no" if value == "yes" else "yes"
    if name == "colours":
        words = set(rng.choice(list(COLOURS), int(rng.integers(1, 3)), replace=False).tolist())
        options = [listed(tuple(c for c in COLOURS if c in words))]
    else:
        options = list({"shape": SHAPES, "structures": ("none", *STRUCTURES), "vessels": VESSELS}[name])
    choices = [option for option in options if option != value]
    return str(rng.choice(choices)) if choices else another(name, value, rng)


def spoiled(true: dict[str, str], rng: Rng, share: float) -> dict[str, str]:
    """The same list with some of the observations wrong."""
    return {name: another(name, value, rng) if rng.random() < share else value for name, value in true.items()}


def titled(values: dict[str, str], rng: Rng | None = None) -> dict[str, str]:
    """The list under the workflow's titles, or under one of the others for some lists."""
    style = int(rng.choice(4, p=(0.7, 0.14, 0.08, 0.08))) if rng is not None else 0
    return {TITLES[name][min(style, len(TITLES[name]) - 1)]: value for name, value in values.items()}


def noun(name: str, value: str) -> str:
    """An observation as the subject of a sentence."""
    if name == "shape":
        return f"{'A' if value == 'round' else 'An'} {value} shape"
    if name == "colours":
        return f"Colouring in {joined(value.split(', '))}"
    if value in ("no", "none"):
        return "The absence of " + ABSENT[name]
    return "The presence of " + (
        PRESENT[name] if value == "yes" else joined(value.split(", ")) + ABSENT_TAIL.get(name, "")
    )


PRESENT = {
    "network": "a pigment network",
    "regression": "regression or a blue-white veil",
    "keratosis": "comedo-like openings or milia-like cysts",
}
ABSENT = PRESENT | {"structures": "dots, globules and streaks", "vessels": "visible vessels"}
ABSENT_TAIL = {"vessels": " vessels"}


def further(truth: Truth, named: set[str]) -> list[str]:
    """Visible signs that a list with the given observations leaves out; the border is on no list."""
    signs = []
    if "vessels" not in named and truth["vessels"] != "none":
        signs.append(f"{truth['vessels']} vessels")
    if "regression" not in named:
        signs += [
            word for word, there in (("regression", truth["regression"]), ("a blue-white veil", truth["veil"])) if there
        ]
    if "keratosis" not in named:
        signs += [
            w for w, there in (("comedo-like openings", truth["comedo"]), ("milia-like cysts", truth["cysts"])) if there
        ]
    return [*signs, f"a {truth['border']} border"]


def addition(signs: list[str]) -> str:
    """The sentence that names what the list leaves out."""
    return f"In addition, {joined(signs)} {'is' if len(signs) == 1 and signs[0].startswith('a ') else 'are'} visible."


def second_look(truth: Truth, claimed: dict[str, str]) -> str:
    """A sentence about each observation and one about what is left out."""
    return "".join(parts_of_second_look(truth, claimed))


def parts_of_second_look(truth: Truth, claimed: dict[str, str]) -> list[str]:
    """The second look, cut before every verdict and every sentence."""
    true = findings(truth)
    parts = []
    for name, value in claimed.items():
        if value != UNREAD:
            parts += [f" {noun(name, value)}", CONSISTENT if true[name] == value else INCONSISTENT]
    parts.append(f" {addition(further(truth, set(claimed)))}")
    return [parts[0].lstrip(), *parts[1:]]


def class_of_words(claimed: dict[str, str], description: str) -> str:
    """The class by the rules, from a list and a description; a sign called inconsistent does not count."""
    doubted = {name for name, value in claimed.items() if noun(name, value) + INCONSISTENT in description}
    seen = {name: value for name, value in claimed.items() if name not in doubted}
    extra = description.partition("In addition, ")[2]
    if seen.get("vessels") == "arborizing" or "arborizing" in extra:
        return "BCC"
    if seen.get("keratosis") == "yes" or "comedo-like" in extra or "milia-like" in extra:
        return "BKL"
    if seen.get("regression") == "yes" or "regression" in extra or "veil" in extra:
        return "MEL"
    if seen.get("shape") == "irregular" and "streaks" in seen.get("structures", ""):
        return "MEL"
    return "NV"


def described(kind: str, truth: Truth) -> str:
    """A short account of any drawing."""
    if kind == "dermoscopy":
        return lesion_account(truth)
    if kind == "histology":
        return "This is a drawn tissue section of colon. " + GLANDS[truth["malignant"]]
    if kind == "CT":
        return "This is a drawn axial CT slice with both kidneys. " + stone_sentence(truth)
    if kind == "chest X-ray":
        return "This is a drawn chest X-ray. " + HEARTS[truth["enlarged"]]
    return f"This is no medical picture. It shows {truth['motif']}."


def lesion_account(truth: Truth) -> str:
    """Two sentences about a lesion."""
    article = "An" if truth["shape"] != "round" else "A"
    signs = further(truth, set())[:-1]
    marks = (["a pigment network"] if truth["network"] else []) + list(truth["structures"]) + signs
    first = f"{article} {truth['shape']} lesion of {truth['size']} size with a {truth['border']} border, {joined(truth['colours'])}."
    return f"{first} It shows {joined(marks) or 'no further structures'}."


GLANDS = {
    False: "The glands are round and regular with small nuclei at the base.",
    True: "The glands are crowded and irregular with large dark nuclei.",
}
HEARTS = {
    False: "The heart is narrower than half of the chest.",
    True: "The heart is wider than half of the chest.",
}


def stone_sentence(truth: Truth) -> str:
    """Where the stone is."""
    return (
        f"A bright stone lies in the {truth['side']} kidney." if truth["stone"] else "Both kidneys are free of stones."
    )


EXPLAINED: dict[str, tuple[str, tuple[str, ...]]] = {
    "histology": (
        "malignant",
        ("Are malignant gland changes visible?", "Do the glands look malignant?", "Is the tissue malignant?"),
    ),
    "CT": ("stone", ("Is a kidney stone visible?", "Is there a kidney stone?", "Do you see a kidney stone?")),
    "chest X-ray": ("enlarged", ("Is the heart enlarged?", "Do you see an enlarged heart?", "Is the heart too large?")),
}
EXPLAIN = ("Answer yes or no and explain in one sentence.", "Answer yes or no, and explain in one sentence.",
           "Explain your answer in one sentence.", "Yes or no? Give one sentence of explanation.")  # fmt: skip


def explained(kind: str, truth: Truth) -> str:
    """`yes` or `no` and one sentence."""
    reason = {
        "histology": lambda: GLANDS[truth["malignant"]],
        "CT": lambda: stone_sentence(truth),
        "chest X-ray": lambda: HEARTS[truth["enlarged"]],
    }[kind]()
    return f"{yes(truth[EXPLAINED[kind][0]])}. {reason}"


DESCRIBE = (
    "Describe the image.", "Describe this picture.", "What do you see?", "Describe the picture in one or two sentences.",
    "Please describe what is visible.", "What is shown here?", "Give a short description of the image.", "Describe what you see.",
    "Describe the lesion.", "Tell me about this image.", "What does the picture show?", "Write a short report.",
    "Summarise the image.", "Please describe the image.", "Could you describe the picture?", "Give a description of this image.",
    "Describe what the picture shows.", "What do you see in this picture?", "What is visible in the image?",
    "Can you say what the picture shows?", "Can you tell me what you see?", "Describe all that is visible.",
    "Please give me a short description.", "Describe what you can see here.", "What can be seen here?",
)  # fmt: skip
DESCRIBE_UNSEEN = ("Can you describe this image?", "Please give a description of the picture.", "Describe what is shown.",
                   "What can you see in the image?")  # fmt: skip
AS_JSON = (
    "Answer as JSON with the keys {}.", "Answer as JSON with these keys: {}.", "Give a JSON object with the keys {}.",
    "Return JSON with the keys {}.", "Describe the image as JSON with the keys {}.", "JSON with the keys {}, please.",
    "Fill in a JSON object with the keys {}.", "Report as JSON: {}.",
)  # fmt: skip
AS_JSON_FREE = ("Answer as JSON.", "Describe the image as JSON.", "Give all attributes as JSON.", "Return a JSON object.",
                "Report as JSON.")  # fmt: skip


def fields(kind: str, truth: Truth) -> dict[str, str]:
    """Every attribute of a drawing under its fixed key."""
    own: dict[str, Any] = {"kind": kind}
    if kind == "dermoscopy":
        own |= findings(truth) | {"border": truth["border"], "size": truth["size"]}
    if kind == "histology":
        own |= {"malignant": yes(truth["malignant"])}
    if kind == "CT":
        own |= {"stone": yes(truth["stone"]), "side": truth["side"]}
    if kind == "chest X-ray":
        own |= {"heart_enlarged": yes(truth["enlarged"])}
    if kind == "other":
        own |= {"motif": truth["motif"]}
    return own


def as_json(values: dict[str, str], compact: bool = False) -> str:
    """Values as JSON with the separators that the model is used to."""
    return json.dumps(values, separators=(",", ":") if compact else (", ", ": "))


WAYS_TO_ASK = (
    "Which class fits best: MEL (melanoma), NV (melanocytic nevus), BCC (basal cell carcinoma) or BKL (benign keratosis)? "
    "Answer with one code.",
    "Which class fits best? Answer with one code: MEL, NV, BCC or BKL.",
    "What is the most likely class: MEL, NV, BCC or BKL? Answer with the code.",
    "Classify the lesion as MEL, NV, BCC or BKL. Answer with one code.",
)


def classification(claimed: dict[str, str], description: str, way: int = 0) -> str:
    """The text-only question in the workflow's wording, or with another closing sentence."""
    return dermoscopy.classification(claimed, description).replace(WAYS_TO_ASK[0], WAYS_TO_ASK[way])


def read_json(text: str) -> dict[str, Any] | None:
    """A JSON object, or None where the text is not one."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
