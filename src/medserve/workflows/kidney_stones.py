"""Kidney stones in CT: the model points to slice, side and place, and every number is measured by code.

The model is asked, slice by slice, whether it sees a stone, and if so on which side and where. Code finds in the voxels
what looks like a stone, wherever it lies, and holds the two against each other. A stone that is said and not found is a
disagreement, and so is one that is found where kidneys lie and the model says there is none; neither is concluded from.
What stones of some HU may be made of is quoted from the literature as a table, never concluded.

In the usual view the right half of a picture is the patient's left, and that is what the model was taught. Its word is
therefore taken for a half of the picture. The side that is reported of a measured stone comes from the voxels' places
in the patient, so it is right however the scan lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from medserve import guard
from medserve.flags import Flag
from medserve.images import Modality, Study, Volume
from medserve.imaging import measure, overlay
from medserve.imaging.measure import Candidate, Mask
from medserve.readers import one_of
from medserve.reports import Box, Conclusion, Figure, Finding, QuotedTable
from medserve.threads import in_thread
from medserve.workflow import Answer, Consult, Domain, Options, Question, Workflow, once

STONE = Question(
    "Kidney stone",
    "Is a kidney stone visible? Answer yes or no.",
    one_of("yes", "no"),
    otherwise="Does the slice show a kidney stone? Answer yes or no.",
)
SIDE = Question(
    "Side of the stone",
    "On which side is the kidney stone? Answer with one: left, right or none.",
    one_of("left", "right", "none"),
    otherwise="In which kidney is the stone? Answer left, right or none.",
)
PLACE = Question(
    "Place of the stone",
    "Where is the stone? Answer with one: upper kidney, lower kidney, proximal ureter or distal ureter.",
    one_of("upper kidney", "lower kidney", "proximal ureter", "distal ureter"),
    otherwise="In which of these does the stone lie: upper kidney, lower kidney, proximal ureter, distal ureter?",
)
WIDENED = Question(
    "Hydronephrosis",
    "How much is the collecting system of the kidney on the side of the stone widened (hydronephrosis)? "
    "Answer with one: none, mild, moderate or severe.",
    one_of("none", "mild", "moderate", "severe"),
    otherwise="Is there hydronephrosis on the side of the stone: none, mild, moderate or severe?",
)

BODY = -300
"""Hounsfield units that separate the body from the air around it."""
LARGEST_MM = 40.0
"""Bright groups that are longer are bones, or stones too large to be told from them."""
MIDLINE_MM = 20.0
"""So close to the middle of the body lies the spine, and before it the great vessels with their calcifications."""
SKIN_MM = 20.0
"""So close to the skin lie ribs, and no kidney."""
LATERAL_MM = 110.0
"""Further from the middle of the body lies neither kidney nor ureter, but ribs."""
BEFORE_MM = 20.0
"""Further in front of the middle of the body lies neither of them, but bowel, gallstones and the ribs' cartilage."""
AROUND_MM = 6.0
"""How far around a group its surroundings reach."""
SOFT = (-130.0, 100.0)
"""Median HU around a stone: from fat to soft tissue, and neither gas nor marrow nor contrast medium."""
HOLLOW = 0.1
"""Part of a group's slices that lies in holes of it, from which it is a bone: marrow within a shell."""
MOST_GROUPS = 1000
MOST_FIGURES = 5
MIRRORED = 0.7
"""Cosine to the patient's left under which a picture's columns run too askew to tell its sides."""

LABELS = {"yes": "a stone, which the model sees and which was measured", "no": "no stone is seen on any picture"}

COMPOSITION = QuotedTable(
    title="Attenuation by composition of stones, as the literature has it (at 120 kV)",
    columns=("Composition", "HU"),
    rows=(
        ("uric acid", "200 to 450"),
        ("struvite", "600 to 900"),
        ("cystine", "600 to 1100"),
        ("calcium phosphate", "1200 to 1600"),
        ("calcium oxalate monohydrate and brushite", "1700 to 2800"),
    ),
    source="Kambadakone AR et al., New and evolving concepts in the imaging and management of urolithiasis, "
    "RadioGraphics 2010;30:603-623, table of attenuation values",
    limits="Ranges overlap and leave gaps, hold for pure stones at 120 kV, and small or blurred stones read too low; "
    "most stones are mixed. The composition of a stone cannot be read from its HU.",
)


class StoneOptions(Options):
    """What a caller may choose about a search for stones."""

    threshold_hu: float = Field(250.0, ge=100, le=2000, description="voxels above it may belong to a stone")
    smallest_mm3: float = Field(4.0, ge=0, le=10_000, description="smaller groups of voxels are noise")
    overlooked_mm: float = Field(
        4.0, ge=0, le=40, description="a group from this diameter on contradicts a model that sees no stone"
    )


@dataclass(frozen=True)
class Pointed:
    """A picture on which the model sees a stone: its place in the study, and what the model says of the stone."""

    place: int
    side: Answer[str]
    where: Answer[str]
    widened: Answer[str]


@dataclass(frozen=True)
class Lie:
    """Where something lies in its slice of the body, in mm: left of the middle (right is negative), and behind it."""

    left: float
    behind: float


@dataclass(frozen=True)
class Group:
    """Bright voxels that look like a stone: what was measured, where they lie, and the picture that shows them best."""

    found: Candidate
    lie: Lie
    picture: int

    @property
    def side(self) -> str:
        """The patient's side."""
        return "left" if self.lie.left > 0 else "right"


@dataclass(frozen=True)
class Compared:
    """What the model says held against what was found."""

    stones: tuple[Group, ...] = ()
    """Said and found."""
    overlooked: tuple[Group, ...] = ()
    """Found, and not said."""
    unfound: tuple[Pointed, ...] = ()
    """Said and not found."""

    @property
    def disagree(self) -> bool:
        return bool(self.overlooked or self.unfound)


async def run(study: Study, consult: Consult, options: StoneOptions) -> Conclusion:
    """Of each picture: is there a stone, and if so on which side and where; then what the voxels say."""
    seen: list[Answer[str]] = []
    pointed: list[Pointed] = []
    for place in range(len(study.images)):
        named = _name(study, place)
        (answer,) = await consult.ask_all([STONE.of_picture(place, named)])
        seen.append(answer)
        if answer.value == "yes":
            asked = [question.of_picture(place, named) for question in (SIDE, PLACE, WIDENED)]
            pointed.append(Pointed(place, *await consult.ask_all(asked)))
    compared = await in_thread(measured, study, pointed, options)
    return await in_thread(concluded, study, seen, pointed, compared)


def _name(study: Study, place: int) -> str:
    """What steps and findings about one of several pictures begin with."""
    if len(study.images) == 1:
        return ""
    return f"{study.labels[place] if study.labels else f'Picture {place + 1}'}: "


# --- what the voxels say -------------------------------------------------------------------------------------------


def measured(study: Study, pointed: Sequence[Pointed], options: StoneOptions) -> Compared | None:
    """What the model points to, held against what the voxels hold; None where there are no voxels in HU. Blocking."""
    volume = study.volume
    if volume is None or volume.unit != "HU":
        return None
    groups = like_stones(volume, study.slices, options)
    said = [[group for group in groups if _is_pointed_at(study, volume, one, group)] for one in pointed]
    stones = tuple(group for group in groups if any(group in those for those in said))
    return Compared(
        stones=stones,
        overlooked=tuple(group for group in groups if group not in stones and _counts(volume, group, options)),
        unfound=tuple(one for one, those in zip(pointed, said, strict=True) if not those),
    )


def like_stones(volume: Volume, shown: Sequence[int], options: StoneOptions) -> tuple[Group, ...]:
    """Every group of bright voxels that may be a stone, the largest first; `shown` are the slices of the pictures.

    A group is whole, wherever the model points: a stone is never cut at the border of a region.
    """
    found = measure.candidates(
        volume,
        options.threshold_hu,
        smallest_mm3=options.smallest_mm3,
        longest_mm=LARGEST_MM,
        most=MOST_GROUPS,
    )
    bodies = dict[int, Body]()
    groups = []
    for one in found:
        index = _nearest(one.centre[0], len(volume.values))
        if index not in bodies:
            bodies[index] = _body(volume, index)
        lie = _lie(volume, bodies[index], one)
        if _is_deep(volume, bodies[index], one) and _like_a_stone(volume, one, lie, options):
            groups.append(Group(one, lie, _best_picture(one, shown)))
    return tuple(groups)


def _nearest(place: float, count: int) -> int:
    return min(max(round(place), 0), count - 1)


@dataclass(frozen=True)
class Body:
    """The body in a slice: which of its voxels, bool [rows, columns], and their middle as (slice, row, column)."""

    mask: Mask
    middle: tuple[float, float, float]


def _body(volume: Volume, index: int) -> Body:
    """The body without table and arms: the largest piece that is not air, with its own holes filled."""
    inside = ndimage.binary_fill_holes(volume.values[index] > BODY)
    labels, count = ndimage.label(inside)
    if count:
        inside = labels == np.bincount(labels[inside]).argmax()
    rows, columns = np.nonzero(inside)
    middle = (float(rows.mean()), float(columns.mean())) if count else (0.0, 0.0)
    return Body(np.asarray(inside), (float(index), *middle))


def _lie(volume: Volume, body: Body, found: Candidate) -> Lie:
    """Where a group's centre lies from the middle of the body in its slice."""
    left, behind, _up = np.subtract(*measure.points(volume, np.array((found.centre, body.middle))))
    return Lie(float(left), float(behind))


def _is_deep(volume: Volume, body: Body, found: Candidate) -> bool:
    """Whether all within SKIN_MM of a group's centre is body; one that goes on beyond the picture has no skin there."""
    centre = [_nearest(at, count) for at, count in zip(found.centre[1:], body.mask.shape, strict=True)]
    reach = [ceil(SKIN_MM / step) for step in volume.spacing[1:]]
    first = [max(0, at - far) for at, far in zip(centre, reach, strict=True)]
    last = [at + far + 1 for at, far in zip(centre, reach, strict=True)]
    outside = np.argwhere(~body.mask[first[0] : last[0], first[1] : last[1]]) + first - centre
    return not bool((np.hypot(*(outside * volume.spacing[1:]).T) <= SKIN_MM).any())


def _like_a_stone(volume: Volume, found: Candidate, lie: Lie, options: StoneOptions) -> bool:
    """Where kidneys and ureters lie, no noise and no bone, and with soft tissue or fat around it."""
    if not MIDLINE_MM < abs(lie.left) <= LATERAL_MM or lie.behind < -BEFORE_MM:
        return False
    if found.volume_mm3 is None and _depthless_mm3(volume, found) < options.smallest_mm3:
        return False
    return not _is_bone(volume, found) and _is_in_soft_tissue(volume, found, options.threshold_hu)


def _is_bone(volume: Volume, found: Candidate) -> bool:
    """Whether a group is long, or of unknown length because both ends of the scan cut it, or a shell with marrow."""
    filled = sum(int(ndimage.binary_fill_holes(one).sum()) for one in found.mask)
    hollow = filled - found.statistics.voxels > HOLLOW * filled
    return found.diameter_mm > LARGEST_MM or hollow or (len(volume.values) > 1 and all(_cut_ends(volume, found)))


def _cut_ends(volume: Volume, found: Candidate) -> tuple[bool, bool]:
    """Whether the scan's first and last slice cut a group, which then may go on: it does not taper off towards it."""
    sections = found.mask.sum(axis=(1, 2))
    slices = found.box[0]
    first, last = (2 * int(sections[end]) > int(sections.max()) for end in (0, -1))
    return slices.start == 0 and first, slices.stop == len(volume.values) and last


def _depthless_mm3(volume: Volume, found: Candidate) -> float:
    """The volume of a cube whose side has the group's area in the only slice there is."""
    area = found.statistics.voxels * float(np.linalg.norm(np.cross(volume.down, volume.across)))
    return float(area**1.5)


def _is_in_soft_tissue(volume: Volume, found: Candidate, above: float) -> bool:
    """Whether a group stands alone in soft tissue or fat: one with more bright voxels close to it is a bit of bone."""
    near = _near(volume, found)
    dark = near[near <= above]
    alone = len(near) - len(dark) <= found.statistics.voxels
    return alone and len(dark) > 0 and bool(SOFT[0] <= np.median(dark) <= SOFT[1])


def _near(volume: Volume, found: Candidate) -> NDArray[np.float64]:
    """The values of the voxels around a group, up to AROUND_MM away, [n]."""
    steps = [step or 1.0 for step in volume.spacing]
    box = tuple(
        slice(max(0, cut.start - ceil(AROUND_MM / step)), cut.stop + ceil(AROUND_MM / step))
        for cut, step in zip(found.box, steps, strict=True)
    )
    values = volume.values[box]
    outside = np.ones(values.shape, np.bool_)
    inner = tuple(
        slice(cut.start - whole.start, cut.stop - whole.start) for cut, whole in zip(found.box, box, strict=True)
    )
    outside[inner] &= ~found.mask
    near = outside & (ndimage.distance_transform_edt(outside, sampling=steps) <= AROUND_MM)
    return np.asarray(values[near], np.float64)


def _best_picture(found: Candidate, shown: Sequence[int]) -> int:
    """The picture with most voxels of a group, else the one nearest to it."""
    first, counts = found.box[0].start, found.mask.sum(axis=(1, 2))
    held = [int(counts[index - first]) if 0 <= index - first < len(counts) else 0 for index in shown]
    return max(range(len(shown)), key=lambda place: (held[place], -abs(shown[place] - found.centre[0])))


def _is_pointed_at(study: Study, volume: Volume, pointed: Pointed, group: Group) -> bool:
    """Whether a group lies on the side that was said, between the pictures before and after the one pointed at."""
    shown, place = study.slices, pointed.place
    first = shown[place - 1] if place else 0
    last = shown[place + 1] if place + 1 < len(shown) else len(volume.values) - 1
    slices = group.found.box[0]
    side = {"left": 1, "right": -1}.get(pointed.side.value or "", 0) * _sense(volume)
    return slices.start <= last and slices.stop > first and group.lie.left * side >= 0


def _sense(volume: Volume) -> int:
    """1 where the picture's right half is the patient's left, as usual; -1 where it is the right; 0 where neither."""
    cosine = volume.across[0] / float(np.linalg.norm(volume.across))
    return 0 if abs(cosine) < MIRRORED else int(np.sign(cosine))


def _counts(volume: Volume, group: Group, options: StoneOptions) -> bool:
    """Whether a group speaks against a model that sees nothing there: large enough, and whole.

    One that the scan's first or last slice cuts may be the end of a bone.
    """
    return not any(_cut_ends(volume, group.found)) and group.found.edge_diameter_mm >= options.overlooked_mm


# --- what it comes to ----------------------------------------------------------------------------------------------


def concluded(
    study: Study, seen: Sequence[Answer[str]], pointed: Sequence[Pointed], compared: Compared | None
) -> Conclusion:
    """What the answers and the voxels come to, with its pictures. Blocking."""
    word = _word(seen)
    found = compared or Compared()
    named = [
        (f"{'stone' if _is_sized(one) else 'candidate'} {number}", one) for number, one in enumerate(found.stones, 1)
    ]
    named += [(f"candidate {number}", one) for number, one in enumerate(found.overlooked, 1)]
    label = word if compared is None else _agreed(word, compared)
    alone = seen[0] if len(seen) == 1 else None
    return Conclusion(
        findings=(
            _seen_finding(seen, word),
            *(finding for one in pointed for finding in _said(study, one)),
            *(finding for name, group in named for finding in _numbers(name, group)),
        ),
        label=label,
        label_meaning=_meaning(label, compared),
        probabilities=alone.probabilities if alone else None,
        calibrated=alone.calibrated if alone else None,
        label_mass=alone.scores.mass if alone and alone.scores else None,
        boxes=tuple(_box(study, name, group) for name, group in named),
        figures=tuple(_figure(study, name, group) for name, group in named[:MOST_FIGURES]),
        tables=(COMPOSITION,) if named else (),
        flags=tuple(_flags(pointed, compared)),
    )


def _word(seen: Sequence[Answer[str]]) -> str | None:
    """What the model says of all pictures: yes of one is yes, only no of every one is no, and none in doubt counts."""
    said = {answer.decided for answer in seen}
    return "yes" if "yes" in said else "no" if said == {"no"} else None


def _agreed(word: str | None, compared: Compared) -> str | None:
    """The model's word where the voxels bear it out; of a single slice they cannot, since a rib looks like a stone."""
    if word == "yes":
        return "yes" if any(map(_is_sized, compared.stones)) else None
    return None if compared.overlooked else word


def _is_sized(group: Group) -> bool:
    """Whether it is known how far a group goes, and so that it is no bone: a single slice does not tell."""
    return group.found.volume_mm3 is not None


def _meaning(label: str | None, compared: Compared | None) -> str | None:
    if label == "yes" and compared is None:
        return "the model sees a stone; nothing could be measured"
    return LABELS[label] if label else None


def _flags(pointed: Sequence[Pointed], compared: Compared | None) -> list[Flag]:
    flags = {
        Flag.UNMEASURED: compared is None,
        Flag.MEASUREMENT_DISAGREEMENT: compared is not None and compared.disagree,
        Flag.CONTRADICTION: any(one.side.value == "none" for one in pointed),
    }
    return [flag for flag, raised in flags.items() if raised]


def _seen_finding(seen: Sequence[Answer[str]], word: str | None) -> Finding:
    name = "Stone seen by the model"
    if len(seen) == 1:
        return seen[0].finding(name)
    return Finding(name=name, value=word, flags=once([flag for answer in seen for flag in answer.flags]))


def _said(study: Study, pointed: Pointed) -> list[Finding]:
    """What the model says of the stone on one picture, marked as its word."""
    answers = ((pointed.side, SIDE), (pointed.where, PLACE), (pointed.widened, WIDENED))
    return [
        answer.finding(f"{_name(study, pointed.place)}{asked.step} (the model's word)") for answer, asked in answers
    ]


def _numbers(name: str, group: Group) -> list[Finding]:
    """What was measured of one group; what a single slice cannot tell is null."""
    found = group.found
    values = (
        ("side", group.side, ""),
        ("largest diameter", round(found.edge_diameter_mm, 2), "mm"),
        ("largest diameter over its voxels' corners", round(found.diameter_mm, 2), "mm"),
        ("mean attenuation", round(found.statistics.mean, 1), "[hnsf'U]"),
        ("greatest attenuation", round(found.statistics.greatest, 1), "[hnsf'U]"),
        ("volume", None if found.volume_mm3 is None else round(found.volume_mm3, 2), "mm3"),
    )
    return [
        Finding(name=f"{name.capitalize()}: {what}", value=value, unit=unit, source="measured")
        for what, value, unit in values
    ]


def _box(study: Study, name: str, group: Group) -> Box:
    """The box of a group's outline over all slices, in pixels of its picture, which may be other than the voxels."""
    image, volume = study.images[group.picture], study.volume
    rows, columns = volume.values.shape[1:] if volume is not None else (image.height, image.width)
    down, across = image.height / rows, image.width / columns
    _slices, height, width = group.found.box
    return Box(
        label=name,
        picture=group.picture,
        top=floor(height.start * down),
        left=floor(width.start * across),
        bottom=min(ceil(height.stop * down), image.height),
        right=min(ceil(width.stop * across), image.width),
        source="measured",
    )


def _figure(study: Study, name: str, group: Group) -> Figure:
    image, volume = study.images[group.picture], study.volume
    region = np.zeros(volume.values.shape[1:] if volume is not None else (image.height, image.width), np.bool_)
    region[group.found.box[1:]] = group.found.mask.any(axis=0)
    return Figure(
        name=name,
        caption=f"{name.capitalize()}, {group.side}, {group.found.edge_diameter_mm:.1f} mm (outline over all slices)",
        png=overlay.outlined(image, region),
        picture=group.picture,
    )


workflow = Workflow(
    name="kidney-stones",
    title="Kidney stones in CT",
    summary="The model points to slices, sides and places; size, attenuation and volume are measured from the voxels.",
    modality=Modality.CT,
    run=run,
    labels=LABELS,
    options=StoneOptions,
    max_images=85,
    measures=True,
    domain=Domain(
        takes="CT slices of the abdomen without contrast, best as a DICOM series",
        modalities=frozenset({Modality.CT}),
        looks=(guard.windowed_ct,),
        kind="CT",
    ),
)
