"""Where a task's rows come from: the hub or a folder in its layout, a package, or own files."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError, first_line, kind_and_first_line, nearest
from dynarank.pretrained.hub import PACKAGE, HubConfig, Source, locate
from dynarank.settings import expand_user
from dynarank.tasks.config import TaskConfig
from dynarank.tasks.files import read_file

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps a parquet copy of a data set that is a script: datasets runs none."""


def check_source(config: TaskConfig) -> None:
    """Raise `UserError` unless the task names exactly one source."""
    if config.path is None and config.train_file is None:
        raise UserError(
            "task.path = null, task.train_file = null: where is the data? Give "
            "task.train_file=FILE (and task.validation_file=FILE), or task.path= a hub id or a "
            "folder"
        )
    if config.path is not None and config.train_file is not None:
        raise UserError(
            f"task.path = {config.path}, task.train_file = {config.train_file}: two sources. With "
            f"files of your own, use a task that is for them, as task={config.family}; or set "
            "task.path=null"
        )
    if config.validation_file is not None and config.train_file is None:
        raise UserError(
            f"task.validation_file = {config.validation_file}: needs task.train_file beside it"
        )
    if config.test_file is not None and config.train_file is None:
        raise UserError(
            f"task.test_file = {config.test_file}: needs task.train_file beside it. A split of "
            "task.path is named by task.test_split; a file alone is scored by dynarank evaluate"
        )
    if config.test_split is not None and config.train_file is not None:
        raise UserError(
            f"task.test_split = {config.test_split}: task.train_file has no splits. "
            "Name a file: task.test_file=FILE"
        )


def locate_data(config: TaskConfig, hub: HubConfig) -> Source | None:
    """Return where the hub's or a folder's data is; None for a package's data, and for files.

    Raises:
        UserError: The task names no source, several, or one that is not there.
    """
    check_source(config)
    if config.path is None or config.path.startswith(PACKAGE):
        return None
    return locate("datasets", "task.path", config.path, hub.root, config.revision)


def open_splits(
    config: TaskConfig, hub: HubConfig, read: Callable[..., Dataset] = read_file
) -> Mapping[str, Dataset]:
    """Return the splits by name. A single file is returned whole (see `cut_validation`).

    Args:
        config: the task's.
        hub: where data sets are looked for.
        read: reads a file of the user's own, as `read_file` does.

    Raises:
        UserError: The source is not there, or cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    if config.train_file is None and config.train_split in config.validation_splits:
        log.warning(
            "task.validation_splits = %s: %r is trained on, too, so that its scores say nothing of "
            "other rows",
            config.validation_splits,
            config.train_split,
        )
    source = locate_data(config, hub)
    if source is not None:
        return _load(config, source, config.revision)
    if config.path is not None:
        from dynarank.tasks.packaged import load_packaged

        return load_packaged(config.path.removeprefix(PACKAGE))
    assert config.train_file is not None
    used = used_columns(config)
    files = {
        config.train_split: ("task.train_file", config.train_file),
        "validation": ("task.validation_file", config.validation_file),
        "test": ("task.test_file", config.test_file),
    }
    splits = {}
    fields: dict[Path, str] = {}
    for split, (field, file) in files.items():
        if file is None:
            continue
        # By the whole path, for one file may be named in two ways.
        other = fields.setdefault(Path(expand_user(file)).resolve(), field)
        if other != field:
            log.warning(
                "%s = %s: is %s, too, so that its scores say nothing of other rows",
                field,
                file,
                other,
            )
        splits[split] = read(field, file, used)
    return splits


def used_columns(config: TaskConfig) -> set[str]:
    """Return the names of the columns that a task may use; of a dotted name, the first part."""
    columns: dict[str, str | None] = asdict(config).get("columns", {})
    used = set()
    for column in columns.values():
        if column is not None:
            used |= {column, column.partition(".")[0]}
    return used


def cut_validation(
    config: TaskConfig, splits: Mapping[str, Dataset], seed: int
) -> Mapping[str, Dataset]:
    """Return the splits, with a seeded share of a single file's rows cut off for validation.

    Raises:
        UserError: The file has one row only.
    """
    if not config.one_file:
        return splits
    train = splits[config.train_split]
    if len(train) < 2:
        raise UserError(
            f"task.train_file = {config.train_file}: one row cannot be split. "
            "Give task.validation_file"
        )
    rows = round(config.validation_share * len(train))
    rows = min(max(rows, 1), len(train) - 1)  # at least one on each side
    parts = train.train_test_split(rows, seed=seed)
    return {**splits, config.train_split: parts["train"], "validation": parts["test"]}


def describe(config: TaskConfig, split: str) -> str:
    """Return a split's source in words, for errors."""
    if config.train_file is None:
        subset = f" ({config.subset})" if config.subset else ""
        return f"task.path = {config.path}{subset}, split {split!r}"
    if split == config.tested:
        return f"task.test_file = {config.test_file}"
    if split == config.train_split or config.validation_file is None:
        return f"task.train_file = {config.train_file}"
    return f"task.validation_file = {config.validation_file}"


def _load(config: TaskConfig, source: Source, revision: str | None) -> Mapping[str, Dataset]:
    """Load the splits; where that fails, from the hub's parquet copy or without the cache."""
    folder = Path(source.path)
    try:
        return _load_dataset(config, source, revision)
    except UserError:
        raise
    except Exception as error:  # datasets raises a dozen kinds for data that it cannot read
        # datasets raises a plain RuntimeError here, which only its text tells from others.
        if revision is None and not folder.is_dir() and "script" in str(error):
            return _load(config, source, CONVERTED)
        if _remove_cache(folder):
            reason = first_line(error)
            log.warning("the cached copy of %s was damaged, and is made anew: %s", folder, reason)
            return _load(config, source, revision)
        raise UserError(
            f"task.path = {config.path}, task.subset = {config.subset}: cannot be read from "
            f"{source.path}: {_reason(error, folder)}"
        ) from error


def _load_dataset(
    config: TaskConfig, source: Source, revision: str | None
) -> Mapping[str, Dataset]:
    import datasets

    options: dict[str, Any] = {"revision": revision, "cache_dir": _cache_dir(Path(source.path))}
    subset = config.subset
    if subset is None:
        known = datasets.get_dataset_config_names(source.path, revision=revision)
        if len(known) > 1:
            if config.name not in known:
                raise UserError(
                    f"task.subset = null: {config.path} has several. {nearest(config.name, known)}"
                )
            subset = config.name
    return datasets.load_dataset(source.path, subset, **options)


def _cache_dir(folder: Path) -> str | None:
    """Return where a local folder's data is cached: a place of its own for the files as they are.

    datasets goes by the folder's last name alone, so that a changed file, or another folder of that
    name, would silently give the rows that were cached before.
    """
    if not folder.is_dir():
        return None
    import datasets

    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            # Size and time, for to hash the content it would have to be read whole at every start.
            status = path.stat()
            files.append((str(path), status.st_size, status.st_mtime_ns))
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"dynarank-{digest}")


def _remove_cache(folder: Path) -> bool:
    """Remove the cached copy of a local folder's data. Return whether there was one."""
    cached = _cache_dir(folder)
    # Where nothing was cached, the data itself is at fault.
    if cached is None or not any(Path(cached).rglob("*.arrow")):
        return False
    shutil.rmtree(cached)
    return True


def _reason(error: Exception, folder: Path) -> str:
    """Return why data cannot be read: the first line of the cause, or the name of an empty file.

    datasets' own message about an empty parquet file does not name it.
    """
    for file in sorted(folder.rglob("*.parquet")):
        if _is_empty(file):
            return f"{file} is empty"
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return kind_and_first_line(cause)


def _is_empty(file: Path) -> bool:
    from pyarrow import ArrowException, parquet

    try:
        return bool(parquet.read_metadata(file).num_rows == 0)
    except ArrowException:  # a damaged file, which the error itself is about
        return False
