"""A chest film has a heart that is plainly normal or plainly too wide."""

import numpy as np

from tools.demo_model.drawing import Canvas, Drawing


def draw(seed: int, side: int = 256, enlarged: bool | None = None) -> Drawing:
    """The film number `seed`; the heart points to the patient's left, on the right of the picture."""
    rng = np.random.default_rng([seed, 4])
    chosen = bool(rng.random() < 0.5)
    large = chosen if enlarged is None else enlarged
    ratio = float(rng.uniform(0.58, 0.70) if large else rng.uniform(0.36, 0.46))
    film = Canvas(side, (18.0, 18.0, 18.0))

    def grey(value: float) -> tuple[float, float, float]:
        return value, value, value

    x, y = 32 + float(rng.normal(0, 0.8)), 32 + float(rng.normal(0, 0.8))
    half = float(rng.uniform(23, 26))  # half of the inner width of the chest
    film.paint(film.ellipse(x, y + 8, half + 4, 38), grey(float(rng.uniform(120, 140))))
    film.paint(film.ellipse(x, y - 22, half + 5, 10), grey(128))
    for sign in (-1, 1):
        film.paint(
            film.ellipse(x + sign * half * 0.53, y + 1, half * 0.47, 21, -sign * 0.08), grey(float(rng.uniform(38, 56)))
        )
    for level in range(6):  # ribs
        for sign in (-1, 1):
            top = y - 15 + level * 6.2
            bow = ((x + sign * 3, top - 2), (x + sign * half * 0.98, top + 2.5))
            film.paint(film.segment(*bow, 1.3) * 0.33, grey(190))
    film.paint(film.segment((x, y - 26), (x, y + 30), 7.5), grey(172))  # spine and vessels
    width = ratio * 2 * half
    film.paint(
        film.ellipse(x + width * 0.1, y + 11, width / 2, 8.5 + ratio * 6, 0.15), grey(float(rng.uniform(188, 204)))
    )
    for sign in (-1, 1):  # diaphragm
        film.paint(film.ellipse(x + sign * half * 0.55, y + 29, half * 0.62, 9), grey(176))
    for sign in (-1, 1):  # collar bones
        film.paint(film.segment((x + sign * 3, y - 18), (x + sign * half, y - 22), 2.0) * 0.6, grey(205))
    film.grain(rng, 4.0)
    return Drawing("chest X-ray", {"enlarged": large, "ratio": round(ratio, 3)}, film.image())
