"""Show where a backbone's time goes and how far it is from what the machine could do."""

from __future__ import annotations

import argparse

import torch

from repnext_mm.benchmark.environment import environment
from repnext_mm.benchmark.hot_spots import HotSpots, find_hot_spots
from repnext_mm.benchmark.jobs import parse_shape
from repnext_mm.benchmark.runtimes import DTYPES, MEMORY_FORMATS
from repnext_mm.benchmark.variants import build_train_form, in_form, resolved, variants


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='m4')
    parser.add_argument('--forms', nargs='+', default=['keep_norms', 'default', 'half', 'dense'], metavar='FORM')
    parser.add_argument('--shape', default='1x3x224x224', metavar='NxCxHxW')
    parser.add_argument('--memory-format', choices=MEMORY_FORMATS, default='contiguous')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--rounds', type=int, default=20)
    return parser.parse_args()


def table(found: dict[str, HotSpots]) -> list[str]:
    kinds = list(dict.fromkeys(kind for spots in found.values() for kind in spots.by_kind_ms))
    rows = [['', *found], ['---', *['---:'] * len(found)]]
    rows += [[kind, *(f'{spots.by_kind_ms.get(kind, 0):.2f}' for spots in found.values())] for kind in kinds]
    for name, value in {
        'sum of the above, profiled': lambda s: f'{sum(s.by_kind_ms.values()):.1f}',
        'latency, median': lambda s: f'{s.latency.median_ms:.1f}',
        'p10 to p90': lambda s: f'{s.latency.p10_ms:.1f} to {s.latency.p90_ms:.1f}',
        'arithmetic at the matrix rate': lambda s: f'{s.arithmetic_ms:.1f}',
        'convolutions at memory bandwidth': lambda s: f'{s.memory_ms:.1f}',
    }.items():
        rows.append([f'**{name}**', *(value(spots) for spots in found.values())])
    return [f'| {" | ".join(cells)} |' for cells in rows]


def main() -> None:
    args = parse_args()
    try:
        variants([args.arch], args.forms)
        image = torch.randn(parse_shape(args.shape)).to(args.device, DTYPES[args.dtype])
        image = image.contiguous(memory_format=MEMORY_FORMATS[args.memory_format])
        torch.set_num_threads(args.threads)
        torch.backends.cudnn.benchmark = True
        train_form = build_train_form(args.arch)
        found = {}
        for form in args.forms:
            network = in_form(train_form, resolved(train_form, form, image=image), image=image)
            found[form] = find_hot_spots(network, image, rounds=args.rounds)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    here = environment(image.device.type)
    best = max(found.values(), key=lambda spots: spots.matrix_gflops)
    print(
        f'{args.arch.upper()}, {args.shape}, {args.dtype}, {args.memory_format}; {here["device"]}, {args.threads} '
        f'threads: {best.matrix_gflops:.0f} GFLOP/s in matrix products, {best.bandwidth_gbs:.0f} GB/s in copies. '
        'Milliseconds per image.\n'
    )
    print('\n'.join(table(found)))


if __name__ == '__main__':
    main()
