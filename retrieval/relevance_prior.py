"""What the bundled encoder showed on the sample world: the prior of every archive's relevance model.

Written by `python benchmarks/bench_relevance.py --prior`.
"""

from __future__ import annotations

from retrieval.logistic import Logistic

PRESENCE = Logistic((-0.3516, 1.1781, 1.1353, 0.3974, -0.3400, 0.2501, 0.3109, 1.4190, 0.5313, -1.5975), -0.4105, (0.3802, 1.3006, 2.7834, 0.5955, 2.1677, 3.5313, 0.4356, 0.3627, -0.1804, 2.7971), (0.2325, 0.8053, 0.4530, 0.2928, 1.3466, 0.5921, 0.2383, 0.0559, 0.2546, 0.3574))
HIT = Logistic((0.5938, 1.0364, -0.5994, -0.6921, 1.4064), -2.3516, (2.0043, 0.1340, 0.4211, 0.9338, -0.4105), (0.7186, 0.3332, 1.0860, 0.4665, 2.2409))
THRESHOLD = -2.005
