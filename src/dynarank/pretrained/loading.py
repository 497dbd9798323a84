"""Load something of transformers by its auto class, with one clear error whatever goes wrong."""

from __future__ import annotations

from typing import Any

from dynarank.errors import UserError, kind_and_first_line
from dynarank.pretrained.hub import ModelConfig, Source

CODE_IS_ASKED_FOR = (
    "Code that comes with a model is not run unless asked for: model.trust_remote_code=true "
    "(--trust-remote-code of dynarank predict); read it first, and pin it by "
    "model.revision=COMMIT"
)


def load_auto(
    auto_class: Any, what: str, config: ModelConfig, source: Source, **options: Any
) -> Any:
    """Return what an auto class loads. Raises `UserError`, whatever the library raises."""
    try:
        return auto_class.from_pretrained(
            source.path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            **options,
        )
    except Exception as error:  # a damaged or hostile folder raises any kind
        # transformers raises a plain ValueError here, which only its text tells from others.
        if "custom code" in str(error) and not config.trust_remote_code:
            raise UserError(
                f"model.path = {config.path}: its {what} needs code of its own. {CODE_IS_ASKED_FOR}"
            ) from None
        reason = kind_and_first_line(error)
        raise UserError(
            f"model.path = {config.path}: no {what} can be loaded from {source.path}: {reason}"
        ) from error
