"""The preprocessing of a folder for timm in a pipeline of transformers: the pixels of ``alexnet predict``.

timm resizes the whole image, rounds its longer side to an integer and then crops: the crop can lie up to a pixel
elsewhere. This project resizes only the square that is kept, which may begin at half a pixel.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, BatchFeature, TimmWrapperImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images

from alexnet.data import decode
from alexnet.data.decode import Fit
from alexnet.loader.augmentation import center_crops


class AlexNetImageProcessor(TimmWrapperImageProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Images as inputs of a network, by the ``pretrained_cfg`` of a folder of ``alexnet export --format timm``."""

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **_options: Any) -> Any:
        """Resize, crop and normalize one image or many: ``pixel_values`` float32 [N, 3, s, s]."""
        config = self.data_config
        size = config["input_size"][-1]
        stored = round(size / config["crop_pct"])
        how: Fit = "squash" if config["crop_mode"] == "squash" else "crop"
        pixels = [np.asarray(to_pil_image(image).convert("RGB")) for image in make_flat_list_of_images(images)]
        crops = center_crops(torch.from_numpy(np.stack([decode.fit(image, stored, how) for image in pixels])), size)
        mean, std = (torch.tensor(config[name]) for name in ("mean", "std"))
        values = ((crops / 255 - mean) / std).permute(0, 3, 1, 2)
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)


def register() -> None:
    """Add :class:`AlexNetImageProcessor` to the processors that transformers finds by their name."""
    AutoImageProcessor.register(  # its first argument is the class of a configuration; a folder names the processor
        AlexNetImageProcessor, slow_image_processor_class=AlexNetImageProcessor, exist_ok=True
    )
