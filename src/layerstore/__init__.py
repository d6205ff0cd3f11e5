"""layerstore: container layers that a crash cannot cost you, and never leaves half-made.

Layout, top to bottom; a module imports only from below it (a test checks, and has the order within each package):

- ``cli``, the command line · ``observing``, ready-made observers
- ``store``, the face: one method a verb · ``calling``, around every call of one
- ``verbs``, one module each, and ``batch`` ``claiming`` ``begin`` ``staging`` ``holds`` ``names`` ``quota`` that they
  share
- ``dedup``, what is here already · ``recovery``, what a crash left: planner, executor and its steps, rebuilding
- ``opening``, an open store and a new one · ``lifecycle``, the states and the catalog: pure
- ``targets``, images out · ``differs`` ``chunked``, layers in · ``sources``, images in
- ``trees``, a layer as files on disk · ``formats``, files' formats, without a store
- ``model`` ``partial`` ``signatures`` ``progress`` ``observe``, the values and protocols that callers see
- ``system``, every effect on the disk, and what the kernel gives (room, locks, processes) · ``errors``, by whose fault

``layerjournal`` is the write-ahead journal, a library of its own. Nothing imports ``testing``, which is for crash tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:   # for type checkers the names are plain imports; see ``_PUBLIC`` for why they are not
    from layerstore import errors as errors
    from layerstore.differs import ChunkedDiffer as ChunkedDiffer
    from layerstore.differs import DirectoryDiffer as DirectoryDiffer
    from layerstore.differs import TarDiffer as TarDiffer
    from layerstore.errors import LayerstoreError as LayerstoreError
    from layerstore.lifecycle.projection import CatalogProjector as CatalogProjector
    from layerstore.lifecycle.timeline import Life as Life
    from layerstore.model import Beneath as Beneath
    from layerstore.model import Descriptor as Descriptor
    from layerstore.model import Differ as Differ
    from layerstore.model import DiffOutput as DiffOutput
    from layerstore.model import DiffTarget as DiffTarget
    from layerstore.model import Image as Image
    from layerstore.model import Layer as Layer
    from layerstore.model import Lease as Lease
    from layerstore.model import Limits as Limits
    from layerstore.model import Mount as Mount
    from layerstore.model import StageOptions as StageOptions
    from layerstore.model import StoreBeneath as StoreBeneath
    from layerstore.model import default_layer_id as default_layer_id
    from layerstore.observe import Observer as Observer
    from layerstore.partial import BlobSource as BlobSource
    from layerstore.partial import Finder as Finder
    from layerstore.progress import CheckProgress as CheckProgress
    from layerstore.progress import LayerTally as LayerTally
    from layerstore.progress import Progress as Progress
    from layerstore.progress import Quiet as Quiet
    from layerstore.progress import Tally as Tally
    from layerstore.recovery.rebuilding import RebuildReport as RebuildReport
    from layerstore.recovery.rebuilding import rebuild as rebuild
    from layerstore.recovery.recover import RecoveryReport as RecoveryReport
    from layerstore.signatures import OfferedImage as OfferedImage
    from layerstore.signatures import Signature as Signature
    from layerstore.sources.blobs import LocalBlob as LocalBlob
    from layerstore.sources.registry import Credentials as Credentials
    from layerstore.sources.registry import RegistryOptions as RegistryOptions
    from layerstore.store import Store as Store
    from layerstore.store import open as open  # noqa: A004 - the name that users expect
    from layerstore.system.faults import point as fault_point  # noqa: F401 - it is in ``_PUBLIC``
    from layerstore.trees.extract import ExtractReport as ExtractReport
    from layerstore.verbs.batch import LayerSpec as LayerSpec
    from layerstore.verbs.check.findings import CheckReport as CheckReport
    from layerstore.verbs.check.findings import Finding as Finding
    from layerstore.verbs.checkpoint import CheckpointReport as CheckpointReport
    from layerstore.verbs.commit import CommitOptions as CommitOptions
    from layerstore.verbs.delete import DeleteReport as DeleteReport
    from layerstore.verbs.gauges import Gauges as Gauges
    from layerstore.verbs.gc import GcReport as GcReport
    from layerstore.verbs.pull import PullOptions as PullOptions
    from layerstore.verbs.push import PushReport as PushReport
    from layerstore.verbs.repair import RepairReport as RepairReport
    from layerstore.verbs.space import Space as Space
    from layerstore.verbs.stage import StagedLayer as StagedLayer
    from layerstore.verbs.usage import ImageUsage as ImageUsage
    from layerstore.verbs.usage import Usage as Usage
    from layerstore.verbs.view import ViewReport as ViewReport

__version__ = "0.1.0"

# What each public name comes from. Resolved at first use: importing layerstore must stay cheap.
_PUBLIC = {
    "open": "store", "Store": "store", "StagedLayer": "verbs.stage", "LayerSpec": "verbs.batch",
    "PullOptions": "verbs.pull", "CommitOptions": "verbs.commit", "Progress": "progress", "Quiet": "progress",
    "Tally": "progress", "LayerTally": "progress", "CheckProgress": "progress",
    "Differ": "model", "DiffOutput": "model", "DiffTarget": "model",
    "Descriptor": "model", "Limits": "model", "StageOptions": "model", "Layer": "model", "Image": "model",
    "Lease": "model", "Mount": "model", "Beneath": "model", "StoreBeneath": "model", "default_layer_id": "model",
    "TarDiffer": "differs", "DirectoryDiffer": "differs", "ChunkedDiffer": "differs", "RecoveryReport": "recovery.recover",
    "rebuild": "recovery.rebuilding", "RebuildReport": "recovery.rebuilding", "Credentials": "sources.registry",
    "RegistryOptions": "sources.registry", "LayerstoreError": "errors", "errors": "errors", "Observer": "observe",
    "OfferedImage": "signatures", "Signature": "signatures",
    # for a chunked layer that comes from elsewhere
    "BlobSource": "partial", "Finder": "partial", "LocalBlob": "sources.blobs",
    # what verbs return
    "CheckReport": "verbs.check.findings", "Finding": "verbs.check.findings", "CheckpointReport": "verbs.checkpoint",
    "DeleteReport": "verbs.delete", "ExtractReport": "trees.extract", "Gauges": "verbs.gauges", "GcReport": "verbs.gc",
    "Life": "lifecycle.timeline", "PushReport": "verbs.push", "RepairReport": "verbs.repair", "Space": "verbs.space",
    "Usage": "verbs.usage", "ImageUsage": "verbs.usage", "ViewReport": "verbs.view",
    # for tools that look into a journal, or crash-test themselves
    "CatalogProjector": "lifecycle.projection", "fault_point": "system.faults:point",
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605 - computed from the one table above


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'layerstore' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    place, _, there = _PUBLIC[name].partition(":")   # where it has another name
    module = import_module(f"layerstore.{place}")
    return module if name == place else getattr(module, there or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
