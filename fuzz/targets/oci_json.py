"""Any bytes as layout, index, manifest, signature or config are refused by a typed error, or give values of their kinds."""

from __future__ import annotations

from layerstore.errors import InputError
from layerstore.sources import attached, documents

_parse_json = documents.parse_json

_parse_json = documents.parse_json


def check(data: bytes) -> None:
    try:
        value = _parse_json(data, "the document")
    except InputError as error:          # so it is of no kind
        assert len(str(error)) < 20_000, "an error as long as its input"
        return
    documents.parse_json = lambda _data, _what: value   # once, and not for each kind: it is only read
    try:
        _check(data)
    finally:
        documents.parse_json = _parse_json


def _check(data: bytes) -> None:
    for listed in _try(documents.parse_index, data, None, "the index") or ():
        _descriptor(listed.descriptor)
        assert listed.tag is None or isinstance(listed.tag, str)
        assert attached.is_attachment(listed) or not attached.is_signature(listed)
    for media_type in sorted(documents.MANIFEST_TYPES):
        artifact = _try(documents.parse_artifact, data, media_type, "the signature")
        if artifact is not None:
            for each in artifact.blobs:
                _descriptor(each)
            assert isinstance(artifact.kind, str)
            assert all(isinstance(each, str) for each in (*artifact.annotations, *artifact.annotations.values()))
            assert artifact.subject is None or documents.check_sha256(artifact.subject, "the subject")
        manifest = _try(documents.parse_manifest, data, media_type, "the manifest")
        if manifest is not None:
            for each in (manifest.config, *manifest.layers):
                _descriptor(each)
    config = _try(documents.parse_config, data, "the config")
    if config is not None:
        for each in config.diff_ids:
            documents.check_sha256(each, "a diffID")
    _try(documents.check_layout, data, "the layout")


def _try(parse, *arguments):  # noqa: ANN001, ANN002, ANN202
    try:
        return parse(*arguments)
    except InputError as error:
        assert len(str(error)) < 20_000, "an error as long as its input"
        return None


def _descriptor(found) -> None:  # noqa: ANN001
    documents.check_sha256(found.digest, "a digest")
    assert isinstance(found.size, int)
    assert 0 <= found.size < 1 << 63
    assert isinstance(found.media_type, str)
