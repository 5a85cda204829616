"""Shows the `Example:` of a docstring as a Python session in the API reference.

Griffe does so for a section of the name `Examples:` alone, and takes any other for a box of text.
"""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section before Griffe parses the docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section in the docstring of one object, if it has any."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
