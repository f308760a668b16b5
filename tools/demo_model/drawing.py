"""A drawing is the same picture at every size: all randomness is fixed before the first pixel is painted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.floating[Any]]
Rng = np.random.Generator

UNITS = 64.0  # every length below is given in units of which a picture has 64 a side


@dataclass(frozen=True)
class Drawing:
    """One picture with everything that is true about it."""

    kind: str
    truth: dict[str, Any]
    image: Image.Image
    map: Plane | None = None  # what lies where, in shares of each of 8 x 8 fields; for training alone


class Canvas:
    """A square of `side` pixels on which shapes are painted in units, whatever the side."""

    def __init__(self, side: int, ground: tuple[float, float, float]) -> None:
        axis = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(UNITS / side)
        self.x, self.y = np.meshgrid(axis, axis)
        self.side = side
        self.rgb: Plane = np.empty((side, side, 3), np.float32)
        self.rgb[:] = ground

    def edge(self, distance: Plane, softness: float = 0.4) -> Plane:
        """1 inside (negative distance), 0 outside, with a ramp as wide as `softness` units."""
        return np.clip(0.5 - distance / np.float32(softness), 0, 1)

    def disc(self, x: float, y: float, radius: float) -> Plane:
        """Mask of a disc."""
        return self.edge(np.hypot(self.x - x, self.y - y) - radius)

    def ellipse(self, x: float, y: float, a: float, b: float, turn: float = 0.0) -> Plane:
        """Mask of an ellipse with half axes `a` and `b`, turned by `turn` radians."""
        u, v = self.turned(x, y, turn)
        return self.edge((np.hypot(u / a, v / b) - 1) * min(a, b))

    def segment(self, start: tuple[float, float], end: tuple[float, float], width: float) -> Plane:
        """Mask of a straight line with round ends."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        along = ((self.x - start[0]) * dx + (self.y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-6)
        along = np.clip(along, 0, 1)
        return self.edge(np.hypot(self.x - start[0] - along * dx, self.y - start[1] - along * dy) - width / 2)

    def turned(self, x: float, y: float, turn: float) -> tuple[Plane, Plane]:
        """Coordinates about a centre, turned."""
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        return (self.x - x) * c + (self.y - y) * s, (self.y - y) * c - (self.x - x) * s

    def paint(self, mask: Plane, colour: tuple[float, float, float] | Plane) -> None:
        """Lay a colour over the picture where the mask says so."""
        weight = mask[..., None]
        self.rgb = self.rgb * (1 - weight) + np.asarray(colour, np.float32) * weight

    def spot(self, x: float, y: float, radius: float, colour: tuple[float, float, float] | Plane) -> None:
        """Paint a small disc, touching only the pixels around it."""
        scale = self.side / UNITS
        rows, columns = (
            slice(max(int((c - radius - 1) * scale), 0), max(int((c + radius + 1) * scale) + 1, 0)) for c in (y, x)
        )
        here = self.x[rows, columns]
        if here.size:
            weight = self.edge(np.hypot(here - x, self.y[rows, columns] - y) - radius)[..., None]
            ink = np.asarray(colour, np.float32)
            ink = ink[rows, columns] if ink.ndim == 3 else ink
            self.rgb[rows, columns] = self.rgb[rows, columns] * (1 - weight) + ink * weight

    def grain(self, rng: Rng, strength: float, cells: int = 64) -> None:
        """Add coarse grain that does not depend on the size of the picture."""
        field = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
        self.rgb = self.rgb + np.asarray(field.resize((self.side, self.side), Image.Resampling.BILINEAR))[..., None]

    def image(self) -> Image.Image:
        """The finished picture."""
        return Image.fromarray(np.clip(np.rint(self.rgb), 0, 255).astype(np.uint8))


def wobble(angle: Plane, rng: Rng, waves: tuple[int, int], depth: float) -> Plane:
    """A closed outline around 1 with a number of lobes drawn from `waves`."""
    lobes = int(rng.integers(waves[0], waves[1] + 1))
    first, second, third = (np.float32(v) for v in rng.uniform(0, 2 * np.pi, 3))
    return np.asarray(
        1
        + depth * np.cos(lobes * angle + first)
        + 0.42 * depth * np.cos((lobes + 2) * angle + second)
        + 0.3 * depth * np.cos(7 * angle + third),
        np.float32,
    )


def pick(rng: Rng, words: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
    """One word, with equal or given weights."""
    return words[int(rng.choice(len(words), p=weights))]
