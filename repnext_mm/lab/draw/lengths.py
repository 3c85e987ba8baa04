"""Accuracy against the length of training: what the authors report of their compact models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repnext_mm.lab.bench.published import COMPACT
from repnext_mm.lab.draw.canvas import new_figure, save_png

_STYLES: dict[str, dict[str, Any]] = {
    'RepNeXt-M0': dict(color='#c1272d', marker='o', linewidth=2),
    'RepNeXt-M0E': dict(color='#c77cbb', marker='o', linestyle='--'),
    'RepViT-M0.6': dict(color='#0000a7', marker='^'),
}


def plot_lengths(path: str | Path) -> Path:
    """Save a panel for each data set: the best top-1 of trainings of 100, 200, 300 and 400 epochs."""
    figure = new_figure((6.0 * len(COMPACT) + 0.5, 5.2), 'Best top-1 against the length of training, as reported')
    for axis, (data, models) in zip(figure.subplots(1, len(COMPACT), squeeze=False)[0], COMPACT.items(), strict=True):
        for model in models:
            best = model.top1
            label = f'{model.name}: {model.parameters_m:.1f} M, {model.macs_g:.2f} GMACs, {model.phone_ms:.1f} ms'
            axis.plot(list(best), list(best.values()), label=label, **_STYLES[model.name])
        axis.set_xticks(list(models[0].top1))
        axis.set_title(data, fontsize=10)
        axis.set_xlabel('epochs of the whole training')
        axis.set_ylabel('best top-1, %')
        axis.legend(loc='lower right', fontsize=8.5)
        axis.grid(alpha=0.3)
    return save_png(figure, path)
