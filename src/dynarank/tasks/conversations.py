"""Rows of questions and answers, or of whole conversations, brought to one form: messages.

A message is {"role": system, user or assistant, "content": text}. Rows may come as messages, as
ShareGPT's conversations of {from, value}, as prompt and completion, or in alpaca's columns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError
from dynarank.tasks.causal_config import InstructColumns

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Message = dict[str, str]
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""The roles that are known, and what they are called here."""
MESSAGES = "messages"
FORMS = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "completion": "completion"},
    {"prompt": "instruction", "input": "input", "completion": "output"},
    {"prompt": "instruction", "completion": "output"},
    {"prompt": "question", "completion": "answer"},
)
"""Columns by which a form of rows is known, by role. The first that fits is taken."""


def find_columns(
    columns: InstructColumns, names: Sequence[str], where: str, labelled: bool
) -> InstructColumns:
    """Return the columns with those that were not given found among the data's names.

    Raises:
        UserError: no known form fits, or a column that was given is not there.
    """
    for role, name in vars(columns).items():
        # Rows to be answered have no answers yet, and need no ids.
        needed = labelled or role not in ("completion", "id")
        if name is not None and name not in names and needed:
            raise UserError(
                f"{where} has no column {name!r}; it has {', '.join(names)}. Name yours in "
                f"task.columns.{role}"
            )
    if columns.messages is not None or columns.prompt is not None:
        return columns
    given = {role: name for role, name in vars(columns).items() if name is not None}
    for form in FORMS:
        optional = () if labelled else ("completion",)
        wanted = form | {role: given[role] for role in form if role in given}
        if all(name in names for role, name in wanted.items() if role not in optional):
            return replace(columns, **wanted)
    raise UserError(
        f"{where} has the columns {', '.join(names)}, which are no known form: messages, "
        "conversations, prompt and completion, or instruction and output. Name yours in "
        "task.columns.messages, or task.columns.prompt and task.columns.completion"
    )


def as_messages(
    row: dict[str, Any], columns: InstructColumns, where: str, labelled: bool
) -> list[Message]:
    """Return a row's messages. Raises `UserError` where they are none, naming what is wrong.

    Args:
        labelled: whether an answer must be a text; if not, a blank one is none.
    """
    if columns.messages is not None:
        return _checked(row[columns.messages], where)
    assert columns.prompt is not None
    question = _text(row[columns.prompt], f"{where}: {columns.prompt}")
    more = row.get(columns.input) if columns.input is not None else None
    if more:
        question = f"{question}\n\n{_text(more, f'{where}: {columns.input}')}"
    messages = [{"role": "user", "content": question}]
    answer = row.get(columns.completion) if columns.completion is not None else None
    # A .csv file leaves an answer out by an empty text.
    is_empty = answer is None or not str(answer).strip()
    # Where an answer must be there, an empty one is refused by `_text`.
    if answer is not None and (labelled or not is_empty):
        content = _text(answer, f"{where}: {columns.completion}")
        messages.append({"role": "assistant", "content": content})
    return messages


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} = {value!r} is no text. Mend or drop the row")
    return value


def _checked(value: Any, where: str) -> list[Message]:
    """Return messages with known roles, of either spelling."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {str(value)[:80]!r} is no list of messages")
    messages = []
    for number, message in enumerate(value):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{place} is {type(message).__name__}, not {{role, content}}")
        role = message.get("role") or message.get("from")
        content = message.get("content") or message.get("value")
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(f"{place}: role = {role!r}: must be one of {', '.join(ROLES)}")
        messages.append({"role": ROLES[role], "content": _text(content, f"{place}: content")})
    return messages


def check_answered(messages: Sequence[Message], where: str) -> None:
    """Raise `UserError` for a conversation without an answer to learn from."""
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where}: has no message of the assistant. Mend or drop the row")


def all_answered(dataset: Dataset, columns: InstructColumns) -> bool:
    """Return whether every row ends with an answer, by which a written one can be scored."""
    found = find_columns(columns, dataset.column_names, "the input", labelled=False)
    answered = 0
    for number, row in enumerate(dataset):
        messages = as_messages(row, found, f"the input, row {number}", labelled=False)
        answered += messages[-1]["role"] == "assistant"
    if 0 < answered < len(dataset):
        log.warning("not scored: only %d of %d rows end with an answer", answered, len(dataset))
    return answered == len(dataset)


def up_to_last_answer(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation without what follows its last answer: nothing answers that."""
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    return list(messages[: answers[-1] + 1])


def read_conversations(
    dataset: Dataset, columns: InstructColumns, where: str, labelled: bool, system: str | None
) -> list[list[Message]]:
    """Return the messages of every row.

    Args:
        system: put before every conversation that has no system message; None: nothing.

    Raises:
        UserError: a row cannot be used; the message has its number.
    """
    rows = []
    for number, row in enumerate(dataset):
        messages = as_messages(row, columns, f"{where}, row {number}", labelled)
        if labelled:
            check_answered(messages, f"{where}, row {number}")
            messages = up_to_last_answer(messages)
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        rows.append(messages)
    return rows
