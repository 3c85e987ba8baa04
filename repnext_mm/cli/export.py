"""Write a fused model for a runtime (ONNX, OpenVINO, ncnn, ...), compared with the model as it was trained."""

from __future__ import annotations

import argparse

from repnext_mm.cli import options
from repnext_mm.export import DEFAULT_OPSET, OPSETS, PARTS, SUFFIXES, ExportedPart, export_part
from repnext_mm.export.quantize import QUANTIZERS


def add_options(parser: argparse.ArgumentParser) -> None:
    ends = ', '.join(f'{"/".join(suffixes)} ({format})' for format, suffixes in SUFFIXES.items())
    parser.add_argument('source', help='config file, or an arch such as m1')
    parser.add_argument('out', help=f'the file; its end names the format: {ends}')
    parser.add_argument('--checkpoint', help='weights of the model, or of anything with this backbone')
    parser.add_argument(
        '--part',
        choices=PARTS,
        help="backbone: feature maps, the default of an arch; classifier: scores, for an arch those of the authors' "
        'ImageNet classifier; model: all that a config describes, the default of a config',
    )
    parser.add_argument(
        '--form',
        help='deploy form, or auto: the fastest in this runtime, measured (default: default; with --int8 balanced)',
    )
    parser.add_argument(
        '--shape',
        nargs=4,
        type=int,
        default=(1, 3, 224, 224),
        metavar=('N', 'C', 'H', 'W'),
        help='input to trace and to compare with (default: 1 3 224 224)',
    )
    parser.add_argument(
        '--static', action='store_true', help='this shape only, as ExecuTorch and LiteRT want (default: any)'
    )
    parser.add_argument(
        '--normalize',
        action=argparse.BooleanOptionalAction,
        help='mean and std inside the graph, which then takes RGB pixels from 0 to 255 (default: detectors, Core ML)',
    )
    parser.add_argument(
        '--uint8', action='store_true', help='the input is pixels in uint8, normalized in the graph (default: float)'
    )
    parser.add_argument(
        '--opset',
        type=int,
        metavar='N',
        help=f'version of ONNX, {OPSETS[0]} to {OPSETS[-1]} with this torch (default: {DEFAULT_OPSET})',
    )
    parser.add_argument('--half', action='store_true', help='weights in float16 (ONNX, OpenVINO): half the size')
    parser.add_argument('--int8', action='store_true', help='quantize (ONNX, OpenVINO), calibrated on --data')
    parser.add_argument(
        '--bf16',
        action='store_true',
        help='compute in bfloat16, but for coordinates of boxes (OpenVINO, where the processor multiplies it)',
    )
    parser.add_argument(
        '--quantizer',
        choices=QUANTIZERS,
        help='what quantizes for --int8; nncf writes .xml only (default: onnxruntime)',
    )
    parser.add_argument(
        '--data',
        help='a config: the metric of its test set, of the model and of the file, decides, and its training set '
        'calibrates --int8; or a folder of images to calibrate with',
    )
    parser.add_argument(
        '--images', type=int, default=300, help='images of --data to use, at most (default: %(default)s)'
    )
    parser.add_argument(
        '--max-drop', type=float, help='largest loss of a metric, from 0 to 1 (default: 0.001, with --int8 0.005)'
    )
    parser.add_argument('--threads', type=int, help='CPU threads of the runtime that --form auto measures in')
    options.add_trust_pickle(parser)
    options.add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    if args.form != 'auto':
        options.refuse_unread(args, add_options, ['threads'], 'without --form auto')
    if args.data is None:
        options.refuse_unread(args, add_options, ['images'], 'without --data')
    done = export_part(
        args.source,
        args.out,
        checkpoint=args.checkpoint,
        part=args.part,
        form=args.form,
        shape=args.shape,
        dynamic=not args.static,
        normalize=args.normalize,
        uint8=args.uint8,
        threads=args.threads,
        opset=args.opset,
        half=args.half,
        int8=args.int8,
        bf16=args.bf16,
        quantizer=args.quantizer,
        data=args.data,
        images=args.images,
        max_drop=args.max_drop,
        trust_pickle=args.trust_pickle,
        options=args.cfg_options,
    )
    show(done, random=args.checkpoint is None)


def show(done: ExportedPart, *, random: bool) -> None:
    if done.choice is not None:
        times = ', '.join(
            f'{form} {latency.median_ms:.2f} ms (p10 {latency.p10_ms:.2f}, p90 {latency.p90_ms:.2f}, n {latency.n})'
            for form, latency in done.choice.latencies.items()
        )
        print(f'auto: {done.form} is the fastest of {times}')
        for form, reason in done.choice.refused.items():
            print(f'auto: {form} was left out: {reason}')
    if random:
        print('weights: random, since no --checkpoint was given')
    report = done.export
    errors = ', '.join(f'{name} {error:.1e}' for name, error in report.errors.items())
    shapes = ' and '.join('x'.join(map(str, shape)) for shape in report.shapes)
    opset = '' if report.opset is None else f' opset {report.opset}'
    verb = 'replaced' if report.replaced else 'wrote'
    print(
        f'{verb} {report.path} ({report.format}{opset}, {report.size_bytes / 1e6:.1f} MB), form {done.form}, '
        f'relative error in {report.checked_in} at {shapes}: {errors}'
    )
    if report.calibrated_with:
        noise = report.signal_to_noise_db
        print(
            f'int8: calibrated with {report.calibrated_with} images; the errors above are those in float'
            + ('' if noise is None else f'; in int8, {noise:.1f} dB of signal to noise')
        )
    if report.accuracy is None:
        print('accuracy: not known, since no config was given as --data')
        return
    pairs = ', '.join(
        f'{name} {value:.4f} of the model, {report.accuracy.exported[name]:.4f} of the file'
        for name, value in report.accuracy.model.items()
    )
    print(f'accuracy on {report.accuracy.images} images: {pairs}')
