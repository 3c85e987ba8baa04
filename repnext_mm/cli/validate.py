"""Prove that a fused model is the model, and time what fusing saves; for any model that can be named."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from repnext_mm.cli import options
from repnext_mm.errors import UserError
from repnext_mm.lab.bench.environment import environment
from repnext_mm.lab.bench.exactness import (
    TOLERANCE_FLOAT32,
    TOLERANCE_FLOAT64,
    Consistency,
    check_consistency,
    with_random_statistics,
)
from repnext_mm.lab.bench.jobs import parse_shape
from repnext_mm.lab.bench.law_table import (
    BRANCHES,
    TRAIN,
    Row,
    contestants,
    law_table,
    measure_rows,
    measure_speed,
    names,
)
from repnext_mm.lab.bench.named_models import build_named
from repnext_mm.lab.table import markdown_table
from repnext_mm.reparam.fuse import count_norms, count_parameters
from repnext_mm.timing import Latency

OPERATIONS = ('consistency', 'speed', 'all')


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group('what is compared')
    what.add_argument(
        'model',
        nargs='?',
        metavar='MODEL|CONFIG',
        help='a RepNeXt arch (m1), a class of MODELS (RepNeXtU, mmpretrain.RepVGG), a timm model (timm/repvit_m0_9), '
        'or a config file: its classifier, or else its backbone',
    )
    what.add_argument(
        '--options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help="arguments of the model's constructor; overrides of a config file",
    )
    what.add_argument('--operation', choices=OPERATIONS, default='all')
    what.add_argument('--form', default='default', help='form of repnext_mm.reparam.fuse')
    what.add_argument('--shape', help='image, NxCxHxW (default: 1x3x224x224)')
    what.add_argument(
        '--table',
        nargs='*',
        metavar='WORD',
        help='instead of a model: the table of laws and families, all rows or those whose names contain a WORD',
    )
    how = parser.add_argument_group('how')
    how.add_argument('--tolerance-float64', type=float, default=TOLERANCE_FLOAT64, help='relative, per output level')
    how.add_argument('--tolerance-float32', type=float, default=TOLERANCE_FLOAT32, help='relative, per output level')
    options.add_device(how, default=options.best_device())
    options.add_threads(how)
    how.add_argument('--rounds', type=int, default=30, help='timed calls of each form, in turn')
    how.add_argument('--warmup-s', type=float, default=2.0, help='shortest warm-up of all forms, in seconds')
    how.add_argument('--seed', type=int, default=0, help='seed of weights, norm statistics and image')
    how.add_argument('--json', type=Path, metavar='FILE', help='write everything that was measured, for machines')


def run(args: argparse.Namespace) -> int:
    """Prove and time; 1 if the proof fails."""
    if (args.model is None) == (args.table is None):
        raise UserError('give a model, or --table, one of them')
    check_device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f'--threads {args.threads} must be at least 1')
        torch.set_num_threads(args.threads)
    if args.device.startswith('cuda'):
        torch.backends.cudnn.benchmark = True  # shapes are fixed
    record, failures = run_model(args) if args.table is None else run_table(args)
    if args.json is not None:
        record |= {'command': shlex.join(args.called), 'environment': environment(args.device)}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(without_nan(record), indent=2, allow_nan=False) + '\n')
    for failure in failures:
        print(f'failed: {failure}')
    return 1 if failures else 0


def run_model(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    shape = parse_shape(args.shape or '1x3x224x224')
    torch.manual_seed(args.seed)
    model = build_named(args.model, options=args.options)
    with_random_statistics(model, shape=shape, seed=args.seed)
    record: dict[str, Any] = {'model': args.model, 'options': args.options, 'form': args.form, 'shape': shape}
    failures: list[str] = []
    print(f'{args.model}, form {args.form}, image {"x".join(map(str, shape))}, {args.device}')
    if args.operation != 'speed':
        found = check_consistency(
            model,
            form=args.form,
            shape=shape,
            device=args.device,
            tolerance_float64=args.tolerance_float64,
            tolerance_float32=args.tolerance_float32,
            seed=args.seed,
        )
        failures = list(found.failures)
        record['fused'] = asdict(found.report)
        record['consistency'] = {name: [asdict(level) for level in levels] for name, levels in found.levels.items()}
        record['tolerances'], record['failures'] = dict(found.tolerances), failures
        print(found.report)
        for line in found.report.refused:
            print(f'left as it is: {line}')
        if found.report:
            print(consistency_table(found))
    if args.operation != 'consistency' and not failures:  # what is wrong need not be fast
        models = contestants(model, form=args.form, shape=shape)
        sizes = {name: (count_parameters(network), count_norms(network)) for name, network in models.items()}
        times = measure_speed(
            models, shape=shape, device=args.device, rounds=args.rounds, warmup_s=args.warmup_s, seed=args.seed
        )
        record['speed'] = {
            name: {'parameters': sizes[name][0], 'norms': sizes[name][1], **asdict(latency)}
            for name, latency in times.items()
        }
        print(speed_table(times, sizes))
    return record, failures


def run_table(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    shape = parse_shape(args.shape or '1x3x224x224')
    if shape[0] != 1 or shape[2] != shape[3]:
        raise UserError(f'--shape {args.shape} with --table: give one square image, such as 1x3x224x224')
    chosen, rows = names(args.table), list[Row]()
    measured = measure_rows(
        chosen, size=shape[2], device=args.device, rounds=args.rounds, warmup_s=args.warmup_s, seed=args.seed
    )
    for row in measured:
        rows.append(row)
        print(f'{len(rows)}/{len(chosen)} {row.name}', file=sys.stderr)
    print(f'Exact: the largest relative error in float64, which is given, is at most {TOLERANCE_FLOAT64:.0e}.')
    print(f'Times: median (p10 to p90) of {args.rounds} runs in turn, batch 1, float32. {where(args)}.\n')
    print(law_table(rows))
    failures = [f'{row.name}: float64 error {row.error_float64:.1e}' for row in rows if not row.exact]
    return {'rows': [{**asdict(row), 'speed_up': row.speed_up} for row in rows], 'failures': failures}, failures


def consistency_table(found: Consistency) -> str:
    exact, single = found.levels['float64'], found.levels['float32']
    head = ['output', 'shape', 'relative, float64', 'absolute, float64', 'relative, float32', 'absolute, float32']
    rows = []
    for index, (a, b) in enumerate(zip(exact, single, strict=True)):
        numbers = [f'{error:.1e}' for error in (a.relative, a.absolute, b.relative, b.absolute)]
        rows.append([str(index), 'x'.join(map(str, a.shape)), *numbers])
    limits = ', '.join(f'{value:.0e} in {name}' for name, value in found.tolerances.items())
    return f'\n{markdown_table(head, rows, texts=2)}\n\nLimits of the relative error: {limits}.'


def speed_table(times: dict[str, Latency], sizes: dict[str, tuple[int, int]]) -> str:
    first = times.get(BRANCHES, times[TRAIN])
    rows = []
    for name, time in times.items():
        parameters, norms = sizes[name]
        milliseconds = [f'{value:.3f}' for value in (time.median_ms, time.p10_ms, time.p90_ms)]
        speed_up = f'{first.median_ms / time.median_ms:.2f}'
        rows.append([name, f'{parameters:,}', str(norms), *milliseconds, str(time.n), speed_up])
    head = ['form', 'parameters', 'norms', 'median, ms', 'p10', 'p90', 'n', 'speed-up']
    return f'\n{markdown_table(head, rows)}'


def where(args: argparse.Namespace) -> str:
    here = environment(args.device)
    threads = '' if args.device.startswith('cuda') else f', {here["threads"]} threads'
    return f'{here["device"]}{threads}, PyTorch {here["torch"]}'


def check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"--device '{name}' cannot be used here ({str(error).splitlines()[0]}): choose cpu") from error


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
