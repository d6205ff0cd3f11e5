"""layerjournal: a write-ahead journal whose tables are a projection of its log. It knows nothing of layers.

General layout, bottom to top: ``errors`` · ``codec`` (canonical msgpack) · ``record`` (the chain) · ``views`` (rows,
tables in memory) · ``control`` (the journal's own records) · ``effects`` (the disk, with fault points) · ``gate``
``metapage`` ``pages`` (LMDB's file, by hand) ``mapped`` ``lockfile`` ``engine`` (LMDB) · ``segment`` (archived log) ·
``salvage`` · ``folding`` ``verifying`` · ``txn`` · ``note`` ``archive`` ``creating`` ``namespace`` · ``journal`` (the
face) · ``replay`` (offline). The bytes are in ``journal/FORMAT.md``.
"""

from __future__ import annotations

from layerjournal.codec import decode as decode
from layerjournal.codec import encode as encode
from layerjournal.effects import FaultHook as FaultHook
from layerjournal.errors import AlreadyOpenError as AlreadyOpenError
from layerjournal.errors import BusyError as BusyError
from layerjournal.errors import ClosedError as ClosedError
from layerjournal.errors import DamagedError as DamagedError
from layerjournal.errors import ExistsError as ExistsError
from layerjournal.errors import ForkedError as ForkedError
from layerjournal.errors import HostError as HostError
from layerjournal.errors import JournalError as JournalError
from layerjournal.errors import MissingError as MissingError
from layerjournal.errors import NoSpaceError as NoSpaceError
from layerjournal.errors import OutcomeUnknownError as OutcomeUnknownError
from layerjournal.errors import PidNamespaceError as PidNamespaceError
from layerjournal.errors import PoisonedError as PoisonedError
from layerjournal.errors import ProjectionError as ProjectionError
from layerjournal.errors import ReadOnlyError as ReadOnlyError
from layerjournal.errors import RecordError as RecordError
from layerjournal.errors import RowError as RowError
from layerjournal.errors import SegmentError as SegmentError
from layerjournal.errors import UsageError as UsageError
from layerjournal.folding import Folded as Folded
from layerjournal.folding import canonical_dump as canonical_dump
from layerjournal.folding import fold as fold
from layerjournal.journal import Checkpoint as Checkpoint
from layerjournal.journal import Journal as Journal
from layerjournal.record import Record as Record
from layerjournal.replay import Replay as Replay
from layerjournal.salvage import Salvaged as Salvaged
from layerjournal.salvage import salvage as salvage
from layerjournal.segment import Segment as Segment
from layerjournal.txn import ReadTxn as ReadTxn
from layerjournal.txn import WriteTxn as WriteTxn
from layerjournal.verifying import Finding as Finding
from layerjournal.verifying import VerifyReport as VerifyReport
from layerjournal.views import DictView as DictView
from layerjournal.views import Projector as Projector
from layerjournal.views import TableView as TableView
