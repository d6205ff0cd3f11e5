"""``values.dataclass`` makes what the standard one makes, sooner."""

import copy
import dataclasses
import inspect
import pickle
from dataclasses import field

import pytest

from layerstore import values

DECORATORS = pytest.mark.parametrize("dataclass", [dataclasses.dataclass, values.dataclass], ids=["standard", "ours"])


def frozen(dataclass):
    @dataclass(frozen=True, slots=True)
    class Value:
        """A value."""

        name: str
        size: int = 3
        seen: float = field(default=0.5, compare=False)
        many: dict[str, int] = field(default_factory=dict)

        @property
        def twice(self):
            return 2 * self.size

    return Value


def mutable(dataclass):
    @dataclass(slots=True)
    class Tally:
        """A tally."""

        count: int = 0

        def __post_init__(self):
            self.count += 1

        def __repr__(self):
            return "its own"

    return Tally


@values.dataclass(frozen=True, slots=True)
class Kept:
    """At the top of a module, where pickle finds it."""

    name: str
    parts: tuple[str, ...] = ()


def of(cls):
    return [(each.name, each.type, each.default, each.compare) for each in dataclasses.fields(cls)]


def test_the_class_is_the_same_to_whoever_looks_at_it():
    standard, ours = frozen(dataclasses.dataclass), frozen(values.dataclass)
    assert of(standard) == of(ours)
    assert str(standard.__dataclass_params__) == str(ours.__dataclass_params__)
    assert standard.__match_args__ == ours.__match_args__
    assert standard.__slots__ == ours.__slots__
    assert standard.__doc__ == ours.__doc__
    assert repr(standard("a")) == repr(ours("a"))
    for one, other in zip(*(inspect.signature(cls).parameters.values() for cls in (standard, ours)), strict=True):
        assert (one.name, one.kind, repr(one.default)) == (other.name, other.kind, repr(other.default))


@DECORATORS
def test_values_are_compared_and_hashed_by_the_fields_that_count(dataclass):
    cls = frozen(dataclass)
    assert cls("a", seen=1.0) == cls("a", seen=2.0) != cls("b")
    assert cls("a") != frozen(dataclass)("a"), "of another class"
    assert (cls("a") == "a") is False
    assert Kept("a") in {Kept("a"), Kept("b")}
    assert hash(Kept("a", ("b",))) == hash(Kept("a", ("b",)))
    with pytest.raises(TypeError, match="unhashable"):
        hash(cls("a"))                   # for what is in it


@DECORATORS
def test_what_is_frozen_can_be_replaced_and_not_changed(dataclass):
    one = frozen(dataclass)("a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'name'"):
        one.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'name'"):
        del one.name
    other = dataclasses.replace(one, name="b", many={"c": 1})
    assert dataclasses.asdict(other) == {"name": "b", "size": 3, "seen": 0.5, "many": {"c": 1}}
    assert other.twice == 6


@DECORATORS
def test_a_factory_makes_a_default_for_each_and_only_where_nothing_was_given(dataclass):
    cls, given = frozen(dataclass), {}
    assert cls("a").many is not cls("a").many
    assert cls("a", many=given).many is given


@DECORATORS
@pytest.mark.parametrize("arguments", [{}, {"name": "a", "other": 1}])
def test_arguments_that_do_not_fit_are_refused(dataclass, arguments):
    with pytest.raises(TypeError):
        frozen(dataclass)(**arguments)


@DECORATORS
def test_one_that_inherits_has_the_fields_of_both_and_is_frozen_as_well(dataclass):
    base = frozen(dataclass)

    @dataclass(frozen=True, slots=True)
    class More(base):
        """More."""

        more: int = 1

    one = More("a", 2, more=3)
    assert repr(one).endswith("More(name='a', size=2, seen=0.5, many={}, more=3)")
    assert one == More("a", 2, 9.0, {}, 3) != base("a", 2)
    for name in ("name", "more"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, 1)
    with pytest.raises(TypeError, match="inherit"):
        dataclass(slots=True)(type("Loose", (base,), {"__annotations__": {}}))


@DECORATORS
def test_a_mutable_one_is_compared_not_hashed_and_keeps_the_methods_it_has(dataclass):
    cls = mutable(dataclass)
    one = cls(1)
    assert (one.count, repr(one)) == (2, "its own")
    one.count = 5
    assert one == cls(4)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_values_are_copied_and_pickled():
    one = Kept("a", ("b",))
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


def test_one_that_holds_itself_is_shown():
    one = mutable(values.dataclass)()
    two = frozen(values.dataclass)("a", many={})
    two.many["self"] = two
    assert repr(two).endswith("many={'self': ...})")
    assert repr(one) == "its own"
