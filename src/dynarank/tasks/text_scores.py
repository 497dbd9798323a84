"""How near generated texts are to their references: ROUGE, BLEU and chrF, from 0 to 100.

The libraries behind these scores download nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynarank.tasks.causal_config import GENERATED


def text_scores(
    names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Return scores by name: rouge1, rouge2, rougeL, rougeLsum, bleu, chrf.

    ROUGE is the mean F-measure with Porter stemming of Google's `rouge-score`, as papers on
    summarization report it; rougeLsum compares sentence by sentence. BLEU (13a tokens) and chrF are
    sacreBLEU's, over the corpus.
    """
    scores = rouge([name for name in names if name.startswith("rouge")], texts, references)
    if "bleu" in names or "chrf" in names:
        import sacrebleu

        makers: dict[str, Any] = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}
        for name, corpus_score in makers.items():
            if name in names:
                scores[name] = float(corpus_score(list(texts), [list(references)]).score)
    return scores


def rouge(
    names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Return mean F-measures by name, in percent."""
    if not names:
        return {}
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    with_sentences = "rougeLsum" in names
    # Given a tokenizer, rouge-score logs no line about its default.
    scorer = RougeScorer(list(names), tokenizer=DefaultTokenizer(use_stemmer=True))
    totals = dict.fromkeys(names, 0.0)
    for text, reference in zip(texts, references, strict=True):
        if with_sentences:
            text, reference = by_sentence(text), by_sentence(reference)
        for name, score in scorer.score(target=reference, prediction=text).items():
            totals[name] += 100 * score.fmeasure / len(texts)
    return totals


def by_sentence(text: str) -> str:
    """Return the text with a sentence a line, as rougeLsum takes it. Other scores do not change."""
    # rouge-score's own splitting has NLTK download a model.
    from nupunkt import sent_tokenize

    return "\n".join(str(sentence).strip() for sentence in sent_tokenize(text))


def written_scores(
    names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Return how near the written texts are to the given ones, from 0 to 1."""
    asked = [name for name in names if name in GENERATED and name != "exact_match"]
    scores = {name: value / 100 for name, value in text_scores(asked, texts, references).items()}
    if "exact_match" in names:
        pairs = zip(texts, references, strict=True)
        scores["exact_match"] = sum(text == reference.strip() for text, reference in pairs) / len(
            texts
        )
    return scores
