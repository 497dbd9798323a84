"""Every name in a run's folder, stated once."""

from __future__ import annotations

ADAPTER = "adapter"
"""The exported adapter of a run that ended at budget."""
OVER_BUDGET = "over_budget"
"""Where a run that ended before its ranks were frozen leaves its adapter, in place of `adapter`."""
ORIGIN = "dynarank.json"
"""Written beside every adapter: the task, and where the base model came from."""
