"""Look into weight files, convert them to plain tensors, fuse them, compare them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from repnext_mm.apis.weight_files import compare_files, compare_outputs, convert_file, inspect_file
from repnext_mm.checkpoints import published_name
from repnext_mm.cli import fuse, options

SHOWN = 10  # names that a list holds


def add_options(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    inspect = commands.add_parser('inspect', help='say what a file is')
    options.add_trust_pickle(inspect)
    inspect.add_argument('file')
    inspect.set_defaults(command=run_inspect)

    convert = commands.add_parser('convert', help='write plain tensors')
    options.add_trust_pickle(convert)
    fuse.add_publish(convert)
    options.add_ema(convert)
    convert.add_argument('file')
    convert.add_argument('--prefix', help='the entry (model_ema) or the start of the keys (model.) to take')
    convert.add_argument('out', help='.pth, or .safetensors')
    convert.set_defaults(command=run_convert)

    fusing = commands.add_parser('fuse', help='write fused weights and their config')
    fuse.add_options(fusing)
    fusing.set_defaults(command=fuse.run)

    compare = commands.add_parser('compare', help='tensor by tensor, and by outputs')
    options.add_trust_pickle(compare)
    compare.add_argument('first')
    compare.add_argument('second')
    compare.add_argument('--configs', nargs=2, metavar=('FIRST', 'SECOND'), help="compare the backbones' outputs too")
    compare.set_defaults(command=run_compare)


def run(args: argparse.Namespace) -> None:
    args.command(args)


def run_inspect(args: argparse.Namespace) -> None:
    found = inspect_file(args.file, trust_pickle=args.trust_pickle)
    print(f'file: {found.kind}')
    if found.unsafe:
        print(f'unsafe: building these could run code: {listed(found.unsafe)}')
    if found.weights is None:
        print('The rest was not read; --trust-pickle reads it.')
        return
    print(f'written by: {found.writer}\nentries: {listed(found.entries)}')
    if set(found.networks) - {''}:
        print(f'weights: {listed([name or "the content itself" for name in found.networks])}')
    weights = found.weights
    arch = f'RepNeXt {weights.arch}' if weights.arch else 'not a RepNeXt'
    below = f', below {weights.prefix[:100]!r}' if weights.prefix else ''
    print(f'holds: {known(weights.task, "task")}, {arch}, {known(weights.form, "form")}{below}')
    kinds = ', '.join(f'{count} {name}' for name, count in (found.dtypes or {}).items())
    print(f'tensors: {found.tensors} ({kinds}), {found.parameters:,} numbers')
    print(f'averaged (EMA) weights: {"yes" if found.averaged else "no"}')


def known(value: str, what: str) -> str:
    return f'unknown {what}' if value == 'unknown' else f'form {value}' if what == 'form' else value


def listed(names: Sequence[str]) -> str:
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(name[:100] for name in names[:SHOWN]) + more


def run_convert(args: argparse.Namespace) -> None:
    written = convert_file(args.file, args.out, prefix=args.prefix, ema=args.ema, trust_pickle=args.trust_pickle)
    print(f'wrote {published_name(written) if args.publish else written}')


def run_compare(args: argparse.Namespace) -> None:
    found = compare_files(args.first, args.second, trust_pickle=args.trust_pickle)
    compared = found.equal + len(found.differences)
    print(f'{found.equal} tensors are equal, {len(found.differences)} differ', end='')
    print(f'; not compared: {max(found.tensors) - compared}, see below' if compared < max(found.tensors) else '')
    worst = sorted(found.differences.items(), key=lambda item: -item[1])
    for key, value in worst[:SHOWN]:
        print(f'  {key}: up to {value:.3e}')
    for title, keys in (
        (f'only in {args.first}', found.only_first),
        (f'only in {args.second}', found.only_second),
        ('of another shape, not compared', found.other_shape),
        ('of another dtype, compared by value', found.other_dtype),
    ):
        if keys:
            print(f'{len(keys)} {title}: {listed(keys)}')
    if args.configs:
        errors = compare_outputs(args.first, args.configs[0], args.second, args.configs[1])
        print('relative error per level, float64: ' + ', '.join(f'{error:.1e}' for error in errors))
