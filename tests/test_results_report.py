"""``imgnet report``: what stands on the page, and what a real browser makes of it."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from typer.testing import CliRunner, Result

from imgnet.cli import app
from imgnet.results.files import Problems
from imgnet.results.read import read_runs
from imgnet.results.report.question import questions_of
from tests.run_directories import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = "IMGNET_REQUIRE_BROWSER"
"""Set where no test may be skipped for want of a browser."""
HOSTILE = "<script>document.title='taken'</script>"
HOSTILE_FOLDER = "\"><img src=x onerror=document.title='taken'>"
DIFF = "diff --git a/model.py b/model.py\n-width = 64\n+width = 96 # </script>\n"


def imgnet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def write_study(folder: Path) -> Path:
    """Two topologies of three seeds, of which one failed; and a run whose every word is an attempt to break out."""
    for place, topology in enumerate(("allreduce", "ring")):
        for seed in (1, 2, 3):
            accuracies = (50.0, 70.0, 76.0 - place + 0.1 * seed)
            failed = (topology, seed) == ("ring", 3)
            write_run(
                folder / f"{topology}{seed}",
                topology=topology,
                seed=seed,
                accuracies=accuracies[: 1 if failed else 3],
                epochs=3,
                epoch_s=10.0 + place + seed,
                status="failed" if failed else "completed",
                error=f"rank 1 failed: ValueError: {HOSTILE}" if failed else None,
                about={"versions": {"torch": f"2.{seed}.0", HOSTILE: HOSTILE}, "dirty": True},
            )
    record = {"rank": 1, "how": "raised", "time": 1.0, "error": "", "traceback": f"Traceback\n  {HOSTILE}\n"}
    (folder / "ring3" / "logs" / "rank_1.exit.json").write_text(json.dumps(record))
    for seed in (1, 2):
        (folder / f"ring{seed}" / "code.diff").write_text(DIFF)
    strange = write_run(
        folder / HOSTILE_FOLDER, topology=f"'\"{HOSTILE}", typed=[f"{HOSTILE}={HOSTILE}"], accuracies=(1.0,)
    )
    (strange / "logs" / "rank_0.log").write_text(f"{HOSTILE}\n\x1b[31mred\x1b[0m</pre></script>\n")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = write_study(tmp_path_factory.mktemp("report") / "2026-03-01" / "10-00-00_study")
    out = study.parents[1] / "report.html"
    done = imgnet("report", study, "-o", out, "--baseline", "topology=allreduce", "--question", f"Why {HOSTILE}?")
    assert done.exit_code == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def text(report: Path) -> str:
    return report.read_text()


def test_the_page_is_one_document_that_asks_for_nothing(text: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src &#39;none&#39;; style-src &#39;sha256-")
    assert "unsafe" not in policy
    assert not re.search(r'(src|href)="(?!#|data:,")', text)
    assert 'style="' not in text


def test_hostile_words_are_text_everywhere(text: str) -> None:
    assert HOSTILE not in text
    assert "<img" not in text
    assert "&lt;img src=x" in text
    assert text.count("<script") == 2  # the data and the script of the page
    assert text.count("</script>") == 2
    assert "\x1b" not in text


def test_the_page_says_what_was_found(text: str) -> None:
    assert "7 runs: 6 completed, 1 failed" in text
    assert "10-00-00_study" in text
    assert "Against topology=allreduce, paired by seed" in text
    assert "Changes to 0000000000 that were not committed, 2 runs" in text
    assert "+width = 96" in text
    assert "95 % Student t interval" in text


def test_the_same_runs_give_the_same_page(report: Path, tmp_path: Path) -> None:
    study = report.parent / "2026-03-01" / "10-00-00_study"
    again = tmp_path / "again.html"
    words = ["--baseline", "topology=allreduce", "--question", f"Why {HOSTILE}?"]
    assert imgnet("report", study, "-o", again, *words).exit_code == 0
    assert again.read_bytes() == report.read_bytes()


def test_damage_is_said_on_the_page_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "0", seed=1)
    write_run(tmp_path / "s" / "1", seed=2)
    metrics = tmp_path / "s" / "1" / "metrics.csv"
    metrics.write_text(metrics.read_text() + "4,8")
    done = imgnet("report", tmp_path / "s", "-o", tmp_path / "a.html")
    assert done.exit_code == 0
    line = f"{metrics}: the last line is cut short and left out"
    assert done.stderr.strip() == line
    assert line in (tmp_path / "a.html").read_text()


def test_runs_without_a_single_number_have_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "0", accuracies=(), status="queued", steps=0)
    assert imgnet("report", tmp_path / "s", "-o", tmp_path / "a.html").exit_code == 0
    assert "1 run: 1 queued" in (tmp_path / "a.html").read_text()


def test_a_page_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "0")
    done = imgnet("report", tmp_path / "s", "-o", tmp_path / "none" / "a.html")
    assert done.exit_code == 2
    assert done.stderr.strip() == f"--out {tmp_path}/none/a.html: no such file or directory"


def test_the_question_is_that_of_the_study_which_the_runs_were_started_with(tmp_path: Path) -> None:
    (tmp_path / "studies" / "a").mkdir(parents=True)
    (tmp_path / "studies" / "a" / "study.yaml").write_text(
        "# @package _global_\n# Question: what does it\n#           cost?\n# Command:  x\nname: a\n"
    )
    (tmp_path / "secret.yaml").write_text("# Question: what is it?\n")
    for number, name in enumerate(["a/study", "a/study", "none", "../secret", "/etc/passwd"]):
        write_run(tmp_path / "s" / str(number), seed=number, typed=[f"+experiments={name}"])
    assert questions_of(read_runs([tmp_path / "s"], Problems()), tmp_path / "studies") == ["What does it cost?"]


def test_the_questions_of_our_own_studies_are_found(tmp_path: Path) -> None:
    write_run(tmp_path / "0", typed=["+experiments=digits_topologies/study"])
    (question,) = questions_of(read_runs([tmp_path], Problems()))
    assert question.startswith("What do topologies cost in accuracy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, what it complained of, and what it asked for."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())

    def column(self, table: str, number: int) -> list[str]:
        """The texts of a column's visible cells, from 1."""
        cells = self.page.locator(f"{table} tbody tr:not([hidden]) td:nth-child({number})")
        return cells.all_inner_texts()


@pytest.fixture
def width() -> int:
    return 1440


@pytest.fixture
def watched(width: int, browser: Browser, report: Path) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": width, "height": 900})
    found = Watched(page, report)
    yield found
    page.close()
    assert found.complaints == []
    assert found.asked == [report.as_uri()]


@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it_at_either_width(width: int, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    assert page.title() == "2026-03-01/10-00-00_study"  # and not 'taken'
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for picture in page.locator("figure svg").all():
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["x"] + box["width"] <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50  # something was drawn


def test_a_click_sorts_upwards_and_another_downwards(watched: Watched) -> None:
    heading = watched.page.locator("#runs th button", has_text="top-1 %")
    at = watched.page.locator("#runs th").all_inner_texts().index("top-1 %") + 1
    heading.click()
    assert watched.column("#runs", at) == ["1.00", "75.10", "75.20", "76.10", "76.20", "76.30", "-"]
    heading.click()
    assert watched.column("#runs", at) == ["76.30", "76.20", "76.10", "75.20", "75.10", "1.00", "-"]
    watched.page.locator("#runs th button", has_text="topology").click()
    assert watched.column("#runs", 1)[-1] == "ring"


def test_the_head_of_a_long_table_stays_in_sight(browser: Browser, tmp_path: Path) -> None:
    for seed in range(60):
        write_run(tmp_path / "s" / str(seed), seed=seed, accuracies=(50.0,))
    assert imgnet("report", tmp_path / "s", "-o", tmp_path / "a.html").exit_code == 0
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "a.html").as_uri())
    table = page.locator("#runs .scroll")
    table.evaluate("part => {part.scrollIntoView({behavior: 'instant'}); part.scrollTop = part.scrollHeight}")
    assert table.evaluate("part => part.scrollTop") > 0
    edge = table.evaluate("part => part.getBoundingClientRect().top")
    corner = page.locator("#runs thead th").first
    assert corner.evaluate("head => head.getBoundingClientRect().top") == edge
    shown = "head => {const b = head.getBoundingClientRect(); return document.elementFromPoint(b.x + 5, b.y + 5)"
    assert corner.evaluate(f"{shown}.closest('th') === head}}")  # above the cells that pass below
    page.close()


def test_words_filter_rows(watched: Watched) -> None:
    search = watched.page.locator("#environment input")
    search.fill("torch 2.2")
    assert watched.column("#environment", 2) == ["2.2.0"]
    search.fill("nothing")
    assert watched.column("#environment", 1) == []
    search.fill("")
    assert len(watched.column("#environment", 1)) > 5


def test_a_curve_is_hidden_and_shown_again_in_every_picture(watched: Watched) -> None:
    page, drawn = watched.page, watched.page.locator('[data-group="0"]')
    kinds = drawn.evaluate_all("parts => new Set(parts.map(part => part.closest('figure'))).size")
    assert kinds == page.locator("figure").count() == 5
    others = page.locator('[data-group="1"]:not(.off)').count()

    def num_shown() -> int:
        return drawn.evaluate_all("parts => parts.filter(part => getComputedStyle(part).display !== 'none').length")

    box = page.locator('[data-curve="0"]')
    before = num_shown()
    assert before == drawn.count() > 0
    box.uncheck()
    assert num_shown() == 0
    assert page.locator('[data-group="1"]:not(.off)').count() == others
    box.check()
    assert num_shown() == before
    page.get_by_role("button", name="hide all").click()
    assert page.locator("[data-group]:not(.off)").count() == 0
    page.get_by_role("button", name="show all").click()
    assert page.locator("[data-group].off").count() == 0


def test_two_runs_are_compared(watched: Watched) -> None:
    selects = watched.page.locator("#compare select")
    options = selects.first.locator("option").all_inner_texts()

    def compare(first: str, second: str) -> dict[str, Any]:
        for select, wanted in zip(selects.all(), ({*first.split()}, {*second.split()}), strict=True):
            select.select_option(index=next(n for n, option in enumerate(options) if wanted <= set(option.split())))
        rows = watched.page.locator("#compare tbody tr")
        return {row[0]: tuple(row[1:]) for row in (row.locator("td").all_inner_texts() for row in rows.all())}

    found = compare("topology=allreduce seed=2", "topology=ring seed=2")
    assert found["topology.name"] == ("allreduce", "ring")
    assert found["training s"] == ("36", "39")
    assert "seed" not in found
    assert "torch" not in found
    assert compare("topology=ring seed=3", "topology=ring seed=2")["torch"] == ("2.3.0", "2.2.0")
    assert compare("topology=ring seed=3", "topology=ring seed=3") == {}
    assert watched.page.locator("#compare .same").is_visible()


def test_a_link_opens_the_run_that_it_names(watched: Watched) -> None:
    watched.page.locator("#failures a").click()
    anchor = watched.page.url.rpartition("#")[2]
    opened = watched.page.locator("details[open]")
    assert opened.count() == 1
    assert opened.locator(f"#{anchor}").is_visible()
    assert "epoch 1/1" in opened.locator("pre").inner_text()


def test_without_script_everything_is_there_and_nothing_that_does_nothing(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 800, "height": 900})
    page = context.new_page()
    page.goto(report.as_uri())
    assert not any(control.is_visible() for control in page.locator("input, button, select, #compare").all())
    assert page.locator("#runs tbody tr").count() == 7
    assert page.locator("figure svg").count() == 5
    page.locator("#logs summary").first.click()
    assert "epoch 3/3" in page.locator("#logs pre").first.inner_text()
    context.close()


def test_on_paper_there_are_no_controls(browser: Browser, report: Path, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") <= 6
    page.emulate_media(media="print")
    assert not any(control.is_visible() for control in page.locator("input, p button, select").all())
    assert page.locator("#runs table").is_visible()
    cells = page.locator("th, td").evaluate_all("cells => cells.map(cell => getComputedStyle(cell).position)")
    assert set(cells) == {"static"}  # what sticks would stand in the middle of a page
    page.close()
