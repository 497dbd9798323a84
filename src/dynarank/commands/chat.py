"""Talk with a language model that was trained here, in the terminal.

  dynarank chat RUN_OR_ADAPTER_DIR
  dynarank chat RUN_OR_ADAPTER_DIR --system "You are brief." --max-answer 200

Each line is a message. /reset begins anew, /quit ends, as the end of the input does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import (
    CommandParser,
    add_hub_root,
    exit_on_user_error,
    user_path,
)
from dynarank.errors import UserError

if TYPE_CHECKING:
    from dynarank.tasks.conversations import Message
    from dynarank.tasks.instruct import Instruct

ASK = "> "
RESET, QUIT = "/reset", "/quit"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    with exit_on_user_error():
        chat(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser("chat", __doc__)
    parser.add_argument("source", type=user_path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="a system message before the conversation (default: task.system; empty: none)",
    )
    parser.add_argument(
        "--max-answer",
        type=int,
        default=256,
        metavar="N",
        help="tokens of an answer at most (default: %(default)s)",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="the base model's hub id or folder, where it has moved"
    )
    parser.add_argument(
        "--over-budget", action="store_true", help="also a run that ended before its freeze"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    parser.add_argument("--device", help="cpu, cuda, mps; by default a GPU where there is one")
    add_hub_root(parser)
    options = parser.parse_args(arguments)
    if options.max_answer < 1:
        parser.error(f"--max-answer {options.max_answer}: at least 1")
    return options


def chat(options: argparse.Namespace) -> None:
    """Answer each line of the standard input, with what was said before it.

    Raises:
        UserError: the run is of another task than `instruct`.
    """
    from dynarank.pretrained.hub import HubConfig
    from dynarank.runs.predictor import load_predictor, load_task
    from dynarank.tasks.instruct import Instruct

    task = load_task(options.source, options.over_budget)
    if not isinstance(task, Instruct):
        raise UserError(
            f"{options.source}: is a run of task={task.config.name}, and only one of task=instruct "
            "can be talked with. dynarank predict answers rows"
        )
    predictor = load_predictor(
        options.source,
        HubConfig(options.hub_root),
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        over_budget=options.over_budget,
        task=task,
    )
    # For rows, `features` does it, which a conversation does not pass.
    task.prepare(predictor.tokenizer, predictor.model)
    task.config.max_answer = options.max_answer
    system = task.config.system if options.system is None else options.system or None
    room = _room(predictor.model, options.max_answer)
    conversation = Conversation(task, system, room)
    for line in _lines():
        if line == RESET:
            conversation.begin()
        elif conversation.ask(line):
            answer = task.answer(predictor.model, conversation.messages)
            conversation.messages.append({"role": "assistant", "content": answer or " "})
            print(answer, flush=True)


class Conversation:
    """What was said so far, as much of it as the model has positions for."""

    def __init__(self, task: Instruct, system: str | None, room: int | None) -> None:
        """Begin with nothing but the system message.

        Args:
            room: tokens that it may have before an answer; None: any number.
        """
        self.messages: list[Message]
        self._task = task
        self._system = system
        self._room = room
        self._has_told = False
        self.begin()

    def begin(self) -> None:
        """Forget all that was said."""
        system = self._system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, question: str) -> bool:
        """Add a question, and forget the oldest turns where there is no room for it.

        Returns:
            Whether it fits. One that does not even fit alone is said to be too long, and left out.
        """
        self.messages.append({"role": "user", "content": question})
        first = 0 if self._system is None else 1
        while self._is_full() and len(self.messages) > first + 1:
            del self.messages[first : first + 2]  # a question and its answer
            if not self._has_told:
                self._has_told = True
                print("the model's positions are full: oldest turns are forgotten", file=sys.stderr)
        if self._is_full():
            print(f"too long: there is room for {self._room} tokens", file=sys.stderr)
            self.messages.pop()
            return False
        return True

    def _is_full(self) -> bool:
        return self._room is not None and len(self._task.prompt_ids(self.messages)) > self._room


def _room(model: Any, max_answer: int) -> int | None:
    """Return how many tokens a conversation may have before an answer; None for any number.

    Raises:
        UserError: an answer alone would take all the positions of the model.
    """
    # A model of images and texts keeps the sizes of its language model in a part of its own.
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    if max_answer >= positions:
        raise UserError(
            f"--max-answer {max_answer}: the model has {positions} positions, and the question "
            "needs some of them. Give less"
        )
    return int(positions) - max_answer


def _lines() -> Iterator[str]:
    """Yield the lines that are not blank, until the end or /quit; a terminal is asked for each."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print(ASK, end="", flush=True)
        line = _read_line()
        if not line or line.strip() == QUIT:
            return
        if line.strip():
            yield line.strip()


def _read_line() -> str:
    try:
        line = sys.stdin.readline()
        # In the C locale, halves of surrogate pairs stand for bytes that are no text.
        line.encode()
    except UnicodeError:
        raise UserError(
            "the standard input holds bytes that are no UTF-8. Convert it first, as by iconv"
        ) from None
    return line
