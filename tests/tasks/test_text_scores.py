from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from tiny import sentences

from dynarank.tasks.text_scores import by_sentence, rouge, text_scores

ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
ALL = [*ROUGE, "bleu", "chrf"]


def summaries(count: int, seed: int) -> list[list[str]]:
    """Texts as lists of their sentences."""
    flat = [f"{words.capitalize()} happily running." for words in sentences(3 * count, seed)]
    return [flat[3 * i : 3 * i + 1 + (i + seed) % 3] for i in range(count)]


TEXTS, REFERENCES = summaries(12, 0), summaries(12, 1)
FLAT = [" ".join(text) for text in TEXTS]
FLAT_REFERENCES = [" ".join(reference) for reference in REFERENCES]


@pytest.mark.parametrize("names", [ROUGE, ROUGE[:1], ROUGE[:3], ROUGE[3:], ["rougeLsum", "rouge2"]])
def test_rouge_is_the_mean_f_measure_of_its_authors_scorer(names: list[str]) -> None:
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    each = [
        scorer.score("\n".join(r), "\n".join(t)) for r, t in zip(REFERENCES, TEXTS, strict=True)
    ]
    expected = {name: 100 * np.mean([scores[name].fmeasure for scores in each]) for name in names}
    found = rouge(names, FLAT, FLAT_REFERENCES)
    assert list(found) == names
    assert found == pytest.approx(expected)
    assert all(0 < value < 100 for value in found.values())


CRAFTED = [
    # 5 of 6 and 5 of 5 words; 3 of 5 and 3 of 4 bigrams; the longest common subsequence has 5 words
    (
        "the cat sat on the mat",
        "the cat on the mat",
        {"rouge1": 10 / 11, "rouge2": 2 / 3, "rougeL": 10 / 11},
    ),
    # the same words, but in order only 2 of 4
    ("c d a b", "a b c d", {"rouge1": 1.0, "rouge2": 2 / 3, "rougeL": 0.5}),
    # a word counts as often as it is in both
    ("the the the the", "the cat", {"rouge1": 1 / 3, "rouge2": 0.0, "rougeL": 1 / 3}),
    # stems, case and punctuation
    ("Running: DOGS, jumped!", "runs dog jumping", {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}),
    ("one two", "three four", {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}),
]


@pytest.mark.parametrize(("text", "reference", "expected"), CRAFTED)
def test_rouge_equals_what_is_counted_by_hand(
    text: str, reference: str, expected: dict[str, float]
) -> None:
    found = rouge(ROUGE[:3], [text], [reference])
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert rouge(ROUGE, [text], [reference]) == pytest.approx(
        {**found, "rougeLsum": found["rougeL"]}
    )


def test_rouge_lsum_minds_sentences_and_not_their_order() -> None:
    text, reference = "The dog ran away. A cat sat there.", "A cat sat there. The dog ran away."
    assert rouge(["rougeL", "rougeLsum"], [text], [reference]) == pytest.approx(
        {"rougeL": 50.0, "rougeLsum": 100.0}
    )


def test_rouge_is_a_mean_over_rows() -> None:
    assert rouge(["rouge1"], ["a b", "x", "c d"], ["a b", "y", "c e"]) == pytest.approx(
        {"rouge1": 50.0}
    )


def test_bleu_and_chrf_are_sacrebleus() -> None:
    found = text_scores(["bleu", "chrf"], FLAT, FLAT_REFERENCES)
    assert found == {
        "bleu": BLEU().corpus_score(FLAT, [FLAT_REFERENCES]).score,
        "chrf": CHRF().corpus_score(FLAT, [FLAT_REFERENCES]).score,
    }
    assert 0 < min(found.values()) < max(found.values()) < 100


def test_bleu_is_over_the_corpus_and_not_a_mean_over_rows() -> None:
    texts, references = ["the cat sat on the mat", "a dog"], ["the cat sat on the mat", "a cat"]
    # 7/8, 5/6, 4/4 and 3/3 of the n-grams; no brevity penalty
    assert text_scores(["bleu"], texts, references)["bleu"] == pytest.approx(
        100 * (7 / 8 * 5 / 6) ** 0.25
    )


def test_short_texts_are_penalized_by_bleu() -> None:
    text, reference = "the cat sat on the mat", "the cat sat on the mat and slept there"
    assert text_scores(["bleu"], [text], [reference])["bleu"] == pytest.approx(
        100 * np.exp(1 - 9 / 6)
    )


def test_an_identical_text_scores_100() -> None:
    assert text_scores(ALL, FLAT, FLAT) == pytest.approx(dict.fromkeys(ALL, 100.0))


@pytest.mark.parametrize(
    ("text", "reference"),
    [("", "the cat sat on the mat"), ("the cat sat on the mat", ""), ("", ""), ("?!", "?!")],
)
def test_an_empty_text_scores_0_in_rouge(text: str, reference: str) -> None:
    assert text_scores(ROUGE, [text], [reference]) == dict.fromkeys(ROUGE, 0.0)


def test_an_empty_text_scores_0_in_bleu_and_chrf() -> None:
    assert text_scores(["bleu", "chrf"], [""], ["the cat sat on the mat"]) == {
        "bleu": 0.0,
        "chrf": 0.0,
    }


@pytest.mark.parametrize("names", [[name] for name in ALL])
def test_only_what_is_asked_for_is_scored(names: list[str]) -> None:
    assert text_scores(names, FLAT, FLAT_REFERENCES) == pytest.approx(
        {
            name: value
            for name, value in text_scores(ALL, FLAT, FLAT_REFERENCES).items()
            if name in names
        }
    )


def test_texts_and_references_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rouge(["rouge1"], ["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Mr. Smith paid 3.5 dollars. He left.", ["Mr. Smith paid 3.5 dollars.", "He left."]),
        ("No end", ["No end"]),
        ("First line\nSecond line", ["First line", "Second line"]),
        ("Why? Because! So.", ["Why?", "Because!", "So."]),
        (" \n ", []),
    ],
)
def test_sentences_stand_on_lines_of_their_own(text: str, lines: list[str]) -> None:
    assert by_sentence(text).splitlines() == lines


@pytest.mark.parametrize(
    "text",
    [
        *FLAT,
        'He said: "Go. Now."  Then  (U.S.A.) ...',
        "ţară. Õhtu? 日本語。次の文。",
        "a\tb\r\n\r\nc",
    ],
)
def test_no_word_is_lost_between_sentences(text: str) -> None:
    assert by_sentence(text).split() == text.split()


def test_scores_need_neither_nltk_data_nor_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(nltk.data, "find", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert text_scores(ALL, FLAT, FLAT_REFERENCES).keys() == set(ALL)


def test_a_fresh_process_without_a_home_scores_too(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "def refuse(*arguments): raise OSError(f'asked for {arguments}')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from dynarank.tasks.text_scores import text_scores\n"
        f"print(sorted(text_scores({ALL!r}, ['A cat. A dog.'], ['A cat. A dog.'])))\n"
    )
    environment = {
        "HOME": str(tmp_path),
        "NLTK_DATA": str(tmp_path),
        "PYTHONPATH": ":".join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(ALL))
    assert not list(tmp_path.iterdir())
