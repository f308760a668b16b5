"""Tissue is told from glass by colour alone, in stages written down here: the same slide always gives the same mask.

MedGemma's training kept to patches that hold tissue, found at 5x in HSV in several stages (MedGemma 1.5 technical
report, after PolyPath). Its thresholds are not published. These stages and numbers are those of the open tools that
pathology uses, on HSV as Pillow gives it, each channel 0 to 255:

1. A pixel is coloured if its saturation is at least SATURATION. Glass, and holes in the section, are grey or white.
2. A pixel is dark if its value is below DARK: edges of the scan, missing tiles, folds and black ink. It is not tissue.
3. Of the pixels within WINDOW x WINDOW at least half must be tissue: a median filter, which drops dust and specks and
   closes the gaps between cells.

Hue is not looked at, because stains other than H&E are green, blue or brown. Coloured ink on glass therefore counts as
tissue; this is what a person should look for in the thumbnail.
"""

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageFilter

SATURATION = 15
"""Least saturation of tissue, of 255: CLAM (Lu et al. 2021) uses 8 or 20, users of Prov-GigaPath 0.05 (13)."""

DARK = 25
"""Least value of tissue, of 255. The darkest nuclei at 5x lie above 60; a scanner's empty tiles at 0."""

WINDOW = 7
"""Side in pixels of the median filter: CLAM's default `mthresh`; 14 micrometres at 5x."""


def coloured(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Stages 1 and 2, pixel by pixel: uint8 RGB of shape [height, width, 3] to bool [height, width]."""
    _hue, saturation, value = PIL.Image.fromarray(pixels).convert("HSV").split()
    return (np.asarray(saturation) >= SATURATION) & (np.asarray(value) >= DARK)


def median(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Stage 3: bool [height, width] to the same shape; beyond its edges the mask goes on as at the edge."""
    # The median of zeros and ones is whether their mean reaches one half, and a mean costs the same at every window.
    grey = PIL.Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.filter(ImageFilter.BoxBlur(WINDOW // 2))) >= 128


def share(mask: NDArray[np.bool_], left: float, top: float, right: float, bottom: float) -> float:
    """Part of a box that is tissue, 0 to 1. The box is in pixels of the mask; what lies outside the mask is glass."""
    rows, columns = slice(round(max(top, 0)), round(bottom)), slice(round(max(left, 0)), round(right))
    area = (round(right) - round(left)) * (round(bottom) - round(top))
    return int(np.count_nonzero(mask[rows, columns])) / area if area > 0 else 0.0
