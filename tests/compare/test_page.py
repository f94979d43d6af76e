"""The page of a comparison in a real browser: what it draws, where it leads, and what it must not do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Watched, chromium
from planted_page import CAPTION, CHOSEN, OTHER, PAIRS, STARS, TAG, write_all, write_shown_run
from planted_runs import METRIC, page_text, strict, write_run

from jestbench.compare.page import to_html
from jestbench.compare.paths import scrubber
from jestbench.compare.report import compare

CHART = ".frontier .chart"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    compare([write_all(folder / "runs")], METRIC, out=folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def opened(browser: Any, out: Path) -> Iterator[Watched]:
    """One page for all tests that leave it as it was."""
    watched = Watched(browser, out / "index.html")
    yield watched
    watched.close()


def traces(page: Any, kind: str, chart: str = CHART) -> dict[str, list[list[float]]]:
    """Arm → x and y of the traces of a kind, as plotly.js holds them; names are in its own markup."""
    return page.evaluate(
        """([chart, kind]) => Object.fromEntries(document.querySelector(chart).data
            .filter((trace) => trace.meta === kind && trace.visible !== false)
            .map((trace) => [new DOMParser().parseFromString(trace.name, "text/html").documentElement.textContent,
                             [[...trace.x], [...trace.y]]]))""",
        [chart, kind],
    )


def test_the_frontier_holds_the_numbers_of_the_comparison(opened: Watched, out: Path) -> None:
    document = strict((out / "comparison.json").read_text())
    drawn = traces(opened.page, "decayed")
    assert set(drawn) == {arm["label"] for arm in document["arms"]} >= {TAG, STARS, "jest chunks=16", "jest chunks=4"}
    for label, (x, y) in drawn.items():
        points = [point for point in document["frontier"] if point["arm"] == label]
        assert y == pytest.approx([point["mean"] for point in points])
        assert x == [100, 400]
    seeds = traces(opened.page, "seeds")["uniform"]
    assert sorted(seeds[1]) == pytest.approx([0.12, 0.12, 0.3, 0.32])
    curves = traces(opened.page, "curves")["uniform"]
    assert [value for value in curves[1] if value is not None] == pytest.approx(
        [0, 0.1, 0.15, 0.2, 0.3, 0, 0.1, 0.15, 0.2, 0.32]
    )


def test_switches_change_the_charts(opened: Watched) -> None:
    page = opened.page
    before, selected = (
        traces(page, "decayed")["uniform"],
        page.evaluate("document.querySelector('.selection .chart').data[0].x[0]"),
    )
    page.get_by_label("seconds of training").first.check(force=True)
    after = traces(page, "decayed")["uniform"]
    assert after == [pytest.approx([10, 40]), before[1]]
    assert page.evaluate("document.querySelector('.selection .chart').data[0].x[0]") == pytest.approx(selected / 10)
    page.locator("select.metric").select_option(label="zero-shot top-5 of 200 classes")
    assert traces(page, "decayed")["uniform"][1] == pytest.approx([value / 2 for value in before[1]])
    page.locator("select.metric").select_option(index=0)
    page.locator(".curves").uncheck()
    assert traces(page, "curves")["uniform"] == [[], []]
    page.locator(".curves").check()
    page.get_by_role("button", name="uniform", exact=True).click()
    assert "uniform" not in traces(page, "decayed")
    page.get_by_role("button", name="uniform", exact=True).click()
    page.get_by_label("FLOPs", exact=True).first.check(force=True)
    assert traces(page, "decayed")["uniform"] == before


def test_a_point_names_its_run_and_leads_to_it(browser: Any, out: Path) -> None:
    watched = Watched(browser, out / "index.html")
    page = watched.page
    chart = page.locator(CHART)
    chart.focus()
    for _ in range(60):
        chart.press("ArrowRight")
        detail = page.locator(".frontier .detail").inner_text()
        if "seed 1" in detail and "jest4-1" in detail:
            break
    assert "jest chunks=4, seed 1" in detail
    assert re.search(r"0\.22 at 100 FLOP|0\.17 at 100 FLOP|0\.42 at 400 FLOP", detail), detail
    assert "tools/run.py --gin_file" in detail
    assert page.locator(f"{CHART} .hoverlayer").text_content() != ""
    chart.press("Enter")
    page.wait_for_function("location.hash.startsWith('#run-')")
    row = page.locator(page.evaluate("location.hash"))
    assert row.is_visible(), "its details are open"
    assert "jest4-1" in row.inner_text()
    assert page.evaluate("document.activeElement.id") == row.get_attribute("id")
    # The same with the mouse.
    page.evaluate("scrollTo(0, 0); location.hash = ''")
    place = page.evaluate(
        """(chart) => { const part = document.querySelector(chart); part.scrollIntoView({block: "center"});
            const box = part.querySelector(".nsewdrag").getBoundingClientRect();
            const trace = part.data.find((one) => one.meta === "decayed" && one.name === "uniform");
            const [x, y] = [part._fullLayout.xaxis, part._fullLayout.yaxis];
            return [box.left + x.d2p(trace.x[1]), box.top + y.d2p(trace.y[1])]; }""",
        CHART,
    )
    page.mouse.move(*place)
    page.mouse.click(*place)
    page.wait_for_function("location.hash.startsWith('#arm-') || location.hash.startsWith('#run-')")
    watched.close()


def test_every_run_is_found_with_the_command_that_starts_it_again(opened: Watched, out: Path) -> None:
    page = opened.page
    for number in range(10):
        row = page.locator(f"#run-0-{number}")
        name = row.locator("td a").first.text_content()
        command = row.locator("button.copy").get_attribute("data-copy")
        assert f"{name}/operative.gin" in command
        assert (out / row.locator("td a").first.get_attribute("href")).is_dir()


def test_copying_puts_the_text_on_the_clipboard(opened: Watched, out: Path) -> None:
    page = opened.page
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.get_by_role("button", name="copy this comparison as Markdown").click()
    assert page.evaluate("window.copied") == (out / "comparison.md").read_text()
    assert page.get_by_role("button", name="copied").count() == 1


def test_the_gallery_shows_one_super_batch_as_all_policies_chose_from_it(opened: Watched) -> None:
    page = opened.page
    policies = page.locator(".batch:not([hidden]) .policy")
    assert policies.count() == 4, "uniform refuses nothing"
    images = policies.locator("img")
    assert images.count() == 4 * 8
    page.wait_for_function(
        "[...document.querySelectorAll('.batch:not([hidden]) img')].every((image) => image.complete)"
    )
    assert (
        page.evaluate(
            "Math.min(...[...document.querySelectorAll('.batch:not([hidden]) img')].map((i) => i.naturalWidth))"
        )
        == 12
    )
    jest = page.locator(".batch:not([hidden]) .policy", has_text="jest chunks=16")
    assert jest.locator(".pairs").nth(0).locator(".caption").all_inner_texts() == [
        CAPTION,
        "pair 17",
        "pair 18",
        "pair 19",
    ]
    assert jest.locator(".pairs").nth(1).locator(".caption").all_inner_texts() == [
        "pair 39",
        "pair 38",
        "pair 37",
        "pair 36",
    ]
    assert page.evaluate("document.querySelectorAll('.histogram .chosen').length") > 0
    # jest chose 16 to 23 and 4 to 11; STARS 8 to 15, TAG 2 to 9.
    overlaps = {
        row.locator("td").nth(0).inner_text(): row.locator("td").nth(1).inner_text()
        for row in page.locator("h3:has-text('agree') ~ table tbody tr").all()
    }
    assert overlaps["jest chunks=16 and jest chunks=4"] == "0 %"
    assert overlaps[f"jest chunks=4 and {TAG}"] == f"{100 * 6 / CHOSEN:.0f} %"
    assert overlaps["by chance"] == f"{100 * CHOSEN / PAIRS:.0f} %"


def test_names_and_captions_stay_text(opened: Watched) -> None:
    page = opened.page
    assert page.evaluate("document.scripts.length") == 3
    assert page.locator("img[src='x']").count() == 0
    assert page.locator("ul.verdicts").get_by_text(TAG, exact=True).count() == 1
    assert page.locator("ul.verdicts").get_by_text(STARS, exact=True).count() == 1
    # In the chart, where plotly.js reads markup of its own.
    page.evaluate(
        """(chart) => { const part = document.querySelector(chart);
            const curve = part.data.findIndex((one) => one.meta === "decayed" && one.name.includes("script"));
            Plotly.Fx.hover(part, [{curveNumber: curve, pointNumber: 0}]); }""",
        CHART,
    )
    assert TAG in page.locator(f"{CHART} .hoverlayer").text_content()


def test_two_configurations_stand_side_by_side(opened: Watched) -> None:
    page = opened.page
    page.locator("select.left").select_option(label="jest chunks=16")
    page.locator("select.right").select_option(label="jest chunks=4")
    rows = page.locator("table.diff tbody tr")
    assert rows.all_inner_texts() == ["jest.chunks\t16\t4"]
    page.get_by_label("equal values too").check()
    assert set(rows.locator("td:first-child").all_inner_texts()) == {"jest.chunks", "run.policy", "run.budget"}
    differences = page.locator("table.differences tbody tr").filter(has_text="jest.chunks").inner_text()
    assert re.sub(r"\s+", " ", differences).startswith("jest.chunks")


PARTS = "td, th, .num, .ci, .badge, h1, h2, h3, p, li, dd, summary, select, button, figcaption"
CLIPPED = """(parts) => [...document.querySelectorAll(parts)]
    .filter((part) => part.checkVisibility() && part.getClientRects().length)
    .filter((part) => { const box = part.getBoundingClientRect();
        const inside = getComputedStyle(part).display === "inline" || part.scrollWidth <= part.clientWidth + 1;
        const around = part.closest("table")?.parentElement;
        const edge = around ? around.getBoundingClientRect().right : innerWidth;
        return box.left < -0.5 || box.right > edge + 0.5 || !inside; })
    .filter((part) => !part.closest("thead") || getComputedStyle(part.closest("thead")).position !== "absolute")
    .map((part) => `${part.tagName} ${part.className}: ${part.textContent.slice(0, 60)}`)"""

BROKEN = """() => { const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) { const text = texts.currentNode, range = document.createRange();
        if (!text.parentElement.closest("td") || !/^[^a-z]*\\d[^a-z]*$/i.test(text.textContent)) continue;
        range.selectNode(text);
        if (range.getClientRects().length > 1) found.push(text.textContent); }
    return found; }"""


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_clipped_at_any_width(browser: Any, out: Path, width: int) -> None:
    watched = Watched(browser, out / "index.html", width)
    page = watched.page
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(CLIPPED, PARTS) == []
    assert page.evaluate(BROKEN) == [], "no number goes on in the next line"
    assert page.evaluate(f"document.querySelector('{CHART}').clientWidth") >= 0.8 * width - 60
    watched.close()


def test_dark_mode_and_print_reach_text_and_charts(browser: Any, out: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        watched = Watched(browser, out / "index.html", color_scheme=scheme)
        seen.append(
            watched.page.evaluate(
                f"""() => {{ const part = document.querySelector('{CHART}');
                const body = getComputedStyle(document.body);
                const line = part.data.find((one) => one.meta === "decayed" && one.name === "uniform").line;
                return [body.backgroundColor, body.color, part.layout.font.color, line.color]; }}"""
            )
        )
        if scheme == "dark":  # paper stays white, without switches; changed while the page is open, the chart follows
            watched.page.emulate_media(media="print")
            watched.page.evaluate("dispatchEvent(new Event('beforeprint'))")
            assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == seen[0][0]
            assert not watched.page.locator(".switches").first.is_visible()
            assert watched.page.locator(CHART).is_visible()
            watched.page.evaluate("dispatchEvent(new Event('afterprint'))")
            watched.page.emulate_media(media="screen")
            watched.page.emulate_media(color_scheme="light")
            watched.page.wait_for_function(f"document.querySelector('{CHART}').layout.font.color === '{seen[0][2]}'")
        watched.close()
    assert all(light != dark for light, dark in zip(*seen, strict=True))


def test_the_keyboard_reaches_every_switch_and_shows_where_it_is(opened: Watched) -> None:
    page, reached, unseen = opened.page, set(), []
    page.evaluate("document.activeElement.blur(); getSelection().collapse(document.body, 0)")
    for _ in range(90):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => { const part = document.activeElement;
              const shown = part.type === "radio" ? part.nextElementSibling : part;
              const name = `${part.tagName} ${part.className} ${part.name ?? ""}`;
              return [name, getComputedStyle(shown).outlineStyle]; }"""
        )
        reached.add(name.strip())
        unseen += [name] if outline == "none" and not name.startswith(("BODY", "HTML")) else []
    wanted = [
        "SELECT metric",
        "INPUT  axis-0",
        "INPUT log",
        "INPUT curves",
        "DIV chart",
        "SELECT what",
        "SELECT which",
        "SELECT left",
        "SUMMARY",
    ]
    assert [name for name in wanted if not any(found.startswith(name) for found in reached)] == []
    assert unseen == []


def test_a_screen_reader_finds_names_of_tables_and_of_their_rows(opened: Watched) -> None:
    unnamed = opened.page.evaluate(
        """() => [...document.querySelectorAll("table")].filter((table) => table.tBodies[0].rows.length)
            .filter((table) => {
                const by = document.getElementById(table.getAttribute("aria-labelledby"));
                const name = table.getAttribute("aria-label") || (by && by.textContent);
                const rows = [...table.tBodies[0].rows];
                return !name || !rows.every((row) => row.cells[0].getAttribute("role") === "rowheader");
            }).map((table) => table.outerHTML.slice(0, 300))"""
    )
    assert unnamed == []
    assert opened.page.get_by_role("table", name="Arms", exact=True).get_by_role("rowheader").count() > 3
    assert opened.page.evaluate("[...document.images].filter((image) => !image.alt).length") == 0


def test_each_world_has_its_own_charts(browser: Any, tmp_path: Path) -> None:
    for noise in (0.2, 0.6):
        write_shown_run(tmp_path / f"runs/u{noise}", "uniform", 0, 0.0, data={"noise": noise})
        write_shown_run(tmp_path / f"runs/j{noise}", "jest", 0, noise, chunks=4, select=False, data={"noise": noise})
    compare([tmp_path / "runs"], METRIC, out=tmp_path / "out")
    watched = Watched(browser, tmp_path / "out/index.html")
    drawn = [watched.page.evaluate(f"document.querySelectorAll('{CHART}')[{n}].data[2].y[1]") for n in (0, 1)]
    assert len(set(drawn)) == 2
    ids = watched.page.evaluate("[...document.querySelectorAll('[id]')].map((part) => part.id)")
    assert len(ids) == len(set(ids))
    watched.close()


# --- without a browser


def test_the_page_is_one_file_with_the_licence_of_its_charts(out: Path) -> None:
    text = (out / "index.html").read_text()
    assert "Permission is hereby granted" in text
    assert len(text) < 10e6
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["worlds"][0]["arms"][0] == "jest chunks=16"


def test_arms_up_to_three_dozen_look_different(tmp_path: Path) -> None:
    for arm in ("uniform", *(f"arm{number}" for number in range(36))):
        write_run(tmp_path / arm, [(0, 0.0), (10, 0.5)], arm=arm)
    page = to_html(compare([tmp_path], METRIC), tmp_path)
    table = page.partition('aria-labelledby="arms-0"')[2].partition("</table>")[0]
    looks = re.findall(r'<span class="key (k\d)" style="(.*?)"></span>', table)
    assert len(looks) == len(set(looks)) == 37
    for shape in {shape for shape, _ in looks} - {"k0"}:
        assert f".key.{shape} {{" in page, "a shape of its own"


def test_evaluations_are_named_with_their_own_classes(tmp_path: Path) -> None:
    flowers = "eval/flowers/zero_shot_top5"
    measures = {flowers: {"low": 0.0, "high": 1.0, "examples": 300, "chance": 5 / 102}}
    data = {"eval_classes": 1000, "eval_sets": {"flowers": {"classes": 102}}}
    write_run(tmp_path / "u", [(0, 0.0), (10, 0.5)], metric=flowers, measures=measures, data=data)
    compare([tmp_path / "u"], flowers, out=tmp_path / "out")
    assert "flowers: zero-shot top-5 of 102 classes" in page_text(tmp_path / "out").lower()


def test_no_path_stands_among_the_parameters_of_an_arm_alone(tmp_path: Path) -> None:
    for name, more in (("uniform", ""), ("jest", "open_clip.pretrained = '/srv/alizia/b_32.safetensors'\n")):
        run = write_run(tmp_path / "runs" / name, [(0, 0.0), (10, 0.5)], arm=name)
        (run / "operative.gin").write_text(f"run.batch_size = 3\n{more}")
    compare([tmp_path / "runs"], METRIC, out=tmp_path / "out")
    assert "<code>open_clip.pretrained = &#39;…/b_32.safetensors&#39;</code></p>" in page_text(tmp_path / "out")
    assert "alizia" not in (tmp_path / "out/index.html").read_text()


def test_no_path_of_anybody_stands_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "alizia b"
    write_shown_run(
        home / "runs/u",
        "uniform",
        0,
        0.0,
        warnings=["the shards in /home/alizia/data/x.tar are few", f"see {home}/notes"],
    )
    run = write_shown_run(home / "runs/j", "jest", 0, 0.1, chunks=4, data={"folder": str(home / "data")})
    with (run / "operative.gin").open("a") as file:
        file.write(f"webdataset.folder = '{home}/shards'\nwebdataset.more = ['/srv/alizia b/a.tar']\n")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"torn')
    monkeypatch.setenv("HOME", str(home))
    for place in (tmp_path / "elsewhere/out", home / "comparison"):
        place.parent.mkdir(exist_ok=True, parents=True)
        compare([home / "runs"], METRIC, out=place)
        for name in ("index.html", "comparison.md"):
            text = (place / name).read_text()
            assert "alizia" not in text, text[text.index("alizia") - 80 : text.index("alizia") + 40]
            assert str(tmp_path) not in text
    assert "../runs/j" in page_text(home / "comparison"), "beside the page, the runs are linked"
    assert "torn" in page_text(home / "comparison")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/x/data: few", "see …/data: few"),
        ("A=/srv/a/b:/srv/c/d", "A=…/b:…/d"),
        ("'/mnt/with space/a.tar', 'runs/b'", "'…/a.tar', 'runs/b'"),
        ("C:\\Users\\me\\x.csv and file:///home/me/y", "…/x.csv and …/y"),
        ("https://host/path and s3://bucket/key", "https://host/path and s3://bucket/key"),
        (
            "eval/zero_shot_top5 in FLOP/s, 1 / 2, ../runs/a, </b>",
            "eval/zero_shot_top5 in FLOP/s, 1 / 2, ../runs/a, </b>",
        ),
        ("~/secret/x of /work/my runs/u", "…/x of …/u"),
    ],
)
def test_paths_are_shortened_and_nothing_else(text: str, expected: str) -> None:
    scrub = scrubber([Path("/work/my runs/u")])
    assert scrub(text) == expected
    assert scrub({"a": [text, 1]}) == {"a": [expected, 1]}


def test_markdown_keeps_hostile_names_in_their_cells(out: Path) -> None:
    lines = (out / "comparison.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| a\\|b\\*c\\* &amp; \\`d\\`")]
    assert len(rows) == 2
    assert [line for line in lines if "<script>" in re.sub(r"`[^`]*`", "", line)] == []
    assert any(line.startswith("| &lt;script>alert(1)&lt;/script>") for line in lines)


def test_differences_need_no_configuration(tmp_path: Path) -> None:
    for arm in ("uniform", "jest"):
        write_run(tmp_path / arm, [(0, 0.0), (10, 0.5)], arm=arm)
    compare([tmp_path], METRIC, out=tmp_path / "out")
    assert "as far as the runs hold them" in page_text(tmp_path / "out")
    assert OTHER not in (tmp_path / "out/index.html").read_text()
