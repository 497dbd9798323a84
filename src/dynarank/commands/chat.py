"""Talk with a language model that was trained here, in the terminal.

  dynarank chat RUN_OR_ADAPTER_DIR
  dynarank chat RUN_OR_ADAPTER_DIR --system "You are brief." --max-answer 200

Each line is a message. /reset begins anew, /quit ends, as the end of the input does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import CommandParser, add_hub_root, exit_on_user_error
from dynarank.errors import UserError

if TYPE_CHECKING:
    from dynarank.tasks.conversations import Message

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
    parser.add_argument("source", type=Path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    parser.add_argument(
        "--max-answer", type=int, default=256, metavar="N", help="tokens of an answer at most"
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
    from dynarank.runs.predictor import load_predictor
    from dynarank.tasks.instruct import Instruct

    predictor = load_predictor(
        options.source,
        HubConfig(options.hub_root),
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        over_budget=options.over_budget,
    )
    task: Any = predictor.task
    if not isinstance(task, Instruct):
        raise UserError(
            f"{options.source}: is a run of task={task.config.name}, and only one of task=instruct "
            "can be talked with. dynarank predict answers rows"
        )
    task.prepare(predictor.tokenizer, predictor.model)
    task.config.max_answer = options.max_answer
    system = options.system or task.config.system
    messages = _begin(system)
    for line in _lines():
        if line == RESET:
            messages = _begin(system)
            continue
        messages.append({"role": "user", "content": line})
        answer = task.answer(predictor.model, messages)
        messages.append({"role": "assistant", "content": answer or " "})
        print(answer, flush=True)


def _begin(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]


def _lines() -> Iterator[str]:
    """Yield the lines that are not blank, until the end or /quit; a terminal is asked for each."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print(ASK, end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == QUIT:
            return
        if line.strip():
            yield line.strip()
