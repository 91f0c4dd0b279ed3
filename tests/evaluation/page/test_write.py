"""The page, as files and in headless Chromium."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from base64 import b64decode

import pytest

from lit_tr.evaluation.best_of_n import expected_best
from lit_tr.evaluation.page import find, write_page
from lit_tr.evaluation.page.outcomes import Steered
from lit_tr.evaluation.page.write import best_of_n, steered_policies
from lit_tr.evaluation.seeds import Mean
from tests.evaluation.page.folders import GOLD, RATES, evaluated, judged, judgement, lines, response, run, scored

SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> & </script>"
SCORES = {0: [0.0, 1.0, 5.0, 2.0], 1: [1.0, 1.5, 0.5, 3.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs, 30 judged prompts, and scored samples of the initial policy."""
    root = tmp_path_factory.mktemp("runs")
    for seed, (score, rate) in enumerate([(2.0, 0.6), (3.0, 0.7)]):
        rows = [evaluated(0, 0.0, 1.0), evaluated(4, 1.0, score + 1), evaluated(8, 2.0, score, win_rate=rate)]
        run(root / f"soft_{seed}", rows, seed=seed)
    run(root / "frozen", [evaluated(0, 0.0, 1.0), evaluated(8, 1.5, 2.2)], update=None)
    texts = {i: f"answer {i}" for i in range(30)} | {3: SCRIPT, 4: "a pearl"}
    more = {"token_rewards": [["a", 0.5], [" pearl", -0.25]], "score": 2.0, "features": {"length": 0.125, "copied": 0}}
    policy = [response(i, text, "policy", **(more if i == 4 else {})) for i, text in texts.items()]
    lines(root / "responses/policy.jsonl", policy)
    initial = [response(i, f"old {i}", "initial") for i in range(30)]
    sampled = [
        response(i, f"{i} {k}", "initial", k, score=one) for i, some in SCORES.items() for k, one in enumerate(some)
    ]
    lines(root / "responses/initial.jsonl", [*initial[2:], *sampled])
    preferences = [0.9] * 20 + [0.1] * 6 + [0.5] * 3 + [None]
    old = [f"{i} 0" if i < 2 else f"old {i}" for i in range(30)]
    rows = [judgement(i, texts[i], old[i], preference) for i, preference in enumerate(preferences)]
    judged(root / "judged", rows)
    for seed, gold in enumerate([GOLD, {"a": 1.0, "b": 2.0, "c": 4.0}], start=1):
        scored(root / f"scores/seed{seed}/whole", [1.0, 2.0, 3.0], [0.5, 1.0][seed - 1], gold)
        scored(root / f"scores/seed{seed}/without_length", [3.0, 2.0, 1.0], [-0.5, -1.0][seed - 1], gold)
    return root


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "deep" / "page.html"
    return write_page(find([folder]), output)


def test_a_png_of_each_picture_lies_beside_the_page(page):
    html, *pictures = page
    names = {path.name for path in pictures}
    assert names == {
        *("page_frontier_score.png", "page_frontier_win_rate.png", "page_criteria.png"),
        *("page_proxies_1.png", "page_proxies_2.png"),
        *("page_loss.png", "page_rewards_margins.png", "page_margin_jump.png"),
    }
    assert all(path.parent == html.parent and path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_the_page_needs_no_network_and_holds_its_pictures_as_svg(page):
    html = page[0].read_text()
    found = re.findall(r'src="([^"]*)"', html)
    assert len(found) == len(page) - 1
    for address in found:
        kind, _, data = address.partition("base64,")
        assert kind == "data:image/svg+xml;"
        assert ElementTree.fromstring(b64decode(data)).tag.endswith("svg")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    assert "url(" not in html
    assert "@import" not in html


def test_the_same_data_give_the_same_page(folder, page, tmp_path):
    assert write_page(find([folder]), tmp_path / "page.html")[0].read_bytes() == page[0].read_bytes()


def test_steered_policies_are_points_by_their_divergence_and_score(tmp_path):
    for name, strength, kls in (("a-steered-2", 2.0, [3.0, 5.0]), ("a-steered-0.5", 0.5, [1.0, 1.0])):
        rows = [response(i, "x", name, score=2 * kl, kl=kl, strength=strength) for i, kl in enumerate(kls)]
        lines(tmp_path / f"{name}.jsonl", [*rows, response(9, "y", name, kl=99.0, strength=strength)])
    half = 1.959964  # standard errors over two prompts: 1 and 2
    assert steered_policies(find([tmp_path])) == {
        "a": [
            Steered(0.5, Mean(1, 1, 1), Mean(2, 2, 2)),
            Steered(2.0, Mean(4, 4 - half, 4 + half), Mean(8, 8 - 2 * half, 8 + 2 * half)),
        ]
    }
    _, picture = write_page(find([tmp_path]), tmp_path / "page.html")
    assert picture.name == "page_frontier_score.png"
    assert "Numbers are strengths of steering" in (tmp_path / "page.html").read_text()


def test_the_best_of_n_is_that_of_the_initial_policys_scored_samples(folder):
    points = best_of_n(find([folder]))
    assert [point.n for point in points] == [1, 2, 4]
    assert points[1].score.value == pytest.approx(sum(expected_best(some, 2) for some in SCORES.values()) / 2)


@pytest.mark.parametrize(
    ("make", "told", "shown"),
    [
        (lambda f: run(f / "r"), ["GenerationReport", "lit-tr judge", "lit-tr generate writes one"], ["Training"]),
        (lambda f: run(f / "r", [evaluated(8, 1.0, 1.0)], metrics=False), ["best-of-N", "no metrics.csv"], ["Quality"]),
        (lambda f: judged(f, []), ["GenerationReport", "no metrics.csv"], ["Win rates"]),
        (
            lambda f: lines(f / "r.jsonl", [response(0, "x", "p")]),
            ["no win_rates.json", "token_rewards"],
            ["Responses"],
        ),
    ],
)
def test_what_is_absent_is_left_out_with_a_line_that_says_what_to_run(tmp_path, make, told, shown):
    make(tmp_path)
    html = write_page(find([tmp_path]), tmp_path / "report.html")[0].read_text()
    missing = html[html.index('id="missing"') :]
    assert all(text in missing for text in told)
    sections = ("Quality", "Win rates", "Training", "Responses")
    assert [name for name in sections if f"<h2>{name}" in html] == shown


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    paths = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in paths:
        pytest.skip("chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser, page):
    browser.get(page[0].as_uri())
    return browser


def texts(browser, selector):
    return [one.text for one in browser.find_elements("css selector", selector)]


def choose(browser, text):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "won")).select_by_visible_text(text)


def test_there_is_no_error_in_the_console_and_no_request_of_the_network(shown):
    assert shown.get_log("browser") == []
    loaded = shown.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [one for one in loaded if not one.startswith("data:")] == []


def test_figures_of_the_page_are_those_of_the_files(shown):
    heads = texts(shown, "#win_rates thead th")
    for row, (criterion, rates) in enumerate(RATES.items(), start=1):
        cells = shown.find_elements("css selector", f"#win_rates tbody tr:nth-child({row}) td")
        found = dict(zip(heads, cells, strict=True))
        assert found["criterion"].text == criterion
        assert float(found["win rate"].get_attribute("data-figure")) == rates["win_rate"]
        assert found["win rate"].text.startswith(f"{100 * rates['win_rate']:.1f} [{100 * rates['interval'][0]:.1f}, ")
        assert found["judge"].text == "judge <b>"
    [frozen, soft] = [
        [one.text for one in row.find_elements("css selector", "td")]
        for row in shown.find_elements("css selector", "#ends tbody tr")
    ]
    assert frozen[:3] == ["DPO, frozen reference, beta 0.1", "1", "2.20"]
    assert frozen[4] == "1.50 [1.30, 1.70]"
    assert soft[2].startswith("2.50 [-3.85, 8.85]")  # Student's interval of 2 and 3: 2.5 -+ 12.7062 / 2


def test_correlations_of_rewards_are_those_of_the_files_with_their_mean_over_sets(shown):
    assert texts(shown, "#proxies thead th") == ["reward", "seed1", "seed2", "mean"]
    rows = [
        [one.text for one in row.find_elements("css selector", "td")]
        for row in shown.find_elements("css selector", "#proxies tbody tr")
    ]
    assert [row[:3] for row in rows] == [
        ["WhiteBox, whole", "0.50", "1.00"],
        ["WhiteBox, without_length", "-0.50", "-1.00"],
    ]
    assert rows[0][3] == "0.75 [-2.43, 3.93]"  # Student's interval of 0.5 and 1: 0.75 -+ 12.7062 / 4
    titles = texts(shown, "#rewards figure h3")
    assert titles == ["seed1: rewards beside Gold <b>", "seed2: rewards beside Gold <b>"]


def test_features_of_a_score_are_shown_beside_it(shown):
    shown.find_element("id", "search").send_keys("pearl")
    head = shown.find_element("css selector", ".response h4 small").text
    assert head == "score 2, length 0.13, copied 0"


def test_who_won_filters_the_prompts(shown):
    assert texts(shown, "#count") == ["36 of 36 rows."]  # 30 prompts, three more samples of two of them
    assert len(texts(shown, ".row")) == 20
    shown.find_element("id", "more").click()
    assert len(texts(shown, ".row")) == 36
    for option, count in (("policy won (20)", 20), ("initial won (6)", 6), ("tie (3)", 3)):
        choose(shown, option)
        assert texts(shown, "#count") == [f"{count} of 36 rows."]
        assert len(texts(shown, ".row")) == count
    choose(shown, "no answer of the judge (1)")
    assert texts(shown, ".prompt") == ["Prompt 29? #29"]
    choose(shown, "initial won (6)")
    winners = shown.find_elements("css selector", ".response.winner h4")
    assert [one.text.split()[0] for one in winners] == ["initial"] * 6
    assert "won over policy: overall" in winners[0].text


def test_search_finds_text_in_prompts_and_responses(shown):
    search = shown.find_element("id", "search")
    for asked, found in (("PEARL", ["4"]), ("prompt 7?", ["7"]), ("old 12", ["12"]), ("nowhere", [])):
        search.clear()
        search.send_keys(asked)
        assert [text.rpartition("#")[2] for text in texts(shown, ".prompt")] == found
    assert texts(shown, "#count") == ["0 of 36 rows."]


def test_markup_in_a_response_is_text(shown):
    shown.find_element("id", "search").send_keys("onerror")
    assert texts(shown, ".response p")[0] == SCRIPT
    assert shown.find_elements("css selector", ".response script, .response img") == []
    assert shown.title != "taken"
    assert shown.get_log("browser") == []


def test_tokens_are_shaded_by_their_implicit_reward(shown):
    shown.find_element("id", "search").send_keys("pearl")
    tokens = shown.find_elements("css selector", ".response .token")
    assert [(one.get_attribute("title"), one.get_attribute("class")) for one in tokens] == [
        ("0.5 nats", "token"),
        ("-0.25 nats", "token less"),
    ]
    assert tokens[0].value_of_css_property("background-color").startswith("rgba(31, 120, 180")
    assert tokens[1].value_of_css_property("background-color").startswith("rgba(217, 95, 2")


def test_policies_can_be_hidden(shown):
    assert texts(shown, "#columns label") == ["policy", "initial"]
    shown.find_element("css selector", "#columns label:nth-of-type(2) input").click()
    assert {text.split()[0] for text in texts(shown, ".response h4")} == {"policy"}


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_wider_than_the_window(shown, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert shown.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
