"""What the bundled encoder showed on the sample world: the prior of every archive's relevance model.

Written by `python benchmarks/bench_relevance.py --prior`.
"""

from __future__ import annotations

from retrieval.logistic import Logistic

PRESENCE = Logistic(
    (-0.2503, 0.8337, 0.7622, 0.0639, -0.1153, 0.2671, 0.3819, 0.6544, -0.0165, -1.1280),
    -0.6867,
    (0.4012, 1.3571, 2.7839, 0.6199, 2.2214, 3.5265, 0.4357, 0.3678, -0.1752, 2.7996),
    (0.2331, 0.7976, 0.4447, 0.2989, 1.3285, 0.5826, 0.2270, 0.0547, 0.2399, 0.3549),
)
HIT = Logistic(
    (0.4246, 1.2795, -0.7043, -0.8661, 1.3348),
    -2.4986,
    (2.0065, 0.1512, 0.4711, 1.0039, -0.6867),
    (0.7117, 0.3326, 1.0827, 0.4834, 1.5558),
)
