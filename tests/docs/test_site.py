"""The site is built strictly, needs nothing from other servers, and shows every public name."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import yaml

from tests.docs.pages import ROOT

PACKAGES = (
    "",
    ".losses",
    ".reference",
    ".policy",
    ".data",
    ".data.formats",
    ".data.rows",
    ".rewards",
    ".evaluation",
    ".iteration",
    ".planning",
)
PUBLIC = {
    f"lit_tr{package}.{name}"
    for package in (*PACKAGES, ".console", ".embedded", ".commands")
    for name in import_module(f"lit_tr{package}").__all__
}
API = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))


def nav(entries):
    """The files in a navigation."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from nav(value) if isinstance(value, list) else [value]


def test_each_public_name_is_in_the_api():
    shown = {*re.findall(r"^::: (\S+)", API, re.MULTILINE), *re.findall(r"`(lit_tr[\w.]+)`", API)}
    elsewhere = {name.rsplit(".", 1)[1] for name in shown}
    assert {name for name in PUBLIC - shown if name.rsplit(".", 1)[1] not in elsewhere} == set()


def test_each_page_of_ours_is_in_llms_txt_and_each_link_there_holds():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == []
    pages = nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    guides = {f"docs/{page}" for page in pages if page.startswith("guides/")}
    assert guides <= set(links)


def test_llms_txt_has_the_form_of_llmstxt_org():
    first, _, second, *rest = (ROOT / "llms.txt").read_text().splitlines()
    assert first.startswith("# ")
    assert second.startswith("> ")
    listed = [line for line in rest[rest.index("## Start") :] if line and not line.startswith("## ")]
    assert all(re.fullmatch(r"- \[[^]]+\]\([^)]+\)(: .+)?", line) for line in listed)


def test_versions_agree():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?([^\" >]+)", page.read_text())
        loaded += re.findall(r"<link[^>]* href=\"?([^\" >]+)", page.read_text())
        assert [one for one in loaded if re.match(r"(https?:)?//", one)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text()), sheet


@pytest.mark.slow
def test_each_public_name_has_a_place_in_the_site(site):
    html = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    directives = re.findall(r"^::: (\S+)", API, re.MULTILINE)
    assert len(directives) > 90
    assert [name for name in directives if f'id="{name}"' not in html] == []


@pytest.mark.slow
def test_the_site_holds_llms_txt_and_the_pages_that_it_links(site):
    links = re.findall(r"\]\((docs/[^)]+)\)", (site / "llms.txt").read_text())
    assert links
    assert [link for link in links if not (site / link).is_file()] == []
    assert len(json.loads((site / "search/search_index.json").read_text())["docs"]) > 100
