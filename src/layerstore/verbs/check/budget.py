"""How long a check may go on: one budget for all of it, stores beneath and all. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Budget"]


class Budget:
    """*seconds* from now; None: for ever. Something is done in any case, so that each check gets on."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if seconds is None else clock() + seconds
        self.progress = False            # set by whoever has done something

    def is_over(self) -> bool:
        return self._deadline is not None and self.progress and self._clock() >= self._deadline
