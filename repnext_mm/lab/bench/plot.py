"""Measured latency against reported accuracy: one picture per runtime, a row per setting."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repnext_mm.lab.bench.networks import PEER_FORM, REFERENCE_FORM, TRAIN_FORM
from repnext_mm.lab.bench.published import Reported
from repnext_mm.lab.bench.record import Record
from repnext_mm.lab.bench.report import Row, Setting, settings

METRICS: dict[str, Callable[[Reported], float | None]] = {
    'ImageNet top-1, %': lambda reported: reported.top1,
    'COCO box AP, Mask R-CNN 1x': lambda reported: reported.box_ap,
    'ADE20K mIoU, Semantic FPN, %': lambda reported: reported.miou,
}
FASTEST = 'RepNeXt, fastest fused form'
STYLES: dict[str, dict[str, Any]] = {
    FASTEST: dict(color='#c1272d', marker='o', linewidth=2, zorder=5),
    f'RepNeXt, {REFERENCE_FORM} (as the authors fuse)': dict(color='#e08a3c', marker='s', linestyle='--'),
    'RepNeXt, train form': dict(color='#999999', marker='x', linestyle=':'),
    'RepViT': dict(color='#0000a7', marker='^'),
    'FastViT': dict(color='#008176', marker='v'),
    'MobileOne': dict(color='#8b5fbf', marker='D'),
    'StarNet': dict(color='#5a8f29', marker='*'),
    'MobileViG': dict(color='#b8860b', marker='<'),
    'SwiftFormer': dict(color='#2f7fbf', marker='>'),
    'EfficientFormer': dict(color='#7f4f24', marker='p'),
    'EfficientFormerV2': dict(color='#d05a8a', marker='h'),
    'ResNet': dict(color='#333333', marker='P'),
}


def plot(record: Record, stem: str | os.PathLike[str]) -> list[Path]:
    """Draw ``STEM.RUNTIME.png`` for each runtime with anything to draw; returns the files."""
    from matplotlib.figure import Figure  # no pyplot: it keeps figures and may open windows

    stem, files = Path(stem), []
    panels: dict[str, list[tuple[Setting, list[Row], list[str]]]] = {}
    for setting, rows in settings(record).items():
        shown = [name for name, metric in METRICS.items() if any(metric(row.reported) is not None for row in rows)]
        if setting.mode == 'latency' and shown:
            panels.setdefault(setting.runtime, []).append((setting, rows, shown))
    for runtime, group in panels.items():
        columns = [name for name in METRICS if any(name in shown for _, _, shown in group)]
        figure = Figure(figsize=(max(1.2 + 4.6 * len(columns), 7), 1.3 + 3.8 * len(group)), layout='constrained')
        axes = figure.subplots(len(group), len(columns), squeeze=False)
        for line, (setting, rows, shown) in zip(axes, group, strict=True):
            for axis, name in zip(line, columns, strict=True):
                if name in shown:
                    _draw(axis, setting, rows, name)
                else:
                    axis.set_visible(False)
        handles = {
            label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        ordered = [name for name in STYLES if name in handles]
        figure.legend(
            [handles[name] for name in ordered],
            ordered,
            loc='outside lower center',
            ncols=min(2 * len(columns), 4),
            fontsize=9,
        )
        where = str(record['environment'].get('device'))
        if record['settings'].get('device') != 'cuda':
            where += f', CPU threads: {record["environment"].get("threads")}'
        figure.suptitle(f'Measured latency against reported accuracy\n{runtime}, {where}', fontsize=12)
        path = stem.with_name(f'{stem.name}.{runtime}.png')
        figure.savefig(path, dpi=120)
        files.append(path)
    return files


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows as the lines of a plot, each from the fastest to the slowest network."""
    found: dict[str, list[Row]] = {}
    fastest: dict[str, Row] = {}
    for row in rows:
        if row.form == PEER_FORM:
            found.setdefault(row.reported.family, []).append(row)
        elif row.form == TRAIN_FORM:
            found.setdefault('RepNeXt, train form', []).append(row)
        else:
            if row.form == REFERENCE_FORM:
                found.setdefault(f'RepNeXt, {REFERENCE_FORM} (as the authors fuse)', []).append(row)
            best = fastest.setdefault(row.model, row)
            fastest[row.model] = row if row.median_ms < best.median_ms else best
    if fastest:
        found[FASTEST] = list(fastest.values())
    return {name: sorted(found[name], key=lambda row: row.median_ms) for name in STYLES if name in found}


def _draw(axis: Any, setting: Setting, rows: Sequence[Row], metric: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    value = METRICS[metric]
    for name, line in series(rows).items():
        points = [(row, accuracy) for row in line if (accuracy := value(row.reported)) is not None]
        if not points:
            continue
        axis.plot(
            [row.median_ms for row, _ in points], [accuracy for _, accuracy in points], label=name, **STYLES[name]
        )
        differ = len({row.form for row, _ in points}) > 1
        for row, accuracy in points if not name.startswith('RepNeXt') or name == FASTEST else ():
            text = row.reported.label.removeprefix(f'{row.reported.family} ')
            text = f'{text} ({row.form})' if name == FASTEST and differ else text
            axis.annotate(
                text,
                (row.median_ms, accuracy),
                textcoords='offset points',
                xytext=(-5, 5) if name == FASTEST else (5, -11),
                ha='right' if name == FASTEST else 'left',
                fontsize=8,
                color=STYLES[name]['color'],
            )
    axis.set_xscale('log')
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.2, y=0.15)
    shape = 'x'.join(map(str, setting.shape))
    axis.set_title(f'{shape}, {setting.dtype}, {setting.memory_format}', fontsize=10)
    axis.set_xlabel('median latency, ms, log scale (left is better)')
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
