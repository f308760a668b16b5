"""Every kind of drawing by name, and the way a picture of any size reaches the model."""

from collections.abc import Callable

from PIL import Image

from tools.demo_model import chest, colon, kidney, lesion, other
from tools.demo_model.drawing import Drawing

KINDS = ("dermoscopy", "histology", "CT", "chest X-ray", "other")
ARTISTS: dict[str, Callable[[int, int], Drawing]] = {
    "dermoscopy": lesion.draw,
    "histology": colon.draw,
    "CT": kidney.draw,
    "chest X-ray": chest.draw,
    "other": other.draw,
}
SIDE = 64


def draw(kind: str, seed: int, side: int = 256) -> Drawing:
    """The drawing number `seed` of a kind."""
    return ARTISTS[kind](seed, side)


def padded(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a black square."""
    longest = max(picture.size)
    if picture.size == (longest, longest):
        return picture
    square = Image.new("RGB", (longest, longest))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square


def shrunk(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """A square of the model's size, resized as the image processor does it."""
    return padded(picture).resize((side, side), Image.Resampling.BILINEAR)
