"""A colon tile is either plainly normal or plainly tumour-like."""

import numpy as np

from tools.demo_model.drawing import Canvas, Drawing, Rng, wobble

STROMA = (236.0, 186.0, 208.0)
LUMEN = (250.0, 242.0, 246.0)


def draw(seed: int, side: int = 256, malignant: bool | None = None) -> Drawing:
    """The tile number `seed`."""
    rng = np.random.default_rng([seed, 2])
    chosen = bool(rng.random() < 0.5)
    sick = chosen if malignant is None else malignant
    shift = rng.normal(0, 5, 3)
    canvas = Canvas(side, tuple(float(v) for v in np.asarray(STROMA) + shift))  # type: ignore[arg-type]
    canvas.grain(rng, 6.0, 32)
    (tumour if sick else normal)(canvas, rng)
    canvas.grain(rng, 3.0)
    return Drawing("histology", {"malignant": sick}, canvas.image())


def normal(canvas: Canvas, rng: Rng) -> None:
    """Round glands in even rows, each with one ring of small nuclei at its base."""
    pitch, angle = float(rng.uniform(19, 23)), float(rng.uniform(-0.3, 0.3))
    for i in range(-3, 4):
        for j in range(-3, 4):
            u, v = i * pitch + (j % 2) * pitch / 2, j * pitch * 0.9
            x = 32 + u * np.cos(angle) - v * np.sin(angle) + float(rng.normal(0, 0.8))
            y = 32 + u * np.sin(angle) + v * np.cos(angle) + float(rng.normal(0, 0.8))
            if -10 < x < 74 and -10 < y < 74:
                round_gland(canvas, rng, float(x), float(y), float(rng.uniform(7.2, 8.4)))


def round_gland(canvas: Canvas, rng: Rng, x: float, y: float, radius: float) -> None:
    """One normal gland."""
    canvas.spot(x, y, radius, (222, 170, 204))
    canvas.spot(x, y, radius * 0.4, LUMEN)
    count = int(rng.integers(15, 19))
    for turn in np.arange(count) * 2 * np.pi / count + rng.uniform(0, 1):
        canvas.spot(x + radius * np.cos(turn), y + radius * np.sin(turn), 0.95, (118, 72, 150))


def tumour(canvas: Canvas, rng: Rng) -> None:
    """Crowded, fused glands of uneven outline with large dark nuclei in several rows."""
    for _ in range(int(rng.integers(9, 13))):
        x, y, radius = float(rng.uniform(2, 62)), float(rng.uniform(2, 62)), float(rng.uniform(7, 12))
        u, v = canvas.turned(x, y, float(rng.uniform(0, np.pi)))
        far = np.hypot(u, v * 1.35) / wobble(np.arctan2(v, u), rng, (3, 5), 0.3)
        canvas.paint(canvas.edge(far - radius), (160, 94, 158))
        canvas.paint(canvas.edge(far - radius * 0.32), LUMEN)
        for turn in rng.uniform(0, 2 * np.pi, 16):
            reach = radius * float(rng.uniform(0.5, 1.0))
            a, b = x + reach * np.cos(turn), y + reach * np.sin(turn)
            canvas.spot(float(a), float(b), 1.65, (62, 30, 98))
