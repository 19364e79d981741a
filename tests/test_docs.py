"""The site of the documentation: it builds, its links lead somewhere, and what is made for it says what is true."""

import io
import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag

import numpy
import pytest
import torch
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig

import steer
from steer.bench.measuring import about
from steer.composing import compose, quote_prompt, take_free
from steer.settings import names

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
GROUPS = {"method": "methods", "tuning": "tuning", "objective": "objective"}
ENTRIES = [(group, name) for group in GROUPS for name in names(group)]
COMMANDS = ("sample", "finetune", "train", "studio", "compare", "bench")


class Page(HTMLParser):
    """The links, the files it loads by itself, and the places of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.places |= {told[key] or "" for key in ("id", "name") if key in told}
        if tag == "a" and told.get("href"):
            self.links.append(told["href"] or "")
        if tag in ("img", "script", "link") and told.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(told.get("src") or told.get("href") or "")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MkDocsConfig]:
    """What mkdocs.yml says, and strict; the site goes to a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        yield load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path_factory.mktemp("site")))


@pytest.fixture(scope="module")
def site(config: MkDocsConfig) -> dict[str, Page]:
    """The pages of the site, as it is built; a warning fails."""
    build(config)
    folder = Path(config.site_dir)
    return {str(p.relative_to(folder)): Page(p.read_text(encoding="utf8")) for p in folder.rglob("*.html")}


@pytest.fixture(scope="module")
def hooks(config: MkDocsConfig) -> ModuleType:
    """scripts/docs/hooks.py, as mkdocs has imported it."""
    loaded: Any = config.hooks  # which mkdocs says is a list
    return loaded["scripts/docs/hooks.py"]


def test_every_link_of_the_site_leads_to_a_place(site: dict[str, Page], config: MkDocsConfig) -> None:
    folder, lost = Path(config.site_dir), []
    for path, page in site.items():
        for link in page.links + page.loaded:
            if path == "404.html" or re.match(r"[a-z]+:", link):
                continue
            target, place = urldefrag(unquote(link))
            file = (folder / path).parent / target if target else folder / path
            known = site.get(str(file.resolve().relative_to(folder.resolve())))
            if not file.exists() or (place and known and place not in known.places):
                lost.append((path, link))
    assert not lost
    assert sum(len(page.links) for page in site.values()) > 1000


def test_nothing_is_fetched_when_it_is_read(site: dict[str, Page], config: MkDocsConfig) -> None:
    assert not [(path, link) for path, page in site.items() for link in page.loaded if "//" in link]
    styles = "".join(file.read_text(encoding="utf8") for file in Path(config.site_dir).rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)


def test_the_nav_holds_every_page_once(site: dict[str, Page], config: MkDocsConfig) -> None:
    def flat(nav: str | list | dict) -> list[str]:
        inside = nav.values() if isinstance(nav, dict) else nav
        return [nav] if isinstance(nav, str) else [page for part in inside for page in flat(part)]

    held = sorted(flat(config.nav or []))
    assert held == sorted(set(held))
    assert sorted(path.removesuffix(".md") + ".html" for path in held) == sorted(site.keys() - {"404.html"})


@pytest.mark.parametrize("name", [name for name in steer.__all__ if not name.startswith("_")])
def test_every_public_name_is_in_the_api(name: str, site: dict[str, Page]) -> None:
    assert f"steer.{name}" in site["api/steer.html"].places or f"api/steer.{name}.html" in site


def test_the_home_page_is_the_readme_with_links_that_hold_there(site: dict[str, Page]) -> None:
    assert {"methods.html", "training.html"} <= {link.partition("#")[0] for link in site["index.html"].links}
    assert "red_heart.png" in site["index.html"].loaded
    assert not [link for link in site["index.html"].links if "docs/" in link or "notebooks" in link]


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_every_method_and_objective_has_its_formula_and_its_paper(
    group: str, name: str, site: dict[str, Page], hooks: ModuleType
) -> None:
    entries = hooks.entries
    (kind,) = [kind for kind in entries.GROUPS if kind.config == group]
    text = entries.page(kind, name)
    formula, _, rest = text.partition("## Formula\n")[2].partition("## Reference\n")
    assert re.search(r"^    \S", formula, re.MULTILINE)
    assert re.findall(r"arXiv:(\d{4}\.\d{5})", rest)[0] == entries.rows(kind)[name]["paper"]
    assert (ROOT / "configs" / group / f"{name}.yaml").read_text(encoding="utf8").strip() in rest
    links = site[f"{GROUPS[group]}/{name}.html"].links
    assert f"https://arxiv.org/abs/{entries.rows(kind)[name]['paper']}" in links


@pytest.mark.parametrize("name", names("method"))
def test_every_method_is_said_when_to_take(name: str, hooks: ModuleType) -> None:
    text = hooks.entries.page(hooks.entries.METHODS, name)
    assert re.search(r"## When to take it\n\nWhat comes back: .{10,}\. Take it .{15,}\.\n", text)


@pytest.mark.parametrize("name", ["smc", "noise_mala"])
def test_the_samples_of_a_picture_are_near_the_target(name: str, hooks: ModuleType) -> None:
    from steer.bench.problems import mild_ring
    from steer.metrics import sliced_w1

    problem, rng = mild_ring(), torch.Generator().manual_seed(1)
    x, calls = hooks.entries.pictures.samples(name, problem, rng)
    target, plain = problem.draw(2000, rng), problem.prior(512, rng)
    assert sliced_w1(x.double(), target, rng=rng) < 0.1 * sliced_w1(plain.double(), target, rng=rng)
    assert calls == hooks.entries.rows(hooks.entries.METHODS)[name]["calls a particle"]


def test_a_picture_shows_three_sets_in_their_colours(hooks: ModuleType) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(hooks.entries.pictures.picture("smc"))).convert("RGB")
    shares = {}
    for third in range(3):
        part = picture.crop((third * picture.width // 3, 30, (third + 1) * picture.width // 3, picture.height))
        red, _, blue = (torch.tensor(numpy.asarray(band)).int() for band in part.split())
        shares[third] = float((red - blue > 60).float().mean()), float((blue - red > 60).float().mean())
    grey, target, ours = shares.values()
    assert grey == (0, 0)
    assert target[0] == 0 and target[1] > 0.005
    assert ours[1] == 0 and ours[0] > 0.005


@pytest.fixture
def measured(tmp_path: Path, hooks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/docs/results.py, with a file of one benchmark as `steer bench` writes it."""
    rows = [{"method": "smc", "x floor, 4": 1.23456, "kind": "a|b"}, {"method": "tds", "x floor, 4": 9.87654}]
    tables = {"mild ring": rows, "many": [{"i": i} for i in range(500)]}
    (tmp_path / "exact.json").write_text(json.dumps({"about": about("exact", False, 60.0), "tables": tables}))
    monkeypatch.setattr(hooks.results, "FOLDER", tmp_path)
    return hooks.results


def test_results_are_what_the_files_hold(measured: ModuleType) -> None:
    page = measured.pages()["results/exact.md"]
    for said in ("`steer bench exact`", f"torch {torch.__version__}", "| smc | 1.23 | a\\|b |", "| tds | 9.88 |"):
        assert said in page, said
    assert "500 rows, in [exact.json](exact.json)" in page and "| 499 |" not in page
    index = measured.pages()["results.md"]
    assert "| [exact](results/exact.md) | `steer bench exact out=docs/results` | 20" in index
    assert "| scale | `steer bench scale out=docs/results` | not yet |" in index


def test_a_method_is_told_its_own_rows_alone(measured: ModuleType) -> None:
    assert "1.23" in measured.of("smc") and "9.88" not in measured.of("smc")
    assert measured.of("beam") == "Not measured yet: `steer bench all out=docs/results`."


def test_code_headings_and_links_are_left_alone(hooks: ModuleType) -> None:
    text = "# `smc`\n\n    `smc`\n\n```sh\n`smc`\n```\n\n[`smc`](a.md) and `smc`"
    changed = hooks.outside_code(text, lambda part: hooks.named(part, "methods.md"))
    assert changed == text.removesuffix("`smc`") + "[`smc`](methods/smc.md)"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_files_of_the_repository_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf8")):
        target, place = urldefrag(link)
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf8"), re.MULTILINE) if place else []
        assert not place or place in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], link


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The commands of a page, in fences of sh and indented, and their words without what explains them."""
    text = page.read_text(encoding="utf8")
    code = "".join(found[0] for found in re.finditer(r"^```sh\n.*?^```|^ {4}[^\n]*\n", text, re.DOTALL | re.MULTILINE))
    found = re.findall(r"^ *(?:.* -m )?steer ([a-z]+)\b(.*)$", code, re.MULTILINE)
    words = [(name, shlex.split(re.split(r" {2,}", rest)[0], comments=True)) for name, rest in found]
    return [(name, given) for name, given in words if name in COMMANDS]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_commands_compose(page: Path) -> None:
    for name, words in commands(page):
        given = words[1:] if name == "bench" else words
        left, _ = take_free(quote_prompt([word for word in given if word != "..."]))
        compose(name, left)


def test_commands_are_found() -> None:
    assert ("sample", ["prompts=prompts.txt", "reward=clip", "n=8", "budget=128", "seed=0", "out=many"]) in commands(
        ROOT / "docs" / "how" / "many_prompts.md"
    )
    assert sum(len(commands(page)) for page in WRITTEN) > 20
