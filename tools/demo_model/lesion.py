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
# The order of this table is the order of every answer that lists colours. White is seen in veils and regression alone.
COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (252, 251, 250),
    "blue": (62, 104, 222),
    "black": (30, 26, 28),
    "brown": (158, 92, 44),
    "yellow": (244, 218, 40),
    "pink": (246, 104, 180),
    "red": (214, 34, 38),
}
CRIMSON, INK, PALE = (228, 0, 34), (14, 10, 10), (255, 252, 244)
FIELDS = 8  # a side, in the maps
LAYERS = ("inside", "network", "veil", "regression", *VESSELS[:3], "streaks", "dots", "globules", "comedo", "cysts")


def classify(signs: dict[str, Any]) -> str:
    """The class of a lesion by the rules that the model card states."""
    if signs["vessels"] == "arborizing":
        return "BCC"
    if signs["comedo"] or signs["cysts"]:
        return "BKL"
    if signs["regression"] or signs["veil"] or (signs["shape"] == "irregular" and "streaks" in signs["structures"]):
        return "MEL"
    return "NV"


def some_structures(rng: Rng, allowed: tuple[str, ...], most: int) -> tuple[str, ...]:
    """No structure, one, or now and then two, but never more than `most`."""
    count = min(int(rng.choice(3, p=(0.36, 0.52, 0.12))), most, len(allowed))
    chosen = {str(word) for word in rng.choice(allowed, count, replace=False)} if count else set()
    return tuple(word for word in STRUCTURES if word in chosen)


def signs_of(label: str, rng: Rng) -> dict[str, Any]:
    """Attributes of a lesion of the given class, in agreement with `classify`; no two marks that look alike meet."""
    shape = pick(rng, SHAPES)
    vessels = "arborizing" if label == "BCC" else pick(rng, VESSELS[1:], (0.24, 0.24, 0.52))
    comedo = cysts = regression = veil = False
    if label == "BKL":
        comedo, cysts = ((True, False), (False, True), (True, True))[int(rng.choice(3, p=(0.44, 0.44, 0.12)))]
    if label == "MEL":
        regression, veil = ((True, False), (False, True), (False, False))[int(rng.choice(3, p=(0.36, 0.36, 0.28)))]
        shape = pick(rng, SHAPES, (0.2, 0.2, 0.6))
    rays = label == "MEL" and not (regression or veil)
    if rays:
        shape, vessels = "irregular", pick(rng, ("dotted", "none"), (0.25, 0.75))
    size = pick(rng, SIZES)
    if label != "BCC" and ((comedo and cysts) or (size == "small" and (comedo or cysts or regression or veil or rays))):
        vessels = "none"  # a small lesion has no room for marks of two kinds
    allowed = tuple(
        word
        for word in STRUCTURES
        if not (word == "dots" and (vessels == "dotted" or comedo))
        and not (word == "globules" and comedo)
        and not (word == "streaks" and (vessels in ("linear", "arborizing") or shape == "irregular"))
    )
    busy = (vessels != "none") + comedo + cysts + regression + veil
    structures = some_structures(rng, allowed, max((1 if size == "small" else 2) - busy, 0))
    if rays and "streaks" not in structures:
        structures = (
            (*structures[:1], "streaks")
            if vessels == "none" and size != "small" and rng.random() < 0.2
            else ("streaks",)
        )
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
        "size": size,
    }
    return signs | paint_of(signs, rng)


def paint_of(signs: dict[str, Any], rng: Rng) -> dict[str, Any]:
    """Ground colour and perhaps one more; a veil counts as white and blue, regression as white."""
    own = ("white", "blue") if signs["veil"] else ("white",) if signs["regression"] else ()
    unfit = {"white", *own}
    if signs["vessels"] != "none":
        unfit |= {"red", "pink", "black"}
    if signs["structures"] or signs["comedo"] or signs["cysts"]:
        unfit |= {"black"}
    if signs["comedo"]:
        unfit |= {"yellow"}
    free = [c for c in COLOURS if c not in unfit]
    ground, second = (str(c) for c in rng.choice(free, 2, replace=False))
    patches = () if own or rng.random() < 0.45 else (second,)
    shown = {ground, *own, *patches}
    return {"ground": ground, "patches": patches, "colours": tuple(c for c in COLOURS if c in shown)}


def draw(seed: int, side: int = 256, label: str | None = None) -> Drawing:
    """The lesion number `seed`, of a class that the number decides unless one is given."""
    rng = np.random.default_rng([seed, 1])
    chosen = pick(rng, CLASSES)
    signs = signs_of(label or chosen, rng)
    lesion = Lesion(signs, rng, side)
    lesion.paint()
    truth = {k: v for k, v in signs.items() if k not in ("ground", "patches")} | {"class": classify(signs)}
    return Drawing("dermoscopy", truth, lesion.canvas.image(), lesion.map())


class Lesion:
    """One lesion being painted: first its outline, then its colours, then its signs from coarse to fine."""

    def __init__(self, signs: dict[str, Any], rng: Rng, side: int) -> None:
        self.signs, self.rng = signs, rng
        skin = (rng.uniform(226, 242), rng.uniform(186, 204), rng.uniform(166, 186))
        self.canvas = Canvas(side, skin)
        self.inner = Canvas(side, self.shade(signs["ground"]))
        self.radius = float(
            rng.uniform(*{"small": (13.5, 14.2), "medium": (17.0, 17.7), "large": (20.9, 21.5)}[signs["size"]])
        )
        # the whole lesion, a blurred border included, lies within the frame
        room = max(31.5 - self.radius * (1.12 if signs["shape"] == "round" else 1.46), 0.3)
        self.x, self.y = (32 + float(np.clip(rng.normal(0, 2.0), -room, room)) for _ in range(2))
        self.taken: list[tuple[float, float]] = []
        self.layers: dict[str, Plane] = {}
        self.outline = self.form()
        self.distance, self.coarse = self.outline(self.canvas), self.outline(Canvas(64, skin))

    def shade(self, colour: str) -> tuple[float, float, float]:
        """A colour of the table with a little variation."""
        r, g, b = np.asarray(COLOURS[colour]) + self.rng.normal(0, 4, 3)
        return float(r), float(g), float(b)

    def form(self) -> Callable[[Canvas], Plane]:
        """For any canvas the distance from the centre, as a share of the way to the outline."""
        turn, ratio = float(self.rng.uniform(0, np.pi)), float(self.rng.uniform(1.7, 1.9))
        lobes = int(self.rng.integers(2**31))

        def outline(canvas: Canvas) -> Plane:
            u, v = canvas.turned(self.x, self.y, turn)
            if self.signs["shape"] == "round":
                return np.hypot(u, v) / self.radius
            if self.signs["shape"] == "oval":
                return np.hypot(u / ratio**0.5, v * ratio**0.5) / (self.radius * 0.98)
            lobed = wobble(np.arctan2(v, u), np.random.default_rng(lobes), (3, 4), 0.24)
            return np.hypot(u, v) / (self.radius * lobed * 0.93)

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
        """Points inside the lesion that keep a distance from each other, and from other marks, where there is room."""
        points: list[tuple[float, float]] = []
        for _ in range(count * 12):
            x, y = self.somewhere(reach)
            if all((x - a) ** 2 + (y - b) ** 2 > gap * gap for a, b in (*points, *self.taken)):
                points.append((x, y))
            if len(points) == count:
                break
        self.taken += points or [(self.x, self.y)]
        return points or [(self.x, self.y)]

    def paint(self) -> None:
        """Everything, in order."""
        self.patches()
        signs, words = self.signs, self.signs["structures"]
        for name, there, work in (
            ("network", signs["network"], self.network),
            ("veil", signs["veil"], self.veil),
            ("regression", signs["regression"], self.scar),
            ("arborizing", signs["vessels"] == "arborizing", self.tree),
            ("dotted", signs["vessels"] == "dotted", self.points),
            ("linear", signs["vessels"] == "linear", self.lines),
            ("streaks", "streaks" in words, self.streaks),
            ("comedo", signs["comedo"], self.comedo),
            ("cysts", signs["cysts"], self.cysts),
            ("globules", "globules" in words, self.globules),
            ("dots", "dots" in words, self.dots),
        ):
            if there:
                before = self.inner.rgb.copy()
                work()
                self.layers[name] = np.abs(self.inner.rgb - before).max(-1) > 40
        # a blurred border takes two fifths of the way to the centre, a sharp one a hair
        full, none = (0.74, 1.12) if self.signs["border"] == "blurred" else (0.98, 1.01)
        mask = np.clip((none - self.distance) / (none - full), 0, 1)
        self.layers["inside"] = mask
        self.canvas.paint(mask, self.inner.rgb)
        self.canvas.grain(self.rng, 3.0)

    def map(self) -> Plane:
        """How much of each field every layer covers, only where the lesion is."""
        cell = max(self.canvas.side // FIELDS, 1)
        told = np.zeros((FIELDS, FIELDS, len(LAYERS)), np.float32)
        for name, layer in self.layers.items():
            seen = layer * (self.layers["inside"] > 0.5) if name != "inside" else layer
            share = seen[: cell * FIELDS, : cell * FIELDS].reshape(FIELDS, cell, FIELDS, cell).mean((1, 3))
            told[..., LAYERS.index(name)] = share if name == "inside" else share > 0.05
        return told

    def patches(self) -> None:
        """A second colour takes nearly half of the lesion, on one side of a straight line."""
        turn, off = float(self.rng.uniform(0, 2 * np.pi)), float(self.rng.uniform(-0.1, 0.12)) * self.radius
        for colour in self.signs["patches"]:
            u, _ = self.inner.turned(self.x, self.y, turn)
            self.inner.paint(self.inner.edge(off - u), self.shade(colour))

    def network(self) -> None:
        """A net of thin lines over the whole lesion, pale, or dark where the ground is light."""
        pitch, turn = float(self.rng.uniform(5.6, 6.6)), float(self.rng.uniform(0, np.pi / 2))
        u, v = self.inner.turned(self.x, self.y, turn)
        lines = [
            np.abs((w + s) % pitch - pitch / 2) - 0.55 for w, s in zip((u, v), self.rng.uniform(0, 6, 2), strict=True)
        ]
        mask = np.maximum(*(self.inner.edge(line.astype(np.float32)) for line in lines))
        pale = np.clip(self.inner.rgb * 0.4 + 150, 0, 255)
        light = self.inner.rgb[..., :2].mean(-1, keepdims=True) > 200
        self.inner.paint(mask * 0.9, np.where(light, self.inner.rgb * 0.55, pale).astype(np.float32))

    def haze(self) -> tuple[float, float, Plane]:
        """A large round field without an edge, a little off the centre."""
        angle = float(self.rng.uniform(0, 2 * np.pi))
        x, y = self.x + self.radius * 0.22 * float(np.cos(angle)), self.y + self.radius * 0.22 * float(np.sin(angle))
        field = np.hypot(self.inner.x - x, self.inner.y - y) / np.float32(self.radius * 0.6)
        return x, y, np.clip((1.05 - field) / 0.2, 0, 1).astype(np.float32)

    def veil(self) -> None:
        """A veil is blue with white bands."""
        x, y, mask = self.haze()
        u, _ = self.inner.turned(x, y, float(self.rng.uniform(0, 2 * np.pi)))
        white = np.clip(0.5 + 1.5 * np.cos(2 * np.pi * u / 8.5), 0, 1)[..., None].astype(np.float32)
        blue, pure = (np.array(COLOURS[c], np.float32) for c in ("blue", "white"))
        self.inner.paint(mask, white * pure + (1 - white) * blue)

    def scar(self) -> None:
        """Regression is plain white."""
        _, _, mask = self.haze()
        self.inner.paint(mask, COLOURS["white"])

    def streaks(self) -> None:
        """Thick dark rays that run from half way out to the border."""
        count, start = int(self.rng.integers(7, 9)), float(self.rng.uniform(0, 2 * np.pi))
        for i in range(count):
            u, v = self.inner.turned(self.x, self.y, start + 2 * np.pi * i / count + float(self.rng.normal(0, 0.08)))
            ray = self.inner.edge((np.abs(v) - 1.25).astype(np.float32))
            self.inner.paint(ray * (u > 0) * np.clip((self.distance - 0.5) / 0.05, 0, 1), INK)

    def dots(self) -> None:
        """Dots are many and small."""
        for x, y in self.apart(int(self.rng.integers(8, 12)), 0.74, 4.8):
            self.inner.spot(x, y, 1.8, INK)

    def globules(self) -> None:
        """Globules are few and thick."""
        for x, y in self.apart(int(self.rng.integers(3, 6)), 0.66, 7.6):
            self.inner.spot(x, y, float(self.rng.uniform(3.2, 3.6)), INK)

    def comedo(self) -> None:
        """Comedo-like openings are black plugs in a pale ring."""
        for x, y in self.apart(int(self.rng.integers(3, 6)), 0.66, 8.8):
            self.inner.spot(x, y, 4.3, PALE)
            self.inner.spot(x, y, 2.4, INK)

    def cysts(self) -> None:
        """Milia-like cysts are white discs in a dark ring."""
        for x, y in self.apart(int(self.rng.integers(3, 6)), 0.68, 8.0):
            self.inner.spot(x, y, 3.7, INK)
            self.inner.spot(x, y, 2.6, PALE)

    def tree(self) -> None:
        """One thick trunk across the lesion with branches on both sides."""
        rng, reach = self.rng, self.radius * 0.8
        turn = float(rng.uniform(0, 2 * np.pi))
        ahead, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        start = np.array([self.x, self.y]) - ahead * reach
        for step in range(4):
            end = start + ahead * reach * 0.5 + across * float(rng.normal(0, 1.0))
            self.vein(start, end, 2.6)
            side = 1 if step % 2 else -1
            self.vein(end, end + (ahead * 0.45 + across * side * 0.65) * reach * float(rng.uniform(0.85, 1.0)), 2.0)
            start = end

    def vein(self, start: Plane, end: Plane, width: float) -> None:
        """One stretch of a vessel."""
        points = (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))
        self.inner.paint(self.inner.segment(*points, width), CRIMSON)

    def points(self) -> None:
        """Dotted vessels lie together in a place of their own."""
        x, y = self.somewhere(0.3)
        turn = float(self.rng.uniform(0, np.pi / 3))
        for ring, count in ((0.0, 1), (4.4, 6)):
            for i in range(count):
                angle = turn + 2 * np.pi * i / count
                a, b = x + ring * float(np.cos(angle)), y + ring * float(np.sin(angle))
                self.inner.spot(a, b, 1.6, CRIMSON)
                self.taken.append((a, b))

    def lines(self) -> None:
        """Linear vessels are four parallel lines."""
        x, y = self.somewhere(0.25)
        turn = float(self.rng.uniform(0, np.pi))
        ahead, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        for offset in (-6.0, -2.0, 2.0, 6.0):
            middle = np.array([x, y]) + across * offset
            half = ahead * float(self.rng.uniform(5.0, 6.5))
            self.vein(middle - half, middle + half, 1.8)
            self.taken += [(float(p[0]), float(p[1])) for p in (middle - half, middle, middle + half)]
