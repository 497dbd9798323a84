"""Languages of translation models, on tiny tokenizers of each kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import compose, write_tokenizer

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task
from dynarank.tasks.languages import choose_languages

WORDS = ["the", "cat", "sat", "on", "mat", "pisica", "sta", "pe", "covor"]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", *("\u2581" + word for word in WORDS), "\u2581"]
LETTERS = sorted(set("".join(WORDS)))


def model(start: int | None = 2) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(decoder_start_token_id=start, model_type="m2m_100")
    )


def nllb() -> Any:
    from transformers import NllbTokenizer

    vocabulary = {piece: index for index, piece in enumerate(PIECES + LETTERS)}
    return NllbTokenizer(vocab=vocabulary, merges=[])


def mbart() -> Any:
    from transformers import MBartTokenizer

    codes = ["en_XX", "ro_RO"]
    return MBartTokenizer(vocab=[(piece, 0.0) for piece in [*PIECES, *codes, "<mask>"]])


@pytest.fixture(scope="module")
def m2m(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import json

    import sentencepiece
    from transformers import M2M100Tokenizer

    folder = tmp_path_factory.mktemp("m2m")
    (folder / "text.txt").write_text("\n".join([" ".join(WORDS)] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spm"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [piece for piece in pieces if piece not in names]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


@pytest.mark.parametrize(
    ("source", "target"), [("en", "ro"), ("eng_Latn", "ron_Latn"), ("en", "ron_Latn")]
)
def test_nllb_marks_the_languages_that_are_set(source: str, target: str) -> None:
    tokenizer = nllb()
    options = choose_languages(tokenizer, model(), source, target)
    romanian = tokenizer.convert_tokens_to_ids("ron_Latn")
    assert romanian != tokenizer.unk_token_id
    assert options == {"forced_bos_token_id": romanian}
    first = tokenizer.convert_ids_to_tokens(tokenizer("cat")["input_ids"])[0]
    assert first == "eng_Latn"
    assert tokenizer(text_target="pisica")["input_ids"][0] == romanian


def test_the_languages_are_saved_with_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = nllb()
    choose_languages(tokenizer, model(), "ro", "de")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.src_lang, again.tgt_lang) == ("ron_Latn", "deu_Latn")


def test_m2m100_marks_the_languages_that_are_set(m2m: Any) -> None:
    options = choose_languages(m2m, model(), "en", "ro")
    assert options == {"forced_bos_token_id": m2m.get_lang_id("ro")}
    assert m2m("cat")["input_ids"][0] == m2m.get_lang_id("en")
    assert m2m(text_target="pisica")["input_ids"][0] == m2m.get_lang_id("ro")


def test_mbart_begins_generation_with_the_language() -> None:
    tokenizer = mbart()
    options = choose_languages(tokenizer, model(start=None), "en", "ro")
    romanian = tokenizer.convert_tokens_to_ids("ro_RO")
    assert options == {"decoder_start_token_id": romanian}
    assert tokenizer("cat")["input_ids"][-1] == tokenizer.convert_tokens_to_ids("en_XX")
    assert tokenizer(text_target="pisica")["input_ids"][-1] == romanian


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (None, "ro", r"task\.source_lang = None: this model's languages are ace_Arab, .* more\."),
        ("en", "xx", r"task\.target_lang = xx: this model's languages are "),
        ("zh", "en", r"task\.source_lang = zh: this model has several, zho_Hans, zho_Hant"),
        ("en", "fi", None),
        ("en", "sl", None),
    ],
)
def test_a_language_that_is_not_clear_is_refused(
    source: str | None, target: str, said: str | None
) -> None:
    tokenizer = nllb()
    if said is None:  # two letters that begin several languages' three
        choose_languages(tokenizer, model(), source, target)
        assert tokenizer.tgt_lang == {"fi": "fin_Latn", "sl": "slv_Latn"}[target]
        return
    with pytest.raises(UserError, match=said):
        choose_languages(tokenizer, model(), source, target)


def test_a_tokenizer_without_languages_is_left_alone(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert choose_languages(tokenizer, model(), "en", "ro") == {}


def test_a_tasks_targets_begin_with_their_language(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("source,target\n" + "the cat sat,pisica sta\n" * 4)
    overrides = [f"task.train_file={file}", "task.source_lang=en", "task.target_lang=ro"]
    config = to_config(compose(["output_dir=x", "task=seq2seq", *overrides])).task
    task, tokenizer = build_task(config), nllb()
    task.read(HubConfig())
    task.encode(tokenizer, model())
    labels = task.train_features["labels"][0]
    assert tokenizer.convert_ids_to_tokens(labels)[0] == "ron_Latn"
