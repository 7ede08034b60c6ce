"""Budget in dollars that a run's API calls share and never exceed."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from envkit.errors import UsageError


class BudgetError(UsageError):
    """A call was not made because its highest possible cost does not fit the budget."""


@dataclass(slots=True, eq=False)
class Hold:
    """Dollars reserved for one call. The holder lowers ``usd`` to what the call has cost."""

    usd: float


@final
class Budget:
    """Limit in dollars for all calls together. Thread-safe; agents may share one.

    A call first reserves its highest possible cost, so that concurrent calls stay within the limit. When it
    ends, its real cost is booked and the rest becomes free.

    Args:
        limit_usd: at least 0; infinite for no limit.
        remedy: what to do if it is used up.
    """

    def __init__(
        self,
        limit_usd: float = math.inf,
        remedy: str = "raise budget_usd, or lower max_completion_length",
    ) -> None:
        if not limit_usd >= 0:
            raise UsageError(f"the budget is {limit_usd} dollars; it must be at least 0")
        self.limit_usd, self._remedy = limit_usd, remedy
        self._spent_usd = 0.0
        self._holds: list[Hold] = []
        self._counted: set[Path] = set()
        self._changed = threading.Condition()

    def count(self, usd: float, journal: Path) -> None:
        """Add the cost of earlier calls, read from a journal; each journal counts once."""
        with self._changed:
            if journal not in self._counted:
                self._counted.add(journal)
                self._spent_usd += usd

    @contextmanager
    def hold(self, worst_usd: float) -> Generator[Hold]:
        """Reserve ``worst_usd`` for the duration of a call, then book the ``usd`` of its `Hold`.

        Waits as long as running calls may still free enough.

        Raises:
            BudgetError: it does not fit, whatever running calls free.
        """
        hold = Hold(worst_usd)
        with self._changed:
            while self._spent_usd + sum(held.usd for held in self._holds) + worst_usd > self.limit_usd:
                if self._spent_usd + worst_usd > self.limit_usd:
                    raise BudgetError(
                        f"the budget of ${self.limit_usd:g} is used up: ${self._spent_usd:.4f} are spent, "
                        f"and the next call may cost ${worst_usd:.4f}; {self._remedy}"
                    )
                self._changed.wait()
            self._holds.append(hold)
        try:
            yield hold
        finally:
            with self._changed:
                self._holds.remove(hold)
                self._spent_usd += hold.usd
                self._changed.notify_all()
