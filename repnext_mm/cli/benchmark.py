"""Time RepNeXt in its forms, and its peers, interleaved and proved equal first; whole models; training."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from repnext_mm.cli import options
from repnext_mm.errors import FileInTheWayError, UserError
from repnext_mm.lab.bench.chart import plot_record
from repnext_mm.lab.bench.environment import environment
from repnext_mm.lab.bench.jobs import Job, parse_shape, plan, run_jobs
from repnext_mm.lab.bench.networks import AUTO, PARTS, PEERS, TRAIN_FORM, variants
from repnext_mm.lab.bench.record import check_same_machine, new_record, read_record, write_record
from repnext_mm.lab.bench.runtimes import DTYPES, MEMORY_FORMATS, RUNTIMES
from repnext_mm.lab.bench.tables import add_results, heading, inference_tables, training_table, whole_model_tables
from repnext_mm.lab.bench.training import SHAPES, measure_training_step
from repnext_mm.lab.bench.whole_model import measure_whole_model
from repnext_mm.models import FORMS
from repnext_mm.models.repnext import ARCHITECTURES

TRAIN_SHAPE = '512'
SEARCH = 0  # --throughput without a number
FIRST_BATCH = {'cuda': 1024, 'cpu': 32}


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group('what is timed')
    what.add_argument(
        '--arch', nargs='*', default=['m1', 'm4'], metavar='ARCH', help=f'from {", ".join(ARCHITECTURES)}'
    )
    what.add_argument(
        '--forms',
        nargs='+',
        default=[TRAIN_FORM, *FORMS],
        metavar='FORM',
        help=f'from {TRAIN_FORM} (the train form in eval mode), {", ".join(FORMS)}, and {AUTO} (per stage, the fastest '
        f'in eager PyTorch); default: all but {AUTO}',
    )
    what.add_argument(
        '--peers', nargs='*', default=[], metavar='NAME', help=f'fused networks of timm, or all: {", ".join(PEERS)}'
    )
    what.add_argument(
        '--part',
        choices=PARTS,
        default='backbone',
        help="backbone (default): feature maps; classifier: all that the authors' speed_gpu.py times, to 1000 scores",
    )
    what.add_argument(
        '--shape',
        nargs='+',
        metavar='NxCxHxW',
        help=f'default: 1x3x224x224; with --train {TRAIN_SHAPE}, or by name: {", ".join(SHAPES)}',
    )
    what.add_argument('--train', action='store_true', help='time training steps of --arch instead')
    what.add_argument('--config', help='time a whole detector or segmentor instead, part by part')
    what.add_argument('--checkpoint', help='weights of --config; random ones by default')
    what.add_argument('--image', help='image file for --config; a synthetic one by default')
    options.add_cfg_options(what)
    options.add_trust_pickle(what)
    how = parser.add_argument_group('how')
    how.add_argument('--runtime', nargs='+', default=['eager'], metavar='RUNTIME', help=f'from {", ".join(RUNTIMES)}')
    how.add_argument('--dtype', nargs='+', default=['float32'], metavar='DTYPE', help=f'from {", ".join(DTYPES)}')
    how.add_argument(
        '--memory-format', nargs='+', default=['contiguous'], metavar='FORMAT', help=f'from {", ".join(MEMORY_FORMATS)}'
    )
    how.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    options.add_threads(how)
    how.add_argument('--tf32', action='store_true', help='let float32 run in TF32 on a GPU')
    how.add_argument('--rounds', type=int, help='timed calls of each variant (default: 30 on a CPU, 100 on a GPU)')
    how.add_argument('--repeats', type=int, default=3, help='processes per setting, to see the spread between them')
    how.add_argument('--warmup-s', type=float, default=2.0, help='shortest warm-up of all variants, in seconds')
    how.add_argument('--warmup-rounds', type=int, help='shortest warm-up in rounds (default: 10 on a CPU, 50 on a GPU)')
    how.add_argument(
        '--throughput',
        type=int,
        nargs='?',
        const=SEARCH,
        metavar='BATCH',
        help='time batches of this size too; without a size, the largest that fits all variants '
        f'(halved from {FIRST_BATCH["cuda"]} on a GPU, {FIRST_BATCH["cpu"]} on a CPU)',
    )
    out = parser.add_argument_group('where results go')
    out.add_argument(
        '--output',
        metavar='DIR/NAME',
        help='writes NAME.json after each process, at the end NAME.md and NAME.RUNTIME.png; default: '
        'work_dirs/benchmark/ and inference, training or whole_model',
    )
    out.add_argument('--resume', action='store_true', help='go on with DIR/NAME.json after an interruption')
    out.add_argument('--render', metavar='FILE.json', help='only write the table and the plots of a record again')


def run(args: argparse.Namespace) -> int:
    """Measure, or render a record; 1 if a process failed."""
    try:
        if args.render:
            render(read_record(args.render), Path(args.render))
            return 0
        return run_other(args) if args.train or args.config else run_inference(args)
    except KeyboardInterrupt:
        print('stopped; the same command with --resume goes on', file=sys.stderr)
        raise


def run_inference(args: argparse.Namespace) -> int:
    device = device_of(args)
    cuda, search = device == 'cuda', args.throughput == SEARCH
    chosen = {
        'rounds': args.rounds if args.rounds is not None else 100 if cuda else 30,
        'warmup_rounds': args.warmup_rounds if args.warmup_rounds is not None else 50 if cuda else 10,
        'warmup_s': args.warmup_s,
        'threads': args.threads if args.threads is not None else torch.get_num_threads(),
        'device': device,
        'tf32': args.tf32,
    }
    peers = PEERS if args.peers == ['all'] else args.peers
    jobs, skipped = plan(
        variants(args.arch, args.forms if args.arch else [], peers, part=args.part),
        runtimes=args.runtime,
        shapes=[parse_shape(shape) for shape in args.shape or ['1x3x224x224']],
        dtypes=args.dtype,
        memory_formats=args.memory_format,
        throughput=FIRST_BATCH[device] if search else args.throughput,
        search_batch=search,
        **chosen,
    )
    for line in skipped:
        print(f'left out: {line}')
    path = output_of(args, 'inference')
    torch.set_num_threads(chosen['threads'])
    here = environment(device)
    if args.resume and path.exists():
        record = read_record(path)
        check_same_machine(record, here)
    elif path.exists():
        raise FileInTheWayError(f'{path} exists: go on with it by --resume, or name another --output')
    else:
        settings = {'title': f'Inference on {here["device"]}', 'repeats': args.repeats, **chosen}
        record = new_record(shlex.join(args.called), here, settings)
    record['skipped'] = skipped
    write_record(record, path)  # now, so that a folder that cannot be written is known before the work
    failures = with_bar(
        jobs, args.repeats, lambda progress: run_jobs(jobs, record, path, repeats=args.repeats, progress=progress)
    )
    for line in failures:
        print(f'failed: {line}')
    render(record, path)
    return 1 if failures else 0


def run_other(args: argparse.Namespace) -> int:
    """Training steps or whole models, in this process; each repeat starts from the beginning."""
    device, kind = device_of(args), 'training' if args.train else 'whole_model'
    path = output_of(args, kind)
    if path.exists():
        raise FileInTheWayError(f'{path} exists: name another --output')
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    rounds = args.rounds if args.rounds is not None else 20
    times: dict[str, Any] = {'rounds': rounds, 'warmup_s': args.warmup_s, 'device': device}
    if args.warmup_rounds is not None:
        times['warmup_rounds'] = args.warmup_rounds
    measure = (
        training_calls(args)
        if args.train
        else [
            partial(
                measure_whole_model,
                args.config,
                args.checkpoint,
                image=args.image,
                options=args.cfg_options,
                trust_pickle=args.trust_pickle,
            )
        ]
    )
    record = new_record(shlex.join(args.called), environment(device), {'kind': kind, 'repeats': args.repeats, **times})
    results: list[Any] = []
    with progress_bar() as bar:
        task = bar.add_task(kind, total=rounds * args.repeats * len(measure))
        for call in [call for _ in range(args.repeats) for call in measure]:
            results.append(call(**times, progress=lambda: bar.update(task, advance=1)))
            add_results(record, results[-1:])
            write_record(record, path)
    table = (training_table if args.train else whole_model_tables)(results)
    path.with_suffix('.md').write_text('\n'.join([*heading(record, kind.replace('_', ' ')), table]) + '\n')
    print(table, f'\nwrote {path} and {path.with_suffix(".md")}')
    return 0


def training_calls(args: argparse.Namespace) -> list[Callable[..., Any]]:
    shapes = [SHAPES.get(shape) or parse_shape(shape) for shape in args.shape or [TRAIN_SHAPE]]
    unknown = [runtime for runtime in args.runtime if runtime not in ('eager', 'compile')]
    if unknown:
        raise UserError(f'--train with --runtime {unknown[0]}: networks train in eager or compile')
    return [
        partial(
            measure_training_step,
            arch,
            shape=shape,
            dtype=dtype,
            memory_format=memory_format,
            compile=runtime == 'compile',
        )
        for runtime, arch, shape, dtype, memory_format in product(
            args.runtime, args.arch, shapes, args.dtype, args.memory_format
        )
    ]


def device_of(args: argparse.Namespace) -> str:
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: PyTorch sees no GPU here, choose --device cpu')
    return args.device or options.best_device()


def output_of(args: argparse.Namespace, kind: str) -> Path:
    return Path(f'{args.output or f"work_dirs/benchmark/{kind}"}.json')


def with_bar(jobs: list[Job], repeats: int, work: Callable[[Callable[[str, int], None]], list[str]]) -> list[str]:
    with progress_bar() as bar:
        task = bar.add_task('starting', total=repeats * sum(job.steps for job in jobs))
        return work(lambda text, made: bar.update(task, description=text, advance=made))


def progress_bar() -> Progress:
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def render(record: dict[str, Any], path: Path) -> None:
    table = path.with_suffix('.md')
    table.write_text(inference_tables(record))
    for file in (path, table, *plot_record(record, path.with_suffix(''))):
        print(f'wrote {file}')
