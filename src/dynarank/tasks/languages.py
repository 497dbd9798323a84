"""Languages of translation models: how tokenizers mark them, and where generation must be told.

A language is named by two letters (ISO 639-1: `en`) or by the tokenizer's own code: `en_XX` for
mBART, `eng_Latn` for NLLB (three letters of ISO 639-3 and a script), `en` for M2M100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dynarank.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LANGUAGE_TOKEN = re.compile(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}")
"""Tokens of languages in a vocabulary: mBART's and NLLB's."""
_PAIRS = """
af:afr am:amh ar:arb az:azj be:bel bg:bul bn:ben bs:bos ca:cat cs:ces cy:cym da:dan de:deu
el:ell en:eng eo:epo es:spa et:est eu:eus fa:pes fi:fin fr:fra ga:gle gl:glg gu:guj ha:hau
he:heb hi:hin hr:hrv hu:hun hy:hye id:ind ig:ibo is:isl it:ita ja:jpn jv:jav ka:kat kk:kaz
km:khm kn:kan ko:kor ky:kir lb:ltz lo:lao lt:lit lv:lvs mi:mri mk:mkd ml:mal mn:khk mr:mar
ms:zsm mt:mlt my:mya ne:npi nl:nld no:nob pa:pan pl:pol ps:pbt pt:por ro:ron ru:rus sd:snd
si:sin sk:slk sl:slv sn:sna so:som sq:als sr:srp sv:swe sw:swh ta:tam te:tel tg:tgk th:tha
tl:tgl tr:tur uk:ukr ur:urd uz:uzn vi:vie xh:xho yo:yor zh:zho zu:zul
"""
THREE_LETTERS: dict[str, str] = dict(pair.split(":") for pair in _PAIRS.split())
"""NLLB's three letters by two: of a language with several, the standard variety's."""
LISTED = 60
"""Languages that an error names."""


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
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        return {}
    tokens = _language_tokens(tokenizer)
    if not tokens:
        _check_own_language("source_lang", source, tokenizer.src_lang)
        _check_own_language("target_lang", target, tokenizer.tgt_lang)
        return {}
    for name, setting, language in (
        ("src_lang", "source_lang", source),
        ("tgt_lang", "target_lang", target),
    ):
        code = _language_code(setting, language, tokens)
        setattr(tokenizer, name, code)
        tokenizer.init_kwargs[name] = code  # so that it is saved with the tokenizer
    target_token: int = tokenizer.convert_tokens_to_ids(tokens[tokenizer.tgt_lang])
    # mBART begins a text with its language. The others put it second, after a fixed first token.
    if model.config.decoder_start_token_id is None:
        return {"decoder_start_token_id": target_token}
    return {"forced_bos_token_id": target_token}


def _language_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the tokens of languages by the tokenizer's codes."""
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M100's, which its vocabulary does not list
        return dict(tokenizer.lang_code_to_token)
    return {token: token for token in tokenizer.get_vocab() if LANGUAGE_TOKEN.fullmatch(token)}


def _check_own_language(setting: str, language: str | None, own: str | None) -> None:
    """Raise `UserError` where a tokenizer of one fixed language should take another."""
    if language is not None and own is not None and language != own:
        raise UserError(
            f"task.{setting} = {language}: this model has one language there, {own}. "
            f"Give task.{setting}={own}, or null"
        )


def _language_code(setting: str, language: str | None, codes: Mapping[str, str]) -> str:
    """Return the code that a language has among the tokenizer's `codes`."""
    if language is not None:
        if language in codes:
            return language
        names = (language, THREE_LETTERS.get(language))
        fitting = sorted(code for code in codes if code.partition("_")[0] in names)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UserError(
                f"task.{setting} = {language}: this model has several, {', '.join(fitting)}. "
                "Give one of them"
            )
    known = sorted(codes)
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    raise UserError(
        f"task.{setting} = {language}: this model's languages are {', '.join(known[:LISTED])}"
        f"{more}. Give two letters, or one of these"
    )
