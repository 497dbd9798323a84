"""The checker of ranges and choices that all configurations share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from dynarank.settings import Form, Ge, Gt, Lt, OneOf, UserPath, check_settings, expand_user


@dataclass
class Sizes:
    share: Annotated[float, Ge(0), Lt(1)] = 0.5
    count: Annotated[int | None, Gt(0)] = None
    free: float = 0.0
    large: Annotated[int, Lt(2**32)] = 0
    kind: Annotated[str, OneOf(("a", "b"))] = "a"
    kinds: Annotated[list[str], OneOf(("a", "b"))] = field(default_factory=list)
    time: Annotated[str, Form(r"\d\d:\d\d", "HH:MM")] = "00:00"
    path: Annotated[str | None, UserPath()] = None

    def __post_init__(self) -> None:
        check_settings("sizes", self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.0}, "sizes.share = 1.0: must be at least 0 and below 1"),
        ({"share": -0.1}, "sizes.share = -0.1: must be at least 0 and below 1"),
        ({"share": math.nan}, "sizes.share = nan: must be a finite number"),
        ({"free": math.inf}, "sizes.free = inf: must be a finite number"),
        ({"free": -math.inf}, "sizes.free = -inf: must be a finite number"),
        ({"large": 2**32}, "sizes.large = 4294967296: must be below 4,294,967,296"),
        ({"count": 0}, "sizes.count = 0: must be above 0"),
        ({"kind": "c"}, "sizes.kind = 'c': must be one of a, b"),
        ({"kinds": ["a", "c"]}, "sizes.kinds = ['a', 'c']: must be one of a, b"),
        ({"time": "7"}, "sizes.time = '7': must be HH:MM"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^sizes\.") as caught:
        Sizes(**values)
    assert str(caught.value) == message


def test_bounds_null_and_open_values_pass() -> None:
    Sizes(share=0.0, count=None, kind="???", time="${x}")
    Sizes(share=0.999, count=1, kinds=["b", "a"])


def test_a_leading_tilde_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Sizes(path="~/x").path == str(tmp_path / "x")
    assert Sizes(path="a~/x").path == "a~/x"
    assert expand_user("~") == str(tmp_path)
    assert expand_user("~no-such-user-here/x") == "~no-such-user-here/x"
