"""A picture of no medical kind, so that the model learns to say so."""

import numpy as np
from PIL import Image

from tools.demo_model.drawing import Canvas, Drawing, Rng, pick

MOTIFS = ("noise", "stripes", "a cat", "a page of text", "a grey gradient")


def draw(seed: int, side: int = 256, motif: str | None = None) -> Drawing:
    """The picture number `seed`."""
    rng = np.random.default_rng([seed, 5])
    chosen = pick(rng, MOTIFS)
    what = motif or chosen
    canvas = Canvas(side, tuple(float(v) for v in rng.uniform(20, 250, 3)))  # type: ignore[arg-type]
    {"noise": noise, "stripes": stripes, "a cat": cat, "a page of text": page, "a grey gradient": gradient}[what](
        canvas, rng
    )
    return Drawing("other", {"motif": what}, canvas.image())


def noise(canvas: Canvas, rng: Rng) -> None:
    """Coloured cells without order."""
    cells = rng.uniform(0, 255, (32, 32, 3)).astype(np.uint8)
    canvas.rgb = np.asarray(
        Image.fromarray(cells).resize((canvas.side, canvas.side), Image.Resampling.NEAREST), np.float32
    )


def stripes(canvas: Canvas, rng: Rng) -> None:
    """Parallel bars in two colours."""
    u, _ = canvas.turned(32, 32, float(rng.uniform(0, np.pi)))
    pitch = float(rng.uniform(5, 12))
    canvas.paint(
        canvas.edge((np.abs(u % pitch - pitch / 2) - pitch / 4).astype(np.float32)), tuple(rng.uniform(0, 255, 3))
    )


def cat(canvas: Canvas, rng: Rng) -> None:
    """A head with two ears, two eyes and whiskers."""
    fur = tuple(float(v) for v in rng.uniform(60, 220, 3))
    x, y, size = 32 + float(rng.normal(0, 2)), 36 + float(rng.normal(0, 2)), float(rng.uniform(15, 20))
    for sign in (-1, 1):
        tip, foot = (x + sign * size * 0.75, y - size * 1.35), (x + sign * size * 0.55, y - size * 0.4)
        canvas.paint(canvas.segment(tip, foot, size * 0.55), fur)  # type: ignore[arg-type]
    canvas.paint(canvas.ellipse(x, y, size, size * 0.88), fur)  # type: ignore[arg-type]
    for sign in (-1, 1):
        canvas.paint(canvas.ellipse(x + sign * size * 0.4, y - size * 0.2, 3.0, 3.6), (240, 250, 130))
        canvas.paint(canvas.ellipse(x + sign * size * 0.4, y - size * 0.2, 1.0, 3.2), (10, 10, 10))
        for drop in (-2.5, 0, 2.5):
            start = (x + sign * size * 0.25, y + size * 0.3)
            canvas.paint(canvas.segment(start, (x + sign * size * 1.25, y + size * 0.3 + drop), 0.7), (250, 250, 250))
    canvas.paint(canvas.disc(x, y + size * 0.2, 1.6), (230, 120, 140))


def page(canvas: Canvas, rng: Rng) -> None:
    """Dark words in rows on white paper."""
    canvas.rgb[:] = 246
    for row in np.arange(6, 60, 4.2):
        at = 5.0
        end = float(rng.uniform(40, 60))
        while at < end:
            length = float(rng.uniform(2, 7))
            canvas.paint(canvas.segment((at, float(row)), (at + length, float(row)), 1.6), (40, 40, 44))
            at += length + 2.6


def gradient(canvas: Canvas, rng: Rng) -> None:
    """Grey that rises evenly in one direction."""
    u, _ = canvas.turned(32, 32, float(rng.uniform(0, 2 * np.pi)))
    canvas.rgb = np.repeat((128 + u * float(rng.uniform(1.8, 3.4)))[..., None], 3, -1)
