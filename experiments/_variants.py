"""Registers of declared variants, such as norms and optimizers, which an option chooses by name."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from ._errors import unknown_name


class Variant(Protocol):
    """A choice of an option, declared as a frozen dataclass.

    Attributes:
      name: the value of the option.
      help: a phrase for the help of the flag, without a full stop.
    """

    @property
    def name(self) -> str: ...

    @property
    def help(self) -> str: ...


V = TypeVar("V", bound=Variant)


class Register(Generic[V]):
    """The variants of one kind, in the order in which they are listed.

    Other code reads a variant's properties and never compares its name, so that a new variant needs only a new record.

    Args:
      kind: the word for a variant in an error, such as "norm".
      *variants: the records, with distinct names.

    Raises:
      ValueError: two records have the same name, or a help is not a phrase without a full stop.

    Example:
      >>> from experiments.training.recipe.norms import NORMS
      >>> NORMS["local"].pools
      'device'
    """

    def __init__(self, kind: str, *variants: V):
        self._kind = kind
        self._variants = {variant.name: variant for variant in variants}
        if len(self._variants) < len(variants):
            raise ValueError(f"each {kind} must have its own name, not {[variant.name for variant in variants]}")
        for variant in variants:
            # `--help` shows only the first sentence of a flag's help, so a full stop would hide the later variants.
            if not variant.help or ". " in variant.help or variant.help.endswith("."):
                raise ValueError(f"the help of the {kind} {variant.name!r} must be a phrase, not {variant.help!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variants, in order."""
        return tuple(self._variants)

    @property
    def choices(self) -> str:
        """The names with their help texts, for the help of a flag."""
        return ", ".join(f"'{variant.name}' ({variant.help})" for variant in self)

    def __iter__(self) -> Iterator[V]:
        """Iterates over the variants, in order."""
        return iter(self._variants.values())

    def __contains__(self, name: object) -> bool:
        """Returns whether a variant has this name."""
        return name in self._variants

    def __getitem__(self, name: str) -> V:
        """Returns the variant with this name.

        Raises:
          UsageError: no variant has the name; the message lists all names and suggests the closest.
        """
        if name not in self:
            raise self.unknown(name)
        return self._variants[name]

    def unknown(self, name: str, hint: str = "") -> Exception:
        """Returns the error for a name that no variant has, with a hint at its end."""
        return unknown_name(self._kind, name, self.names, hint)
