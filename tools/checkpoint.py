"""Look into weight files, convert them to plain tensors, fuse them, compare them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from repnext_mm.apis.weight_files import compare_files, compare_outputs, convert_file, fuse_file, inspect_file
from repnext_mm.checkpoints import published_name

SHOWN = 10  # names that a list holds


def parse_args() -> argparse.Namespace:
    trust = argparse.ArgumentParser(add_help=False)
    trust.add_argument(
        '--trust-pickle', action='store_true', help='let the file build any object, which can run any code in it'
    )
    averaged = argparse.ArgumentParser(add_help=False)
    averaged.add_argument('--ema', action='store_true', help='take the averaged weights of the file')
    publish = argparse.ArgumentParser(add_help=False)
    publish.add_argument('--publish', action='store_true', help="add the start of the file's SHA-256 to its name")
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    inspect = commands.add_parser('inspect', parents=[trust], help='say what a file is')
    inspect.add_argument('file')
    inspect.set_defaults(run=run_inspect)

    convert = commands.add_parser('convert', parents=[trust, publish, averaged], help='write plain tensors')
    convert.add_argument('file')
    convert.add_argument('--prefix', help='the entry (model_ema) or the start of the keys (model.) to take')
    convert.add_argument('out', help='.pth, or .safetensors')
    convert.set_defaults(run=run_convert)

    fuse = commands.add_parser('fuse', parents=[trust, publish, averaged], help='write fused weights and their config')
    fuse.add_argument('file', help='weights of the whole model')
    fuse.add_argument('config', help='its config')
    fuse.add_argument('out', help='.pth, or .safetensors; the deploy config is written beside it')
    fuse.set_defaults(run=run_fuse)

    compare = commands.add_parser('compare', parents=[trust], help='tensor by tensor, and by outputs')
    compare.add_argument('first')
    compare.add_argument('second')
    compare.add_argument('--configs', nargs=2, metavar=('FIRST', 'SECOND'), help="compare the backbones' outputs too")
    compare.set_defaults(run=run_compare)
    return parser.parse_args()


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


def run_fuse(args: argparse.Namespace) -> None:
    fused = fuse_file(args.file, args.config, args.out, ema=args.ema, trust_pickle=args.trust_pickle)
    print(fused.report)
    print('relative error per level, float64: ' + ', '.join(f'{error:.1e}' for error in fused.errors))
    weights = published_name(fused.weights) if args.publish else fused.weights
    print(f'wrote {weights} and {fused.config}')


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


def main() -> None:
    args = parse_args()
    run: Callable[[argparse.Namespace], None] = args.run
    try:
        run(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
