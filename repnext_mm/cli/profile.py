"""Show where a backbone's time goes, by operation or by module, and how far it is from what the machine could do."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from repnext_mm.cli import options
from repnext_mm.errors import MissingFileError
from repnext_mm.lab.bench.jobs import parse_shape
from repnext_mm.lab.bench.profile import PROFILED, profile_inference, profile_training
from repnext_mm.lab.bench.record import environment
from repnext_mm.lab.bench.runtimes import DTYPES, MEMORY_FORMATS

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
    unread, when = (('forms', 'runtime', 'by'), 'with --train') if args.train else (('norm_eval',), 'without --train')
    options.refuse_unread(args, add_options, unread, when)
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    if args.trace is not None and not Path(args.trace).parent.is_dir():
        raise MissingFileError(f"--trace: there is no folder '{Path(args.trace).parent}', make it first")
    title, table = profiled(args, threads=threads)
    here = environment(torch.device(args.device).type)
    print(
        f'{args.arch.upper()}, {args.shape}, {args.dtype}, {args.memory_format}, {args.runtime}; {here["device"]}, '
        f'{threads} threads; {title}. Milliseconds.\n'
    )
    print(table)
    if args.trace is not None:
        for file in sorted(Path(args.trace).parent.glob(f'{Path(args.trace).stem}.*.json')):
            print(f'wrote {file}')


def profiled(args: argparse.Namespace, *, threads: int) -> tuple[str, str]:
    how = {name: getattr(args, name) for name in ('memory_format', 'device', 'rounds', 'trace')}
    shape = parse_shape(args.shape)
    if args.train:
        return profile_training(args.arch, shape=shape, norm_eval=args.norm_eval, dtype=args.dtype, **how)
    return profile_inference(
        args.arch,
        args.forms,
        shape=shape,
        runtime=args.runtime,
        by_module=args.by == 'module',
        dtype=args.dtype,
        threads=threads,
        **how,
    )
