"""A kidney slice is painted in Hounsfield units and shown through the three windows that MedGemma was trained on."""

from dataclasses import dataclass

import numpy as np

from tools.demo_model.drawing import Canvas, Drawing, Plane, pick

SIDES = ("left", "right", "none")
WINDOWS = ((-1024, 1024), (-135, 215), (0, 80))  # red, green, blue


def windowed(hounsfield: Plane) -> Plane:
    """Three windows of one slice as the three colours of a picture."""
    return np.stack([np.clip((hounsfield - low) / (high - low), 0, 1) * 255 for low, high in WINDOWS], -1)


@dataclass(frozen=True)
class Stone:
    """Where a drawn stone lies, how large it is (in units of which a picture has 64 a side), and its HU."""

    x: float
    y: float
    radius: float
    units: float


@dataclass(frozen=True)
class Slice:
    """A slice in HU, [side, side], before it is windowed; on which side it has a stone, and which."""

    hounsfield: Plane
    side: str
    stone: Stone | None


def draw(seed: int, side: int = 256, stone: str | None = None) -> Drawing:
    """The slice number `seed`; the patient's left is on the right of the picture, as radiology has it."""
    slice_ = scan(seed, side, stone)
    canvas = Canvas(side, (0.0,) * 3)
    canvas.rgb = windowed(slice_.hounsfield)
    return Drawing("CT", {"side": slice_.side, "stone": slice_.side != "none"}, canvas.image())


def scan(seed: int, side: int = 256, stone: str | None = None) -> Slice:
    """The slice number `seed` as a scanner would measure it."""
    rng = np.random.default_rng([seed, 3])
    chosen = pick(rng, SIDES, (0.3, 0.3, 0.4))
    where = stone or chosen
    slice_ = Canvas(side, (-1000.0,) * 3)

    def tissue(mask: Plane, units: float) -> None:
        slice_.paint(mask, (units, units, units))

    x, y = 32 + float(rng.normal(0, 0.8)), 33 + float(rng.normal(0, 0.8))
    wide, tall = float(rng.uniform(26, 30)), float(rng.uniform(19, 23))
    tissue(slice_.ellipse(x, y, wide, tall), 20)  # skin
    tissue(slice_.ellipse(x, y, wide - 1.2, tall - 1.2), -100)  # fat
    tissue(slice_.ellipse(x, y, wide - 4, tall - 4), float(rng.uniform(45, 55)))  # muscle wall
    tissue(slice_.ellipse(x, y - 1, wide - 6, tall - 6.5), float(rng.uniform(-95, -70)))  # fat inside
    tissue(
        slice_.ellipse(x - wide * 0.42, y - tall * 0.3, wide * 0.33, tall * 0.36), float(rng.uniform(50, 62))
    )  # liver
    for _ in range(int(rng.integers(2, 5))):  # bowel, part of it gas
        a, b = x + float(rng.uniform(0, wide * 0.55)), y - tall * float(rng.uniform(0.2, 0.5))
        tissue(slice_.disc(a, b, 3.4), 35)
        tissue(slice_.disc(a, b, float(rng.uniform(0.5, 1.8))), -850)
    tissue(slice_.disc(x, y + tall * 0.45, 5.2), float(rng.uniform(260, 420)))  # vertebra
    tissue(slice_.disc(x, y + tall * 0.45, 3.6), float(rng.uniform(150, 220)))
    tissue(slice_.disc(x, y + tall * 0.72, 2.0), 30)  # canal
    tissue(slice_.segment((x, y + tall * 0.8), (x, y + tall * 0.92), 1.6), 350)
    tissue(slice_.disc(x + 2.2, y + tall * 0.1, 2.3), 42)  # aorta
    tissue(slice_.disc(x - 3.2, y + tall * 0.1, 2.3), 40)  # vena cava
    found = None
    for name, sign in (("right", -1), ("left", 1)):
        a, b = x + sign * wide * float(rng.uniform(0.44, 0.5)), y + tall * float(rng.uniform(0.26, 0.36))
        tissue(slice_.ellipse(a, b, 5.2, 7.2, sign * float(rng.uniform(0.1, 0.5))), float(rng.uniform(28, 38)))
        tissue(slice_.ellipse(a - sign * 1.8, b, 2.0, 2.6), -60)
        size, units = float(rng.uniform(1.5, 2.4)), float(rng.uniform(450, 1200))
        turn, reach = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2.4))
        if name == where:
            found = Stone(a + reach * np.cos(turn), b + reach * np.sin(turn) * 1.4, size, units)
            tissue(slice_.disc(found.x, found.y, size), units)
    slice_.grain(rng, 6.0)
    return Slice(slice_.rgb[..., 0], where, found)
