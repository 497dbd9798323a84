"""Tags that mark entities of several words: their schemes, read, checked, and written as IOB2.

A tag is O, for a word outside of all entities, or a prefix, a hyphen and the entity's kind.

    words              the  cat   John     Smith    Jones
    iob1               O    O     I-PER    I-PER    B-PER     B- only where two of a kind touch
    iob2 (BIO)         O    O     B-PER    I-PER    B-PER     B- begins every entity
    iobes              O    O     B-PER    E-PER    S-PER     E- ends one, S- is one alone
    bilou              O    O     B-PER    L-PER    U-PER     the same by other letters
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynarank.errors import UserError

OUTSIDE = "O"
PREFIXES = {"iob1": "BI", "iob2": "BI", "iobes": "BIES", "bilou": "BILU"}
"""The prefixes of each scheme."""
AS_IOBES = str.maketrans("LU", "ES")
"""From the prefixes of bilou to those of iobes."""

Span = tuple[str, int, int]
"""An entity: its kind, its first word, and the word after its last."""


def split_tag(tag: str) -> tuple[str, str]:
    """Return a tag's prefix and kind; of O, and of what is no such tag, an empty kind."""
    prefix, hyphen, kind = tag.partition("-")
    return (prefix, kind) if hyphen else (tag, "")


def find_scheme(rows: Iterable[Sequence[str]], where: str) -> str:
    """Return the scheme that the tags of all rows are written in.

    Tags in which every B- stands between two entities of a kind are iob1; where an I- begins an
    entity and a B- does too, they are read as iob1, which can read both.

    Raises:
        UserError: The tags are of no scheme.
    """
    prefixes: set[str] = set()
    all_begin_with_b = True
    for row, tags in enumerate(rows):
        before = OUTSIDE
        for word, tag in enumerate(tags):
            prefix, kind = split_tag(tag)
            if tag != OUTSIDE and (not kind or prefix not in set("BIESLU")):
                raise UserError(
                    f"{where}, row {row}, word {word}: the tag {tag!r} is neither O nor B-KIND, "
                    "I-KIND and the like. Mend it; or, where each tag is a class of its own, use "
                    "task.scheme=plain task.metrics=[accuracy] task.select=accuracy"
                )
            if prefix == "I" and split_tag(before)[1] != kind:
                all_begin_with_b = False
            prefixes.add(prefix)
            before = tag
    if prefixes & set("ES"):
        return "iobes"
    if prefixes & set("LU"):
        return "bilou"
    return "iob2" if all_begin_with_b else "iob1"


def read_spans(tags: Sequence[str], scheme: str, where: str) -> list[Span]:
    """Return the entities that a row's tags mark, in the order of the words.

    Raises:
        UserError: A tag does not fit the scheme, or the tag before it.
    """
    spans: list[Span] = []
    open_kind, start = "", 0
    closes = scheme in ("iobes", "bilou")
    # One O more closes an entity that reaches up to the row's end.
    for word, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = _checked_prefix(tag, scheme, f"{where}, word {word}")
        continues = prefix in "IE" and kind == open_kind and bool(kind)
        # The open entity does not go on: it ended with the word before.
        if open_kind and not continues:
            if closes:
                raise UserError(
                    f"{where}, word {word}: the entity of the kind {open_kind} that begins at word "
                    f"{start} has no end before {tag!r} ({scheme}). Mend the row"
                )
            spans.append((open_kind, start, word))
            open_kind = ""
        # One begins with this word.
        if kind and not continues:
            if prefix in "IE" and scheme != "iob1":
                raise UserError(
                    f"{where}, word {word}: {tag!r} has no beginning before it ({scheme}). Mend "
                    "the row" + _iob1_remedy(closes)
                )
            open_kind, start = kind, word
        # One ends with this word, by its own tag.
        if prefix in "ES" and kind:
            spans.append((kind, start, word + 1))
            open_kind = ""
    return spans


def _iob1_remedy(closes: bool) -> str:
    return "" if closes else ", or read it by task.scheme=iob1, where I- may begin an entity"


def _checked_prefix(tag: str, scheme: str, where: str) -> tuple[str, str]:
    """Return a tag's prefix, as iobes writes it, and its kind."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, kind = split_tag(tag)
    known = PREFIXES[scheme]
    # A list, for a text also "contains" the empty prefix and several letters at once.
    if not kind or prefix not in list(known):
        shown = ", ".join(f"{letter}-KIND" for letter in known)
        raise UserError(f"{where}: the tag {tag!r} is none of {scheme}: O, {shown}. Mend the row")
    return (prefix.translate(AS_IOBES) if scheme == "bilou" else prefix), kind


def write_iob2(spans: Iterable[Span], words: int) -> list[str]:
    """Return the tags of so many words in iob2."""
    tags = [OUTSIDE] * words
    for kind, start, stop in spans:
        tags[start] = f"B-{kind}"
        for word in range(start + 1, stop):
            tags[word] = f"I-{kind}"
    return tags


def predicted_spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of predicted iob2 tags, where an I- without a beginning begins one.

    It is how CoNLL's own script and seqeval read predictions.
    """
    return read_spans(tags, "iob1", "a prediction")
