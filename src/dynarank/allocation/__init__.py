"""How ranks are scored, scheduled and distributed over a model. Torch only.

Read in this order; each file is one step of the method (Mao et al., ACL 2024):

    importance.py    what a component is worth (Eqs. 7 and 8)
    schedule.py      how many components may be kept at a step (Eq. 9)
    selection.py     which ones these are
    allocator.py     the three together: `RankAllocator.step()`
    attaching.py     an optimizer calls `step()` by itself
    dem.py           the penalty that goes with it (Eq. 10)

The other files are variants and parts: other scores (`sensitivity`, `fisher`, `controls`), what a
layer must offer (`components`), settings (`config`), and the checks of all these.
"""
