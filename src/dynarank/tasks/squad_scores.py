"""SQuAD's official measures, v1.1 and v2.0: exact match and F1 on normalized texts, in percent.

Source: the evaluation scripts of Rajpurkar et al., 2016 and 2018, whose two versions differ where a normalized text is
empty.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_and_f1(
    prediction: str, golds: Sequence[str], no_answer: bool = False
) -> tuple[float, float]:
    """A prediction's exact match and F1, from 0 to 1, each against the gold answer that suits it best.

    Args:
        golds: the question's answers; none for a question without an answer.
        no_answer: v2.0's reading: an empty text equals an empty text alone, and gold answers that normalize to nothing
            do not count.
    """
    guess = normalize(prediction)
    wanted = [normalize(gold) for gold in golds]
    if no_answer:
        wanted = [gold for gold in wanted if gold] or [""]
    exact = max((float(gold == guess) for gold in wanted), default=0.0)
    return exact, max((_f1(guess.split(), gold.split(), no_answer) for gold in wanted), default=0.0)


def _f1(guess: list[str], gold: list[str], no_answer: bool) -> float:
    if no_answer and not (guess and gold):
        return float(guess == gold)
    common = sum((Counter(guess) & Counter(gold)).values())
    return 2 * common / (len(guess) + len(gold)) if common else 0.0


def squad(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD v1.1's measures over all questions."""
    pairs = np.asarray(
        [exact_and_f1(*pair) for pair in zip(predictions, golds, strict=True)]
    )  # (questions, 2)
    exact, f1 = 100 * pairs.mean(axis=0)
    return {"exact_match": float(exact), "f1": float(f1)}


def squad_v2(
    best: Sequence[str],
    null_odds: np.ndarray,
    golds: Sequence[Sequence[str]],
    threshold: float = 0.0,
) -> dict[str, float]:
    """SQuAD v2.0's measures over all questions, apart for those with and without an answer, and at the best thresholds.

    Args:
        best: the best text that is not empty, for every question.
        null_odds: by how much no answer scores above it, (questions).
        threshold: no answer is predicted where the odds exceed it.
    """
    answered = np.asarray([len(texts) > 0 for texts in golds])  # (questions) bool
    raw = np.asarray(
        [exact_and_f1(text, gold, True) for text, gold in zip(best, golds, strict=True)]
    )  # (questions, 2)
    scores = np.where((null_odds > threshold)[:, None], ~answered[:, None], raw)
    result: dict[str, float] = {}
    for prefix, chosen in (
        ("", np.ones_like(answered)),
        ("HasAns_", answered),
        ("NoAns_", ~answered),
    ):
        if chosen.any():
            exact, f1 = 100 * scores[chosen].mean(axis=0)
            result |= {
                prefix + ("exact_match" if not prefix else "exact"): float(exact),
                f"{prefix}f1": float(f1),
            }
    for name, column in (("exact", 0), ("f1", 1)):
        score, at = best_threshold(
            raw[:, column], np.asarray([bool(text) for text in best]), null_odds, answered
        )
        result |= {f"best_{name}": score, f"best_{name}_thresh": at}
    return result


def best_threshold(
    scores: np.ndarray, guessed: np.ndarray, null_odds: np.ndarray, answered: np.ndarray
) -> tuple[float, float]:
    """The highest percentage that any threshold on the odds gives, and that threshold: 0 if none beats no answer ever."""
    order = np.argsort(null_odds, kind="stable")
    # A question that is answered once the threshold passes its odds gains its score, or loses the point of silence.
    gain = np.where(answered, scores, -guessed.astype(float))[order]
    reached = np.cumsum([(~answered).sum(), *gain])  # the first: no answer ever
    top = int(reached.argmax())
    return 100 * float(reached[top]) / len(scores), float(null_odds[order][top - 1]) if top else 0.0
