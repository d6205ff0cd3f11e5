"""A chunked layer that a program has from elsewhere is staged by public names alone, and only what the store lacks is read."""

import io
import random

import pytest

import chunkedmaker
import layerstore

SHARED = random.Random(1).randbytes(100_000)


@pytest.mark.parametrize("form", [form for form in chunkedmaker.FORMS if form != chunkedmaker.OLD_STARGZ])   # which has no digests
def test_of_the_second_layer_only_what_the_first_has_not_is_read(root, form):
    layers = [chunkedmaker.make(form, [chunkedmaker.member("a", SHARED), chunkedmaker.member("b", random.Random(n).randbytes(9_000))])
              for n in (2, 3)]
    read = []
    with layerstore.open(root) as store:
        for made in layers:
            blob = layerstore.LocalBlob(lambda made=made: io.BytesIO(made.blob), len(made.blob), "a blob")
            differ = layerstore.ChunkedDiffer(blob, expect=made.descriptor, diff_id=made.diff_id, finder=store.finder(names=["app"]))
            told = []
            with store.stage(differ, progress=told.append) as staged:
                assert store.apply_staged_layer(staged).diff_id == made.diff_id
            read.append(sum(told))
    assert read[0] > len(SHARED)
    assert read[1] < 40_000
