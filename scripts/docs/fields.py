"""An extension of griffe: fields as this project's docstrings list them become sections that it knows."""

import re
import textwrap
from typing import Any

import griffe

LISTED = re.compile(r"\n\n((?:\w+(?:, \w+)*: .*(?:\n {2,}\S.*)*\n?)+)\Z")
SEVERAL = re.compile(r"^( {4}| {8})(\w+(?:, \w+)+): (.*(?:\n\1 {2,}\S.*)*)", re.MULTILINE)


class Fields(griffe.Extension):
    """A last paragraph of lines `name: text` gets its heading; `one, two: text` is said of each."""

    def on_class(self, *, cls: griffe.Class, **given: Any) -> None:  # noqa: ANN401
        """Of a class."""
        if cls.docstring is None:
            return
        text = LISTED.sub(lambda m: f"\n\nAttributes:\n{textwrap.indent(m[1], '    ')}", cls.docstring.value)
        head, mark, fields = text.partition("\nAttributes:\n")
        cls.docstring.value = head + mark + SEVERAL.sub(_each, fields)


def _each(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
