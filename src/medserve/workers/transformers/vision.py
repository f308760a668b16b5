"""Pictures go through the vision tower once: what it makes of them is kept by the hash of their pixels."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from medserve.workers.transformers.prompts import Picture


class Vision:
    """The vision tower and the projector of a model, and the features of the pictures seen last.

    Only the model's thread may use it. At most `kept_bytes` of features are kept, those used longest ago go first.
    """

    def __init__(self, model: Any, *, kept_bytes: int) -> None:
        self._model = model
        first = next(model.model.vision_tower.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._limit = kept_bytes
        self._held = 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.encodes = 0

    def features(self, pictures: Sequence[Picture]) -> tuple[list[torch.Tensor], int]:
        """The features [tokens, hidden] of each picture, and how many had to be encoded for it.

        Pictures are encoded one at a time: on some devices a batch changes the last digits, and a picture must not look
        different for the company it is in.
        """
        made: dict[str, torch.Tensor] = {}
        before = self.encodes
        for picture in pictures:
            if picture.digest not in made:
                made[picture.digest] = self._known(picture)
        return [made[picture.digest] for picture in pictures], self.encodes - before

    def forget(self) -> None:
        """Give back the memory of all that is kept."""
        self._kept.clear()
        self._held = 0

    def _known(self, picture: Picture) -> torch.Tensor:
        if (features := self._kept.get(picture.digest)) is not None:
            self._kept.move_to_end(picture.digest)
            return features
        features = self._encoded(picture)
        self._keep(picture.digest, features)
        return features

    @torch.inference_mode()
    def _encoded(self, picture: Picture) -> torch.Tensor:
        pixels = picture.pixels[None].to(self._device, self._dtype)
        features: torch.Tensor = self._model.get_image_features(pixels, return_dict=True).pooler_output[0]
        self.encodes += 1
        return features

    def _keep(self, digest: str, features: torch.Tensor) -> None:
        self._kept[digest] = features
        self._held += features.nbytes
        while self._held > self._limit:
            _, gone = self._kept.popitem(last=False)
            self._held -= gone.nbytes
