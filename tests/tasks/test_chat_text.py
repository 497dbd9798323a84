"""Where a chat template puts answers, and what it puts around them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dynarank.tasks.chat_text import around_an_answer


@pytest.mark.parametrize("marker", ["<assistant>", "<bot>", "b: ", "answer="])
@pytest.mark.parametrize("asks", [True, False])
def test_an_example_answer_is_found_behind_any_marker(marker: str, asks: bool) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}\n"
        "{% else %}MARKER{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    )
    if asks:
        template += "{% if add_generation_prompt %}MARKER{% endif %}"
    tokenizer.chat_template = template.replace("MARKER", marker)
    # Where the template does not ask for an answer, the marker belongs to the answer.
    assert around_an_answer(tokenizer) == ("" if asks else marker, "</s>\n")
