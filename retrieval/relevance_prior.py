"""What the bundled encoder showed on the sample world: the prior of every archive's relevance model.

Written by `python benchmarks/bench_relevance.py --prior`.
"""

from __future__ import annotations

from retrieval.logistic import Logistic

PRESENCE = Logistic(
    (-0.7358, 1.4060, 0.6033, 0.3654, -0.2203, 0.1075, 0.4257, 1.1611, 0.3912, -1.0597),
    -0.3482,
    (0.2904, 0.9556, 2.5034, 0.5362, 1.9419, 3.3184, 0.4323, 0.3618, -0.1799, 2.5235),
    (0.2258, 0.7130, 0.3937, 0.2923, 1.2916, 0.5581, 0.2603, 0.0564, 0.2552, 0.3082),
)
HIT = Logistic(
    (0.5847, 0.9535, -0.4321, -0.6041, 1.2179),
    -2.7590,
    (1.6340, 0.0085, 0.0138, 0.9330, -0.3482),
    (0.7183, 0.3480, 1.0950, 0.4663, 1.9432),
)
THRESHOLD = -1.647
