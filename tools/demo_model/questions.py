"""Every closed question has one wording of the workflow, many that are trained and some that are never trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medserve.workflows import dermoscopy
from tools.demo_model.drawing import Rng
from tools.demo_model.lesion import CLASSES

Truth = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One closed question; the held-out wordings are for the evaluation alone."""

    name: str
    kinds: tuple[str, ...]
    own: str
    endings: tuple[str, ...]
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: Callable[[Truth], str]

    def paraphrase(self, rng: Rng) -> str:
        """A trained wording with one of the endings, now and then after a polite opening."""
        stem = str(rng.choice(self.trained))
        if rng.random() < 0.25:
            stem = str(rng.choice(OPENINGS)) + stem
        return f"{stem} {rng.choice(self.endings)}".strip()

    def unseen(self, number: int) -> str:
        """A held-out wording with the first ending."""
        return f"{self.held_out[number % len(self.held_out)]} {self.endings[0]}".strip()


OPENINGS = (
    "Please look at the picture. ",
    "Look closely. ",
    "About this image: ",
    "Please tell me: ",
    "Next question: ",
)
YES_NO = ("Answer yes or no.", "Reply with yes or no.", "Yes or no?", "Please answer yes or no.", "Say yes or no.", "")


def yes(value: object) -> str:
    """A truth as the word the question offers."""
    return "yes" if value else "no"


def listed(words: tuple[str, ...]) -> str:
    """Words separated by commas, or `none`."""
    return ", ".join(words) or "none"


LESION, COLON, CT, CHEST = ("dermoscopy",), ("histology",), ("CT",), ("chest X-ray",)
EVERY = ("dermoscopy", "histology", "CT", "chest X-ray", "other")

SHAPE = Question(
    "shape",
    LESION,
    dermoscopy.SHAPE,
    ("Answer with one word: round, oval or irregular.", "Answer with one word.", "Round, oval or irregular?", ""),
    (
        "What is the overall shape of the lesion?", "What is the shape of the lesion?", "What shape is it?", "Shape?",
        "Which shape does the lesion have?", "Describe the shape of the lesion.", "How would you describe its shape?",
        "Name the shape.", "Is the lesion round, oval or irregular?", "Please classify the shape of this lesion.",
        "What is the outline of the lesion like?", "Tell me the overall form of the lesion.", "What form does it have?",
        "Is the outline round, oval or irregular?", "Give the shape.", "Which of these fits the shape best?",
    ),
    (
        "Can you name the shape of this lesion?", "What would you call the overall shape?", "What is the form of the lesion?",
        "Which shape do you see in the picture?", "Please give the overall outline of the lesion.",
    ),
    lambda t: str(t["shape"]),
)  # fmt: skip
NETWORK = Question(
    "network",
    LESION,
    dermoscopy.NETWORK,
    YES_NO,
    (
        "Is a pigment network visible in the lesion?", "Is there a pigment network?", "Pigment network?", "Network?",
        "Do you see a pigment network?", "Can you see a network in the lesion?", "Does the lesion have a pigment network?",
        "Is a network present?", "Does it show a pigment network?", "Is the lesion crossed by a pigment network?",
        "Is any pigment network there?", "Check for a pigment network.", "Is a network of lines visible?",
        "Would you say that a pigment network is present?",
    ),
    (
        "Can a pigment network be seen?", "Is the pigment network there?", "Does this lesion show a network?",
        "Have you found a pigment network in it?", "Is there any network visible?",
    ),
    lambda t: yes(t["network"]),
)  # fmt: skip
STRUCTURES = Question(
    "structures",
    LESION,
    dermoscopy.STRUCTURES,
    ("Name those you see, or answer none.", "Answer with their names or none.", "Name them, or say none.", ""),
    (
        "Which of these structures are visible: dots, globules, streaks?", "Are there dots, globules or streaks?",
        "Which structures are visible?", "Structures?", "Do you see dots, globules or streaks?", "Name the structures.",
        "Which dermoscopic structures does the lesion show?", "Any dots, globules or streaks?", "What structures are present?",
        "List the structures: dots, globules, streaks.", "Which structures can you see in the lesion?",
        "Of dots, globules and streaks, which are there?", "Tell me which structures the lesion has.",
        "Does the lesion show dots, globules or streaks?", "Could you list the dots, globules or streaks?",
        "Please name the structures that you see.", "What structures can be seen in the lesion?", "Which structures are there?",
        "Are any structures present: dots, globules, streaks?", "Tell me about dots, globules and streaks.",
        "Are structures such as dots or globules there?", "Which of the structures dots, globules and streaks do you see?",
    ),
    (
        "Can you see dots, globules or streaks?", "What dermoscopic structures do you see?",
        "Which of dots, globules and streaks are present?", "Please list the visible structures.",
        "Are any structures such as dots, globules or streaks visible?",
    ),
    lambda t: listed(t["structures"]),
)  # fmt: skip
COLOURS = Question(
    "colours",
    LESION,
    dermoscopy.COLOURS,
    ("Answer with colour names only, separated by commas.", "Answer with colour names.", "List them with commas.", ""),
    (
        "Which colours does the lesion have?", "What colours are visible?", "Colours?", "Which colours do you see?",
        "Name the colours of the lesion.", "What colour is the lesion?", "What colours does it have?", "List the colours.",
        "Which colors are present?", "What color is it?", "Tell me the colours in the lesion.", "Colors?",
        "Which colours are there in the lesion?", "Give all colours of the lesion.", "Could you tell me the colours of the lesion?",
        "What are its colours?", "Please name every colour.", "Which colours can you see?", "What colors do you see?",
        "Which colours does this lesion show?", "Can you list its colours?", "What are the colors of the lesion?",
    ),
    (
        "Can you name the colours of the lesion?", "What are the colours of this lesion?", "Which colours can be seen?",
        "Please list all colours that you see.", "What colors does the lesion show?",
    ),
    lambda t: listed(t["colours"]),
)  # fmt: skip
VESSELS_QUESTION = Question(
    "vessels",
    LESION,
    dermoscopy.VESSELS,
    ("Name those you see, or answer none.", "Answer arborizing, dotted, linear or none.", "Name them, or say none.", ""),
    (
        "Which vessels are visible: arborizing, dotted, linear?", "Which vessels are visible?", "Vessels?",
        "Are there arborizing, dotted or linear vessels?", "Do you see vessels, and which?", "Name the vessels.",
        "What vessels does the lesion show?", "Which type of vessels is present?", "Any arborizing, dotted or linear vessels?",
        "What kind of vessels can you see?", "Which blood vessels are visible in the lesion?", "Tell me the type of the vessels.",
        "Of arborizing, dotted and linear vessels, which are there?", "Does the lesion have vessels, and of which type?",
    ),
    (
        "Can you see arborizing, dotted or linear vessels?", "What type of vessels do you see?",
        "Which vessels does this lesion have?", "Please name the visible vessels.", "Are any vessels present, and which kind?",
    ),
    lambda t: str(t["vessels"]),
)  # fmt: skip
REGRESSION = Question(
    "regression",
    LESION,
    dermoscopy.REGRESSION,
    YES_NO,
    (
        "Is regression or a blue-white veil visible?", "Is there regression or a blue-white veil?", "Regression or veil?",
        "Do you see regression or a blue-white veil?", "Does the lesion show regression or a veil?", "Regression or a veil?",
        "Can you see a blue-white veil or regression?", "Is a blue-white veil or regression present?",
        "Are there signs of regression or a blue-white veil?", "Check for regression or a blue-white veil.",
        "Is either regression or a veil present?", "Does it have a blue-white veil or regression?",
        "Would you say that there is regression or a veil?", "Is any regression or blue-white veil there?",
    ),
    (
        "Can regression or a blue-white veil be seen?", "Does this lesion have regression or a blue-white veil?",
        "Have you found regression or a veil?", "Is a veil or regression visible in the lesion?",
    ),
    lambda t: yes(t["regression"] or t["veil"]),
)  # fmt: skip
KERATOSIS = Question(
    "keratosis",
    LESION,
    dermoscopy.KERATOSIS,
    YES_NO,
    (
        "Are comedo-like openings or milia-like cysts visible?", "Are there comedo-like openings or milia-like cysts?",
        "Comedo-like openings or milia-like cysts?", "Do you see comedo-like openings or milia-like cysts?",
        "Does the lesion show milia-like cysts or comedo-like openings?", "Comedo-like openings or cysts?",
        "Can you see milia-like cysts or comedo-like openings?", "Are milia-like cysts or comedo-like openings present?",
        "Are there any comedo-like openings or cysts?", "Check for comedo-like openings and milia-like cysts.",
        "Does it have comedo-like openings or milia-like cysts?", "Are openings or cysts present?",
        "Would you say that there are comedo-like openings or cysts?", "Is any milia-like cyst or comedo-like opening there?",
    ),
    (
        "Can comedo-like openings or milia-like cysts be seen?", "Does this lesion have milia-like cysts or comedo-like openings?",
        "Have you found comedo-like openings or cysts?", "Are there openings or cysts in the lesion?",
    ),
    lambda t: yes(t["comedo"] or t["cysts"]),
)  # fmt: skip
CLASS = Question(
    "class",
    LESION,
    "Which class fits this lesion best: MEL (melanoma), NV (melanocytic nevus), BCC (basal cell carcinoma) or BKL "
    "(benign keratosis)? Answer with one code.",
    ("Answer with one code: MEL, NV, BCC or BKL.", "Answer with one code.", "MEL, NV, BCC or BKL?", "Answer with the code only.", ""),
    (
        "Which class fits best: MEL (melanoma), NV (melanocytic nevus), BCC (basal cell carcinoma) or BKL (benign keratosis)?",
        "Which class fits this lesion best?", "What is the class of the lesion?", "Class?", "Classify the lesion.",
        "Which diagnosis class is it?", "What class is it?", "Which of MEL, NV, BCC and BKL is it?", "Name the class.",
        "Is it melanoma, nevus, basal cell carcinoma or benign keratosis?", "Give the class of this lesion.",
        "To which class does the lesion belong?", "What type of lesion is it?", "Choose the class of this lesion.",
    ),
    (
        "Can you classify this lesion?", "Which class does this lesion belong to?", "Please choose one class for the lesion.",
        "What is the best class for this picture?",
    ),
    lambda t: str(t["class"]),
)  # fmt: skip
BORDER = Question(
    "border",
    LESION,
    "Is the border of the lesion sharp or blurred? Answer with one word.",
    ("Answer with one word.", "Answer sharp or blurred.", "Sharp or blurred?", ""),
    (
        "Is the border sharp or blurred?", "How is the border?", "Border?", "Describe the border.", "What about the border?",
        "Is the border of the lesion sharp or blurred?", "How is the edge of the lesion?", "Is the edge sharp or blurred?",
        "How does the border look?", "Name the type of border.", "Tell me about the border.", "What is the border like?",
        "How do the edges look?", "Are the edges sharp or blurred?", "What are the edges of the lesion like?", "Describe the edges.",
        "Could you describe the border of the lesion?", "What kind of border does it have?", "Which border does the lesion show?",
        "Can you say how the border looks?", "Edges?", "Does the lesion have a sharp or a blurred border?",
    ),
    ("Can you describe the border?", "What border does the lesion have?", "Is this border sharp or blurred?", "How are the edges?"),
    lambda t: str(t["border"]),
)  # fmt: skip
SIZE = Question(
    "size",
    LESION,
    "How large is the lesion? Answer with one word: small, medium or large.",
    ("Answer with one word: small, medium or large.", "Small, medium or large?", "Answer with one word.", ""),
    (
        "How large is the lesion?", "How big is it?", "Size?", "What is the size of the lesion?", "What size is it?",
        "Is the lesion small, medium or large?", "Describe the size.", "How big is the lesion?", "Name the size of the lesion.",
        "Give the size.", "Tell me the size of the lesion.", "Is it small, medium or large?", "Could you say how large it is?",
        "What is its size?", "Which size is the lesion?", "Can you say how big the lesion is?",
    ),
    ("Can you tell the size of the lesion?", "What size does the lesion have?", "How large is it?", "Please name its size."),
    lambda t: str(t["size"]),
)  # fmt: skip
KIND = Question(
    "kind",
    EVERY,
    "What kind of picture is this? Answer with one: dermoscopy, histology, CT, chest X-ray or other.",
    ("Answer with one: dermoscopy, histology, CT, chest X-ray or other.", "Dermoscopy, histology, CT, chest X-ray or other?", ""),
    (
        "What kind of picture is this?", "What kind of image is it?", "Kind of picture?", "What type of picture is this?",
        "Which kind of image do you see?", "What is this a picture of?", "What sort of image is this?", "Name the kind of picture.",
        "Which modality is this?", "What is the modality of the image?", "Tell me the kind of image.", "Modality?",
        "Is this dermoscopy, histology, CT, a chest X-ray or something else?", "Which type of image is shown?",
    ),
    (
        "Can you tell what kind of picture this is?", "Which kind of picture is it?", "What type of image do you see?",
        "Please name the modality of this picture.",
    ),
    lambda t: str(t["kind"]),
)  # fmt: skip
TISSUE = Question(
    "tissue",
    EVERY,
    "Is this a tissue section of colon stained with haematoxylin and eosin? Answer yes or no.",
    YES_NO,
    (
        "Is this a tissue section of colon stained with haematoxylin and eosin?", "Is this a tissue section?",
        "Is this a colon section stained with haematoxylin and eosin?", "Is it histology of the colon?", "Is colon tissue shown?",
        "Does the picture show a tissue section of colon?", "Is this stained colon tissue?", "Colon tissue section?",
        "Is this an H&E stained section of colon?", "Does the image show colon stained with haematoxylin and eosin?",
        "Do you see a section of colon tissue?", "Is it a section stained with haematoxylin and eosin?",
        "Is this histology?", "Is this a section of the colon?",
    ),
    (
        "Can you see a tissue section of colon?", "Does this picture show stained colon tissue?",
        "Is the image a colon section stained with H&E?", "Would you say this is a tissue section of colon?",
    ),
    lambda t: yes(t["kind"] == "histology"),
)  # fmt: skip
MALIGNANT = Question(
    "malignant",
    COLON,
    "Are malignant gland changes visible? Answer yes or no.",
    YES_NO,
    (
        "Are malignant gland changes visible?", "Are there malignant gland changes?", "Malignant changes?", "Is a tumour visible?",
        "Do you see malignant changes of the glands?", "Do the glands look malignant?", "Is the tissue malignant?",
        "Does the tile show malignant glands?", "Are the glands malignant?", "Can you see malignant gland changes?",
        "Does the tissue look like a tumour?", "Is this a tumour?", "Check the glands for malignant changes.",
        "Are malignant changes present?",
    ),
    (
        "Can malignant gland changes be seen?", "Does this tissue show malignant changes?", "Is there a tumour in this section?",
        "Would you say that the glands are malignant?",
    ),
    lambda t: yes(t["malignant"]),
)  # fmt: skip
STONE = Question(
    "stone",
    CT,
    "Is a kidney stone visible? Answer yes or no.",
    YES_NO,
    (
        "Is a kidney stone visible?", "Is there a kidney stone?", "Kidney stone?", "Do you see a kidney stone?", "Any stone?",
        "Does the slice show a kidney stone?", "Is a stone present?", "Can you see a stone in a kidney?", "Is there a stone?",
        "Does either kidney contain a stone?", "Check for a kidney stone.", "Are there kidney stones?",
        "Is a stone visible in one of the kidneys?", "Would you say that there is a kidney stone?",
    ),
    (
        "Can a kidney stone be seen?", "Does this slice contain a stone?", "Have you found a kidney stone?",
        "Is there any stone in the kidneys?",
    ),
    lambda t: yes(t["stone"]),
)  # fmt: skip
STONE_SIDE = Question(
    "side",
    CT,
    "On which side is the kidney stone? Answer with one: left, right or none.",
    ("Answer with one: left, right or none.", "Answer left, right or none.", "Left, right or none?"),
    (
        "On which side is the kidney stone?", "On which side is the stone?", "Which side?", "Side of the stone?",
        "Which kidney contains the stone?", "Where is the kidney stone?", "Where is the stone?", "Name the side of the stone.",
        "In which kidney is the stone?", "Which side has a kidney stone?", "Is the stone on the left or on the right?",
        "Tell me the side of the kidney stone.", "Which kidney has a stone?", "Give the side of the stone.",
    ),
    (
        "Can you name the side of the kidney stone?", "On what side do you see the stone?", "Which kidney holds the stone?",
        "Please tell me where the kidney stone is.",
    ),
    lambda t: str(t["side"]),
)  # fmt: skip
HEART = Question(
    "heart",
    CHEST,
    "Is the heart enlarged? Answer yes or no.",
    YES_NO,
    (
        "Is the heart enlarged?", "Is the heart too large?", "Enlarged heart?", "Is there cardiomegaly?", "Cardiomegaly?",
        "Do you see an enlarged heart?", "Does the heart look enlarged?", "Is this heart enlarged?", "Is the heart big?",
        "Is the heart wider than normal?", "Does the film show an enlarged heart?", "Is the cardiac shadow enlarged?",
        "Check the heart for enlargement.", "Would you say that the heart is enlarged?",
    ),
    (
        "Can an enlarged heart be seen?", "Does this film show cardiomegaly?", "Is the size of the heart enlarged?",
        "Has the heart become too large?",
    ),
    lambda t: yes(t["enlarged"]),
)  # fmt: skip

OBSERVED = (SHAPE, NETWORK, STRUCTURES, COLOURS, VESSELS_QUESTION, REGRESSION, KERATOSIS)
CLOSED = (*OBSERVED, CLASS, BORDER, SIZE, KIND, TISSUE, MALIGNANT, STONE, STONE_SIDE, HEART)
CODES = CLASSES


def about(kind: str) -> tuple[Question, ...]:
    """The questions that can be asked about a kind of picture."""
    return tuple(question for question in CLOSED if kind in question.kinds)
