"""The train command's line: what is quoted comes back from Hydra's grammar as it was."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dynarank.config.command_line import quote


@given(st.text(st.sampled_from("ab /\\'\"=,{}[]()$ é"), min_size=1))
@example("C:\\runs\\one two")
@example("ends with \\")
@example("a\\'b")
def test_hydra_reads_a_quoted_value_as_it_was(text: str) -> None:
    assume("${" not in text)  # an interpolation is one in any quotation marks
    override = OverridesParser.create().parse_override(f"hydra.run.dir={quote(text)}")
    assert str(override.value()) == text
