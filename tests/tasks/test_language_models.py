"""Language models: losses, packing, templates and choices against transformers alone."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from datasets import Dataset
from language_models import sums, write_language_model, write_lines
from tiny import compose, configure
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from dynarank.commands.chat import main as chat
from dynarank.commands.predict import main as predict
from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.prepare import prepare
from dynarank.runs.run import run
from dynarank.tasks import build_task
from dynarank.tasks.base import Task
from dynarank.tasks.causal_config import InstructColumns
from dynarank.tasks.conversations import find_columns
from dynarank.tasks.instruct import Instruct
from dynarank.tasks.token_loss import IGNORED, chunked_sum, lighten_loss, token_terms
from dynarank.tasks.written_answers import prompts_of

TEXTS = [{"text": text} for text in ("a cat sat", "on the mat it sat", "dog", "the film was good")]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("lm") / "m")


@pytest.fixture
def model(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


def task_of(name: str, rows: list[dict[str, Any]], folder: Path, *overrides: str) -> Task[Any]:
    file = write_lines(folder / "rows.jsonl", rows)
    both = [f"task.train_file={file}", f"task.validation_file={file}"]
    task = build_task(to_config(compose(["output_dir=x", f"task={name}", *both, *overrides])).task)
    task.read(HubConfig())
    return task


def batch_of(task: Task[Any], tokenizer: Any, model: Any, rows: list[int] | None = None) -> Any:
    task.encode(tokenizer, model)
    features = task.train_features
    numbers = range(len(features)) if rows is None else rows
    return task.collator(tokenizer)([features[number] for number in numbers])


def test_the_chunked_loss_and_its_gradient_are_transformers_own(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynarank.tasks.token_loss.CHUNK", 7)
    task = task_of("causal_lm", TEXTS, tmp_path, "task.chunked_loss=false")
    inputs = task.inputs(batch_of(task, tokenizer, model))
    plain = model(**inputs).loss
    plain.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    lighten_loss(model)
    output = model(**inputs)
    output.loss.backward()
    torch.testing.assert_close(output.loss, plain)
    assert output.logits is None
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-6, rtol=1e-4)
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    assert model(**without_labels).logits is not None


def test_no_tensor_of_all_scores_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynarank.tasks.token_loss.CHUNK", 4)
    seen: list[int] = []

    class Head(torch.nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            seen.append(len(states))
            return super().forward(states)

    hidden = torch.randn(10, 3, requires_grad=True)
    chunked_sum(Head(3, 50), hidden, torch.arange(10)).backward()
    assert max(seen) == 4
    assert sum(seen) == 2 * 10  # once forward, once again for the gradient


def test_scores_count_each_token_once_whatever_the_batches(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    task = task_of("causal_lm", TEXTS, tmp_path, "task.chunked_loss=false")
    task.encode(tokenizer, model)
    features = task.validation_features["validation"]
    collate = task.collator(tokenizer)
    results = []
    for size in (1, 4):
        scores: Any = task.scores("validation")
        for start in range(0, 4, size):
            rows = range(start, start + size)
            task.score(model, collate([features[row] for row in rows]), scores)
        results.append(scores.compute())
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    total, tokens, correct = 0.0, 0, 0
    for row in TEXTS:  # by transformers alone
        ids = torch.tensor([tokenizer(f"<s>{row['text']}</s>")["input_ids"]])
        with torch.no_grad():
            output = model(input_ids=ids, labels=ids)
        total += float(output.loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
        correct += int((output.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())
    assert results[0]["log_likelihood"] == pytest.approx(-total / tokens, rel=1e-5)
    assert results[0]["perplexity"] == pytest.approx(
        torch.tensor(total / tokens).exp().item(), rel=1e-4
    )
    assert results[0]["token_accuracy"] == correct / tokens


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_have_the_losses_of_rows_alone(
    attention: str, model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation=attention).eval()
    task = task_of("causal_lm", TEXTS, tmp_path, "task.packing=true", "task.max_length=32")
    batch = batch_of(task, tokenizer, model)
    assert len(batch["input_ids"]) < len(TEXTS)
    packed = float(model(**task.inputs(batch)).loss.detach()) * float(task.loss_terms(batch))
    total, tokens = 0.0, 0
    for row in TEXTS:
        ids = torch.tensor([tokenizer(f"<s>{row['text']}</s>")["input_ids"]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert int(task.loss_terms(batch)) == tokens
    assert packed == pytest.approx(total, rel=1e-5)


CHAT = [
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "ho"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "no more"},
        ]
    }
]


def learned(task: Task[Any], tokenizer: Any) -> list[str]:
    """Return what is learned of each training row, runs of labelled tokens joined by '|'."""
    texts = []
    for labels in task.train_features["labels"][:]:
        runs: list[list[int]] = [[]]
        for label in labels:
            if label == IGNORED:
                runs.append([])
            else:
                runs[-1].append(label)
        texts.append("|".join(tokenizer.decode(part) for part in runs if part))
    return texts


def test_every_answer_of_a_conversation_is_learned_with_its_end_and_nothing_else(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    task = task_of("instruct", CHAT, tmp_path)
    task.encode(tokenizer, model)
    assert learned(task, tokenizer) == ["ho<|im_end|>\n|no more<|im_end|>\n"]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"prompt": "a?", "completion": "b"}, "b<|im_end|>\n"),
        ({"instruction": "a", "input": "x", "output": "b"}, "b<|im_end|>\n"),
        ({"instruction": "a", "input": "", "output": "b"}, "b<|im_end|>\n"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "b<|im_end|>\n",
        ),
    ],
)
def test_the_known_forms_of_rows(
    row: dict[str, Any], wanted: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    task = task_of("instruct", [row], tmp_path)
    task.encode(tokenizer, model)
    assert learned(task, tokenizer) == [wanted]
    text = tokenizer.decode(task.train_features["input_ids"][0])
    assert ("a\n\nx" in text) == bool(row.get("input"))


def test_a_tokenizer_without_a_template_gets_the_stated_default(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    plain = AutoTokenizer.from_pretrained(write_language_model(tmp_path / "m", template=None))
    task = task_of("instruct", sums(1), tmp_path)
    task.encode(plain, model)
    (text,) = (plain.decode(ids) for ids in task.train_features["input_ids"][:])
    assert text.startswith("User: ")
    assert "\nAssistant: " in text
    assert text.endswith("</s>\n")
    # The space is the answer's: many tokenizers have one token for it and the word behind it.
    assert learned(task, plain)[0].startswith(f" {sums(1)[0]['completion']}</s>")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": "x"}], "columns a, which are no known form"),
        ([{"prompt": "", "completion": "b"}], "row 0: prompt = '' is no text"),
        (
            [{"messages": [{"role": "user", "content": "x"}]}],
            "row 0: has no message of the assistant",
        ),
        ([{"messages": [{"role": "robot", "content": "x"}]}], "role = 'robot': must be one of"),
        (
            [{"messages": [{"role": ["user"], "content": "x"}]}],
            r"role = \['user'\]: must be one of",
        ),
        ([{"messages": "hello"}], "is no list of messages"),
        ([{"prompt": "a", "completion": ""}], "row 0: completion = '' is no text"),
        (
            [{"prompt": text, "completion": "b", "id": "x"} for text in "ab"],
            r"rows 0 and 1: id = 'x' twice .* task\.columns\.id=null",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    rows: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        task_of("instruct", rows, tmp_path, *(["task.columns.id=id"] if "id" in rows[0] else []))


def test_a_table_leaves_an_answer_out_by_an_empty_text(tmp_path: Path) -> None:
    """A .csv file to be answered may have the column of answers, and nothing in some rows."""
    task: Any = task_of("instruct", sums(1), tmp_path)
    rows = Dataset.from_list([{"prompt": "1+1", "completion": answer} for answer in ("2", "", " ")])
    messages = task.check(rows, "x", labelled=False)["messages"][:]
    assert [len(one) for one in messages] == [2, 1, 1]
    assert not task.can_be_scored(rows)


@pytest.mark.parametrize("choices", [None, "yes,no", [], [1, 2], ["yes", None], ["yes", ""]])
@pytest.mark.parametrize("labelled", [True, False])
def test_choices_that_are_no_texts_are_named_by_row(
    choices: Any, labelled: bool, tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "completion": "yes", "choices": ["yes", "no"]}]
    task: Any = task_of("instruct", rows, tmp_path, "task.columns.choices=choices")
    asked = Dataset.from_list([rows[0] | {"choices": choices}])
    with pytest.raises(UserError, match=r"x, row 0: choices = .* is no list of texts"):
        task.check(asked, "x", labelled)


def test_packing_without_trl_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynarank.tasks.packed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"task\.packing = true: .* pip install 'dynarank\[llm\]'"):
        task_of("causal_lm", TEXTS, tmp_path, "task.packing=true")


def test_what_is_written_does_not_depend_on_the_neighbours(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    task: Any = task_of("instruct", sums(6), tmp_path, "task.max_answer=5")
    task.prepare(tokenizer, model)
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "some longer prompt", "b c d")]
    together = task.write(model, prompts)
    assert together == [task.write(model, [prompt])[0] for prompt in prompts]


def test_a_question_to_be_answered_is_never_cut(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    task: Any = task_of("instruct", sums(1), tmp_path, "task.max_length=64")
    asked = Dataset.from_list([{"prompt": "x" * 100 + end} for end in "AB"])
    features = task.features(task.check(asked, "x", False), tokenizer, model, labelled=False)
    ends = [tokenizer.decode(ids)[-34:] for ids in features["input_ids"]]
    assert ends == [f"{end}<|im_end|>\n<|im_start|>assistant\n" for end in "AB"]
    answered = Dataset.from_list([{"prompt": "x" * 20, "completion": "y" * 100}])
    features = task.features(task.check(answered, "x", True), tokenizer, model)
    assert len(features["input_ids"][0]) == 64


def test_a_conversation_that_is_cut_is_asked_its_last_question(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Its last answer does not fit, and an earlier one must not stand in its place."""
    talk = [
        {"role": "user", "content": "q" * 5},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "z" * 60},
        {"role": "assistant", "content": "second"},
    ]
    settings = ("task.max_length=40", "task.metrics=[log_likelihood,exact_match]")
    task: Any = task_of("instruct", [{"messages": talk}] * 2, tmp_path, *settings)
    task.encode(tokenizer, model)
    features = task.validation_features["validation"]
    (prompt,) = prompts_of(task.collator(tokenizer)([features[0]]))
    assert "prompt_ids" not in task.train_features.column_names  # they are never answered
    whole = task.prompt_ids(talk[:-1])
    assert len(whole) > 40
    assert prompt == whole[-40:]


def test_a_question_without_room_for_its_answer_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """GPT-2's positions end; what is only learned needs none for an answer."""
    gpt2 = GPT2LMHeadModel(GPT2Config(n_positions=40, n_embd=4, n_layer=1, n_head=1))
    rows = [{"prompt": "1+1", "completion": "2"}, {"prompt": "1+1+1", "completion": "3"}]
    task: Any = task_of("instruct", rows, tmp_path, "task.max_length=40", "task.max_answer=17")
    task.encode(tokenizer, gpt2)
    said = r"row 1: the prompt has 24 tokens.* 40 positions.* give task\.max_answer=16"
    with pytest.raises(UserError, match=said):
        task.features(task.check(Dataset.from_list(rows), "x", False), tokenizer, gpt2, False)
    task.config.metrics = ["exact_match"]  # written in validation
    with pytest.raises(UserError, match=said):
        task.encode(tokenizer, gpt2)
    task.config.max_answer = 16
    task.encode(tokenizer, gpt2)
    assert len(task.write(gpt2, [task.train_features["input_ids"][1][:24]])) == 1


def test_the_likeliest_choice_is_found_by_brute_force(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Each answer alone behind the prompt, by transformers' own logits."""
    rows = [{"prompt": "x", "completion": "yes"}, {"prompt": "yy", "completion": "no, never"}]
    choices = ["yes", "no, never"]
    settings = ["task.choices=[yes,'no, never']", "task.metrics=[choice_accuracy,log_likelihood]"]
    task: Any = task_of("instruct", rows, tmp_path, *settings, "task.select=choice_accuracy")
    batch = batch_of(task, tokenizer, model)
    outputs = task.predict(model, batch)
    for row, output in zip(rows, outputs, strict=True):
        prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        sums_of = []
        for choice in choices:
            ids = torch.tensor([tokenizer(prompt + choice, add_special_tokens=False)["input_ids"]])
            # The line break at the prompt's end counts to the answer.
            before = len(tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0].log_softmax(-1)
            own = [float(scores[at - 1, ids[0, at]]) for at in range(before, ids.shape[1])]
            sums_of.append(sum(own))
        by_size = [value / len(choice) for value, choice in zip(sums_of, choices, strict=True)]
        assert output["chosen"] == (sums_of.index(max(sums_of)), by_size.index(max(by_size)))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"completion": "better"}, ("instruction", "input", "better")),
        ({"input": "context"}, ("instruction", "context", "output")),
        ({}, ("instruction", "input", "output")),
    ],
)
def test_a_column_that_is_given_takes_its_role(
    given: dict[str, str], found: tuple[str, str, str]
) -> None:
    names = ["instruction", "input", "output", "better", "context"]
    columns = find_columns(InstructColumns(**given), names, "FILE", labelled=True)
    assert (columns.prompt, columns.input, columns.completion) == found


def test_an_empty_choice_is_refused(tmp_path: Path) -> None:
    metrics = "task.metrics=[choice_accuracy,log_likelihood]"
    with pytest.raises(UserError, match="an empty one has no tokens to score"):
        task_of("instruct", sums(2), tmp_path, "task.choices=['',yes]", metrics)


def test_terms_are_each_rows_own(model: Any) -> None:
    ids = torch.tensor([[1, 9, 8, 7], [1, 20, 2, 0]])
    labels = torch.tensor([[IGNORED, 9, 8, 7], [IGNORED, 20, IGNORED, IGNORED]])
    terms = token_terms(model, {"input_ids": ids}, labels)
    assert terms.rows.tolist() == [0, 0, 0, 1]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.log_softmax(-1)
    assert float(terms.log_likelihood[3]) == pytest.approx(float(wanted[1, 0, 20]), abs=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_learns_sums_and_its_adapter_answers_in_peft_alone(
    packing: bool, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import peft

    train = write_lines(tmp_path / "train.jsonl", sums(60))
    other = write_lines(tmp_path / "other.jsonl", sums(20, 1))
    settings = [
        "task=instruct",
        f"model.path={model_folder}",
        f"task.train_file={train}",
        f"task.validation_file={other}",
        f"task.packing={str(packing).lower()}",
        "task.max_length=64",
        "task.max_answer=3",
        f"task.metrics=[log_likelihood,perplexity{'' if packing else ',exact_match'}]",
        "optimizer.lr=0.02",
        "budget.interval=2",
    ]
    results = run(configure(tmp_path / "run", tmp_path, *settings))
    assert results.at_budget
    assert results.metrics["perplexity"] < 250  # 261 words, and random weights that stay
    assert (tmp_path / "run/predictions.jsonl").is_file() == (not packing)
    if not packing:
        check_chat(tmp_path / "run")
        check_predict(tmp_path / "run", caplog)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    alone = peft.PeftModel.from_pretrained(base, str(tmp_path / "run/adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/adapter")
    total, tokens = 0.0, 0
    for row in sums(20, 1):
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer.apply_chat_template(
            messages[:1], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        labels = ids.clone()
        labels[0, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = IGNORED
        with torch.no_grad():
            loss = alone(input_ids=ids, labels=labels).loss
        count = int((labels[:, 1:] != IGNORED).sum())
        total, tokens = total + float(loss) * count, tokens + count
    assert results.metrics["log_likelihood"] == pytest.approx(-total / tokens, rel=1e-4)


def test_a_validations_loss_is_over_its_tokens(model_folder: Path, tmp_path: Path) -> None:
    """As its log-likelihood is, though the batches hold unlike numbers of them."""
    file = write_lines(tmp_path / "rows.jsonl", [{"text": "ab" * (1 + 9 * n)} for n in range(6)])
    files = [f"task.train_file={file}", f"task.validation_file={file}"]
    settings = [f"model.path={model_folder}", *files, "trainer.batch_size=2"]
    prepared = prepare(configure(tmp_path, tmp_path, "task=causal_lm", *settings), tmp_path)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (logged,) = trainer.validate(prepared.module, prepared.data, verbose=False)
    assert logged["val/loss"] == pytest.approx(-logged["val/log_likelihood"], rel=1e-5)


def check_chat(folder: Path) -> None:
    """A conversation by standard input: answers depend on what was said, until /reset."""
    typed = "1+2\n\n2+2\n/reset\n1+2\n/quit\nnever read\n"
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(typed))
        with contextlib.redirect_stdout(out):
            chat([str(folder), "--max-answer", "4"])
    first, _, again = out.getvalue().splitlines()
    assert first == again
    check_full_chat(folder)
    check_system(folder / "adapter")
    with pytest.raises(SystemExit, match="2"):
        chat([str(folder), "--max-answer", "0"])


def check_full_chat(folder: Path) -> None:
    """Where positions are full, the oldest turns go, whole, and the system message stays."""
    typed = "1+2\n2+2\n3+1\n" + "9" * 250 + "\n3+1\n"
    out, err = io.StringIO(), io.StringIO()
    asked: list[list[str]] = []

    def record(self: Any, model: Any, messages: Any) -> str:
        asked.append([message["content"] for message in messages if message["role"] != "assistant"])
        return "x" * 80

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(typed))
        patch.setattr(Instruct, "answer", record)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            # 256 positions, a token a letter: an answer and two questions fit in 146 of them.
            chat([str(folder), "--max-answer", "110", "--system", "Brief."])
    assert asked[0] == ["Brief.", "1+2"]
    assert asked[-1][0] == "Brief."
    assert asked[1] == ["Brief.", "1+2", "2+2"]
    assert asked[2] == ["Brief.", "2+2", "3+1"]
    assert asked[3] == ["Brief.", "3+1"]
    assert err.getvalue().count("oldest turns are forgotten") == 1
    assert err.getvalue().count("too long: there is room for 146 tokens") == 1
    with pytest.raises(SystemExit, match="2"):
        chat([str(folder), "--max-answer", "256"])


def check_system(adapter: Path) -> None:
    """The run's system message stands until another is given, or an empty one."""
    brief = adapter.parent.parent / "brief"
    shutil.copytree(adapter, brief)
    origin = json.loads((brief / "dynarank.json").read_text())
    origin["task"]["system"] = "Brief."
    (brief / "dynarank.json").write_text(json.dumps(origin))
    asked: list[str] = []

    def record(self: Any, model: Any, messages: Any) -> str:
        asked.append(messages[0]["content"])
        return "x"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Instruct, "answer", record)
        for options in ([], ["--system", "Long."], ["--system", ""]):
            patch.setattr("sys.stdin", io.StringIO("1+2\n"))
            with contextlib.redirect_stdout(io.StringIO()):
                chat([str(brief), "--max-answer", "4", *options])
        assert asked == ["Brief.", "Long.", "1+2"]
        for errors in ("strict", "surrogateescape"):
            typed = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8", errors=errors)
            patch.setattr("sys.stdin", typed)
            with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit):
                chat([str(brief), "--max-answer", "4"])
            assert "the standard input holds bytes that are no UTF-8" in err.getvalue()
    assert len(asked) == 3


def check_predict(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows with answers are scored and answered; those without are answered, without a word."""
    question = {"role": "user", "content": "1+2"}
    given = {"role": "assistant", "content": "3"}
    forms = {
        "asked": [[question], [question, given, question]],
        "answered": [[question, given], [question, given]],
        "mixed": [[question], [question, given]],
    }
    texts = {}
    for name, conversations in forms.items():
        rows = [{"messages": messages} for messages in conversations]
        file = write_lines(folder.parent / f"{name}.jsonl", rows)
        caplog.clear()
        out = folder.parent / f"{name}_out.jsonl"
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            options = ["--output", str(out), "--max-answer", "1"]
            predict([str(folder), "--input", str(file), *options])
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(len(record["text"]) <= 1 for record in records)
        assert all(("log_likelihood" in record) == (name == "answered") for record in records)
        assert ("perplexity" in shown.getvalue()) == (name == "answered")
        assert ("only 1 of 2 rows end with an answer" in caplog.text) == (name == "mixed")
        assert ("not scored" in caplog.text) == (name == "mixed")
        texts[name] = records[0]["text"]
    assert len(set(texts.values())) == 1
