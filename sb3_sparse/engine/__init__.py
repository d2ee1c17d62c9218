"""
What multiplies: dense torch on any device, or compiled kernels on the CPU whose work follows the weights that survive.

Nothing here knows policies or schedules. :mod:`~sb3_sparse.engine.choice` says which engine runs,
:mod:`~sb3_sparse.engine.sequence` is where a sequence of layers becomes one native call,
:mod:`~sb3_sparse.engine.adam` and :mod:`~sb3_sparse.engine.polyak` do the rest of a gradient step on survivors alone.
"""
