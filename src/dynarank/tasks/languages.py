"""Languages of translation models: how tokenizers mark them, and where generation must be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynarank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def marks_languages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer adds a token of the language to each text."""
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")


def choose_languages(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    source: str | None,
    target: str | None,
) -> dict[str, int]:
    """Tell a tokenizer that marks languages which ones the texts have.

    Args:
        tokenizer: is changed.
        model: the model that the texts are for.
        source: `task.source_lang`.
        target: `task.target_lang`.

    Returns:
        The options of generation that make a text begin with the target's language: none where the
        tokenizer marks no languages.

    Raises:
        UserError: The tokenizer marks languages, and a setting names none of them.
    """
    if not marks_languages(tokenizer):
        return {}
    known = [token for token in tokenizer.get_vocab() if len(token) == 5 and token[2:3] == "_"]
    if not known:
        return {}
    tokenizer.src_lang = _language_code("source_lang", source, known)
    tokenizer.tgt_lang = _language_code("target_lang", target, known)
    target_token: int = tokenizer.convert_tokens_to_ids(tokenizer.tgt_lang)
    # mBART begins a text with its language. mBART-50 puts it second, after a fixed first token.
    if model.config.decoder_start_token_id is None:
        return {"decoder_start_token_id": target_token}
    return {"forced_bos_token_id": target_token}


def _language_code(setting: str, language: str | None, known: Sequence[str]) -> str:
    for code in known:
        if language and code.startswith(language):
            return code
    raise UserError(
        f"task.{setting} = {language}: this model's languages are {', '.join(sorted(known))}. "
        "Give two letters"
    )
