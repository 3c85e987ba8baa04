"""Every row of the benchmark that needs a GPU, planned for one call of ten minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from repnext_mm.errors import UserError

LIMIT_S = 600.0


class Row(NamedTuple):
    """One record: its name, what ``repnext benchmark`` is called with, and how long that may take on an idle GPU."""

    name: str
    arguments: tuple[str, ...]
    estimate_s: float


def gpu_rows(configs: str | Path, *, tiny: bool = False) -> list[Row]:
    """What is to be measured, the most wanted first.

    Args:
        configs: the folder of this project's.
        tiny: the same plan at sizes that any CPU does in seconds: it shows that the plan runs, and measures nothing.
    """
    once = ('--repeats', '1')
    none = ('--rounds', '1', '--warmup-rounds', '0', '--warmup-s', '0')
    many = none if tiny else ('--rounds', '50', '--warmup-rounds', '10', '--warmup-s', '1')
    few = none if tiny else ('--rounds', '12', '--warmup-rounds', '3', '--warmup-s', '1')
    mixed = ('--dtype', 'bfloat16', '--memory-format', 'contiguous', 'channels_last')
    half = ('--dtype', 'float32' if tiny else 'float16', '--memory-format', 'channels_last')
    graphs = ('--runtime', 'eager') if tiny else ('--runtime', 'eager', 'cudagraph')
    large, *shapes = ('m0', '2x3x64x64') if tiny else ('m4', '2x3x512x512', '16x3x512x512')
    inferred = ('m0', '--shape', '1x3x64x64') if tiny else ('m1', 'm4', '--shape', '1x3x224x224', '16x3x512x512')
    peers = ('repvit_m0_9',) if tiny else ('repvit_m0_9', 'repvit_m1_5', 'resnet50')

    def step(config: str, *smaller: str) -> tuple[str, ...]:
        path = str(Path(configs) / config)
        less = ('--backbones', 'branches', 'merged', '--cfg-options', *smaller) if tiny else ()
        return ('--train', path, *mixed, *few, *once, *less)

    def model(name: str, data: str) -> tuple[str, ...]:
        return ('--config', str(Path(configs) / f'{name}_{"m0_digits" if tiny else f"m4_{data}"}.py'), *few, *once)

    scenes: tuple[str, ...] = ('data_root=data/tiny_scenes', 'train_dataloader.batch_size=2')
    for loader in ('train_dataloader', 'val_dataloader'):
        scenes += tuple(f'{loader}.dataset.scenes.{part}=2' for part in ('train', 'val'))
    backbone = ('--train', '--arch', large, '--shape', *shapes, *mixed, *few, *once)
    captured = () if tiny else ('--runtime', 'cudagraph')  # a host took 0.2 s to start the kernels of a step
    forms = ('--forms', 'keep_norms', 'default', 'three_quarters')
    return [  # the first two by what other settings of them took on an H100 with a slow host, the others are guesses
        Row('training-m4', (*backbone, *captured), 110),
        Row('inference', ('--arch', *inferred, *forms, '--peers', *peers, *graphs, *half, *many, *once), 145),
        Row('step-mask-rcnn', step('mask_rcnn_repnext_m0_digits.py', *scenes), 70),
        Row('mask-rcnn', model('mask_rcnn_repnext', 'coco'), 60),
        Row('step-classifier', step('repnext_m0_digits_cls.py', 'train_dataloader.batch_size=2'), 50),
        Row('step-semantic-fpn', step('semantic_fpn_repnext_m0_digits.py', *scenes), 60),
        Row('semantic-fpn', model('semantic_fpn_repnext', 'ade20k'), 40),
        Row('training-compiled', (*backbone, '--runtime', 'eager' if tiny else 'compile'), 120),
    ]


def run_rows(
    rows: Sequence[Row],
    folder: str | Path,
    run: Callable[[Sequence[str]], int],
    *,
    device: str,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Run what still fits into the time, each row into a record of its own; returns what became of each.

    A record that is there already is kept, so that a second call goes on where the first one ended.

    Args:
        rows: in the order of running.
        folder: where records go.
        run: ``repnext benchmark`` with these arguments; returns its exit status.
        device: 'cuda' or 'cpu'.
        limit_s: seconds for all of them.
        clock: seconds.
    """
    if limit_s <= 0:
        raise UserError(f'limit_s={limit_s}: give the seconds that all rows together may take')
    start, found = clock(), {}
    for row in rows:
        output = Path(folder) / row.name
        if output.with_suffix('.json').exists():
            found[row.name] = 'kept'
        elif clock() - start + row.estimate_s > limit_s:
            found[row.name] = 'no time left'
        else:
            try:
                status = run([*row.arguments, '--device', device, '--output', str(output)])
                found[row.name] = 'failed' if status else 'measured'
            except Exception as error:  # the other rows are wanted all the same
                found[row.name] = f'failed: {type(error).__name__}: {error}'
    return found
