from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS, compose, write_tokenizer
from torch import nn

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task
from dynarank.tasks.base import Task

SMALL = ("task.max_length=16", "task.max_question=4", "task.stride=3")
"""Windows of 9 tokens of context with a question of 4: <s> question </s> context </s>."""
Row = dict[str, Any]


def row(question: str, context: str, *answers: str) -> Row:
    """A row in SQuAD's form, each answer where it first occurs."""
    given = {"text": list(answers), "answer_start": [context.index(answer) for answer in answers]}
    return {"id": f"id-{question}", "question": question, "context": context, "answers": given}


def read(folder: Path, rows: Sequence[Row], *overrides: str) -> Task:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    files = (f"task.train_file={file}", f"task.validation_file={file}", "task.columns.id=id")
    task = build_task(
        to_config(compose(["output_dir=x", "task=question_answering", *files, *overrides])).task
    )
    task.read(HubConfig())
    return task


def encoded(folder: Path, rows: Sequence[Row], *overrides: str) -> tuple[Task, Any]:
    from transformers import AutoTokenizer

    write_tokenizer(folder / "tokenizer")
    task, tokenizer = (
        read(folder, rows, *overrides),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )
    task.encode(tokenizer, None)  # no model: it has no say here
    return task, tokenizer


def numbered(words: int) -> str:
    return " ".join(f"w{index}" for index in range(words))


def places_of_words(feature: Row) -> list[tuple[int, int]]:
    part = slice(feature["context_start"], feature["context_end"])
    return list(zip(feature["offset_start"][part], feature["offset_end"][part], strict=True))


def windows_of(task: Task, question: int) -> list[Row]:
    return [one for one in task.validation_features["validation"] if one["row"] == question]


@pytest.mark.parametrize("stride", [0, 1, 3, 7])
def test_windows_cover_the_context_and_overlap_by_the_stride(stride: int, tmp_path: Path) -> None:
    questions = ["she", "he sat", "is it good", "was the cat bad", "are they"]
    contexts = [numbered(words) for words in (40, 4, 9, 10)] + [
        "w0, w1! (w2)  w3\tw4; w5 -- w6: 'w7' \"w8\""
    ]
    rows = [row(*texts, "w1") for texts in zip(questions, contexts, strict=True)]
    task, tokenizer = encoded(tmp_path, rows, *SMALL[:2], f"task.stride={stride}")
    rows_of_windows = task.rows_of(task.validation_features["validation"]).tolist()
    assert rows_of_windows == sorted(rows_of_windows)
    for index, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        words = [places_of_words(window) for window in windows_of(task, index)]
        for before, after in itertools.pairwise(words):
            assert before[len(before) - stride :] == after[:stride]
        joined = words[0] + [word for part in words[1:] for word in part[stride:]]
        assert joined == [match.span() for match in re.finditer(r"\w+|[^\w\s]+", context)]
        for window in windows_of(task, index):
            assert (
                window["input_ids"][: window["context_start"]] == tokenizer(question)["input_ids"]
            )
            assert window["context_end"] == len(window["input_ids"]) - 1 <= 15


ROWS = [
    row("who sat", numbered(30), "w3 w4", "w3"),
    row("who ran", numbered(30), "w10 w11"),  # the first window ends with w10
    row(
        "what is on it", numbered(30), "w5 w6 w7 w8 w9 w10"
    ),  # longer than what windows share, and across two
    row("is it", "(w0) w1 w2 w3 w4 w5 w6 (w8)", "w8)"),  # the first window ends with w8
    row("a part of a word", "the catdog sat", "dog s"),
    row("short", "the cat, sat", "the cat"),
    row("white space around it", " w0 w1 ", " w0 w1 "),
]


def test_positions_decode_to_the_answer_where_a_window_holds_it(tmp_path: Path) -> None:
    task, _ = encoded(tmp_path, ROWS, *SMALL)
    held: list[list[bool]] = [[] for _ in ROWS]
    for index, one in enumerate(ROWS):
        text, begin = one["answers"]["text"][0], one["answers"]["answer_start"][0]
        words = [match.span() for match in re.finditer(r"\w+|[^\w\s]+", one["context"])]
        answer = {word for word in words if word[0] < begin + len(text) and word[1] > begin}
        for window in windows_of(task, index):
            first, last = window["start_positions"], window["end_positions"]
            held[index].append(answer <= set(places_of_words(window)))
            if held[index][-1]:
                assert (window["offset_start"][first], window["offset_end"][last]) == (
                    min(answer)[0],
                    max(answer)[1],
                )
            else:
                assert (first, last) == (0, 0)
    assert held[1][:2] == [False, True]  # cut by the first window
    assert [any(windows) for windows in held] == [True, True, False, True, True, True, True]


def test_questions_without_an_answer_point_to_the_first_token(tmp_path: Path) -> None:
    task, _ = encoded(
        tmp_path,
        [row("q0", numbered(20)), row("q1", numbered(20), "w2")],
        "task.no_answer=true",
        *SMALL,
    )
    places = [
        {(one["start_positions"], one["end_positions"]) for one in windows_of(task, index)}
        for index in (0, 1)
    ]
    assert places[0] == {(0, 0)} < places[1]


def test_a_long_question_is_cut(tmp_path: Path) -> None:
    task, tokenizer = encoded(
        tmp_path, [row(" ".join(WORDS), "w0 w1", "w1"), row("is it, or", "w0", "w0")], *SMALL
    )
    assert windows_of(task, 0)[0]["input_ids"][:6] == tokenizer(" ".join(WORDS[:4]))["input_ids"]
    assert windows_of(task, 1)[0]["input_ids"][:6] == tokenizer("is it, or")["input_ids"]


@pytest.mark.parametrize(
    "question", ["\u5b57" * 8, "ab" + "\U0001f600" * 3, "abcdefgh", "abcdefghi"]
)
def test_a_question_whose_characters_are_several_tokens_is_cut_by_tokens(
    question: str, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(
        models.BPE({"<pad>": 0} | {letter: index + 1 for index, letter in enumerate(letters)}, [])
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>")
    tight = ("task.max_length=24", "task.max_question=8", "task.stride=11")
    task = read(tmp_path, [row(question, "w0 w1 w2 w3", "w1")], *tight)
    task.encode(tokenizer, None)
    kept = [window["input_ids"][: window["context_start"]] for window in windows_of(task, 0)]
    assert all(question.startswith(tokenizer.decode(ids)) and 5 <= len(ids) <= 8 for ids in kept)


class Fixed(nn.Module):
    """Gives the logits it is told, whatever the batch."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **batch: torch.Tensor) -> Any:
        from transformers.modeling_outputs import QuestionAnsweringModelOutput

        assert batch.keys() <= {
            "input_ids",
            "attention_mask",
            "token_type_ids",
            "start_positions",
            "end_positions",
        }
        return QuestionAnsweringModelOutput(torch.tensor(0.5), *self.logits)


def scored(task: Task, tokenizer: Any, logits: list[np.ndarray], order: Sequence[int]) -> Any:
    """Scores of features in batches of 3; logits, (2, tokens), are padded with tempting ones."""
    features = task.validation_features["validation"].remove_columns(list(task.host_columns))
    scores = task.scores("validation")
    for part in (order[at : at + 3] for at in range(0, len(order), 3)):
        batch = task.collator(tokenizer)([features[index] for index in part])
        padded = torch.full((2, *batch["input_ids"].shape), 50.0)
        for line, index in enumerate(part):
            padded[:, line, : logits[index].shape[1]] = torch.tensor(logits[index])
        assert task.score(Fixed(padded), batch, scores) == 0.5
    return scores


def certain(task: Task) -> list[np.ndarray]:
    """Logits of a model that knows the training labels."""
    features = task.validation_features["validation"]
    places = zip(features["start_positions"], features["end_positions"], strict=True)
    lengths = map(len, features["input_ids"])
    return [
        10.0 * (np.arange(n) == np.asarray(pair)[:, None])
        for n, pair in zip(lengths, places, strict=True)
    ]


def test_the_gold_spans_score_in_full_in_any_order_of_batches(tmp_path: Path) -> None:
    task, tokenizer = encoded(tmp_path, [ROWS[index] for index in (0, 1, 3, 5)], *SMALL)
    logits = certain(task)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(logits)).tolist()
        assert scored(task, tokenizer, logits, order).compute() == {"exact_match": 100, "f1": 100}


def test_only_the_rows_that_were_scored_count(tmp_path: Path) -> None:
    task, tokenizer = encoded(tmp_path, [ROWS[index] for index in (0, 1, 3, 5)], *SMALL)
    rows, logits = task.rows_of(task.validation_features["validation"]), certain(task)
    for index in np.flatnonzero(rows == 1):
        logits[index][:] = np.arange(logits[index].shape[1]) == 6  # the window's first word
    scores = scored(task, tokenizer, logits, np.flatnonzero(rows % 2)[::-1].tolist())
    assert scores.compute() == {"exact_match": 50, "f1": 50}
    assert list(task.artifacts("validation", scores)["predictions.json"]) == [
        ROWS[1]["id"],
        ROWS[5]["id"],
    ]
    scores = scored(task, tokenizer, logits, np.flatnonzero(rows % 2 == 0).tolist())
    assert scores.compute() == {"exact_match": 100, "f1": 100}


def searched(
    task: Task, question: int, logits: list[np.ndarray], best: int, most: int
) -> list[tuple[str, int, float]]:
    """A question's n-best list by plain loops over the spans of all its windows."""
    context = task.validation["validation"][question]["context"]
    found: dict[tuple[int, int], float] = {}
    for window in windows_of(task, question):
        start, end = (line.tolist() for line in logits[window["feature"]])
        tokens = range(window["context_start"], window["context_end"])
        firsts = sorted(tokens, key=lambda token: -start[token])[:best]
        lasts = sorted(tokens, key=lambda token: -end[token])[:best]
        pairs = [(i, j) for i in firsts for j in lasts if i <= j < i + most]
        for i, j in sorted(pairs, key=lambda pair: -start[pair[0]] - end[pair[1]])[:best]:
            place = (window["offset_start"][i], window["offset_end"][j])
            found[place] = max(found.get(place, -np.inf), start[i] + end[j])
    ranked = sorted(found.items(), key=lambda item: -item[1])[:best]
    return [(context[begin:stop], begin, score) for (begin, stop), score in ranked]


@pytest.mark.parametrize("no_answer", [False, True])
@pytest.mark.parametrize(("best", "most"), [(20, 30), (3, 4), (1, 1)])
def test_the_files_hold_what_a_search_of_all_windows_finds(
    best: int, most: int, no_answer: bool, tmp_path: Path
) -> None:
    rows = [
        row(f"{word} it", numbered(words), "w1")
        for word, words in zip(WORDS, [40, 3, 12, 25, 9, 2], strict=False)
    ]
    limits = (f"task.best={best}", f"task.max_answer={most}", f"task.no_answer={no_answer}")
    task, tokenizer = encoded(tmp_path, rows, *SMALL, *limits)
    rng, features = np.random.default_rng(best), task.validation_features["validation"]
    logits = [rng.normal(size=(2, len(ids))).astype(np.float32) for ids in features["input_ids"]]
    files = task.artifacts(
        "validation", scored(task, tokenizer, logits, rng.permutation(len(logits)).tolist())
    )
    names = [
        "predictions.json",
        "nbest_predictions.json",
        *(["null_odds.json"] if no_answer else []),
    ]
    assert [list(files[name]) for name in names] == [[one["id"] for one in rows]] * len(files)
    json.dumps(files, allow_nan=False)
    for index, (question, found) in enumerate(files["nbest_predictions.json"].items()):
        null = min(
            float(logits[window["feature"]][:, 0].sum()) for window in windows_of(task, index)
        )
        spans = searched(task, index, logits, best, most)
        if no_answer:
            assert files["null_odds.json"][question] == pytest.approx(
                null - spans[0][2] if spans else 0, abs=1e-5
            )
        silence = [("", -1, null)] if no_answer or not spans else []
        wanted = sorted([*spans, *silence], key=lambda one: -one[2])
        assert [(one["text"], one["start"]) for one in found] == [one[:2] for one in wanted]
        weights = np.exp([one[2] for one in wanted])
        assert [one["probability"] for one in found] == pytest.approx(
            weights / weights.sum(), abs=1e-5
        )
        assert files["predictions.json"][question] == wanted[0][0]


@pytest.mark.parametrize(
    ("threshold", "percent"), [(0, [50, 50, 50]), (2, [50, 50, 50]), (-9, [50, 0, 100])]
)
def test_no_answer_is_given_above_the_threshold(
    threshold: int, percent: list[int], tmp_path: Path
) -> None:
    rows = [
        row("q0", "w0 w1", "w0"),
        row("q1", "w0 w1"),
        row("q2", "w0 w1", "w1"),
        row("q3", "w0 w1"),
    ]
    task, tokenizer = encoded(
        tmp_path, rows, "task.no_answer=true", f"task.null_threshold={threshold}"
    )
    odds, logits = [-4, -2, 2, 4], [np.full((2, 6), -9, dtype=np.float32) for _ in rows]
    for index, one in enumerate(logits):
        one[:, 0], one[:, 3] = index, index - odds[index] / 2  # nothing, or w0
    scores = scored(task, tokenizer, logits, range(4))
    found, files = scores.compute(), task.artifacts("validation", scores)
    assert list(files["null_odds.json"].values()) == odds
    assert list(files["predictions.json"].values()) == [
        "" if one > threshold else "w0" for one in odds
    ]
    keys = ("exact_match", "HasAns_exact", "NoAns_exact", "best_exact", "best_exact_thresh")
    assert [found[key] for key in keys] == [*percent, 75, -4]
    assert found.keys() == {*keys, "f1", "HasAns_f1", "NoAns_f1", "best_f1", "best_f1_thresh"}


SQUAD, EMPTY = row("good", "a cat sat", "cat")["answers"], r"row 1: answers is empty"
UNUSABLE: list[tuple[Any, Row, str]] = [
    (
        SQUAD,
        {"answers": {"text": ["dog"], "answer_start": [2]}},
        r"row 1: .*'dog' does not stand at character 2 of the",
    ),
    (
        SQUAD,
        {"answers": {"text": ["cat"], "answer_start": [1]}},
        r"row 1: .*'cat' does not stand at character 1 of the",
    ),
    (SQUAD, {"answers": {"text": [], "answer_start": []}}, EMPTY + r"\..*task\.no_answer=true"),
    (SQUAD, {"answers": {"text": [" "], "answer_start": [1]}}, EMPTY),
    ("cat", {"answers": "dog"}, r"row 1: the answer 'dog' does not stand in the context"),
    ("cat", {"begin": "1"}, r"row 1: the answer 'cat' does not stand at character 1 of"),
    ("cat", {"begin": "two"}, r"'cat' does not stand at character two of"),
    ("cat", {"answers": ""}, EMPTY),
    (
        ["cat"],
        {"answers": ["dog", "cat"]},
        r"row 1: the answer 'dog' does not stand in the context",
    ),
    (["cat"], {"answers": [""]}, EMPTY),
    ([["cat"]], {}, r"row 0: answers = \[\['cat'\]\] is neither"),
    ([{"text": "cat", "answer_start": 2}], {}, r"row 0: answers = .* is neither"),
    (7, {}, r"row 0: answers = 7 is neither"),
    ("cat", {"id": "id-good"}, r"rows 0 and 1: id = .*'id-good'.* twice"),
    ("cat", {"context": None}, r"row 1: context is missing"),
    ("cat", {"question": " "}, r"row 1: question is empty"),
]


@pytest.mark.parametrize(("form", "changes", "said"), UNUSABLE)
def test_unusable_rows_are_named(form: Any, changes: Row, said: str, tmp_path: Path) -> None:
    good = row("good", "a cat sat") | {"answers": form, "begin": "2"}
    begins = ["task.columns.answer_start=begin"] if "begin" in changes else []
    with pytest.raises(UserError, match=said):
        read(tmp_path, [good, good | {"id": "id-bad"} | changes], *begins)


@pytest.mark.parametrize("role", ["question", "context", "answers", "answer_start"])
def test_a_missing_column_is_named(role: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"no column 'nosuch'.*Name yours in task\.columns\.{role}"
    ):
        read(tmp_path, [row("q", "a cat sat", "cat")], f"task.columns.{role}=nosuch")


PLACES: list[tuple[Any, Any, int]] = [
    *(
        ("cat", begin, place)
        for begin, place in (("", 2), (None, 2), (12, 12), ("12", 12), (12.0, 12))
    ),
    (["cat", "a"], [12, 0], 12),
    ({"text": ["", "cat"], "answer_start": [0, 12]}, None, 12),
]


@pytest.mark.parametrize(("answers", "begin", "place"), PLACES)
def test_an_answer_stands_where_the_row_says_or_first(
    answers: Any, begin: Any, place: int, tmp_path: Path
) -> None:
    one = row("who", "a cat and a cat sat") | {"answers": answers, "begin": begin}
    assert read(tmp_path, [one], "task.columns.answer_start=begin").train["_start"][:] == [place]
