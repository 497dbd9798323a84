"""Given answers of question answering: read in any of their forms, and found in the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynarank.errors import UserError


@dataclass
class Answers:
    """A question's answers."""

    texts: list[str]
    """The answers; empty for a question without one."""
    start: int
    """Characters of the context before the first answer; -1 for a question without one."""


def read_answers(
    given: Any, start: Any, context: str, where: str, column: str, no_answer: bool
) -> Answers:
    """Read a question's answers, and find the first of them in its context.

    Args:
        given: SQuAD's form {text: [...], answer_start: [...]}, a list of texts, a text, or None.
        start: for texts, the characters before the first answer, or a list with them; None or ''
            where it is not known: the answer is taken where it first occurs.
        context: the text that holds the answer.
        where: the row, for errors.
        column: the answers' column, for errors.
        no_answer: whether a question may have no answer.

    Raises:
        UserError: The answers have none of these forms, there are none, or the first one does not
            stand in the context where it should.
    """
    if isinstance(given, dict) and {"text", "answer_start"} <= given.keys():
        texts = _as_texts(given["text"])
        starts = _as_list(given["answer_start"])
    else:
        texts = _as_texts(given)
        starts = _as_list(start)
    if texts is None:
        raise UserError(
            f"{where}: {column} = {given!r} is neither a text, nor a list of texts, nor SQuAD's "
            "form"
        )
    filled = [index for index, text in enumerate(texts) if text and text.strip()]
    if filled:
        # The span of the first answer is what is learned. All of them count in the scores.
        first = filled[0]
        known_start = starts[first] if first < len(starts) else None
        begin = _find_answer(texts[first], known_start, first < len(starts), context, where)
        return Answers([texts[index] for index in filled], begin)
    if no_answer:
        return Answers([], -1)
    raise UserError(
        f"{where}: {column} is empty. Mend or drop the row, or allow that: task.no_answer=true"
    )


def _as_texts(given: Any) -> list[str] | None:
    """Return a list of texts, of which some may be None; None where `given` is no such thing."""
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        return None
    if any(text is not None and not isinstance(text, str) for text in given):
        return None
    return given


def _as_list(start: Any) -> Sequence[Any]:
    if isinstance(start, list):
        return start
    return [] if start in (None, "") else [start]


def _find_answer(answer: str, start: Any, is_known: bool, context: str, where: str) -> int:
    """Return the characters of the context before the answer."""
    if is_known:
        place = f"at character {start} of"
        position = str(start).removesuffix(".0")  # numbers of pandas become 12.0 beside a gap
        begin = int(position) if position.isdecimal() else -1
    else:
        place = "in"
        begin = context.find(answer)
    if begin < 0 or not context.startswith(answer, begin):
        raise UserError(
            f"{where}: the answer {answer!r} does not stand {place} the context. "
            "Mend or drop the row"
        )
    return begin
