"""Canonical msgpack: one value, one encoding; everything else is refused."""

import enum
import struct

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerjournal import RecordError, UsageError, decode, encode
from layerjournal.codec import MAX_DEPTH

keys = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=40) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(keys, inner, max_size=20), max_leaves=30,
)


@given(values)
def test_what_is_encoded_decodes_to_the_same(value):
    assert decode(encode(value)) == value


@given(st.dictionaries(keys, st.integers(), max_size=10), st.randoms())
def test_the_order_in_which_a_map_was_made_does_not_matter(mapping, random):
    small = {k: v % 1000 for k, v in mapping.items()}
    shuffled = list(small.items())
    random.shuffle(shuffled)
    assert encode(small) == encode(dict(shuffled))


@given(st.binary(max_size=200) | values.map(encode).flatmap(
    lambda data: st.tuples(st.integers(0, max(0, len(data) - 1)), st.integers(0, 255)).map(
        lambda flip: data[:flip[0]] + bytes([flip[1]]) + data[flip[0] + 1:])))
@example(b"\xc7\x00\x05")
@example(b"\xd7\xff" + bytes(8))
@example(b"\x81\xa1a")
def test_any_bytes_decode_to_what_encodes_to_them_or_raise_record_error(data):
    try:
        value = decode(data)
    except RecordError:
        return
    assert encode(value) == data


@pytest.mark.parametrize("data", [
    pytest.param(b"\xcc\x05", id="an integer longer than it must be"),
    pytest.param(b"\xd9\x01a", id="a string's length longer than it must be"),
    pytest.param(b"\xdc\x00\x01\x01", id="an array's length longer than it must be"),
    pytest.param(b"\x82\xa1b\x01\xa1a\x02", id="keys out of order"),
    pytest.param(b"\x82\xa1a\x01\xa1a\x02", id="a key twice"),
    pytest.param(b"\x81\x01\x02", id="a key that is no string"),
    pytest.param(b"\x81\xc4\x01a\x02", id="a key of bytes"),
    pytest.param(b"\xcb" + struct.pack(">d", 1.5), id="a float"),
    pytest.param(b"\xcb" + struct.pack(">d", float("nan")), id="not a number"),
    pytest.param(b"\xd4\x05\x00", id="an extension"),
    pytest.param(b"\xd6\xff\x00\x00\x00\x00", id="a timestamp"),
    pytest.param(b"\xa2\xff\xfe", id="a string that is not UTF-8"),
    pytest.param(b"\xa3\xed\xa0\x80", id="a surrogate"),
    pytest.param(b"\x01\x02", id="something after the value"),
    pytest.param(b"\x92\x01", id="an array that is cut off"),
    pytest.param(b"", id="nothing"),
    pytest.param(b"\xc1", id="the unused byte"),
    pytest.param(b"\x91\x81\xa1a\x82\xa1b\x01\xa1a\x02", id="keys out of order in a map in a map in a list"),
    pytest.param(b"\x81\xa1a\x91\xcb" + struct.pack(">d", 1.5), id="a float in a list in a map"),
    pytest.param(b"\x91\x81\xa1a\xd4\x05\x00", id="an extension in a map in a list"),
    pytest.param(b"\x91\x81\xc4\x01a\x02", id="a key of bytes in a list"),
    pytest.param(b"\x91" * (MAX_DEPTH + 1) + b"\xc0", id="nested too deep"),
    pytest.param(b"\x81\xa0" * (MAX_DEPTH + 1) + b"\xc0", id="maps nested too deep"),
    pytest.param(b"\x91" * 5000 + b"\xc0", id="nested deeper than the parser's stack"),
])
def test_bytes_that_are_not_canonical_are_refused(data):
    with pytest.raises(RecordError):
        decode(data)


@pytest.mark.parametrize("one", [b"\x91", b"\x81\xa0"], ids=["lists", "maps"])
def test_nesting_up_to_the_limit_is_taken_and_not_one_level_more(one):
    value = decode(data := one * MAX_DEPTH + b"\xc0")
    assert encode(value) == data
    with pytest.raises(UsageError, match="deeper"):
        encode([value])


@given(st.dictionaries(st.text(max_size=3), st.none(), max_size=10))
def test_keys_are_in_order_of_their_utf8_bytes(mapping):
    assert list(decode(encode(mapping))) == sorted(mapping, key=str.encode)


def test_a_few_bytes_that_claim_huge_arrays_are_refused_before_memory_is_taken():
    import tracemalloc

    data = b"\xdd\x00\x01\xff\xff" * 30_000   # nested arrays of 131,071 each
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [
    1.5, object(), {1: 2}, {b"a": 1}, 2**64, -(2**63) - 1, bytearray(b"x"), {1, 2}, range(3), "\ud800", {"\ud800": 1},
], ids=lambda value: "object()" if type(value) is object else repr(value))
def test_what_cannot_be_recorded_is_refused_and_not_bent(value):
    with pytest.raises(UsageError):
        encode(value)


def test_more_than_sixteen_mebibytes_are_refused_both_ways():
    big = b"x" * (16 << 20)
    with pytest.raises(UsageError, match="too large"):
        encode(big)
    with pytest.raises(RecordError, match="more than"):
        decode(msgpack.packb(big))


def test_an_enum_of_strings_is_recorded_as_its_value():
    class Colour(str, enum.Enum):
        RED = "red"

    assert decode(encode({Colour.RED: Colour.RED})) == {"red": "red"}


def test_tuples_are_recorded_as_lists():
    assert decode(encode((1, (2,)))) == [1, [2]]


@pytest.mark.parametrize(("kind", "plain"), [(bytes, b"ab"), (int, 70_000), (str, "ab")])
def test_what_is_derived_from_a_type_is_encoded_as_that(kind, plain):
    derived = type("Derived", (kind,), {})(plain)
    assert encode({"k": derived}) == encode({"k": plain})
