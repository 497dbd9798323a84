"""Against a second writing of the official scripts, evaluate-v1.1.py and evaluate-v2.0.py."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import compose, needs_real_hub, real_hub
from torchmetrics.functional.text import squad as torchmetrics_squad

from dynarank.config.schema import to_config
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task
from dynarank.tasks.squad_scores import best_threshold, exact_and_f1, normalize, squad, squad_v2


def normalize_answer(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_v1(prediction: str, gold: str) -> float:
    guess, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    same = sum((Counter(guess) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(guess), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def f1_v2(prediction: str, gold: str) -> float:
    guess, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not guess or not wanted:
        return float(guess == wanted)
    return f1_v1(prediction, gold)


def exact(prediction: str, gold: str) -> float:
    return float(normalize_answer(prediction) == normalize_answer(gold))


def official_v1(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    exact_sum = f1_sum = 0.0
    for prediction, texts in zip(predictions, golds, strict=True):
        exact_sum += max(exact(prediction, text) for text in texts)
        f1_sum += max(f1_v1(prediction, text) for text in texts)
    return {"exact_match": 100 * exact_sum / len(golds), "f1": 100 * f1_sum / len(golds)}


Raw = Mapping[int, float]


def find_best_thresh(
    preds: Sequence[str], scores: Raw, odds: Raw, has_ans: Mapping[int, bool]
) -> tuple[float, float]:
    current = best = float(sum(1 for qid in has_ans if not has_ans[qid]))
    threshold = 0.0
    for qid in sorted(odds, key=lambda qid: odds[qid]):
        if has_ans[qid]:
            current += scores[qid]
        elif preds[qid]:
            current -= 1
        if current > best:
            best, threshold = current, odds[qid]
    return 100 * best / len(scores), threshold


def official_v2(
    preds: Sequence[str],
    na_probs: Sequence[float],
    golds: Sequence[Sequence[str]],
    na_prob_thresh: float,
) -> dict[str, float]:
    odds, has_ans = dict(enumerate(na_probs)), {qid: bool(texts) for qid, texts in enumerate(golds)}
    raw: dict[str, dict[int, float]] = {"exact": {}, "f1": {}}
    for qid, texts in enumerate(golds):
        wanted = [text for text in texts if normalize_answer(text)] or [""]
        raw["exact"][qid] = max(exact(preds[qid], text) for text in wanted)
        raw["f1"][qid] = max(f1_v2(preds[qid], text) for text in wanted)
    result: dict[str, float] = {}
    for name, scores in raw.items():
        final = {
            qid: float(not has_ans[qid]) if odds[qid] > na_prob_thresh else scores[qid]
            for qid in scores
        }
        result["exact_match" if name == "exact" else name] = 100 * sum(final.values()) / len(final)
        for prefix, kind in (("HasAns", True), ("NoAns", False)):
            part = [final[qid] for qid in final if has_ans[qid] is kind]
            if part:
                result[f"{prefix}_{name}"] = 100 * sum(part) / len(part)
        result[f"best_{name}"], result[f"best_{name}_thresh"] = find_best_thresh(
            preds, scores, odds, has_ans
        )
    return result


V1_CASES: list[tuple[str, list[str]]] = [
    ("the cat", ["cat"]),
    ("The Cat!", ["a cat", "dog"]),
    ("an  apple\ta day", ["apple day"]),
    ("theatre", ["atre", "theater"]),
    ("U.S.A.", ["usa", "United States"]),
    ("well-known man", ["well known man", "wellknown"]),
    ("1,000 to 2,000", ["1000 to 2000"]),
    ("Ångström\u2019s \u201ccafé\u201d", ["ångström\u2019s café", "angstrom"]),
    ("\u0130stanbul", ["i\u0307stanbul"]),
    ("the naïve\u00a0man", ["naïve man"]),
    ("中文 字", ["中文", "字"]),
    ("cat cat dog", ["cat dog dog", "cat cat"]),
    ("a", ["the"]),
    ("The", ["x"]),
    ("", ["cat"]),
    ("...", ["?!", "cat"]),
    ("cat", ["the", "a cat sat"]),
    ("$5 million", ["5 million dollars", "$5", "five"]),
    ("", ["the"]),
    ("a-an-the", ["aanthe"]),
]


@pytest.mark.parametrize(("prediction", "golds"), V1_CASES)
def test_v1_of_one_question_equals_the_official_script(prediction: str, golds: list[str]) -> None:
    assert normalize(prediction) == normalize_answer(prediction)
    assert squad([prediction], [golds]) == pytest.approx(official_v1([prediction], [golds]))


def torchmetrics_of(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    given = [{"prediction_text": text, "id": str(qid)} for qid, text in enumerate(predictions)]
    wanted = [
        {"answers": {"answer_start": [0] * len(texts), "text": list(texts)}, "id": str(qid)}
        for qid, texts in enumerate(golds)
    ]
    return {name: float(value) for name, value in torchmetrics_squad(given, wanted).items()}


def test_v1_of_many_questions_equals_the_official_script_and_torchmetrics() -> None:
    predictions, golds = [text for text, _ in V1_CASES], [texts for _, texts in V1_CASES]
    assert squad(predictions, golds) == pytest.approx(official_v1(predictions, golds))
    said = [
        case for case in V1_CASES if normalize(case[0]) or all(map(normalize, case[1]))
    ]  # torchmetrics has v2's F1
    predictions, golds = [text for text, _ in said], [texts for _, texts in said]
    assert squad(predictions, golds) == pytest.approx(torchmetrics_of(predictions, golds), abs=1e-4)


PIECES = [
    "a",
    "an",
    "the",
    "The",
    "cat",
    "Cat",
    "dog",
    "sat",
    "-",
    "'s",
    "...",
    "é",
    "É",
    "10",
    "$",
    " ",
    "\u00a0",
    "",
]
texts = st.lists(st.sampled_from(PIECES), max_size=5).map(" ".join) | st.text(max_size=6)
some_golds = st.lists(texts, min_size=1, max_size=3)


@settings(deadline=None, max_examples=100, database=None)
@given(st.lists(st.tuples(texts, some_golds), min_size=1, max_size=8))
def test_v1_equals_the_official_script_whatever_the_texts(
    questions: list[tuple[str, list[str]]],
) -> None:
    predictions, golds = [text for text, _ in questions], [answers for _, answers in questions]
    assert [normalize(text) for text in predictions] == [
        normalize_answer(text) for text in predictions
    ]
    assert squad(predictions, golds) == pytest.approx(official_v1(predictions, golds))


def v2_of(
    best: Sequence[str], odds: Sequence[float], golds: Sequence[Sequence[str]], threshold: float
) -> dict[str, float]:
    return squad_v2(best, np.asarray(odds), golds, threshold)


V2_CASES: dict[str, tuple[list[str], list[float], list[list[str]]]] = {
    "right and silent": (["the cat", "dog"], [-1.0, 1.0], [["cat"], []]),
    "wrong both ways": (["the cat", "dog"], [1.0, -1.0], [["cat"], []]),
    "only answered": (["cat sat", "dog"], [-1.0, 2.0], [["cat"], ["a dog", "dogs"]]),
    "only without an answer": (["cat", "dog", ""], [-1.0, 2.0, -3.0], [[], [], []]),
    "at the threshold": (["cat", "dog"], [0.0, 0.0], [["cat"], []]),
    "empty predictions": (["", ""], [-1.0, -1.0], [["cat"], []]),
    "prediction that normalizes to nothing": (["the", "the"], [-1.0, -1.0], [["cat"], []]),
    "gold that normalizes to nothing, silent": (["the", "cat"], [1.0, -1.0], [["The"], ["cat"]]),
    "gold that normalizes to nothing, answered": (["the", "cat"], [-1.0, -1.0], [["The"], ["cat"]]),
    "one of two golds normalizes to nothing": (
        ["a", "cat"],
        [-1.0, -1.0],
        [["an", "dog"], ["the", "cat"]],
    ),
    "nothing beats silence": (["x", "y", "z"], [-1.0, 0.5, 1.0], [["cat"], [], ["dog"]]),
    "odds that tie": (["cat", "dog", "sat"], [1.0, 1.0, 1.0], [[], ["dog"], ["sat"]]),
    "percentages that tie": (
        ["cat", "dog", "mat", "sat"],
        [1.0, 2.0, 3.0, 4.0],
        [["cat"], [], ["mat"], []],
    ),
    "all odds negative": (["cat", "dog", "sat"], [-5.0, -3.0, -4.0], [["cat"], ["a dog"], []]),
    "no span at all": (["", "cat"], [np.inf, -1.0], [["dog"], ["cat"]]),
}


@pytest.mark.parametrize("threshold", [0.0, -2.0, 1.0, 1.5])
@pytest.mark.parametrize("case", V2_CASES)
def test_v2_equals_the_official_script(case: str, threshold: float) -> None:
    found, wanted = v2_of(*V2_CASES[case], threshold), official_v2(*V2_CASES[case], threshold)
    assert list(found)[:2] == ["exact_match", "f1"]
    assert found == pytest.approx(wanted)


odds = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
v2_golds = st.lists(texts.filter(bool), max_size=3)


@settings(deadline=None, max_examples=200, database=None)
@given(st.lists(st.tuples(texts, odds, v2_golds), min_size=1, max_size=12), odds)
def test_v2_equals_the_official_script_whatever_the_texts(
    questions: list[tuple[str, float, list[str]]], threshold: float
) -> None:
    parts = (
        [one[0] for one in questions],
        [one[1] for one in questions],
        [one[2] for one in questions],
    )
    found, wanted = v2_of(*parts, threshold), official_v2(*parts, threshold)
    (
        found.pop("best_f1_thresh"),
        wanted.pop("best_f1_thresh"),
    )  # where percentages tie, rounding of F1 decides
    assert found == pytest.approx(wanted)


@settings(deadline=None, max_examples=300, database=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.2, 0.4, 0.5, 2 / 3, 0.8, 1.0]),
            st.booleans(),
            odds,
            st.booleans(),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_the_best_threshold_is_the_sequential_loops(
    questions: list[tuple[float, bool, float, bool]],
) -> None:
    scores, guessed, null_odds, answered = (
        np.asarray(column) for column in zip(*questions, strict=True)
    )
    found = best_threshold(scores, guessed, null_odds, answered)
    texts = ["cat" if said else "" for said in guessed]
    raw = dict(enumerate(scores.tolist()))
    wanted = find_best_thresh(
        texts, raw, dict(enumerate(null_odds.tolist())), dict(enumerate(answered.tolist()))
    )
    assert found == (pytest.approx(wanted[0]), wanted[1])


def test_the_best_threshold_reaches_the_best_percentage_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        answered, null_odds = rng.random(30) < 0.6, rng.normal(size=30)
        scores = np.where(answered, rng.choice([0, 0.5, 1], 30), 0.0)
        score, threshold = best_threshold(scores, np.ones(30, dtype=bool), null_odds, answered)
        tried = {
            at: 100 * np.where(null_odds > at, ~answered, scores).mean()
            for at in [-np.inf, *null_odds]
        }
        assert score == pytest.approx(max(tried.values()))
        assert tried[threshold or -np.inf] == pytest.approx(score)


def test_silence_that_nothing_beats_has_the_threshold_zero() -> None:
    answered = np.asarray([False, True, False])
    assert best_threshold(
        np.asarray([0.0, 1.0, 0.0]),
        np.ones(3, dtype=bool),
        np.asarray([-3.0, -2.0, -1.0]),
        answered,
    ) == (
        pytest.approx(200 / 3),
        0.0,
    )


def test_a_group_without_questions_has_no_keys() -> None:
    assert not [name for name in v2_of(["cat"], [0.0], [["cat"]], 0.0) if name.startswith("NoAns")]
    assert not [name for name in v2_of(["cat"], [0.0], [[]], 0.0) if name.startswith("HasAns")]


def test_versions_differ_on_empty_texts_alone() -> None:
    assert exact_and_f1("the", ["a"]) == (1.0, 0.0)
    assert exact_and_f1("the", ["a"], no_answer=True) == (1.0, 1.0)
    assert exact_and_f1("", []) == (0.0, 0.0)
    assert exact_and_f1("", [], no_answer=True) == (1.0, 1.0)
    assert exact_and_f1("cat sat", ["cat"]) == exact_and_f1("cat sat", ["cat"], no_answer=True)


@needs_real_hub
def test_real_squads_first_answers_score_in_full_and_corrupted_ones_as_official() -> None:
    task = build_task(to_config(compose(["output_dir=x", "task=squad"])).task)
    task.read(HubConfig(root=str(real_hub())))
    rows = task.validation["validation"]
    golds = rows["_texts"][:]
    first = [answers[0] for answers in golds]
    for context, begin, text in zip(rows["context"][:], rows["_start"][:], first, strict=True):
        assert context[begin : begin + len(text)] == text
    assert official_v1(first, golds) == squad(first, golds) == {"exact_match": 100.0, "f1": 100.0}
    draw = random.Random(0)
    changes = [
        str.upper,
        str.title,
        lambda text: f"the {text}.",
        lambda text: text + " and more",
        lambda _: "",
    ]
    corrupted = [
        draw.choice([*changes, lambda text: text[: len(text) // 2]])(text) for text in first
    ]
    found = squad(corrupted, golds)
    assert 0 < found["exact_match"] < found["f1"] < 100
    assert found == pytest.approx(official_v1(corrupted, golds))
    assert found == pytest.approx(torchmetrics_of(corrupted, golds), abs=1e-3)
    null_odds = [draw.gauss(0, 1) for _ in first]
    mixed = [answers if draw.random() < 0.6 else [] for answers in golds]
    assert v2_of(corrupted, null_odds, mixed, 0.3) == pytest.approx(
        official_v2(corrupted, null_odds, mixed, 0.3)
    )
