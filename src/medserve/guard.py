"""What a workflow does not take is told from what it takes before a question is asked about it.

Three things are held against it, the surest first: what the files state, what can be computed of the pixels, and what
the model itself takes the picture for. The numbers below were chosen on the 40 dermoscopic photographs, 3 tiles, 2
films, 3 CT slices and 31 everyday pictures that `docs/workflows/guard.md` names, so what that page says of them is no
estimate for others. It also says what is caught of pictures that had no part in the choice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage

from medserve.flags import Flag
from medserve.images import Image, Study
from medserve.imaging.windows import three_windows
from medserve.readers import one_of
from medserve.reports import Check
from medserve.reports import Domain as Findings
from medserve.threads import in_thread
from medserve.workflow import Consult, Domain, Look, Question

KINDS = ("dermoscopy", "histology", "CT", "chest X-ray", "other")
KIND = "What kind of picture is this? Answer with one: dermoscopy, histology, CT, chest X-ray or other."
KIND_STEP = "Kind of picture"
UNSAID = frozenset({"", "OT", "unknown"})
"""What a DICOM file says when it does not say how the picture was made."""
UNLIKELY = 0.1
"""A kind to which the model gives less than this is not the picture's, where nothing else tells what it is."""

Channel = NDArray[np.int16]


async def assess(domain: Domain, study: Study, consult: Consult) -> Findings:
    """Hold the study against the domain: what its files state, how it looks, and what the model takes it for.

    What is stated or computed decides. Where it speaks for the picture, the model's own word is a doubt that is
    recorded, because a model that errs about the kind of a picture may still be asked about it. Where nothing could be
    told, as of a grey picture without a word in its file, the word decides if it leaves the kind hardly a probability.
    """
    checks = [_stated(domain, study), *await in_thread(_looked, domain, study)]
    assessable = all(check.passed is not False for check in checks)
    if assessable and domain.kind:
        vouched = any(check.passed for check in checks)
        for place in range(len(study.images)) if domain.each else (0,):
            word, likely = await _word(domain.kind, consult, place, weighed=not vouched)
            assessable = assessable and (vouched or likely)
            checks.append(word)
    return Findings(takes=domain.takes, checks=tuple(checks), assessable=assessable)


def flags(found: Findings | None) -> Sequence[Flag]:
    """What the report is flagged with; a study that is not assessable carries its own flag in the conclusion."""
    doubtful = found is not None and found.assessable and any(check.passed is False for check in found.checks)
    return [Flag.DOMAIN_DOUBT] if doubtful else []


def _stated(domain: Domain, study: Study) -> Check:
    """What the files, or whoever sent them, say of how the pictures were made."""
    stated = dict(study.facts).get("modality", "")
    name = "stated modality"
    if domain.modalities and study.modality not in domain.modalities:
        return Check(name=name, passed=False, detail=f"stated to be {_called(study, stated)}")
    if not domain.modalities or stated in UNSAID:
        return Check(name=name, passed=None, detail="the files do not say how the picture was made")
    return Check(name=name, passed=True, detail=f"stated to be {_called(study, stated)}")


def _called(study: Study, stated: str) -> str:
    return stated if stated not in UNSAID else study.modality.value


async def _word(kind: str, consult: Consult, place: int, *, weighed: bool) -> tuple[Check, bool]:
    """What the model takes a picture for, and whether what it should be is likely by its probabilities.

    Without probabilities nothing is known to be unlikely.
    """
    aside = consult.aside()
    question = Question(KIND_STEP, KIND, one_of(*KINDS), score=KINDS if weighed else (), pictures=(place,))
    (answer,) = await aside.ask_all([question])
    consult.steps.extend(aside.steps)
    shares = answer.probabilities or {}
    likely = shares.get(kind, 1.0) >= UNLIKELY
    name = "the model's own word" + (f" on picture {place + 1}" if place else "")
    if answer.value is None:
        return Check(name=name, passed=None if likely else False, detail="not readable"), likely
    share = f", and {kind} with a probability of {shares[kind]:.3f}" if shares and answer.value != kind else ""
    return Check(name=name, passed=answer.value == kind and likely, detail=f"taken for {answer.value}{share}"), likely


# --- looks: what can be computed of a picture -----------------------------------------------------------------------

SIDE = 128
"""Pixels of the longer side at which colours and detail are computed."""
SAMPLED = 256
"""Pixels of the longer side, at least, at which channels are compared with each other."""
BLANK = 0.04
"""Brightness, of 1, between the 1st and the 99th percentile of a picture that shows something."""
EMPTY = 0.9
"""Share of white from which a slide shows glass only."""
BUSY = 0.19
"""Share of edges that everyday photographs have and dermoscopic ones have not (0.18 at most of 40; a cat 0.20)."""
QUIET = 0.015
"""Detail in the median pixel of a photograph; drawings have less, however many edges."""
DARK = 0.85
"""Share of black of a night sky; dermoscopic photographs through a round opening have 0.53 at most."""
PAPER = 0.4
"""Share of one bright shade from which a grey picture is a page of text, or a window of a screen."""
NEAR_GREY = 12
"""Levels by which the channels of a grey picture may differ after lossy compression."""
NEAR_RED, NEAR_WINDOW = 4, 20
"""Levels by which a windowed CT's red, and its green and blue, may be off after lossy compression."""
WINDOWED, LIKE_WINDOWED = 0.05, 0.33
"""Share of pixels whose colours no CT has: below it is a CT, and may be one (0.28 as a JPEG of 85 %; else over 0.4)."""


@dataclass(frozen=True)
class Colours:
    """Shares of a picture's pixels, 0 to 1, and how much fine detail it has.

    Hues in degrees as in HSV: `stained` is violet to pink (260 to 345), as haematoxylin and eosin are; `green` is green
    to turquoise (60 to 200), which neither a stain nor skin has. `detail` is the mean absolute Laplacian of the
    brightness and `quiet` its median: cells have much of it, skin little. `edges` is the share where the brightness
    (0 to 1) rises by more than 0.06 a pixel by Sobel's operator. `spread` lies between the brightness's 1st and 99th
    percentile.
    """

    coloured: float
    stained: float
    green: float
    white: float
    dark: float
    detail: float
    quiet: float
    edges: float
    spread: float

    @classmethod
    def of(cls, image: Image) -> "Colours":
        """Computed on the picture made small."""
        small = PIL.Image.fromarray(np.asarray(image.pixels))
        small.thumbnail((SIDE, SIDE))
        pixels = np.asarray(small, np.float64) / 255
        high, low = pixels.max(axis=2), pixels.min(axis=2)
        hue = np.asarray(small.convert("HSV"))[..., 0] * (360 / 255)
        coloured = ((high - low) > 0.08 * high) & (high > 0.15)
        grey = pixels.mean(axis=2)
        detail = np.abs(ndimage.laplace(grey))
        rise = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 8
        return cls(
            coloured=float(coloured.mean()),
            stained=float((coloured & (hue > 260) & (hue < 345)).mean()),
            green=float((coloured & (hue > 60) & (hue < 200)).mean()),
            white=float((low > 0.82).mean()),
            dark=float((high < 0.15).mean()),
            detail=float(detail.mean()),
            quiet=float(np.median(detail)),
            edges=float((rise > 0.06).mean()),
            spread=float(np.percentile(grey, 99) - np.percentile(grey, 1)),
        )

    @property
    def like_section(self) -> bool:
        """What is not white is stained, mostly, and as detailed as tissue is."""
        return self.stained >= 0.35 * (1 - self.white) and self.detail >= 0.048 and self.green < 0.15

    @property
    def busy(self) -> bool:
        """Edges all over, as a photograph of things has them, and no lesion on skin."""
        return self.edges > BUSY and self.quiet > QUIET


def _looked(domain: Domain, study: Study) -> list[Check]:
    """Every look of the domain, or one check that there is nothing to look at."""
    if all(Colours.of(image).spread < BLANK for image in study.images):
        return [Check(name="content", passed=False, detail="nothing can be seen: there is one shade only")]
    return [look(study) for look in domain.looks]


def skin(study: Study) -> Check:
    """Whether every picture has the colours and the calm that skin has."""
    return _each("colours of skin", study, _not_skin)


def _not_skin(image: Image) -> str:
    seen = Colours.of(image)
    if seen.coloured < 0.05 or _only_grey(image):
        return "the picture has no colours"
    if seen.green > 0.15:
        return f"{seen.green:.0%} of the picture is green or turquoise"
    if seen.dark > DARK:
        return f"{seen.dark:.0%} of the picture is black"
    if seen.like_section:
        return "the picture has the colours and the detail of a stained section"
    if seen.busy:
        return "the picture has edges all over, as skin has not"
    return "" if _unlike_ct(image) > LIKE_WINDOWED else "the picture has the colours of a windowed CT"


def stained(study: Study) -> Check:
    """Whether at least half of the pictures have the colours and the detail of tissue stained with H&E.

    Patches of a slide differ: one that shows fat or mucus is none against the slide.
    """
    faults = list(filter(None, map(_not_stained, study.images)))
    if 2 * len(faults) <= len(study.images):
        return Check(name="stained tissue", passed=True, detail="as it should be")
    return Check(name="stained tissue", passed=False, detail=faults[0])


def _not_stained(image: Image) -> str:
    seen = Colours.of(image)
    if seen.white >= EMPTY:
        return "the picture shows empty glass"
    return "" if seen.like_section else "the picture has not the colours and the detail of a stained section"


def windowed_ct(study: Study) -> Check:
    """Whether every picture is in MedGemma's three windows.

    Of a grey one, as CT mostly is, and of one whose colours compression has blurred, it cannot be told.
    """
    return _each("three CT windows", study, _not_ct, lambda image: _only_grey(image) or _unlike_ct(image) > WINDOWED)


def _not_ct(image: Image) -> str:
    if _only_grey(image):
        return _paper(image)
    return "the picture has colours that no CT has" if _unlike_ct(image) > LIKE_WINDOWED else ""


def grey(study: Study) -> Check:
    """Whether every picture is grey, as a film is, and no page; what else a grey picture may be cannot be told."""
    return _each("grey", study, _not_film, _only_grey)


def _not_film(image: Image) -> str:
    return _paper(image) if _only_grey(image) else "the picture has colours, and a film has none"


def _paper(image: Image) -> str:
    """A fault where one bright shade, a page's or a window's, takes much of the picture."""
    shades = np.bincount(_sampled(image)[..., 1].ravel() // 8, minlength=32)
    paper = shades[20:].max() > PAPER * shades.sum()
    return "much of the picture is one bright shade, as of a page or a screen" if paper else ""


def _each(
    name: str, study: Study, fault: Callable[[Image], str], untold: Callable[[Image], bool] | None = None
) -> Check:
    """A check that passes where no picture has a fault, else tells the first one; null where one cannot be told."""
    found = next(filter(None, map(fault, study.images)), "")
    if found:
        return Check(name=name, passed=False, detail=found)
    if untold is not None and any(map(untold, study.images)):
        return Check(name=name, passed=None, detail="it cannot be told from the pixels")
    return Check(name=name, passed=True, detail="as it should be")


def _sampled(image: Image) -> NDArray[np.uint8]:
    """Every so many pixels of the picture, as they are: uint8 [rows, columns, 3]."""
    step = max(1, max(image.width, image.height) // SAMPLED)
    return np.asarray(image.pixels[::step, ::step])


def _channels(image: Image) -> tuple[Channel, Channel, Channel]:
    red, green, blue = (_sampled(image)[..., channel].astype(np.int16) for channel in range(3))
    return red, green, blue


def _only_grey(image: Image) -> bool:
    red, green, blue = _channels(image)
    return float((np.maximum(abs(red - green), abs(green - blue)) > NEAR_GREY).mean()) < 0.01


def _unlike_ct(image: Image) -> float:
    """Share of pixels whose green or blue is not what red says: its levels stand for 8 HU each in the widest window.

    0 of a picture in MedGemma's three windows; more after lossy compression, since blue rises 26 times as fast as red.
    """
    red, green, blue = _channels(image)
    expected = three_windows((np.arange(256) * 2048 / 255 - 1024).round().astype(np.int16)).astype(np.int16)
    least, most = expected[np.clip(red - NEAR_RED, 0, 255)], expected[np.clip(red + NEAR_RED, 0, 255)]
    off = [np.maximum(least[..., n] - channel, channel - most[..., n]) for n, channel in ((1, green), (2, blue))]
    return float((np.maximum(*off) > NEAR_WINDOW).mean())


LOOKS: Mapping[str, Look] = {"skin": skin, "stained": stained, "windowed_ct": windowed_ct, "grey": grey}
"""The looks by the names under which a workflow file asks for them."""
