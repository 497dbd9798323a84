"""Tiny models and data in the hub's layout, so that the real code runs in seconds and without a
network."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "conf"
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "was",
    "good",
    "bad",
    "not",
    "very",
    "film",
    "he",
    "she",
    "they",
    "it",
    "is",
    "are",
    "sleeps",
    "sleep",
]


def real_hub() -> Path | None:
    """The folder with real data, where there is one."""
    places = [os.environ.get("DYNARANK_HUB"), REPOSITORY.parent / "shared" / "hub"]
    return next(
        (Path(place) for place in places if place and (Path(place) / "datasets").is_dir()), None
    )


needs_real_hub = pytest.mark.skipif(
    real_hub() is None, reason="no DYNARANK_HUB with real data sets on this machine"
)


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def write_model(folder: Path, config: Any) -> Path:
    """Random weights of a configuration, and a tokenizer, as `from_pretrained` finds them."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def tiny_roberta(**changes: Any) -> Any:
    from transformers import RobertaConfig

    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    ids = dict(
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=64,
        type_vocab_size=1,
    )
    return RobertaConfig(**{**sizes, **ids, **changes})


def tiny_bart(**changes: Any) -> Any:
    from transformers import BartConfig

    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    ids = dict(
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return BartConfig(
        **{**dict(vocab_size=32, d_model=16, max_position_embeddings=64), **sides, **ids, **changes}
    )


def tiny_t5(**changes: Any) -> Any:
    from transformers import T5Config

    sizes = dict(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ids = dict(pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    return T5Config(**{**sizes, **ids, **changes})


def question_rows(count: int, seed: int, no_answer: bool = False) -> dict[str, list[Any]]:
    """Questions in SQuAD's form, whose answers are two words of a context; with `no_answer`, every
    third has none."""
    draw = random.Random(seed)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("id", "title", "context", "question", "answers")
    }
    for index, context in enumerate(sentences(count, seed)):
        words = context.split()
        at = draw.randrange(len(words) - 1)
        start = len(" ".join(words[:at])) + (at > 0)
        answer = {"text": [" ".join(words[at : at + 2])], "answer_start": [start]}
        silent = no_answer and index % 3 == 2
        values = (
            f"q{seed}-{index}",
            "t",
            context,
            f"is it {words[at]}",
            {"text": [], "answer_start": []} if silent else answer,
        )
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return rows


def summary_rows(count: int, seed: int) -> dict[str, list[Any]]:
    documents = [". ".join(sentences(3, 100 * seed + index)) for index in range(count)]
    return {
        "document": documents,
        "summary": sentences(count, seed),
        "id": [str(index) for index in range(count)],
    }


def write_dataset(folder: Path, subset: str, splits: dict[str, dict[str, list[Any]]]) -> Path:
    """A data set's subset as parquet files with the hub's README header (one subset a folder, or
    added to it)."""
    import pandas as pd

    (folder / subset).mkdir(parents=True, exist_ok=True)
    for split, columns in splits.items():
        pd.DataFrame(columns).to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = {
        name: sorted({path.name.split("-")[0] for path in (folder / name).glob("*.parquet")})
        for name in known
    }
    header = [
        {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}-*"} for s in found]}
        for name, found in files.items()
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': header})}\n---\n")
    return folder


GLUE = {
    "cola": (["sentence"], 2),
    "sst2": (["sentence"], 2),
    "mrpc": (["sentence1", "sentence2"], 2),
    "stsb": (["sentence1", "sentence2"], 0),
    "qqp": (["question1", "question2"], 2),
    "mnli": (["premise", "hypothesis"], 3),
    "qnli": (["question", "sentence"], 2),
    "rte": (["sentence1", "sentence2"], 2),
    "wnli": (["sentence1", "sentence2"], 2),
}
"""Text columns and number of classes (0: a number), as the hub has them."""


def glue_rows(subset: str, rows: int, seed: int) -> dict[str, list[Any]]:
    columns, classes = GLUE[subset]
    texts = {column: sentences(rows, seed + index) for index, column in enumerate(columns)}
    labels = [i % classes if classes else (i % 11) / 2 for i in range(rows)]
    return {**texts, "label": labels, "idx": list(range(rows))}


def compose(overrides: list[str]) -> Any:
    """The composed configuration of the command line's overrides."""
    import hydra

    from dynarank.config.schema import register_schemas

    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=overrides)


def configure(folder: Path, hub: Path, *overrides: str) -> Any:
    """The typed configuration of a run into `folder`, small enough for a test."""
    from dynarank.config.schema import to_config

    small = [
        f"output_dir={folder}",
        "resume.shared_folder=true",
        f"hub.root={hub}",
        "logger=none",
        "trainer.epochs=2",
        "trainer.log_every=1",
    ]
    return to_config(compose([*small, "trainer.accelerator=cpu", *overrides]))


def newest_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of a run's last checkpoint."""
    import torch

    content: dict[str, Any] = torch.load(
        max((folder / "checkpoints").glob("step-*.ckpt")), weights_only=True
    )
    return content


def command(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`train.py` in a folder, its output kept."""
    from killing import forked_command

    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return forked_command([str(REPOSITORY / "train.py"), *arguments], folder, variables)
