"""Images of the user's own: a folder with a subfolder a class, or a table that names files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FILE = "file"
"""The column with the name of each image's file, below the folder."""


def read_folder(field: str, folder: Path, image: str, label: str) -> Dataset:
    """Return the images of a folder and its subfolders, in the order of their names.

    The class of an image is the first subfolder on the way to it. Where all images lie in the
    folder itself, there are no classes, as in what is to be predicted.

    Args:
        field: the setting or option that named the folder, for errors.
        folder: where the images are.
        image: the name of the column of images.
        label: the name of the column of classes.

    Raises:
        UserError: There are no images, or some stand beside the classes' subfolders.
    """
    from datasets import Dataset

    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS]
    if not files:
        raise UserError(
            f"{field} = {folder}: holds no images ({', '.join(IMAGE_ENDINGS)}), neither in itself "
            "nor in subfolders"
        )
    names = [path.relative_to(folder) for path in files]
    columns: dict[str, list[Any]] = {
        image: [str(path) for path in files],
        # Alike on every system, for outputs name their rows so.
        FILE: [name.as_posix() for name in names],
    }
    loose = [name for name in names if len(name.parts) == 1]
    if loose and len(loose) < len(names):
        raise UserError(
            f"{field} = {folder}: {loose[0]} lies beside subfolders, which are classes. Move it "
            "into the subfolder of its class"
        )
    if not loose:
        columns[label] = [name.parts[0] for name in names]
    return Dataset.from_dict(columns)


def absolute_paths(dataset: Dataset, column: str, folder: Path) -> Dataset:
    """Return the rows with the paths of a column's files counted from a folder.

    A column that holds images, and not paths, stays as it is.
    """
    if column not in dataset.column_names or dataset.features[column].dtype != "string":
        return dataset
    paths = [None if path is None else str(folder / path) for path in dataset[column][:]]
    added = dataset.add_column("_path", paths)  # before the other goes, which may be the only one
    return added.remove_columns(column).rename_column("_path", column)


def as_images(dataset: Dataset, column: str, where: str) -> Dataset:
    """Return the rows with a column of images, each of which can be opened.

    Args:
        dataset: its column holds images, their bytes, or paths of their files.
        column: the column.
        where: the rows' source, for errors.

    Raises:
        UserError: The column holds none of these, or a row's image is missing or broken.
    """
    from datasets import Image
    from pyarrow import ArrowException

    try:
        # Opened by datasets, images would not be upright, nor a damaged one's row be named.
        images = dataset.cast_column(column, Image(decode=False))
    except (ArrowException, TypeError, ValueError):
        raise UserError(
            f"{where}: the column {column!r} holds {dataset.features[column]}, not images, bytes "
            "or paths. Name the right one: task.columns.image"
        ) from None
    for row, value in enumerate(images[column]):
        _check_image(value, f"{where}, row {row}", column)
    return images


def open_image(value: dict[str, Any], mode: str) -> Any:
    """Return an image of datasets as pillow's, turned upright as its camera noted, in a mode.

    Raises:
        OSError, ValueError, SyntaxError: pillow's answers to a damaged file.
    """
    from PIL import Image, ImageOps

    with Image.open(_source(value)) as image:
        return ImageOps.exif_transpose(image).convert(mode)


def _source(value: dict[str, Any]) -> Any:
    return value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])


def _check_image(value: Any, where: str, column: str) -> None:
    """Raise `UserError` unless an image's header can be read: its pixels are read in training."""
    from PIL import Image, UnidentifiedImageError

    if value is None or (value["bytes"] is None and value["path"] is None):
        raise UserError(f"{where}: {column} is missing. Mend or drop the row")
    name = value["path"] or "its bytes"
    try:
        with Image.open(_source(value)):
            pass
    except UnidentifiedImageError:
        raise UserError(f"{where}: {name} is no image. Mend or drop the row") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {name}: {first_line(error)}. Mend or drop the row") from None
