"""Records: ten typed fields, and a link that ties each to all before it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerjournal import RecordError, UsageError, encode
from layerjournal.record import MAX_RECORD_BYTES, genesis, seal, unseal

START = genesis("u")
FIELDS = {"seq": 1, "group": 1, "txid": "t", "entity": "parcel", "from_state": "", "to_state": "packed",
          "trigger": "pack", "payload": {"a": [1, None]}, "time_ns": 5}


def stored(body):
    return hashlib.sha256(START + body).digest() + body


def body(*changes):
    fields = [1, 1, 1, "t", "parcel", "", "packed", "pack", {}, 5]
    for index, value in changes:
        fields[index] = value
    return encode(fields)


def test_a_sealed_record_unseals_to_itself():
    record, data = seal(START, **FIELDS)
    assert unseal(data, START, seq=1) == record
    assert record.payload == {"a": [1, None]}


def test_the_link_is_the_sha256_of_the_previous_link_and_the_body():
    record, data = seal(START, **FIELDS)
    assert data[:32] == record.link == hashlib.sha256(START + data[32:]).digest()


def test_the_first_link_depends_on_the_journal():
    assert genesis("u") == hashlib.sha256(b"layerjournal\x001\x00u").digest() != genesis("v")


def test_a_record_after_another_link_does_not_chain():
    _, data = seal(START, **FIELDS)
    with pytest.raises(RecordError, match="does not chain"):
        unseal(data, genesis("another"), seq=1)


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data):
    _, good = seal(START, **FIELDS)
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordError):
        unseal(bytes(bad), START, seq=1)


@given(st.binary(max_size=200))
def test_any_bytes_with_a_right_link_are_a_record_or_a_record_error(junk):
    try:
        unseal(stored(junk), START, seq=1)
    except RecordError:
        pass


@pytest.mark.parametrize("data", [
    pytest.param(body((0, 2)), id="an unknown version"),
    pytest.param(body((0, True)), id="a bool for a number"),
    pytest.param(body((1, 2)), id="another sequence number than its place"),
    pytest.param(body((2, 2)), id="a group that begins after it"),
    pytest.param(body((2, 0)), id="group nought"),
    pytest.param(body((3, b"t")), id="bytes for a string"),
    pytest.param(body((8, [])), id="a list for the payload"),
    pytest.param(body((9, -1)), id="a time before 1970"),
    pytest.param(encode([1, 1, 1]), id="too few fields"),
    pytest.param(encode([1, 1, 1, "t", "p", "", "x", "x", {}, 5, 6]), id="too many fields"),
    pytest.param(encode({"version": 1}), id="a map"),
    pytest.param(encode([]), id="an empty array"),
])
def test_what_is_no_record_is_refused_although_it_chains(data):
    with pytest.raises(RecordError):
        unseal(stored(data), START, seq=1)


def test_a_record_has_at_most_one_mebibyte():
    with pytest.raises(UsageError, match="at most"):
        seal(START, **{**FIELDS, "payload": {"a": b"x" * MAX_RECORD_BYTES}})
    with pytest.raises(RecordError, match="at most"):
        unseal(stored(body((8, {"a": b"x" * MAX_RECORD_BYTES}))), START, seq=1)


def test_a_clock_before_1970_is_the_callers_mistake():
    with pytest.raises(UsageError, match="negative"):
        seal(START, **{**FIELDS, "time_ns": -1})
