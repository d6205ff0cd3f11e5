"""``dataclass`` for the modules that most commands import: the standard one takes a tenth of a command's start.

That compiles six functions for each class, one after the other. Here only ``__init__`` is compiled; the others are the
same for all classes and go by the names of the fields. What comes out is a dataclass to ``dataclasses`` (``fields``,
``replace``, ``asdict``) and to type checkers. Every field is a parameter of ``__init__``, in the order in which they
stand; there are no keyword-only ones and no InitVar. Knows nothing of what the classes mean.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]


class _Factory:
    """The default of what a factory makes, as the standard one shows it."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()
_setattr = object.__setattr__

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    def dataclass(*, frozen: bool = False, slots: bool = False) -> Any:
        """As ``dataclasses.dataclass`` with these arguments."""
        def decorate(cls: type) -> type:
            return _made(cls, frozen=frozen, slots=slots)

        return decorate


def _made(cls: type, *, frozen: bool, slots: bool) -> type:
    inherits = any(map(dataclasses.is_dataclass, cls.__bases__))   # then the standard one looks whether both are frozen
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, frozen=frozen and inherits)(cls)
    fields = dataclasses.fields(made)
    names = [each.name for each in fields]
    methods = [_init(made, fields, frozen=frozen), _repr([each.name for each in fields if each.repr])]
    methods += _compared([each.name for each in fields if each.compare])
    if frozen:
        methods += [*_frozen(made, set(names)), *_state(names)]
    else:
        made.__hash__ = None
    for method in methods:
        if method.__name__ not in made.__dict__:   # the class's own is not replaced
            method.__qualname__ = f"{made.__qualname__}.{method.__name__}"
            setattr(made, method.__name__, method)
    said = made.__dataclass_params__
    said.init = said.repr = said.eq = True
    said.frozen = frozen
    found: type = made
    return found


def _init(made: Any, fields: tuple[dataclasses.Field[Any], ...], *, frozen: bool) -> Any:
    known: dict[str, Any] = {"_FACTORY": _FACTORY, "_setattr": _setattr}
    parameters, lines = ["self"], []
    for number, each in enumerate(fields):
        name, value = each.name, each.name
        if each.default_factory is not dataclasses.MISSING:
            known[f"_{number}"] = each.default_factory
            name, value = f"{name}=_FACTORY", f"_{number}() if {name} is _FACTORY else {name}"
        elif each.default is not dataclasses.MISSING:
            known[f"_{number}"] = each.default
            name = f"{name}=_{number}"
        parameters.append(name)
        lines.append(f"    _setattr(self, {each.name!r}, {value})" if frozen else f"    self.{each.name} = {value}")
    if hasattr(made, "__post_init__"):
        lines.append("    self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or ["    pass"]), known)  # noqa: S102 - as the standard one
    return known["__init__"]


def _compared(names: list[str]) -> list[Any]:
    if len(names) > 1:
        values: Any = attrgetter(*names)
    else:
        def values(self: object) -> tuple[Any, ...]:
            return tuple(getattr(self, name) for name in names)

    def __eq__(self: object, other: object) -> Any:  # noqa: N807 - it becomes a method
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:  # noqa: N807
        return hash(values(self))

    return [__eq__, __hash__]


def _repr(names: list[str]) -> Any:
    @recursive_repr()
    def __repr__(self: object) -> str:  # noqa: N807
        return f"{self.__class__.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _frozen(made: type, names: set[str]) -> list[Any]:
    def __setattr__(self: Any, name: str, value: object) -> None:  # noqa: N807
        if type(self) is made or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        _setattr(self, name, value)

    def __delattr__(self: Any, name: str) -> None:  # noqa: N807
        if type(self) is made or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        object.__delattr__(self, name)

    return [__setattr__, __delattr__]


def _state(names: list[str]) -> list[Any]:
    """For copying and pickling, which may not assign either."""
    def __getstate__(self: object) -> list[Any]:  # noqa: N807
        return [getattr(self, name) for name in names]

    def __setstate__(self: object, state: list[Any]) -> None:  # noqa: N807
        for name, value in zip(names, state, strict=True):
            _setattr(self, name, value)

    return [__getstate__, __setstate__]
