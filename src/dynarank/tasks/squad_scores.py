"""SQuAD's official measures, v1.1 and v2.0: exact match and F1 on normalized texts, in percent.

Source: the evaluation scripts of Rajpurkar et al., 2016 and 2018. Their two versions differ where
a normalized text is empty.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

# By hand: torchmetrics has v1.1 alone, and `evaluate` fetches its measures from the hub.
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return the text in lower case, without punctuation, articles and superfluous white space."""
    # The order is the official script's: articles go after punctuation, which may touch them.
    text = text.lower().translate(_NO_PUNCTUATION)
    text = _ARTICLES.sub(" ", text)
    return " ".join(text.split())


def exact_and_f1(
    prediction: str, golds: Sequence[str], no_answer: bool = False
) -> tuple[float, float]:
    """Return a prediction's exact match and F1, from 0 to 1.

    Each is taken against the gold answer that suits it best.

    Args:
        prediction: the predicted text.
        golds: the question's answers; none for a question without an answer.
        no_answer: whether to read texts as v2.0 does: an empty text equals an empty text alone,
            and gold answers that normalize to nothing do not count.
    """
    guess = normalize(prediction)
    targets = [normalize(gold) for gold in golds]
    if no_answer:
        targets = [target for target in targets if target] or [""]
    exact, f1 = 0.0, 0.0
    for target in targets:
        exact = max(exact, float(target == guess))
        f1 = max(f1, _f1(guess.split(), target.split(), no_answer))
    return exact, f1


def _f1(guess: list[str], gold: list[str], no_answer: bool) -> float:
    """Return the F1 of two lists of words."""
    if no_answer and not (guess and gold):
        return float(guess == gold)
    common = (Counter(guess) & Counter(gold)).total()
    if not common:
        return 0.0
    return 2 * common / (len(guess) + len(gold))


def squad(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD v1.1's measures over all questions."""
    exact, f1 = 100 * _score_all(predictions, golds, no_answer=False).mean(axis=0)
    return {"exact_match": float(exact), "f1": float(f1)}


def _score_all(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], no_answer: bool
) -> np.ndarray:
    """Return exact match and F1 of every question, (questions, 2)."""
    pairs = zip(predictions, golds, strict=True)
    return np.asarray([exact_and_f1(text, gold, no_answer) for text, gold in pairs])


def squad_v2(
    best: Sequence[str],
    null_odds: np.ndarray,
    golds: Sequence[Sequence[str]],
    threshold: float = 0.0,
) -> dict[str, float]:
    """Return SQuAD v2.0's measures.

    They are taken over all questions, over those with an answer (HasAns_) and those without
    (NoAns_), and at the best thresholds (best_).

    Args:
        best: the best text that is not empty, for every question.
        null_odds: by how much no answer scores above it, (questions).
        golds: the answers of every question; none for a question without an answer.
        threshold: no answer is predicted where the odds exceed it.
    """
    answered = np.asarray([len(texts) > 0 for texts in golds])  # (questions) bool
    # Of the text even where no answer is given: the best thresholds need both.
    raw = _score_all(best, golds, no_answer=True)  # (questions, 2)
    gives_none = null_odds > threshold
    # To give no answer is right, by both measures, where the question has none.
    scores = np.where(gives_none[:, None], ~answered[:, None], raw)
    exact, f1 = 100 * scores.mean(axis=0)
    result = {"exact_match": float(exact), "f1": float(f1)}
    for prefix, chosen in (("HasAns_", answered), ("NoAns_", ~answered)):
        if chosen.any():
            exact, f1 = 100 * scores[chosen].mean(axis=0)
            result |= {f"{prefix}exact": float(exact), f"{prefix}f1": float(f1)}
    guessed = np.asarray([bool(text) for text in best])
    for name, column in (("exact", 0), ("f1", 1)):
        score, at = best_threshold(raw[:, column], guessed, null_odds, answered)
        result |= {f"best_{name}": score, f"best_{name}_thresh": at}
    return result


def best_threshold(
    scores: np.ndarray, guessed: np.ndarray, null_odds: np.ndarray, answered: np.ndarray
) -> tuple[float, float]:
    """Return the highest percentage that any threshold on the odds gives, and that threshold.

    The threshold is 0 where nothing beats predicting no answer for every question.

    Args:
        scores: of the best text of every question, from 0 to 1, (questions).
        guessed: whether that text is not empty, (questions) bool.
        null_odds: by how much no answer scores above it, (questions).
        answered: whether the question has an answer, (questions) bool.
    """
    # A stable order, and below the first maximum: of ties, the official script's threshold.
    order = np.argsort(null_odds, kind="stable")
    # Once the threshold passes a question's odds, the question gains the score of its text, or
    # loses the point that no answer had.
    gain = np.where(answered, scores, -guessed.astype(float))[order]
    no_answer_ever = (~answered).sum()
    reached = np.cumsum([no_answer_ever, *gain])
    top = int(reached.argmax())
    percentage = 100 * float(reached[top]) / len(scores)
    if top == 0:
        return percentage, 0.0
    return percentage, float(null_odds[order][top - 1])
