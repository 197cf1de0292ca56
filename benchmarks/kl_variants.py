"""Draws every KL variant of a token against d = log p - log q: docs/images/kl_variants.png, for docs/ppo.md.

    python benchmarks/kl_variants.py [FILE.png]

The reference gives the token probability q = 0.2; `full` is no function of one token and is left out.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from rlhf_hw.algorithms.kl import KL_ESTIMATORS, NEEDS_LOGITS, per_token_kl
from rlhf_hw.report.plots import LINE_STYLES, RUN_COLORS, STYLE

LABELS = {
    "kl": "kl, k1:  d",
    "clamped_kl": "clamped_kl:  max(d, 0)",
    "k2": "k2, mse, squared_error:  d²/2",
    "k3": "k3, bregman:  exp(−d) − 1 + d",
    "jensen_shannon": "jensen_shannon:  (log 2 − log(1 + exp(−|d|))) / 2",
    "abs": "abs:  |d|",
}
PROBABILITY = 0.2
REACH = math.log(1 / PROBABILITY)  # p ends at 1


def draw(path: Path) -> None:
    """Write the picture to `path`."""
    import matplotlib
    from matplotlib.figure import Figure

    d = torch.linspace(-REACH, REACH, 401, dtype=torch.float64)
    reference = torch.full_like(d, math.log(PROBABILITY))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(name for name in KL_ESTIMATORS if name not in NEEDS_LOGITS):
            penalty = per_token_kl(name, reference + d, reference)
            style = {"abs": LINE_STYLES[1], "clamped_kl": LINE_STYLES[2]}.get(name, LINE_STYLES[0])
            axes.plot(d, penalty, label=LABELS[name], color=RUN_COLORS[number], linestyle=style)
        axes.axhline(0, color="#9ca3af", linewidth=0.8)
        axes.axvline(0, color="#9ca3af", linewidth=0.8)
        axes.set_title("What a token costs, by KL variant")
        axes.set_xlabel("d = log p − log q  (policy over reference, nats)")
        axes.set_ylabel("penalty before the coefficient, nats")
        axes.set_ylim(-1.8, 3.4)
        axes.legend(loc="upper center", ncols=1)
        figure.savefig(path)


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "docs" / "images" / "kl_variants.png"
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
