"""How near generated texts are to their references: ROUGE, BLEU and chrF, from 0 to 100, with nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text_scores(
    names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Scores by name: rouge1, rouge2, rougeL, rougeLsum, bleu, chrf.

    ROUGE is the mean F-measure with Porter stemming of Google's `rouge-score`, as summarization papers report it;
    rougeLsum compares sentence by sentence. BLEU (13a tokens) and chrF are sacreBLEU's, over the corpus.
    """
    scores = rouge([name for name in names if name.startswith("rouge")], texts, references)
    if "bleu" in names or "chrf" in names:
        import sacrebleu

        makers: dict[str, Any] = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}
        scores |= {
            name: float(make(list(texts), [list(references)]).score)
            for name, make in makers.items()
            if name in names
        }
    return scores


def rouge(
    names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Mean F-measures by name, in percent."""
    if not names:
        return {}
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    split = "rougeLsum" in names
    scorer = RougeScorer(list(names), tokenizer=DefaultTokenizer(use_stemmer=True))
    totals = dict.fromkeys(names, 0.0)
    for text, reference in zip(texts, references, strict=True):
        pair = (by_sentence(reference), by_sentence(text)) if split else (reference, text)
        for name, score in scorer.score(*pair).items():
            totals[name] += 100 * score.fmeasure / len(texts)
    return totals


def by_sentence(text: str) -> str:
    """One sentence a line, as rougeLsum wants it; the other measures do not mind."""
    from nupunkt import sent_tokenize

    return "\n".join(str(sentence).strip() for sentence in sent_tokenize(text))
