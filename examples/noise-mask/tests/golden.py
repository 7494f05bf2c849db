"""Writes golden.json: Beta log-densities, their gradients and entropies by SciPy.

python3 -m venv V && V/bin/pip install scipy==1.17.1 && V/bin/python golden.py > golden.json
"""

import json
import math

from scipy.special import betaln, digamma
from scipy.stats import beta

rows = []
for alpha in (0.02, 0.3, 1.0, 1.7, 8.0, 54.0):
    for b in (0.02, 0.5, 1.0, 2.2, 54.0):
        for mask in (1e-4, 0.03, 0.5, 0.8, 1 - 1e-4):
            density = (alpha - 1) * math.log(mask) + (b - 1) * math.log1p(-mask) - betaln(alpha, b)
            assert abs(density - beta.logpdf(mask, alpha, b)) < 1e-8 * max(1, abs(density))
            rows.append(
                {
                    "alpha": alpha,
                    "beta": b,
                    "mask": mask,
                    "log_density": beta.logpdf(mask, alpha, b),
                    # With respect to ln alpha and ln beta.
                    "gradient": [
                        alpha * (math.log(mask) - digamma(alpha) + digamma(alpha + b)),
                        b * (math.log1p(-mask) - digamma(b) + digamma(alpha + b)),
                    ],
                    "entropy": float(beta.entropy(alpha, b)),
                    "mean": float(beta.mean(alpha, b)),
                }
            )
print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
