"""How often the likeliest of four answers is the one that was given, in small talk.

    python benchmarks/small_talk/choices.py RUN_DIR [RUN_DIR ...]

For each of 64 validation conversations the last answer stands beside three last answers of other
conversations, drawn by a seed. An answer's score is its log-probability after the conversation, as
lm-evaluation-harness scores `acc`; and the same for each character, its `acc_norm`. The base is
scored first, then each run's adapter, loaded by PEFT alone.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynarank.tasks.packaged import load_packaged

ROWS, OTHERS, SEED = 64, 3, 0


def questions() -> list[tuple[list[dict[str, str]], list[str]]]:
    """Return conversations up to their last answer, and the answers to choose from, right first."""
    talks = []
    for row in load_packaged("chitchat_dataset/conversations")["validation"]:
        messages = list(row["messages"])
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if len(messages) >= 2:
            talks.append(messages)
    draw = random.Random(SEED)
    draw.shuffle(talks)
    answers = [messages[-1]["content"] for messages in talks]
    chosen = []
    for index, messages in enumerate(talks[:ROWS]):
        others = draw.sample(answers[:index] + answers[index + 1 :], OTHERS)
        chosen.append((messages[:-1], [answers[index], *others]))
    return chosen


@torch.no_grad()
def log_probability(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Return the log-probability of an answer's tokens behind a prompt."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor(tokenizer(prompt + answer, add_special_tokens=False)["input_ids"])
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(input_ids=tokens[None]).logits[0, len(before) - 1 : -1].float()
    picked = scores.log_softmax(-1).gather(1, tokens[len(before) :, None])
    return float(picked.sum())


def accuracies(model: Any, tokenizer: Any) -> tuple[float, float]:
    """Return `acc` and `acc_norm` over the questions."""
    right, right_for_length = 0, 0
    asked = questions()
    for conversation, answers in asked:
        prompt = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        scores = [log_probability(model, tokenizer, prompt, answer) for answer in answers]
        by_character = [s / len(answer) for s, answer in zip(scores, answers, strict=True)]
        right += scores[0] == max(scores)
        right_for_length += by_character[0] == max(by_character)
    return right / len(asked), right_for_length / len(asked)


def main() -> None:
    """Print a line for the base and for each run."""
    runs = [Path(name) for name in sys.argv[1:]]
    base = PeftConfig.from_pretrained(runs[0] / "adapter").base_model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    print("base: acc {:.3f}, acc_norm {:.3f}".format(*accuracies(model, tokenizer)), flush=True)
    for run in runs:
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = PeftModel.from_pretrained(model, run / "adapter").eval()
        found = accuracies(adapted, tokenizer)
        print("{}: acc {:.3f}, acc_norm {:.3f}".format(run.name, *found), flush=True)


if __name__ == "__main__":
    main()
