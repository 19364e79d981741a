"""What mkdocs.yml calls while the site is built: the pages that are made, and the links between all of them."""

import posixpath
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import entries
import reference
import results
from places import ROOT

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
WRITTEN = {**COPIED, "docs/results/README.md": "results.md"}  # where the site has what a link leads to
TOP = {made: "" for made in COPIED.values()}  # the folder that the links of a page start from, where it is not its own
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
ARXIV = re.compile(r"arXiv:\s?(\d{4}\.\d{5})")


def pages() -> dict[str, str | bytes]:
    """All that is made, by its path in the site."""
    copied = {made: (ROOT / source).read_text(encoding="utf8") for source, made in COPIED.items()}
    return {**copied, **entries.pages(), **results.pages(), **reference.pages()}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds them, and puts them where the nav names their folder."""
    from mkdocs.structure.files import File

    made = pages()
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    config.nav = filled(config.nav or [], [path for path in made if path.endswith(".md")])
    return files


def filled(nav: list[Any], made: list[str]) -> list[Any]:
    """The nav, a list of pages and of {title: list}, with all pages made under a folder in the place of its name."""
    filled_in = []
    for part in nav:
        if isinstance(part, dict):
            filled_in.append({title: filled(inside, made) for title, inside in part.items()})
        else:
            filled_in += [path for path in made if path.startswith(part)] if part.endswith("/") else [part]
    return filled_in


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Links as they hold on the site, and names that have a page of their own made links."""
    path = page.file.src_uri
    text = LINK.sub(lambda found: moved(found, path, files), markdown)
    return outside_code(text, lambda part: named(part, path))


def moved(link: re.Match[str], path: str, files: "Files") -> str:
    """A link of a page of the repository, for the site: of one to what the site lacks its words are left."""
    picture, words, target, anchor = link.groups("")
    if not target or ":" in target:
        return link[0]
    folder = TOP.get(path, posixpath.dirname(posixpath.join("docs", path)))
    place = posixpath.normpath(posixpath.join(folder, target))
    place = WRITTEN.get(place, place.removeprefix("docs/"))
    if files.get_file_from_path(place) is None:
        return "" if picture else words
    return f"{picture}[{words}]({posixpath.relpath(place, posixpath.dirname(path) or '.')}{anchor})"


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A text with all changed but its fenced and indented code, its headings and its links."""
    kept = re.compile(r"^```.*?^```|^(?: {4}|#).*?$|\[[^\]]*\]\([^)]*\)|\[[^\]]*\]\[[^\]]*\]", re.DOTALL | re.MULTILINE)
    done, start = [], 0
    for found in kept.finditer(text):
        done += [change(text[start : found.start()]), found[0]]
        start = found.end()
    return "".join([*done, change(text[start:])])


def named(text: str, path: str) -> str:
    """Public names with dots lead to the API; on pages of methods, or of objectives, their names to their pages."""
    groups = entries.LISTED.get(path.removesuffix(".md").partition("/")[0], ())
    places = {name: group.page_of(name) for group in groups for name in group.names()}
    folder = posixpath.dirname(path) or "."

    def linked(found: re.Match[str]) -> str:
        if found[1] in reference.public():
            return f"[{found[0]}][{found[1]}]"
        place = places.get(found[1], path)
        return found[0] if place == path else f"[{found[0]}]({posixpath.relpath(place, folder)})"

    return re.sub(r"`([\w.]+)`", linked, text)


def on_page_content(html: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Each arXiv number leads to its abstract."""
    return ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', html)
