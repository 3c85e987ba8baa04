"""Prove that a fused model is the model, and time what fusing saves; for any model that can be named."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction

from repnext_mm.cli import options
from repnext_mm.errors import UserError
from repnext_mm.lab.bench.exactness import TOLERANCE_FLOAT32, TOLERANCE_FLOAT64
from repnext_mm.lab.bench.jobs import parse_shape
from repnext_mm.lab.bench.proof import OPERATIONS, Proof, prove_model, prove_table
from repnext_mm.lab.bench.record import environment, without_nan


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
    if args.table is not None:
        of_a_model = ('options', 'operation', 'form', 'tolerance_float64', 'tolerance_float32')
        options.refuse_unread(args, add_options, of_a_model, 'with --table')
    options.check_device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f'--threads {args.threads} must be at least 1')
        torch.set_num_threads(args.threads)
    if args.device.startswith('cuda'):
        torch.backends.cudnn.benchmark = True  # shapes are fixed
    proof = proof_of(args)
    if args.json is not None:
        record = {**proof.record, 'command': shlex.join(args.called), 'environment': environment(args.device)}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(without_nan(record), indent=2, allow_nan=False) + '\n')
    for failure in proof.failures:
        print(f'failed: {failure}')
    return 1 if proof.failures else 0


def proof_of(args: argparse.Namespace) -> Proof:
    shape = parse_shape(args.shape or '1x3x224x224')
    how = {name: getattr(args, name) for name in ('device', 'rounds', 'warmup_s', 'seed')}
    if args.table is not None:
        return prove_table(
            args.table, shape=shape, say=print, progress=lambda text: print(text, file=sys.stderr), **how
        )
    return prove_model(
        args.model,
        options=args.options,
        operation=args.operation,
        form=args.form,
        shape=shape,
        tolerance_float64=args.tolerance_float64,
        tolerance_float32=args.tolerance_float32,
        say=print,
        **how,
    )
