"""What the product does once for a layer, done once for the engine's process: a layer here has a few KiB, and there are
millions of them.

Only the engine applies this, never the tests. Nothing here changes what is accepted or refused, or what a decoder reads.
"""

from __future__ import annotations

import functools
import gc
import itertools
import types
from collections.abc import Callable
from typing import Any

import zstandard

from fuzz.packing import small_compressor

_AT_ONCE = 16                            # contexts: more than are in use at once, so that each is done when it comes again


def apply() -> None:
    """To the product's modules, which are imported by this, and to Python."""
    from layerjournal import segment  # noqa: PLC0415 - not before they are instrumented
    from layerstore.formats.compression import decoders, units, writing  # noqa: PLC0415
    from layerstore.system import privilege  # noqa: PLC0415

    # no input changes what this process may do; asked of /proc it costs a fifth of an unpacking
    privilege.Powers.of_this_process = functools.cache(privilege.Powers.of_this_process)   # type: ignore[method-assign]
    contexts = _with_kept_contexts()
    decoders.zstandard = units.zstandard = writing.zstandard = segment.zstandard = contexts   # type: ignore[assignment]
    gc.collect()
    gc.freeze()                          # the modules are never looked at again
    gc.set_threshold(50_000)


def _with_kept_contexts() -> types.ModuleType:
    """``zstandard``, whose contexts are kept: one that is made for an input costs more than the input."""
    module = types.ModuleType("zstandard")
    module.__dict__.update(vars(zstandard))
    compressors = itertools.cycle([small_compressor() for _ in range(_AT_ONCE)])
    module.__dict__["ZstdCompressor"] = lambda **_options: next(compressors)
    module.__dict__["ZstdDecompressor"] = _kept(zstandard.ZstdDecompressor)
    return module


def _kept(make: Callable[..., Any]) -> Callable[..., Any]:
    by_options: dict[int, Any] = {}

    def kept(*, max_window_size: int = 0) -> Any:
        found = by_options.get(max_window_size)
        if found is None:
            made = [make(max_window_size=max_window_size) for _ in range(_AT_ONCE)]
            found = by_options[max_window_size] = itertools.cycle(made)
        return next(found)

    return kept
