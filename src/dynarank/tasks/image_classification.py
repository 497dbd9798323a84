"""Image classification: any images and their classes, from the hub, a folder, or a table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynarank.errors import UserError, first_line
from dynarank.pretrained.processors import image_mode
from dynarank.settings import expand_user
from dynarank.tasks.base import Batch, Collator
from dynarank.tasks.classification import Classification
from dynarank.tasks.files import read_file
from dynarank.tasks.image_config import ImageClassificationConfig
from dynarank.tasks.image_files import FILE, absolute_paths, as_images, open_image, read_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


class ImageClassification(Classification[ImageClassificationConfig]):
    """An image to a class.

    Images are opened and brought to the model's size when a batch is made, each time, because the
    pixels of a whole data set would fill the disk. They are not changed at random.
    """

    auto_class = "AutoModelForImageClassification"
    processor = "image_processor"
    length_setting = None

    def __init__(self, config: ImageClassificationConfig) -> None:
        super().__init__(config)
        self.mode = "RGB"
        """The mode, as pillow names it, of the images that the model reads."""
        self.pixel_dtype = torch.float32

    def read_file(self, field: str, name: str, used: Collection[str] | None = None) -> Dataset:
        path, columns = Path(expand_user(name)), self.config.columns
        if path.is_dir():
            return read_folder(field, path, columns.image, columns.label)
        return absolute_paths(read_file(field, name, used), columns.image, path.parent)

    def id_column(self, dataset: Dataset) -> str | None:
        column = super().id_column(dataset)
        if column is None and FILE in dataset.column_names:
            return FILE
        return column

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        dataset = as_images(dataset, self.config.columns.image, where)
        if not labelled:
            return dataset
        return self.with_labels(dataset, self.checked_classes(dataset, where))

    def features(
        self, dataset: Dataset, tokenizer: Any, model: PreTrainedModel, labelled: bool = True
    ) -> Dataset:
        columns = self.config.columns
        self.mode, self.pixel_dtype = image_mode(model), model.dtype
        names = {columns.image: "image"} | ({columns.label: "labels"} if labelled else {})
        features = dataset.select_columns(list(names)).rename_columns(names)
        # The row's number is for errors: an image is opened, and found broken, only in a batch.
        return features.add_column(
            "row", np.arange(len(dataset)), new_fingerprint=f"{features._fingerprint}-n"
        )

    def feature_lengths(self, features: Dataset) -> np.ndarray:
        """Return ones, (features): all images have one size when the model sees them."""
        return np.ones(len(features), dtype=int)

    def collator(self, tokenizer: Any) -> Collator:
        def collate(features: list[dict[str, Any]]) -> Batch:
            images = [_converted(feature, self.mode) for feature in features]
            pixels = tokenizer(images=images, return_tensors="pt")["pixel_values"]
            # Not every model narrows its input to the type of its own weights.
            batch: Batch = {"pixel_values": pixels.to(self.pixel_dtype)}
            if "labels" in features[0]:
                batch["labels"] = torch.tensor([feature["labels"] for feature in features])
            return batch

        return collate


def _converted(feature: dict[str, Any], mode: str) -> Any:
    """Return a feature's image in a mode. Raises `UserError` where its pixels cannot be read."""
    try:
        return open_image(feature["image"], mode)
    except (OSError, ValueError, SyntaxError) as error:  # pillow's answers to a damaged file
        raise UserError(
            f"row {feature['row']}: its image is damaged: {first_line(error)}. Mend or drop the row"
        ) from None
