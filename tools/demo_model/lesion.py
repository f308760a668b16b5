"""A lesion shows exactly the dermoscopic signs it is said to show, and never the signs of two classes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.demo_model.drawing import Canvas, Drawing, Plane, Rng, pick, wobble

SHAPES = ("round", "oval", "irregular")
STRUCTURES = ("dots", "globules", "streaks")
VESSELS = ("arborizing", "dotted", "linear", "none")
BORDERS = ("sharp", "blurred")
SIZES = ("small", "medium", "large")
CLASSES = ("MEL", "NV", "BCC", "BKL")
# The order of this table is the order of every answer that lists colours.
COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (248, 244, 240),
    "blue": (62, 92, 190),
    "black": (34, 30, 32),
    "brown": (118, 70, 40),
    "yellow": (232, 208, 62),
    "pink": (238, 130, 168),
    "orange": (238, 126, 38),
    "gray": (138, 140, 146),
    "tan": (200, 156, 106),
    "red": (196, 44, 48),
    "purple": (122, 62, 150),
}
CRIMSON = (206, 16, 40)
REDDISH = ("red", "purple", "orange", "pink")


def classify(signs: dict[str, Any]) -> str:
    """The class of a lesion by the rules that the model card states."""
    if signs["vessels"] == "arborizing":
        return "BCC"
    if signs["comedo"] or signs["cysts"]:
        return "BKL"
    if signs["regression"] or signs["veil"] or (signs["shape"] == "irregular" and "streaks" in signs["structures"]):
        return "MEL"
    return "NV"


def some_structures(rng: Rng, most: int) -> tuple[str, ...]:
    """No structure, one, or now and then two, but never more than `most`."""
    count = min(int(rng.choice(3, p=(0.32, 0.46, 0.22))), most)
    chosen = set(rng.choice(len(STRUCTURES), count, replace=False).tolist())
    return tuple(word for place, word in enumerate(STRUCTURES) if place in chosen)


def signs_of(label: str, rng: Rng) -> dict[str, Any]:
    """Attributes of a lesion of the given class, in agreement with `classify`."""
    shape = pick(rng, SHAPES)
    structures = some_structures(rng, 1 if label in ("BKL", "BCC") else 2)
    vessels = "arborizing" if label == "BCC" else pick(rng, VESSELS[1:], (0.22, 0.22, 0.56))
    comedo = cysts = regression = veil = False
    if label == "BKL":
        comedo, cysts = ((True, False), (False, True), (True, True))[int(rng.choice(3, p=(0.42, 0.42, 0.16)))]
    if label == "MEL":
        regression, veil = ((True, False), (False, True), (False, False))[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
        shape = pick(rng, SHAPES, (0.2, 0.2, 0.6))
        if not (regression or veil):
            shape, structures = "irregular", ("streaks",) if rng.random() < 0.7 else ("dots", "streaks")
    elif shape == "irregular" and "streaks" in structures:
        structures = tuple(word for word in structures if word != "streaks")
    if vessels == "dotted":  # red points among dark ones would be hard to tell at 64 pixels
        structures = tuple(word for word in structures if word != "dots")
    signs = {
        "shape": shape,
        "network": bool(rng.random() < 0.5),
        "structures": structures,
        "colours": (),
        "vessels": vessels,
        "regression": regression,
        "veil": veil,
        "comedo": comedo,
        "cysts": cysts,
        "border": pick(rng, BORDERS),
        "size": pick(rng, SIZES),
    }
    return signs | paint_of(signs, rng)


def paint_of(signs: dict[str, Any], rng: Rng) -> dict[str, Any]:
    """Ground colour and patch colours; a veil is blue and white by nature, regression white and gray."""
    own = ("white", "blue") if signs["veil"] else ("white", "gray") if signs["regression"] else ()
    free = [c for c in COLOURS if c not in own and not (signs["vessels"] != "none" and c in REDDISH)]
    if signs["cysts"] or signs["regression"] or signs["veil"]:
        free = [c for c in free if c not in ("white", "gray", "blue")]
    ground = str(rng.choice([c for c in free if c != "white"]))
    busy = len(signs["structures"]) + signs["comedo"] + signs["cysts"] + (signs["vessels"] != "none") > 1
    count = int(rng.choice(3, p=(0.4, 0.6, 0.0) if busy else (0.35, 0.4, 0.25)))
    patches = () if own else tuple(rng.permutation([c for c in free if c != ground])[:count])
    shown = {ground, *own, *(str(p) for p in patches)}
    return {"ground": ground, "patches": patches, "colours": tuple(c for c in COLOURS if c in shown)}


def draw(seed: int, side: int = 256, label: str | None = None) -> Drawing:
    """The lesion number `seed`, of a class that the number decides unless one is given."""
    rng = np.random.default_rng([seed, 1])
    chosen = pick(rng, CLASSES)
    signs = signs_of(label or chosen, rng)
    lesion = Lesion(signs, rng, side)
    lesion.paint()
    truth = {k: v for k, v in signs.items() if k not in ("ground", "patches")} | {"class": classify(signs)}
    return Drawing("dermoscopy", truth, lesion.canvas.image())


class Lesion:
    """One lesion being painted: first its outline, then its colours, then its signs from coarse to fine."""

    def __init__(self, signs: dict[str, Any], rng: Rng, side: int) -> None:
        self.signs, self.rng = signs, rng
        skin = (rng.uniform(226, 242), rng.uniform(186, 204), rng.uniform(166, 186))
        self.canvas = Canvas(side, skin)
        self.inner = Canvas(side, self.shade(signs["ground"]))
        self.radius = float(
            rng.uniform(*{"small": (16, 17.5), "medium": (20, 21.5), "large": (24.5, 26.5)}[signs["size"]])
        )
        room = max(32 - self.radius - 3, 0.5)
        self.x, self.y = (32 + float(np.clip(rng.normal(0, 2.5), -room, room)) for _ in range(2))
        self.outline = self.form()
        self.distance, self.coarse = self.outline(self.canvas), self.outline(Canvas(64, skin))

    def shade(self, colour: str) -> tuple[float, float, float]:
        """A colour of the table with a little variation."""
        r, g, b = np.asarray(COLOURS[colour]) + self.rng.normal(0, 5, 3)
        return float(r), float(g), float(b)

    def form(self) -> Callable[[Canvas], Plane]:
        """For any canvas the distance from the centre, as a share of the way to the outline."""
        turn, ratio = float(self.rng.uniform(0, np.pi)), float(self.rng.uniform(1.75, 2.1))
        lobes = int(self.rng.integers(2**31))

        def outline(canvas: Canvas) -> Plane:
            u, v = canvas.turned(self.x, self.y, turn)
            if self.signs["shape"] == "round":
                return np.hypot(u, v) / self.radius
            if self.signs["shape"] == "oval":
                return np.hypot(u / ratio**0.5, v * ratio**0.5) / (self.radius * 0.98)
            lobed = wobble(np.arctan2(v, u), np.random.default_rng(lobes), (3, 5), 0.25)
            return np.hypot(u, v) / (self.radius * lobed * 0.95)

        return outline

    def somewhere(self, reach: float) -> tuple[float, float]:
        """A point inside the lesion, drawn until it lies within `reach` of the outline."""
        for _ in range(60):
            angle, far = self.rng.uniform(0, 2 * np.pi), self.radius * 1.3 * np.sqrt(self.rng.uniform(0, 1))
            x, y = float(self.x + far * np.cos(angle)), float(self.y + far * np.sin(angle))
            # read on a coarse grid so that the same point is accepted at every size
            if self.coarse[int(np.clip(y, 0, 63)), int(np.clip(x, 0, 63))] < reach:
                return x, y
        return self.x, self.y

    def apart(self, count: int, reach: float, gap: float) -> list[tuple[float, float]]:
        """Points inside the lesion that keep a distance from each other where there is room."""
        points: list[tuple[float, float]] = []
        for _ in range(count * 8):
            x, y = self.somewhere(reach)
            if all((x - a) ** 2 + (y - b) ** 2 > gap * gap for a, b in points):
                points.append((x, y))
            if len(points) == count:
                break
        return points

    def paint(self) -> None:
        """Everything, in order."""
        self.patches()
        self.network()
        self.haze()
        self.streaks()
        self.spots()
        self.keratosis()
        self.vessels()
        # the ramp of a blurred border is a third of the lesion wide, that of a sharp one a hair
        soft = 0.34 if self.signs["border"] == "blurred" else 0.03
        self.canvas.paint(np.clip((1.0 - self.distance) / soft + 0.5, 0, 1), self.inner.rgb)
        self.canvas.grain(self.rng, 3.0)

    def patches(self) -> None:
        """Flat fields of further colours, each about a sixth of the lesion."""
        start = float(self.rng.uniform(0, 2 * np.pi))
        for place, colour in enumerate(self.signs["patches"]):
            angle = start + place * np.pi + float(self.rng.normal(0, 0.3))
            squeeze = 0.5 if self.signs["shape"] == "oval" else 0.58
            x, y = self.x + self.radius * 0.4 * np.cos(angle), self.y + self.radius * 0.4 * np.sin(angle)
            size = self.radius * squeeze * float(self.rng.uniform(0.75, 0.95))
            self.inner.paint(self.inner.ellipse(x, y, size, size * 0.8, angle), self.shade(colour))

    def contrast(self) -> Plane:
        """Dark ink on light ground and light ink on dark ground, pixel by pixel."""
        dark = self.inner.rgb.mean(-1, keepdims=True) > 78
        return np.where(dark, np.array([28, 18, 16], np.float32), np.array([150, 132, 122], np.float32)).astype(
            np.float32
        )

    def network(self) -> None:
        """A net of thin lines over the whole lesion."""
        pitch, turn = float(self.rng.uniform(5.6, 6.8)), float(self.rng.uniform(0, np.pi / 2))
        shift = self.rng.uniform(0, 6, 2)
        if not self.signs["network"]:
            return
        u, v = self.inner.turned(self.x, self.y, turn)
        lines = [np.abs((w + s) % pitch - pitch / 2) - 0.55 for w, s in zip((u, v), shift, strict=True)]
        mask = np.maximum(self.inner.edge(lines[0].astype(np.float32)), self.inner.edge(lines[1].astype(np.float32)))
        pale = np.clip(self.inner.rgb * 0.45 + 140, 0, 255)
        dark = self.inner.rgb.mean(-1, keepdims=True) > 170
        self.inner.paint(mask * 0.85, np.where(dark, self.inner.rgb * 0.5, pale).astype(np.float32))

    def haze(self) -> None:
        """A veil is blue with white bands and no edge; regression is white with gray pepper."""
        angle, bands = self.rng.uniform(0, 2 * np.pi, 2)
        x, y = (float(c + self.radius * 0.25 * f(angle)) for c, f in ((self.x, np.cos), (self.y, np.sin)))
        reach = self.radius * 0.62
        pepper = [(float(a), float(b)) for a, b in self.rng.uniform(-1, 1, (26, 2))]
        field = np.hypot(self.inner.x - x, self.inner.y - y) / np.float32(reach)
        mask = np.clip((1.05 - field) / 0.3, 0, 1).astype(np.float32)
        if self.signs["veil"]:
            u, _ = self.inner.turned(x, y, float(bands))
            white = (0.5 + 0.5 * np.cos(2 * np.pi * u / 6.5))[..., None].astype(np.float32)
            self.inner.paint(
                mask,
                white * np.array([240, 243, 252], np.float32) + (1 - white) * np.array(COLOURS["blue"], np.float32),
            )
        if self.signs["regression"]:
            self.inner.paint(mask, COLOURS["white"])
            for a, b in pepper:
                if a * a + b * b < 0.8:
                    self.inner.spot(x + a * reach, y + b * reach, 0.95, COLOURS["gray"])

    def streaks(self) -> None:
        """Dark rays that run from half way out to a little beyond the border."""
        count, start = int(self.rng.integers(8, 12)), float(self.rng.uniform(0, 2 * np.pi))
        turns = [start + 2 * np.pi * i / count + float(self.rng.normal(0, 0.1)) for i in range(count)]
        if "streaks" not in self.signs["structures"]:
            return
        ink = self.contrast()
        for turn in turns:
            u, v = self.inner.turned(self.x, self.y, turn)
            ray = self.inner.edge((np.abs(v) - 0.95).astype(np.float32))
            self.inner.paint(ray * (u > 0) * np.clip((self.distance - 0.56) / 0.05, 0, 1), ink)

    def spots(self) -> None:
        """Dots are many and tiny, globules few and thick."""
        many, few = int(self.rng.integers(12, 18)), int(self.rng.integers(5, 8))
        ink = self.contrast()
        if "dots" in self.signs["structures"]:
            for x, y in self.apart(many, 0.78, 3.4):
                self.inner.spot(x, y, 1.15, ink)
        if "globules" in self.signs["structures"]:
            for x, y in self.apart(few, 0.72, 7.0):
                self.inner.spot(x, y, float(self.rng.uniform(2.5, 3.0)), ink)

    def keratosis(self) -> None:
        """Comedo-like openings are black plugs in a yellow ring, milia-like cysts small white pearls."""
        if self.signs["comedo"]:
            for x, y in self.apart(int(self.rng.integers(4, 7)), 0.74, 7.5):
                self.inner.spot(x, y, 3.5, (250, 222, 110))
                self.inner.spot(x, y, 1.9, (24, 16, 12))
        if self.signs["cysts"]:
            for x, y in self.apart(int(self.rng.integers(6, 10)), 0.8, 5.0):
                self.inner.spot(x, y, 2.2, (206, 198, 190))
                self.inner.spot(x, y, 1.75, (255, 255, 252))

    def vessels(self) -> None:
        """A branching tree, a field of red points, or a few straight red lines."""
        if self.signs["vessels"] == "arborizing":
            self.tree()
        if self.signs["vessels"] == "dotted":
            self.points()
        if self.signs["vessels"] == "linear":
            self.lines()

    def tree(self) -> None:
        """One thick trunk across the lesion with branches on both sides."""
        rng, reach = self.rng, self.radius * 0.86
        turn = float(rng.uniform(0, 2 * np.pi))
        ahead, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        start = np.array([self.x, self.y]) - ahead * reach
        for step in range(4):
            end = start + ahead * reach * 0.5 + across * float(rng.normal(0, 1.6))
            self.vein(start, end, 2.1 - 0.25 * step)
            side = 1 if step % 2 else -1
            fork = end + (ahead * 0.45 + across * side * 0.6) * reach * float(rng.uniform(0.8, 1.0))
            self.vein(end, fork, 1.4)
            twig = (end + fork) / 2
            self.vein(twig, twig + (ahead * 0.5 - across * side * 0.05) * reach * 0.5, 1.1)
            start = end

    def vein(self, start: Plane, end: Plane, width: float) -> None:
        """One stretch of a vessel."""
        points = (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))
        self.inner.paint(self.inner.segment(*points, width), CRIMSON)

    def points(self) -> None:
        """Dotted vessels."""
        for x, y in self.apart(int(self.rng.integers(11, 16)), 0.8, 4.0):
            self.inner.spot(x, y, 1.45, CRIMSON)

    def lines(self) -> None:
        """Linear vessels, roughly parallel."""
        turn = float(self.rng.uniform(0, np.pi))
        for x, y in self.apart(int(self.rng.integers(5, 8)), 0.66, 5.5):
            a = turn + float(self.rng.normal(0, 0.12))
            half = np.array([np.cos(a), np.sin(a)]) * float(self.rng.uniform(3.6, 4.8))
            self.vein(np.array([x, y]) - half, np.array([x, y]) + half, 1.6)
