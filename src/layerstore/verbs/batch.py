"""A batch: what is to be applied as one, layers and perhaps an image, checked as far as that needs no transaction.

Values, and taking the staged trees from their handles. What may be had of the catalog is ``claiming``'s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from layerstore.errors import InvalidArgumentError
from layerstore.model import DiffOutput, SourceImage, check_id, default_layer_id
from layerstore.opening.handle import Handle
from layerstore.verbs.names import check_name
from layerstore.verbs.stage import StagedLayer
from layerstore.verbs.staging import Staging

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a batch.

    ``parent`` may be committed, here or in a store beneath, or an earlier member's ID; None for a base layer.
    """

    staged: StagedLayer
    parent: str | None = None
    id: str | None = None
    names: Sequence[str] = ()
    big_data: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Member:
    """A layer of a batch whose staged tree was taken from its handle. ``duplicate``: it is in the store already."""

    spec: LayerSpec
    staging: Staging
    layer_id: str
    duplicate: bool = False
    given_back: bool = False

    @property
    def txid(self) -> str:
        return self.staging.txid

    @property
    def output(self) -> DiffOutput:
        assert self.staging.output is not None
        return self.staging.output

    def big_data_digests(self) -> dict[str, str]:
        return {key: "sha256:" + hashlib.sha256(value).hexdigest() for key, value in sorted(self.spec.big_data.items())}


@dataclass(frozen=True, slots=True)
class Batch:
    """``id`` is its txid, under which it is promised; *image* stands on *image_layers*, base first."""

    id: str
    members: list[Member]
    image: SourceImage | None
    image_layers: Sequence[str]
    image_names: Sequence[str]
    replace_names: bool

    def fresh(self) -> Iterator[Member]:
        """The members that are not in the store already: known once they are claimed."""
        return (member for member in self.members if not member.duplicate)

    @property
    def has_big_data(self) -> bool:
        """Whether big data of the caller's is to be written: such a batch is promised apart from its claim."""
        return any(member.spec.big_data for member in self.fresh())


def check_arguments(specs: Sequence[LayerSpec], image_names: Sequence[str]) -> None:
    """InvalidArgumentError for what no store could take."""
    names = [check_name(n) for spec in specs for n in spec.names] + [check_name(n) for n in image_names]
    for spec in specs:
        if spec.parent is not None:
            check_id(spec.parent, "parent ID")
        if spec.id is not None:
            check_id(spec.id)
        for key, value in spec.big_data.items():
            if not _KEY.match(key) or not isinstance(value, bytes):
                raise InvalidArgumentError(f"big data {key!r} must have a plain key and bytes as its value")
    if len(set(names)) != len(names):
        raise InvalidArgumentError(f"a name is given twice: {sorted(names)}")


def take(handle: Handle, spec: LayerSpec) -> Member:
    """The layer with its tree, which the staged handle gives away until it is given back."""
    taken = set(spec.big_data) & set(spec.staged.output.big_data)
    if taken:
        raise InvalidArgumentError(f"the content brings its own big data {sorted(taken)}")
    staging = spec.staged.take(handle)
    assert staging.output is not None
    return Member(spec, staging, spec.id or default_layer_id(spec.parent, staging.output.diff_id))
