"""Rows of words and tags, checked: each a list, of one length, with tags of one scheme."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError
from dynarank.tasks.tag_schemes import find_scheme, read_spans, split_tag, write_iob2
from dynarank.tasks.token_config import TokenClassificationConfig

if TYPE_CHECKING:
    from datasets import Dataset

MOST_KINDS = 200
"""More kinds than this are not kinds of entities, but some other column."""


class TaggedRows:
    """A split's rows as they were read, and their source, for errors."""

    def __init__(self, config: TokenClassificationConfig, dataset: Dataset, where: str) -> None:
        self.config = config
        self.dataset = dataset
        self.where = where

    def check_words(self) -> None:
        """Raise `UserError` where a row has no list of words, or an own file's holds none."""
        column = self.config.columns.tokens
        # Published data sets hold empty rows, which their users cannot mend.
        own_file = self.config.train_file is not None
        for row, words in enumerate(self.dataset[column][:]):
            here = f"{self.where}, row {row}"
            if not isinstance(words, list) or any(not isinstance(word, str) for word in words):
                raise UserError(
                    f"{here}: {column} = {str(words)[:80]!r} is no list of words, as json lines, "
                    "parquet and CoNLL's columns hold them. Mend or drop the row"
                )
            if not words and own_file:
                raise UserError(f"{here}: {column} is empty. Mend or drop the row")
            blank = [number for number, word in enumerate(words) if not word.strip()]
            if blank and own_file:
                raise UserError(f"{here}, word {blank[0]} is blank. Mend or drop the row")

    def read_tags(self, kinds: Sequence[str]) -> list[list[str]]:
        """Return each row's tags, those of entities in iob2.

        Args:
            kinds: the kinds that there may be; none where they are still to be found.

        Raises:
            UserError: A row has not as many tags as words, or one that is of no scheme or kind.
        """
        tags = self._named_tags()
        if self.config.scheme != "plain":
            tags = self._as_iob2(tags)
        if kinds:
            self._check_known(tags, kinds)
        return tags

    def _named_tags(self) -> list[list[str]]:
        """Return each row's tags by name, as many as it has words."""
        columns = self.config.columns
        names = _names_of(self.dataset.features[columns.tags]) or self.config.tag_names
        rows = zip(self.dataset[columns.tokens][:], self.dataset[columns.tags][:], strict=True)
        named = []
        for row, (words, tags) in enumerate(rows):
            here = f"{self.where}, row {row}"
            if not isinstance(tags, list):
                raise UserError(
                    f"{here}: {columns.tags} = {str(tags)[:80]!r} is no list of tags. Mend or "
                    "drop the row"
                )
            if len(tags) != len(words):
                raise UserError(
                    f"{here} has {len(words)} words and {len(tags)} tags. Mend or drop the row"
                )
            named.append([_tag_name(tag, names, f"{here}, word {i}") for i, tag in enumerate(tags)])
        return named

    def _as_iob2(self, tags: list[list[str]]) -> list[list[str]]:
        scheme = self.config.scheme
        if scheme == "auto":
            scheme = find_scheme(tags, self.where)
        converted = []
        for row, given in enumerate(tags):
            spans = read_spans(given, scheme, f"{self.where}, row {row}")
            converted.append(write_iob2(spans, len(given)))
        return converted

    def kinds_of(self, tags: Sequence[Sequence[str]]) -> list[str]:
        """Return the kinds of entities that the tags name, or the tags where they are plain.

        Raises:
            UserError: There are none to be told apart, or far too many.
        """
        distinct = sorted(set(itertools.chain.from_iterable(tags)))
        is_plain = self.config.scheme == "plain"
        kinds = distinct
        if not is_plain:
            named = {split_tag(tag)[1] for tag in distinct}
            kinds = sorted(named - {""})  # O names no kind
        column = self.config.columns.tags
        if len(kinds) < (2 if is_plain else 1):
            only = distinct[0] if distinct else "missing"
            raise UserError(
                f"{self.where}: {column} is {only!r} for every word: there is nothing to learn. "
                "Is it the right column?"
            )
        if len(kinds) > MOST_KINDS:
            raise UserError(
                f"{self.where}: {column} has {len(kinds)} kinds, {kinds[0]!r} and {kinds[1]!r} "
                "among them. Is it the right column?"
            )
        return kinds

    def _check_known(self, tags: Sequence[Sequence[str]], kinds: Sequence[str]) -> None:
        is_plain = self.config.scheme == "plain"
        for row, given in enumerate(tags):
            for word, tag in enumerate(given):
                kind = tag if is_plain else split_tag(tag)[1]
                if kind and kind not in kinds:
                    raise UserError(
                        f"{self.where}, row {row}, word {word}: {kind!r} is none of the known "
                        f"{', '.join(kinds)}. Mend the row, or name all in task.labels"
                    )

    def with_tags(self, tags: list[list[str]]) -> Dataset:
        """Return the rows with these tags in the place of those that were read."""
        from datasets import Features, List, Value
        from datasets.fingerprint import Hasher

        column = self.config.columns.tags
        fingerprint = str(Hasher.hash((self.dataset._fingerprint, tags)))
        # The type is stated, for lists that are all empty show none.
        texts = Features({column: List(Value("string"))})
        return self.dataset.remove_columns(column).add_column(
            column, tags, new_fingerprint=fingerprint, feature=texts[column]
        )


def _names_of(feature: Any) -> list[str] | None:
    """Return the tags' names by number, where the column's feature holds them."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _tag_name(tag: Any, names: Sequence[str] | None, where: str) -> str:
    """Return a tag's name. Raises `UserError` for a number without one, or no tag at all."""
    if isinstance(tag, str) and tag.strip():
        return tag.strip()
    if not isinstance(tag, int):
        raise UserError(f"{where}: the tag {tag!r} is no text. Mend or drop the row")
    if names is None:
        raise UserError(
            f"{where}: the tag {tag} is a number, and the data does not name it. Give the names "
            "by number: task.tag_names=[O,B-PER,I-PER,...]"
        )
    if not 0 <= tag < len(names):
        raise UserError(f"{where}: the tag {tag} is none of {len(names)} names. Mend the row")
    return names[tag]
