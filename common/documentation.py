"""Help texts from where the code is documented: docstrings of functions, and of the fields of dataclasses."""

import ast
import inspect
import re
import textwrap
from typing import Any


def summary(function: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def description(function: Any) -> str:
    """A docstring without its sections, one paragraph a line."""
    text = re.split(r"\n\s*\n?(?:Args|Raises|Returns):\n", "\n" + (inspect.getdoc(function) or ""))[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def parameters(function: Any) -> dict[str, str]:
    """What the section `Args:` of a docstring says of each parameter."""
    _, _, section = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", section)[0]  # up to the next section, which is not indented
    found = re.split(r"^ {4}(\w+):", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(found[1::2], found[2::2], strict=True)}


def fields(dataclass: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, by the field's name."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(dataclass))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
