"""Images as LLaVA-1.5's vision tower takes them: squared, resized, normalised; PIL's bicubic, as the released code runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from robustmerge_kit.errors import InputError

from .tasks import Preparation


@dataclass(frozen=True)
class Preprocessing:
    """The numbers of a CLIP image processor: the square's side in pixels, mean and deviation of each channel."""

    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, settings: Any) -> Preprocessing:
        """Take them from a processor's settings (preprocessor_config.json).

        Raises: InputError when they do not describe a square.
        """
        crop = settings.get("crop_size", settings.get("size"))
        side = crop if isinstance(crop, int) else crop.get("height", crop.get("shortest_edge"))
        if not isinstance(side, int) or (isinstance(crop, dict) and crop.get("width", side) != side):
            raise InputError(f"the image processor's crop_size {crop!r} is not a square")
        return cls(side, tuple(settings["image_mean"]), tuple(settings["image_std"]))

    def __call__(self, image: Image.Image, preparation: Preparation) -> torch.Tensor:
        """Pixel values of one image.

        Shapes: -> (3, side, side) float32.
        """
        image = image.convert("RGB")
        if preparation == "pad":
            image = pad_to_square(image, tuple(int(255 * value) for value in self.mean))
        image = crop_middle(resize_shortest(image, self.side), self.side)
        values = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
        mean, deviation = (torch.tensor(value).reshape(3, 1, 1) for value in (self.mean, self.deviation))
        return (values - mean) / deviation


def open_image(path: Path) -> Image.Image:
    """The decoded image of a file.

    Raises: InputError for a file that is no image, or a broken one.
    """
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"is not a readable image: {error}", where=str(path), hint="download it again") from error
    return image


def pad_to_square(image: Image.Image, colour: Sequence[int]) -> Image.Image:
    """The image in the middle of a square of its longer side; an odd rest goes below or to the right."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(colour))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def resize_shortest(image: Image.Image, side: int) -> Image.Image:
    """The image scaled so that its shorter side is `side`; the longer one is rounded down."""
    width, height = image.size
    short = min(width, height)
    size = (side, side * height // width) if width == short else (side * width // height, side)
    return image.resize(size, Image.Resampling.BICUBIC)


def crop_middle(image: Image.Image, side: int) -> Image.Image:
    """The square of `side` in the middle of an image that is at least as large."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
