"""Show where a backbone's time goes, by operation or by module, and how far it is from what the machine could do."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from repnext_mm.cli import options
from repnext_mm.errors import MissingFileError, UserError
from repnext_mm.lab.bench.environment import environment
from repnext_mm.lab.bench.jobs import parse_shape
from repnext_mm.lab.bench.networks import build_train_form, in_form, resolved, variants
from repnext_mm.lab.bench.profile import (
    PROFILED,
    find_hot_spots,
    find_step_spots,
    machine_line,
    modules_table,
    operations_table,
    time_by_module,
)
from repnext_mm.lab.bench.runtimes import DTYPES, MEMORY_FORMATS, NATIVE, why_not

FORMS = ['keep_norms', 'default', 'half', 'dense']


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--arch', default='m4')
    parser.add_argument('--forms', nargs='+', default=FORMS, metavar='FORM')
    parser.add_argument('--shape', default='1x3x224x224', metavar='NxCxHxW')
    parser.add_argument('--runtime', choices=PROFILED, default='eager')
    parser.add_argument('--by', choices=('operation', 'module'), default='operation', help='by module: eager only')
    parser.add_argument('--train', action='store_true', help='profile training steps: merged on the fly, by branches')
    parser.add_argument('--norm-eval', action='store_true', help='with --train: norms in eval mode')
    parser.add_argument('--memory-format', choices=MEMORY_FORMATS, default='contiguous')
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    options.add_device(parser, default=options.best_device())
    options.add_threads(parser)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument(
        '--trace',
        metavar='FILE.json',
        help='also write the profile of each form, or way to train, for chrome://tracing and Perfetto: FILE.FORM.json',
    )


def run(args: argparse.Namespace) -> None:
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    if args.trace is not None and not Path(args.trace).parent.is_dir():
        raise MissingFileError(f"--trace: there is no folder '{Path(args.trace).parent}', make it first")
    title, table = profile_training(args) if args.train else profile_inference(args, threads=threads)
    here = environment(torch.device(args.device).type)
    print(
        f'{args.arch.upper()}, {args.shape}, {args.dtype}, {args.memory_format}, {args.runtime}; {here["device"]}, '
        f'{threads} threads; {title}. Milliseconds.\n'
    )
    print(table)
    if args.trace is not None:
        for file in sorted(Path(args.trace).parent.glob(f'{Path(args.trace).stem}.*.json')):
            print(f'wrote {file}')


def trace_file(args: argparse.Namespace, name: str) -> Path:
    path = Path(args.trace)
    return path.with_name(f'{path.stem}.{name.replace(" ", "_")}.json')


def profile_training(args: argparse.Namespace) -> tuple[str, str]:
    spots = find_step_spots(
        args.arch,
        shape=parse_shape(args.shape),
        memory_format=args.memory_format,
        norm_eval=args.norm_eval,
        device=args.device,
        rounds=args.rounds,
        trace=None if args.trace is None else partial(trace_file, args),
    )
    norms = 'eval' if args.norm_eval else 'train'
    return f'training step, norms in {norms} mode; {machine_line(spots)}', operations_table(spots)


def profile_inference(args: argparse.Namespace, *, threads: int) -> tuple[str, str]:
    variants([args.arch], args.forms)
    reason = why_not(args.runtime, device=args.device, dtype=args.dtype, memory_format=args.memory_format)
    if reason:
        raise UserError(f'--runtime {args.runtime} cannot be profiled here: {reason}')
    if args.by == 'module' and args.runtime != 'eager':
        raise UserError(f'--by module: {args.runtime} has no modules, profile --runtime eager')
    if args.trace is not None and (args.by == 'module' or args.runtime not in ('eager', 'compile')):
        raise UserError('--trace: PyTorch writes it, profile --runtime eager or compile --by operation')
    image = torch.randn(parse_shape(args.shape)).to(args.device, DTYPES[args.dtype])
    image = image.contiguous(memory_format=MEMORY_FORMATS[args.memory_format])
    train_form = build_train_form(args.arch)
    forms = {form: in_form(train_form, resolved(train_form, form, image=image), image=image) for form in args.forms}
    if args.by == 'module':
        return 'by module', modules_table(
            {form: time_by_module(network, image, rounds=args.rounds) for form, network in forms.items()}
        )
    spots = {
        form: find_hot_spots(
            network,
            image,
            rounds=args.rounds,
            runtime=args.runtime,
            threads=threads,
            native=args.dtype == NATIVE,
            trace=None if args.trace is None else trace_file(args, form),
        )
        for form, network in forms.items()
    }
    return machine_line(spots), operations_table(spots)
