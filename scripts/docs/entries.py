"""A page for each method and each objective: what it is, when to take it, its formula, paper, settings, figures."""

import inspect
import re
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import pictures
import results
from hydra.utils import get_object
from places import DOCS

import steer.methods
import steer.objectives
from steer import settings
from steer.bench.page import markdown
from steer.catalogue import Row, catalogue


@dataclass(frozen=True)
class Group:
    """A folder of configs/ whose files each get a page.

    Attributes:
        config: the folder of configs/.
        folder: that of the pages.
        package: where their classes are public.
        command: that runs one.
        advice: the page of docs/ whose tables say what it is and when to take it.
        facts: columns of `steer list` that a page shows.
    """

    config: str
    folder: str
    package: ModuleType
    command: str
    advice: str
    facts: tuple[str, ...]

    def names(self) -> list[str]:
        """Of the files."""
        return settings.names(self.config)

    def page_of(self, name: str) -> str:
        """The path of a name's page."""
        return f"{self.folder}/{name}.md"


METHODS = Group(
    "method", "methods", steer.methods, 'steer sample prompt="a red heart" reward=clip method={}', "methods.md",
    ("needs a gradient", "calls a particle"),
)  # fmt: skip
TUNING = Group(
    "tuning", "tuning", steer.objectives, "steer finetune model=emoji reward=clip out=runs/tuned objective={}",
    "training.md", ("exact", "needs a gradient"),
)  # fmt: skip
TRAINING = Group(
    "objective", "objective", steer.objectives, "steer train data=emoji out=runs/mine objective={}",
    "training.md", ("needs a teacher", "needs derivatives"),
)  # fmt: skip
GROUPS = (METHODS, TUNING, TRAINING)
LISTED = {
    "methods": (METHODS,), "training": (TUNING, TRAINING), "objectives": (TUNING, TRAINING), "tuning": (TUNING,),
    "objective": (TRAINING,),
}  # fmt: skip
"""The pages, and folders of pages, where names of these groups lead to their own pages."""


def pages() -> dict[str, str | bytes]:
    """All of them, the pictures of the methods, and the list of the objectives."""
    made: dict[str, str | bytes] = {"objectives.md": objectives()}
    made |= {group.page_of(name): page(group, name) for group in GROUPS for name in group.names()}
    return made | {f"methods/{name}.png": pictures.picture(name) for name in METHODS.names()}


@cache
def rows(group: Group) -> dict[str, Row]:
    """What `steer list` says of each name."""
    return dict(zip(group.names(), catalogue(group.config), strict=True))


def page(group: Group, name: str) -> str:
    """The page of one."""
    kind = get_object(settings.read(f"{group.config}/{name}")["_target_"])
    title, formula, source = parts(inspect.getmodule(kind).__doc__ or "")
    number = rows(group)[name]["paper"]
    blocks = [
        "---\nhide: [toc]\n---",  # formulas need the width
        f"# {name}", title, _facts(group, name), *_advice(group, name), *_picture(group, name),
        "## Formula", formula, _own(group, kind),
        "## Reference", *([f"The paper of `{name}`: arXiv:{number}."] if number else []), source,
        "## Settings", _settings(group, name, kind),
        "## Measured", results.of(name),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def parts(docstring: str) -> tuple[str, str, str]:
    """The first paragraph of a module's docstring, what follows, and from there on where it names its sources."""
    title, _, rest = inspect.cleandoc(docstring).partition("\n\n")
    found = re.search(r"^Sources?: ", rest, re.MULTILINE)
    end = found.start() if found else len(rest)
    return title, rest[:end].strip("\n"), rest[end:]


def _facts(group: Group, name: str) -> str:
    row = rows(group)[name]
    return markdown([{key: row[key] for key in group.facts}])


def _advice(group: Group, name: str) -> list[str]:
    """What the tables of its page in docs/ say: its own row, or else its `what`, and the rows that recommend it."""
    text = (DOCS / group.advice).read_text(encoding="utf8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    own = [cells for cells in lines if cells[0] == f"`{name}`"]
    said = [f"What comes back: {cells[2]}. Take it {cells[4]}." for cells in own]
    take = [cells for cells in lines if len(cells) == 3 and f"`{name}`" in cells[2]]
    table = [{"your reward": cells[0], "you want": cells[1], "take": cells[2]} for cells in take]
    said = said or [str(rows(group)[name]["what"]).rstrip(".") + "."]
    return ["## When to take it", *said, markdown(table) if table else ""]


def _picture(group: Group, name: str) -> list[str]:
    if group is not METHODS:
        return []
    return [f"![plain samples, exact draws of the target, and the samples of {name}]({name}.png)", pictures.CAPTION]


def _own(group: Group, kind: type) -> str:
    """What the docstring of the class says before its attributes."""
    said = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:")[0].replace("; see the module", "").strip()
    return f"`{kind.__name__}`: {said}"


def _settings(group: Group, name: str, kind: type) -> str:
    """The file of configs/, what its settings mean, where all of them are, and the command."""
    file = (settings.CONFIGS / group.config / f"{name}.yaml").read_text(encoding="utf8").strip()
    said = settings.read(f"{group.config}/{name}")
    meant = [f"- `{key}`: {text}" for key, text in attributes(kind).items() if key in said]
    public = f"All settings: `{group.package.__name__}.{kind.__name__}`."
    blocks = [
        f"```yaml\n# configs/{group.config}/{name}.yaml\n{file}\n```",
        "\n".join(meant),
        public if kind.__name__ in group.package.__all__ else "",
        f"```sh\n{group.command.format(name)}\n```",
    ]
    return "\n\n".join(block for block in blocks if block)


def attributes(kind: type) -> dict[str, str]:
    """What the docstring of a class says of each of its settings."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")[2]
    found = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}


def objectives() -> str:
    """The list of all objectives, from `steer list`."""
    blocks = [
        "# Objectives",
        "How a flow map is learned, and how it is tuned to a reward; [training](training.md) says which to take. "
        "An exact one has `p exp(reward / temperature)` as its optimum.",
    ]
    for title, group in (("Fine-tuning", TUNING), ("From data or a teacher", TRAINING)):
        listed = [
            {"objective": f"`{name}`", "what": row["what"], "paper": row["paper"] and f"arXiv:{row['paper']}"}
            | {key: row[key] for key in group.facts}
            for name, row in rows(group).items()
        ]
        blocks += [f"## {title}", markdown(listed)]
    return "\n\n".join(blocks) + "\n"
