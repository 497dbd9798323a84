"""Make a small BART with random weights and a tokenizer of its own, to try text-to-text tasks where
there is no hub.

    python benchmarks/small_bart.py FOLDER --text FILE.parquet --column document [--column summary]
    python train.py task=xsum model.path=FOLDER

Untrained as it is, it shows that training and generation work, and nothing about quality.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from pyarrow import parquet
from tokenizers import ByteLevelBPETokenizer
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizerFast

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--column", action="append", required=True)
    for name, default in (
        ("width", 128),
        ("layers", 2),
        ("vocabulary", 4000),
        ("positions", 1024),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    table = parquet.read_table(options.text, columns=options.column)

    def texts() -> Iterator[str]:
        for column in options.column:
            yield from table[column].to_pylist()

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts(), vocab_size=options.vocabulary, special_tokens=SPECIALS)
    options.folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(options.folder))
    tokenizer = BartTokenizerFast.from_pretrained(
        options.folder, model_max_length=options.positions
    )
    tokenizer.save_pretrained(options.folder)

    torch.manual_seed(options.seed)
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", options.layers),
            ("attention_heads", 4),
            ("ffn_dim", 4 * options.width),
        )
    }
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=options.width,
        max_position_embeddings=options.positions,
        **sides,
    )
    model = BartForConditionalGeneration(config)
    model.save_pretrained(options.folder)
    print(
        f"{options.folder}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{len(tokenizer):,} tokens"
    )


if __name__ == "__main__":
    main()
