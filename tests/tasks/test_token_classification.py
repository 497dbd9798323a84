"""Token classification: schemes of tags, windows, entity scores against seqeval, a whole run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from prediction_runs import predict, records, trained
from tiny import WORDS, compose, sentences

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.tasks import build_task
from dynarank.tasks.conll import read_conll
from dynarank.tasks.entity_scores import count_entities
from dynarank.tasks.tag_schemes import (
    find_scheme,
    predicted_spans,
    read_spans,
    write_iob2,
)
from dynarank.tasks.token_classification import IGNORED, TokenClassification
from dynarank.tasks.word_windows import encode_word_windows

SENTENCE = {
    "iob1": "O I-PER I-PER B-PER I-LOC O I-LOC",
    "iob2": "O B-PER I-PER B-PER B-LOC O B-LOC",
    "iobes": "O B-PER E-PER S-PER S-LOC O S-LOC",
    "bilou": "O B-PER L-PER U-PER U-LOC O U-LOC",
}
SPANS = [("PER", 1, 3), ("PER", 3, 4), ("LOC", 4, 5), ("LOC", 6, 7)]


def random_tags(seed: int, stray: bool = False) -> list[str]:
    """Iob2 tags of 1 to 12 words; with `stray`, any sequence of them."""
    draw = random.Random(seed)
    if stray:
        choices = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
        return draw.choices(choices, k=draw.randint(1, 12))
    tags: list[str] = []
    while len(tags) < draw.randint(1, 12):
        kind = draw.choice(["", "PER", "LOC"])
        length = draw.randint(1, 3)
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1) if kind else ["O"]
    return tags


@pytest.mark.parametrize("scheme", SENTENCE)
def test_a_scheme_is_told_by_its_tags_and_read(scheme: str) -> None:
    tags = SENTENCE[scheme].split()
    assert find_scheme([["O"], tags], "rows") == scheme
    assert read_spans(tags, scheme, "row 0") == SPANS
    assert write_iob2(SPANS, len(tags)) == SENTENCE["iob2"].split()


def test_entities_are_seqevals() -> None:
    """Of right tags and of any at all, in seqeval's default mode and by its own measures."""
    seqeval = pytest.importorskip("seqeval.metrics")
    given = [random_tags(seed) for seed in range(300)]
    guessed = []
    for seed, tags in enumerate(given):
        other = random_tags(seed + 1000, stray=True)
        guessed.append((other + ["O"] * len(tags))[: len(tags)])
    spans = [(predicted_spans(a), predicted_spans(b)) for a, b in zip(given, guessed, strict=True)]
    for row, (tags, (true, _)) in enumerate(zip(guessed, spans, strict=True)):
        entities = seqeval.sequence_labeling.get_entities(tags)
        assert [(k, a, b + 1) for k, a, b in entities] == predicted_spans(tags)
        assert true == read_spans(given[row], "iob2", "row")
    whole, by_kind = count_entities(spans)
    assert whole.f1 == pytest.approx(seqeval.f1_score(given, guessed))
    assert whole.precision == pytest.approx(seqeval.precision_score(given, guessed))
    assert whole.recall == pytest.approx(seqeval.recall_score(given, guessed))
    report = seqeval.classification_report(given, guessed, output_dict=True)
    for kind, counts in by_kind.items():
        assert counts.f1 == pytest.approx(report[kind]["f1-score"])
        assert counts.given == report[kind]["support"]
    assert 0 < whole.f1 < 1


@pytest.mark.parametrize(
    ("scheme", "tags", "said"),
    [
        ("iob2", "O I-PER", r"row 4, word 1: 'I-PER' has no beginning before it \(iob2\).*iob1"),
        ("iob2", "B-PER I-LOC", "word 1: 'I-LOC' has no beginning"),
        ("iobes", "B-PER O", "word 1: the entity of the kind PER that begins at word 0 has no end"),
        ("iobes", "E-PER", "word 0: 'E-PER' has no beginning before it"),
        ("bilou", "B-PER E-PER", "the tag 'E-PER' is none of bilou: O, B-KIND, I-KIND, L-KIND"),
        ("iob2", "O PER", "the tag 'PER' is none of iob2"),
    ],
)
def test_tags_out_of_their_scheme_are_refused_by_row(scheme: str, tags: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_spans(tags.split(), scheme, "file, row 4")


def test_tags_of_no_scheme_are_told_to_be_plain() -> None:
    with pytest.raises(UserError, match=r"row 1, word 0: the tag 'NOUN' is.*task\.scheme=plain"):
        find_scheme([["O"], ["NOUN"]], "file")


CONLL = """-DOCSTART- -X- -X- O

# sent = 1
EU NNP B-NP B-ORG
rejects VBZ B-VP O

# NN B-NP O
Peter NNP B-NP B-PER
"""


def test_a_conll_file_is_sentences_of_words_and_last_columns(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(CONLL)
    assert read_conll(tmp_path / "a.conll", "words", "ner") == {
        "words": [["EU", "rejects"], ["#", "Peter"]],
        "ner": [["B-ORG", "O"], ["O", "B-PER"]],
    }
    (tmp_path / "bare.conll").write_text("EU\nrejects\n\n\nPeter\n")
    assert read_conll(tmp_path / "bare.conll", "words", "ner") == {
        "words": [["EU", "rejects"], ["Peter"]]
    }
    (tmp_path / "tabs.conll").write_text("New York\tB-LOC\nis\tO\n")
    assert read_conll(tmp_path / "tabs.conll", "w", "t")["w"] == [["New York", "is"]]


def configured(*overrides: str) -> TokenClassification:
    given = ["output_dir=x", "task=token_classification", *overrides]
    task = build_task(to_config(compose(given)).task)
    assert isinstance(task, TokenClassification)
    return task


def checked(rows: dict[str, list[Any]], *overrides: str) -> Dataset:
    own = "task.train_file=own.jsonl"
    return configured(own, *overrides).check(Dataset.from_dict(rows), "own.jsonl", labelled=True)


MALFORMED = [
    ({"tokens": [["a", "b"]], "tags": [["O"]]}, "row 0 has 2 words and 1 tags"),
    ({"tokens": ["a b"], "tags": ["O O"]}, "row 0: tokens = 'a b' is no list of words"),
    ({"tokens": [["a"], []], "tags": [["B-X"], []]}, "row 1: tokens is empty"),
    ({"tokens": [["a"], ["b", " "]], "tags": [["B-X"], ["O", "O"]]}, "row 1, word 1 is blank"),
    ({"tokens": [["a"]], "tags": [[3]]}, r"row 0, word 0: the tag 3 is a number.*task\.tag_names"),
    ({"tokens": [["a"]], "tags": [[None]]}, "row 0, word 0: the tag None is no text"),
    ({"tokens": [["a"]], "tags": [["O"]]}, "tags is 'O' for every word"),
]


@pytest.mark.parametrize(("rows", "said"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_rows_are_refused_by_number(rows: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(UserError, match=f"own.jsonl.*{said}"):
        checked(rows)


def test_a_line_of_other_columns_is_refused_by_row_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.bio").write_text("EU B-ORG\n\nPeter B-PER\nBlackburn\n")
    task = configured()
    with pytest.raises(UserError, match=r"a\.bio: row 1 \(line 4\) has 1 columns, and .* has 2"):
        task.read_file("task.train_file", str(tmp_path / "a.bio"))
    with pytest.raises(UserError, match=r"must be one of \.csv, .*\.conll, \.bio"):
        task.read_file("task.train_file", str(tmp_path / "a.txt"))


def test_the_hubs_numbers_are_named_by_their_feature_or_by_the_user() -> None:
    names = ["O", "B-PER", "I-PER"]
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    rows = {"tokens": [["a", "b", "c"]], "tags": [[1, 2, 0]]}
    dataset = Dataset.from_dict(rows, features=features)
    task = configured()
    assert task.check(dataset, "hub", labelled=True)["tags"][:] == [["B-PER", "I-PER", "O"]]
    assert task.tags == names
    named = checked(rows, "task.tag_names=[O,B-LOC,I-LOC]")
    assert named["tags"][:] == [["B-LOC", "I-LOC", "O"]]
    with pytest.raises(UserError, match="the tag 2 is none of 2 names"):
        checked(rows, "task.tag_names=[O,B-LOC]")


def test_kinds_that_training_did_not_show_are_refused() -> None:
    task = configured("task.labels=[PER]")
    rows = Dataset.from_dict({"tokens": [["a"]], "tags": [["B-LOC"]]})
    with pytest.raises(UserError, match="row 0, word 0: 'LOC' is none of the known PER"):
        task.check(rows, "file", labelled=True)


def test_the_baseline_is_the_commonest_tag() -> None:
    task = configured()
    rows = Dataset.from_dict({"tokens": [["a", "b", "c", "d"]], "tags": [["O", "B-X", "O", "O"]]})
    baseline = task.baseline(task.check(rows, "rows", labelled=True))
    assert baseline.name == "O everywhere"
    assert baseline.metrics == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.75}


def test_scores_of_entities_are_refused_for_plain_tags() -> None:
    with pytest.raises(UserError, match=r"f1 is of entities, and task\.scheme = plain"):
        configured("task.scheme=plain")


@pytest.fixture(scope="module")
def tokenizer(hub_root: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hub_root / "models/FacebookAI/roberta-base")


def test_every_word_is_read_once_whatever_the_windows(tokenizer: Any) -> None:
    texts = [sentence.split() for sentence in sentences(30, 3)]
    texts.append([word for _ in range(4) for word in WORDS])
    windows = list(encode_word_windows(texts, range(len(texts)), 12, 4, tokenizer))
    read: dict[int, list[int]] = {row: [] for row in range(len(texts))}
    for window in windows:
        read[window.row] += window.words
        ids = window.inputs["input_ids"]
        assert len(ids) <= 12
        for word, place in zip(window.words, window.places, strict=True):
            assert tokenizer.decode(ids[place]) == texts[window.row][word]
    assert all(read[row] == list(range(len(words))) for row, words in enumerate(texts))
    long = [window for window in windows if window.row == len(texts) - 1]
    # Of two windows that share 4 tokens, each reads the half of these that it shows more around.
    inner = long[1]
    assert len(long) > 5
    assert min(inner.places) == 3
    assert max(inner.places) == 8


def byte_level_tokenizer() -> Any:
    """A tokenizer as RoBERTa's and GPT-2's, of single bytes but for two merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<pad>", "\u0120J"])}
    backend = Tokenizer(models.BPE(vocabulary, [("\u0120", "J")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def test_a_word_is_read_at_its_first_token_by_bytes_too() -> None:
    tokenizer = byte_level_tokenizer()
    words = ["Al", "J", "J\u00e9", " x", "\u20ac"]
    (window,) = encode_word_windows([words], [7], 64, 0, tokenizer)
    assert window.row == 7
    assert window.words == [0, 1, 2, 3, 4]
    tokens = tokenizer.convert_ids_to_tokens(window.inputs["input_ids"])
    first = [tokens[place] for place in window.places]
    assert first[:3] == ["A", "\u0120J", "\u0120J"]
    assert first[3] == "x"  # the blanks before it are no part of the word
    assert window.places[4] < len(tokens) - 1  # of three bytes, not the last one


def test_labels_stand_at_the_first_token_of_each_word(tokenizer: Any) -> None:
    task = configured("task.labels=[X]")
    rows = Dataset.from_dict({"tokens": [["the", "cat", "sat"]], "tags": [["O", "B-X", "I-X"]]})
    features = task.features(task.check(rows, "rows", labelled=True), tokenizer, None)  # type: ignore[arg-type]
    assert features["labels"][:] == [[IGNORED, 0, 1, 2, IGNORED]]
    batch = task.collator(tokenizer)([dict(features[0])])
    assert int(task.loss_terms(batch)) == 3


def test_a_row_without_any_token_counts_as_outside(tokenizer: Any) -> None:
    task = configured("task.labels=[X]", "task.metrics=[f1,recall,accuracy]")
    rows = {"tokens": [["cat"], [" ", " "], ["dog"]], "tags": [["B-X"], ["B-X", "O"], ["B-X"]]}
    task.validation = {"validation": task.check(Dataset.from_dict(rows), "rows", labelled=True)}
    features = task.features(task.validation["validation"], tokenizer, None)  # type: ignore[arg-type]
    task.validation_features = {"validation": features}
    assert features["row"][:] == [0, 2]
    scores = task.scores("validation")
    right = (np.asarray([1]), np.asarray([1.0]))
    scores.update([0], [right])
    assert scores.compute() == {"f1": 1, "recall": 1, "accuracy": 1}  # a sample of one row
    scores.update([1], [right])
    assert scores.compute() == pytest.approx({"f1": 0.8, "recall": 2 / 3, "accuracy": 3 / 4})


def tagged(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences in which `cat` and `dog` begin an entity, that a following `sat` or `ran` is of."""
    rows = []
    for number, text in enumerate(sentences(count, seed)):
        words = text.split()
        tags = []
        for place, word in enumerate(words):
            inside = place > 0 and words[place - 1] in ("cat", "dog") and word in ("sat", "ran")
            tags.append("B-PET" if word in ("cat", "dog") else "I-PET" if inside else "O")
        rows.append({"name": f"n{number}", "tokens": words, "tags": tags})
    return rows


def write_conll(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = []
    for row in rows:
        lines += [f"{w} {t}" for w, t in zip(row["tokens"], row["tags"], strict=True)] + [""]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def tagging(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a CoNLL file, with windows that most rows are longer than."""
    root = tmp_path_factory.mktemp("ner")
    files = {
        name: write_conll(root / f"{name}.conll", tagged(rows, seed))
        for name, rows, seed in (("train", 160, 1), ("validation", 30, 2))
    }
    given = [f"task.{name}_file={path}" for name, path in files.items()]
    sizes = ["task.max_length=10", "task.stride=4", "trainer.epochs=5", "optimizer.lr=0.03"]
    return trained(root / "run", hub_root, "task=token_classification", *given, *sizes)


def test_a_run_learns_its_entities_and_leaves_scores_by_kind(tagging: Path) -> None:
    metrics = json.loads((tagging / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"f1", "precision", "recall", "accuracy"}
    assert metrics["f1"] > 0.6
    by_kind = json.loads((tagging / "entities.json").read_text())
    assert by_kind["PET"]["f1"] == pytest.approx(metrics["f1"])
    task = json.loads((tagging / "adapter" / "dynarank.json").read_text())["task"]
    assert task["labels"] == ["PET"]


def test_predict_writes_spans_and_evaluate_scores_them(
    tagging: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynarank.commands.evaluate import main as evaluate

    rows = tagged(30, 2)
    metrics = json.loads((tagging / "metrics.json").read_text())["metrics"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out.jsonl"
    predict(tagging, tmp_path / "rows.jsonl", output, hub_root, "--device", "cpu")
    assert f"f1: {metrics['f1']:.4f}" in capsys.readouterr().out
    for row, record in zip(rows, records(output), strict=True):
        assert len(record["predicted_tags"]) == len(row["tokens"])
        spans = predicted_spans(record["predicted_tags"])
        assert [(e["kind"], e["start"], e["stop"]) for e in record["entities"]] == spans
        for entity in record["entities"]:
            assert entity["text"] == " ".join(row["tokens"][entity["start"] : entity["stop"]])
            assert 0 < entity["score"] <= 1
    bare = tmp_path / "bare.conll"
    bare.write_text("\n\n".join("\n".join(row["tokens"]) for row in rows))
    predict(tagging, bare, tmp_path / "bare.jsonl", hub_root, "--device", "cpu")
    tags = [record["predicted_tags"] for record in records(tmp_path / "bare.jsonl")]
    assert tags == [record["predicted_tags"] for record in records(output)]

    as_iobes = write_conll(tmp_path / "iobes.conll", [_as_iobes(row) for row in rows])
    capsys.readouterr()
    evaluate([str(tagging), "--input", str(as_iobes), "--hub-root", str(hub_root), "--json"])
    scored = json.loads(capsys.readouterr().out)["metrics"]
    assert scored == pytest.approx(metrics)


def _as_iobes(row: dict[str, Any]) -> dict[str, Any]:
    tags = ["O"] * len(row["tags"])
    for kind, start, stop in read_spans(row["tags"], "iob2", "row"):
        tags[start:stop] = [f"I-{kind}"] * (stop - start)
        tags[start], tags[stop - 1] = f"B-{kind}", f"E-{kind}"
        if stop - start == 1:
            tags[start] = f"S-{kind}"
    return {**row, "tags": tags}


def test_plain_tags_are_classes(hub_root: Path, tmp_path: Path) -> None:
    rows = []
    for row in tagged(160, 3):
        tags = ["NOUN" if word in ("cat", "dog", "mat") else "OTHER" for word in row["tokens"]]
        rows.append({"tokens": row["tokens"], "tags": tags})
    (tmp_path / "pos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = ["task.scheme=plain", "task.metrics=[accuracy]", "task.select=accuracy"]
    plain += ["trainer.epochs=6", "optimizer.lr=0.03"]
    given = ["task=token_classification", f"task.train_file={tmp_path / 'pos.jsonl'}"]
    folder = trained(tmp_path / "run", hub_root, *given, *plain)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    others = np.mean([tag == "OTHER" for row in rows for tag in row["tags"]])
    assert set(metrics) == {"accuracy"}
    assert metrics["accuracy"] > others
    assert not (folder / "entities.json").exists()
