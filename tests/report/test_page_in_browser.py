"""report.html in Chromium: nothing is fetched, nothing overflows, and what can be pressed does what
it says.

Skipped where there is no Chromium; where DYNARANK_BROWSER=required is set, that fails.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_history, write_overrides, write_run
from scipy import stats

from dynarank.report.write_report import write_report

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror=window.hurt=1>"
THEMES = ["light", "dark"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None and os.environ.get("DYNARANK_BROWSER") != "required":
        pytest.skip("no chromium is installed (apt-get install chromium)")
    assert path is not None, "DYNARANK_BROWSER=required, and no chromium is installed"
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings on two tasks, three seeds, a failed run; one task has a hostile name."""
    root = tmp_path_factory.mktemp("sweep")
    for number, task in enumerate(("cola", HOSTILE)):
        for method, base in (
            ("dora", 0.61),
            ("lora", 0.5),
            ("a setting of quite some length", 0.55),
        ):
            for seed, shift in enumerate((0.0, 0.013, -0.021)):
                score = base + shift + number / 100 + (seed / 500 if method == "dora" else 0)
                folder = write_run(
                    root / f"{number}-{method}-{seed}",
                    task,
                    method,
                    seed,
                    score,
                    parameters=100 + len(method),
                )
                write_overrides(folder, f"task={task}", f"method={method}", f"seed={seed}")
                if method == "dora":
                    write_history(folder, 7, seed)
    failed = root / "failed"
    (failed / ".hydra").mkdir(parents=True)
    (failed / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (failed / "error.txt").write_text(f"exit code 1\nerror: {HOSTILE}\n")
    write_report([root])
    return root


class Page:
    """A tab that keeps what goes wrong in it."""

    def __init__(self, browser: Any, file: Path, width: int = 1440, theme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.tab = self.context.new_page()
        self.wrong: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.wrong.append("a dialog opened"))
        self.tab.on("request", self._request)
        self.file = file
        self.tab.goto(file.as_uri())

    def _request(self, request: Any) -> None:
        if request.url not in (self.file.as_uri(), "data:,"):
            self.wrong.append(request.url)

    def column(self, table: str, index: int) -> list[str]:
        script = f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{index}].innerText)"
        return list(self.tab.eval_on_selector_all(f"#{table} tbody tr", script))

    def drawn(self, which: int) -> dict[str, int]:
        script = f"maps => [...maps[{which}].querySelectorAll('[data-matrix]')].map(t => [t.dataset.matrix, t.textContent])"  # noqa: E501
        return {
            name: int(rank) for name, rank in self.tab.eval_on_selector_all("#maps figure", script)
        }

    def scrub(self, frame: int) -> None:
        self.tab.eval_on_selector(
            "#pruning", f"s => {{ s.value = {frame}; s.dispatchEvent(new Event('input')) }}"
        )


@pytest.fixture
def page(browser: Any, sweep: Path) -> Iterator[Page]:
    found = Page(browser, sweep / "report" / "report.html")
    yield found
    assert found.wrong == []
    found.context.close()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_is_fetched_nothing_fails_nothing_overflows(
    browser: Any, sweep: Path, width: int, theme: str
) -> None:
    found = Page(browser, sweep / "report" / "report.html", width, theme)
    assert found.tab.evaluate("document.documentElement.scrollWidth") == width
    for button in found.tab.query_selector_all("button.details")[:1]:
        button.click()
        assert found.tab.evaluate("document.documentElement.scrollWidth") == width
        found.tab.keyboard.press("Escape")
    assert found.wrong == []
    found.context.close()


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_its_ground(browser: Any, sweep: Path, theme: str) -> None:
    """Contrast of at least 4.5 (WCAG AA) for every visible text of the page, pictures apart."""
    found = Page(browser, sweep / "report" / "report.html", theme=theme)
    low = found.tab.evaluate(
        """() => {
        const parse = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((t, v, i) => t + v * [.2126, .7152, .0722][i], 0);
        const ground = (e) => { for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
        const bad = [];
        for (const e of document.querySelectorAll("main *, header *, footer")) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || !e.checkVisibility() || e.closest("svg, option, .hidden")) continue;
            const both = [light(parse(getComputedStyle(e).color)), light(ground(e))];
            const [a, b] = both.sort((x, y) => y - x);
            if ((a + .05) / (b + .05) < 4.5) bad.push(e.outerHTML.slice(0, 80));
        }
        return bad;
    }"""
    )
    assert low == []
    found.context.close()


def test_every_column_sorts_both_ways(page: Page) -> None:
    heads = page.tab.query_selector_all("#runs-table thead th")
    for index, head in enumerate(heads):
        button = head.query_selector("button")
        if button is None:
            continue
        button.click()
        assert head.get_attribute("aria-sort") == "ascending"
        up = page.column("runs-table", index)
        button.click()
        assert head.get_attribute("aria-sort") == "descending"
        down = page.column("runs-table", index)
        known = [text for text in up if text != "-"]
        numbers = all(text.replace(",", "").replace(".", "").isdigit() for text in known)
        key = (lambda text: float(text.replace(",", ""))) if numbers else str.lower
        assert [key(text) for text in known] == sorted((key(text) for text in known), reverse=False)
        assert [key(text) for text in down if text != "-"] == sorted(
            (key(text) for text in known), reverse=True
        )
        assert (
            up[len(known) :] == down[len(known) :] == ["-"] * (len(up) - len(known))
        )  # what is missing comes last
    sorted_now = page.tab.query_selector_all('#runs-table th[aria-sort="descending"]')
    assert len(sorted_now) == 1


def test_sorting_works_with_the_keyboard_and_is_said(page: Page) -> None:
    page.tab.focus("#scores th:nth-child(2) button")
    page.tab.keyboard.press("Enter")
    assert page.tab.inner_text("#said").startswith("Sorted by")
    assert [text.split()[0] for text in page.column("scores", 1)] != []


def test_scrubbing_draws_what_the_history_holds(page: Page, sweep: Path) -> None:
    written = [
        json.loads((sweep / f"0-dora-{seed}" / "rank_history.json").read_text())
        for seed in range(2)
    ]
    assert page.tab.get_attribute("#pruning", "max") == "6"
    assert page.drawn(0) == written[0][-1]["ranks"]
    for frame in (0, 3, 6):
        page.scrub(frame)
        first, second = (one[frame]["ranks"] for one in written)
        assert page.drawn(0) == first
        assert page.drawn(1) == second
        said = page.tab.inner_text("#state")
        assert f"step {written[0][frame]['step']} " in said
        assert f"{sum(first.values())} components" in said
        value = stats.spearmanr(list(first.values()), list(second.values()))[0]
        assert f"rank correlation {value:.2f}" in said
        changed = sum(first[name] != written[0][max(0, frame - 1)]["ranks"][name] for name in first)
        assert f"{changed} matrices changed" in said
        assert page.tab.locator("#maps figure >> nth=0").locator(".changed").count() == changed


def test_the_slider_answers_to_arrows_and_speaks(page: Page) -> None:
    page.tab.focus("#pruning")
    page.tab.keyboard.press("Home")
    page.tab.keyboard.press("ArrowRight")
    assert "Pruning 2 of 7" in (page.tab.get_attribute("#pruning", "aria-valuetext") or "")


def test_another_run_can_be_chosen(page: Page, sweep: Path) -> None:
    value = page.tab.eval_on_selector_all(
        "#run option", "all => all.find(o => o.text === 'cola, method=dora, seed 2').value"
    )
    page.tab.select_option("#run", value)
    page.tab.select_option("#beside", "")
    written = json.loads((sweep / "0-dora-2" / "rank_history.json").read_text())
    assert page.drawn(0) == written[-1]["ranks"]
    assert page.tab.locator("#maps figure").count() == 1


def test_the_command_is_copied(page: Page) -> None:
    page.tab.locator("button.details").last.click()
    shown = page.tab.inner_text("#command")
    assert shown == "dynarank train task=cola method=lora seed=2"
    page.tab.click("#copy")
    page.tab.wait_for_function("document.getElementById('copy').textContent === 'Copied'")
    assert page.tab.evaluate("navigator.clipboard.readText()") == shown
    assert "method.name" in page.tab.inner_text("#configuration")
    page.tab.keyboard.press("Escape")
    assert (
        page.tab.evaluate("document.activeElement.className") == "button details"
    )  # where the reader was


def test_a_hostile_name_is_shown_and_does_not_run(page: Page) -> None:
    page.tab.locator('input[name="task"]').nth(0).check()
    page.tab.locator("button.details").first.click()
    assert HOSTILE in page.tab.inner_text("#command")
    page.tab.keyboard.press("Escape")
    assert page.tab.evaluate("window.hurt") is None
    assert page.tab.locator("article h2", has_text=HOSTILE).count() == 1
    assert page.tab.locator("img").count() == 0
    assert HOSTILE in page.tab.inner_text(".left-out")


def test_tasks_scores_sizes_and_themes_can_be_chosen(page: Page) -> None:
    tasks = page.tab.locator('input[name="task"]')
    shown = page.tab.locator("#pictures figure:visible")
    for index in range(tasks.count()):
        tasks.nth(index).check()
        assert set(shown.evaluate_all("all => all.map(f => f.dataset.task)")) == {
            tasks.nth(index).get_attribute("value")
        }
    page.tab.check('input[name="score"][value="last epoch"]')
    rows = page.tab.locator("#compared tbody tr:visible")
    assert set(rows.evaluate_all("all => all.map(r => r.dataset.score)")) == {"last epoch"}
    page.tab.fill("#limit", "0")
    assert "none is so small" in page.tab.inner_text("#under")
    page.tab.fill("#limit", "104")
    assert "method=dora: 0.6" in page.tab.inner_text("#under")
    before = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    page.tab.click("#theme")
    page.tab.click("#theme")
    assert page.tab.inner_text("#theme") == "Theme: dark"
    assert page.tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.tab.reload()
    assert page.tab.inner_text("#theme") == "Theme: dark"  # it is remembered


def test_runs_can_be_filtered(page: Page) -> None:
    page.tab.fill("#filter", "Cola dora")
    assert page.column("runs-table", 3) == ["0", "1", "2"]


def test_a_page_of_one_run(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", "cola", "dora", 0, 0.5)
    write_history(folder, 3, 0)
    found = Page(browser, write_report([folder])[1] / "report.html", 375)
    assert found.tab.locator("#maps figure").count() == 1
    assert found.tab.evaluate("document.documentElement.scrollWidth") == 375
    assert found.wrong == []
    found.context.close()
