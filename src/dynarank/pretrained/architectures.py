"""All that is known of each architecture, in one table, `ARCHITECTURES`.

To add an architecture, add one entry. Every method reads this table, so that an architecture that
stands here works with all of them.
A name of a module is a suffix at a dot (`output.dense`) or a whole regular expression, as
`dynarank.inject` takes them.
"""

from __future__ import annotations

from typing import Any

from dynarank.pretrained.architecture import Architecture, Kind
from dynarank.pretrained.image_architectures import IMAGE_ARCHITECTURES

_BERT_TARGETS = (
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
# The suffix `output.dense` would match `attention.output.dense` too. The number before it is that
# of the layer.
_BERT_FEEDFORWARD = r".*\d\.output\.dense"
_BART_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_NEOX_TARGETS = ("query_key_value", "dense_h_to_4h")
_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _like_bert(
    title: str,
    targets: tuple[str, ...] = _BERT_TARGETS,
    attention_output: str = "attention.output.dense",
    model_groups: tuple[str, ...] = (),
) -> Architecture:
    return Architecture(
        title=title,
        kind="encoder",
        targets=targets,
        attention_outputs=(attention_output,),
        feedforward_outputs=(_BERT_FEEDFORWARD,),
        position_table="position_embeddings",
        model_groups=model_groups,
    )


def _like_bart(title: str, model_groups: tuple[str, ...], takes_prompt: bool) -> Architecture:
    return Architecture(
        title=title,
        kind="encoder-decoder",
        targets=_BART_TARGETS,
        attention_outputs=("out_proj",),
        feedforward_outputs=("fc2",),
        position_table="embed_positions",
        takes_prompt=takes_prompt,
        model_groups=model_groups,
    )


def _like_t5(title: str, model_groups: tuple[str, ...] = ()) -> Architecture:
    return Architecture(
        title=title,
        kind="encoder-decoder",
        # `wi_0` and `wi_1` are the two halves of the gated form, which T5 1.1 and mT5 have.
        targets=(r".*Attention\.[qkvo]", r".*DenseReluDense\.w(i|i_0|i_1|o)"),
        attention_outputs=(r".*Attention\.o",),
        feedforward_outputs=(r".*DenseReluDense\.wo",),
        model_groups=model_groups,
    )


def _like_llama(title: str, model_groups: tuple[str, ...] = ()) -> Architecture:
    return Architecture(
        title=title,
        kind="decoder",
        model_groups=model_groups,
        targets=_LLAMA_TARGETS,
        attention_outputs=("o_proj",),
        feedforward_outputs=("down_proj",),
        # Given vectors for tokens, a decoder's classifier takes the last padding for the end.
        takes_prompt=False,
    )


def _decoder(
    title: str,
    inner: tuple[str, ...],
    attention_output: str,
    feedforward_output: str,
    position_table: str | None = None,
) -> Architecture:
    """Return a decoder's entry.

    Args:
        inner: the layers to adapt beside the last ones of attention and feed-forward.
    """
    return Architecture(
        title=title,
        kind="decoder",
        targets=(*inner, attention_output, feedforward_output),
        attention_outputs=(attention_output,),
        feedforward_outputs=(feedforward_output,),
        position_table=position_table,
        # For the reason that stands in `_like_llama`.
        takes_prompt=False,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "roberta": _like_bert("RoBERTa", model_groups=("roberta_base", "roberta_large")),
    "bert": _like_bert("BERT", model_groups=("bert_base", "minilm")),
    "xlm-roberta": _like_bert("XLM-RoBERTa"),
    "electra": _like_bert("ELECTRA"),
    "mpnet": _like_bert(
        "MPNet",
        targets=("attn.q", "attn.k", "attn.v", "attn.o", "intermediate.dense", "output.dense"),
        attention_output="attn.o",
    ),
    "deberta": _like_bert(
        "DeBERTa",
        targets=(
            r".*\.(in_proj|pos_proj|pos_q_proj)",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
    ),
    "deberta-v2": _like_bert(
        "DeBERTa-v2",
        targets=(
            r".*\.(pos_)?(query|key|value)_proj",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
    ),
    "distilbert": Architecture(
        title="DistilBERT",
        kind="encoder",
        targets=("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
        attention_outputs=("out_lin",),
        feedforward_outputs=("lin2",),
        position_table="position_embeddings",
    ),
    "albert": Architecture(
        title="ALBERT",
        kind="encoder",
        targets=("query", "key", "value", "attention.dense", "ffn", "ffn_output"),
        attention_outputs=("attention.dense",),
        feedforward_outputs=("ffn_output",),
        position_table="position_embeddings",
    ),
    "modernbert": Architecture(
        title="ModernBERT",
        kind="encoder",
        targets=("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
        attention_outputs=("attn.Wo",),
        feedforward_outputs=("mlp.Wo",),
    ),
    "bart": _like_bart("BART", model_groups=("bart_base", "bart_large"), takes_prompt=True),
    "t5": _like_t5("T5", model_groups=("t5_base",)),
    "mt5": _like_t5("mT5"),
    "mbart": _like_bart("mBART", model_groups=("mbart",), takes_prompt=True),
    # Marian scales the embeddings that it looks up, but none that it is given.
    "marian": _like_bart("Marian", model_groups=("marian_en_ro",), takes_prompt=False),
    "gpt2": Architecture(
        title="GPT-2",
        kind="decoder",
        # `c_proj` ends both sublayers, which the module around it tells apart.
        targets=("c_attn", "c_proj", "c_fc"),
        attention_outputs=(r".*attn\.c_proj",),
        feedforward_outputs=(r".*mlp\.c_proj",),
        position_table="wpe",
        takes_prompt=False,
    ),
    "llama": _like_llama("LLaMA", model_groups=("smollm2",)),
    "mistral": _like_llama("Mistral"),
    "qwen2": _like_llama("Qwen2"),
    "qwen3": _like_llama("Qwen3"),
    "gemma": _like_llama("Gemma"),
    "gemma2": _like_llama("Gemma 2"),
    "gemma3_text": _like_llama("Gemma 3"),
    "smollm3": _like_llama("SmolLM3"),
    "stablelm": _like_llama("StableLM"),
    "phi": _decoder("Phi", ("q_proj", "k_proj", "v_proj", "fc1"), "self_attn.dense", "fc2"),
    "phi3": _decoder("Phi-3", ("qkv_proj", "gate_up_proj"), "o_proj", "down_proj"),
    "starcoder2": _decoder(
        "StarCoder2", ("q_proj", "k_proj", "v_proj", "c_fc"), "o_proj", "mlp.c_proj"
    ),
    "opt": _decoder(
        "OPT", ("q_proj", "k_proj", "v_proj", "fc1"), "out_proj", "fc2", "embed_positions"
    ),
    "gpt_neo": _decoder(
        "GPT-Neo", ("q_proj", "k_proj", "v_proj", "c_fc"), "out_proj", "mlp.c_proj", "wpe"
    ),
    "gpt_neox": _decoder("GPT-NeoX", _NEOX_TARGETS, "attention.dense", "dense_4h_to_h"),
    "bloom": _decoder("BLOOM", _NEOX_TARGETS, "self_attention.dense", "dense_4h_to_h"),
    "falcon": _decoder("Falcon", _NEOX_TARGETS, "self_attention.dense", "dense_4h_to_h"),
    **IMAGE_ARCHITECTURES,
}
"""What is known, by the `model_type` of a model's config.json."""


def bottleneck_places(model_type: str, behind_attention: bool) -> list[str]:
    """Return the names of the layers that a bottleneck follows.

    An architecture that is not in the table is tried with the names of all that are.
    """
    known = ARCHITECTURES.get(model_type)
    entries = list(ARCHITECTURES.values()) if known is None else [known]
    places: list[str] = []
    for entry in entries:
        places += entry.feedforward_outputs
        if behind_attention:
            places += entry.attention_outputs
    return list(dict.fromkeys(places))


def position_tables(model_type: str) -> set[str]:
    """Return the names that the embedding of absolute positions may have.

    An architecture that is not in the table is tried with the names of all that are.
    """
    known = ARCHITECTURES.get(model_type)
    entries = list(ARCHITECTURES.values()) if known is None else [known]
    return {entry.position_table for entry in entries if entry.position_table is not None}


def takes_prompt(settings: Any) -> bool:
    """Return whether prompt tuning may be tried on a model with this configuration."""
    known = ARCHITECTURES.get(settings.model_type)
    return kind_of_model(settings) != "decoder" if known is None else known.takes_prompt


def kind_of_model(settings: Any) -> Kind:
    """Return what kind of model has this configuration, asking transformers for unknown ones."""
    known = ARCHITECTURES.get(settings.model_type)
    if known is not None:
        return known.kind
    from transformers.models.auto import modeling_auto

    if settings.is_encoder_decoder:
        return "encoder-decoder"
    if settings.model_type in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image"
    # BERT's kind is listed among the causal models too: it can be the decoder of a pair.
    masked = settings.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = settings.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "decoder" if causal and not masked else "encoder"


def models_of_kind(kind: str) -> str:
    """Return examples of models of one kind, as they are named on the command line."""
    entries = [entry for entry in ARCHITECTURES.values() if entry.kind == kind]
    groups: list[str] = []
    for entry in entries:
        groups += entry.model_groups
    if len(groups) >= 2:
        return f"model={', '.join(groups[:-1])} or {groups[-1]}"
    titles = ", ".join(entry.title for entry in entries)
    by_group = [f"model={group}" for group in groups]
    return " or ".join([*by_group, f"{titles} by model.path="])
