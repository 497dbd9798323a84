"""How the doctor goes through its checks, and what it concludes from them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dynarank.commands.checks import FAIL, NOTE, OK, Check
from dynarank.commands.doctor import conclusion, examine, report
from dynarank.commands.source_checks import FIRST_TASK, QUICK_START


def broken() -> Iterator[Check]:
    yield Check("first", OK, "kept")
    raise OSError("no disk")


def hanging() -> Iterator[Check]:
    time.sleep(5)
    yield Check("never", OK, "")


def lacking() -> Iterator[Check]:
    import no_such_package  # noqa: F401

    yield Check("never", OK, "")


def secret() -> Iterator[Check]:
    yield Check("leak", OK, "https://me:canary@host and canary-1234", "canary-1234")


def test_a_check_that_breaks_hangs_or_lacks_a_package_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_TOKEN", "canary-1234")
    found = examine([broken, hanging, lacking, secret], seconds=0.3)
    assert [(check.name, check.status) for check in found] == [
        ("first", OK),
        ("broken", FAIL),
        ("hanging", FAIL),
        ("lacking", FAIL),
        ("leak", OK),
    ]
    assert "no disk" in found[1].found
    assert "no answer within 0.3 s" in found[2].found
    assert "no_such_package is missing" in found[3].found
    assert "canary" not in found[4].found + found[4].remedy


@pytest.mark.parametrize(
    ("local", "quick", "first", "failed", "said"),
    [
        (NOTE, OK, OK, False, "Ready: dynarank train experiment=quickstart and dynarank train"),
        (NOTE, NOTE, OK, False, "The quick start will not"),
        (OK, OK, NOTE, False, "the quick start, what lies under DYNARANK_HUB, and models and"),
        (NOTE, OK, NOTE, False, "No hub, no local model: only the quick starts"),
        (NOTE, NOTE, NOTE, False, "Only models and files of your own"),
        (NOTE, OK, OK, True, "1 check failed, and will end a run"),
    ],
)
def test_it_ends_with_what_this_machine_can_do(
    local: str, quick: str, first: str, failed: bool, said: str
) -> None:
    findings = [
        Check("local hub", local, ""),
        Check(QUICK_START, quick, ""),
        Check(FIRST_TASK, first, ""),
    ]
    if failed:
        findings.append(Check("disk", FAIL, "full", "make room"))
    assert said in conclusion(findings)
    assert report(findings).splitlines()[-1] == conclusion(findings)
    if NOTE in (quick, first):
        assert "Ready: dynarank train experiment=quickstart and" not in conclusion(findings)
