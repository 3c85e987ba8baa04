"""Jobs, workers that die, records that are whole at any time."""

import json
import os
import sys
from dataclasses import replace

import pytest
import torch

from repnext_mm.lab.bench import worker
from repnext_mm.lab.bench.jobs import Job, failures_of, parse_shape, plan, run_job, run_jobs
from repnext_mm.lab.bench.networks import Variant
from repnext_mm.lab.bench.record import check_same_machine, new_record, read_record, write_record

JOB = Job('eager', (1, 3, 64, 64), 'float32', 'contiguous', (Variant('m0', 'default'), Variant('m0', 'half')), rounds=2)
QUICK = replace(JOB, warmup_rounds=0, warmup_s=0.0)
SETTINGS = dict(device='cpu', repeats=1, rounds=2, warmup_s=0.0, warmup_rounds=0)
OPTIONS = dict(runtimes=['eager'], shapes=[(1, 3, 64, 64)], dtypes=['float32'], memory_formats=['contiguous'])


def fake_worker(code):
    return [sys.executable, '-c', f'import json, os, sys\njob = json.loads(sys.argv[1])\n{code}']


ANSWER = """
print('preparing', flush=True)
row = dict(status='measured', error=0.0, parameters=1, norms=0, times_ms=[1.0, 3.0])
rows = [dict(row, model=model, form=form) for model, form in job['variants']]
print(json.dumps(dict(batch=1, warmup_rounds=1, variants=rows, environment={'device': 'fake'})))
"""


@pytest.fixture
def record():
    return new_record('python tools/benchmark.py', {'device': 'here'}, dict(SETTINGS))


@pytest.fixture
def measured(monkeypatch):
    """Runs a job in this process, its effects on torch undone; gives its result and what it said."""
    threads = torch.get_num_threads()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32

    def run(job):
        said = []
        return worker.measure(job, said.append), said

    yield run
    torch.set_num_threads(threads)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = flags


def test_variants_are_timed_in_turn(measured, monkeypatch):
    seen = []
    original = worker.prepare

    def prepare(network, image, **options):
        run, index = original(network, image, **options), len(prepared)
        prepared.append(run)
        return lambda: (seen.append(index), run())[1]

    prepared = []
    monkeypatch.setattr(worker, 'prepare', prepare)
    result, said = measured(QUICK)
    assert seen == [0, 1, *[0, 1, 2, 3] * 2]  # each proved once, then two rounds of both, and of the floor's two stacks
    assert said == ['preparing m0/default', 'preparing m0/half', 'preparing the floor', 'warming up', *['timing'] * 2]
    assert [len(row['times_ms']) for row in result['variants']] == [2, 2]
    assert all(row['error'] <= 1e-5 for row in result['variants'])
    assert result['warmup_rounds'] == 0
    default, half = (row['pointwise_macs'] for row in result['variants'])
    assert default == half > 1e6
    assert [(stack['macs'], len(stack['times_ms'])) for stack in result['stacks']] == [
        (6 * channels**2 * size**2, 2) for channels, size in ((192, 32), (384, 32))
    ]


def test_a_variant_that_differs_is_reported_and_not_timed(measured, monkeypatch):
    original = worker.in_form

    def in_form(train_form, form, *, image):
        network = original(train_form, form, image=image)
        if form == 'half':
            next(network.parameters()).data.mul_(1.5)
        return network

    monkeypatch.setattr(worker, 'in_form', in_form)
    rows = measured(QUICK)[0]['variants']
    assert [row['status'] for row in rows] == ['measured', 'failed']
    assert 'differs from the float32 train form by' in rows[1]['reason']
    assert ['times_ms' in row for row in rows] == [True, False]


def test_the_batch_is_halved_until_everything_fits(measured, monkeypatch):
    original = worker.prepare

    def prepare(network, image, **options):
        if len(image) > 2:
            raise MemoryError
        return original(network, image, **options)

    monkeypatch.setattr(worker, 'prepare', prepare)
    job = replace(QUICK, mode='throughput', shape=(8, 3, 64, 64), search_batch=True)
    result, said = measured(job)
    assert result['batch'] == 2
    assert said[:4] == ['preparing m0/default'] * 3 + ['preparing m0/half']
    assert [row['status'] for row in result['variants']] == ['measured'] * 2
    monkeypatch.setattr(worker, 'prepare', lambda *args, **options: (_ for _ in ()).throw(MemoryError()))
    rows = measured(replace(job, search_batch=False))[0]['variants']
    assert [row['reason'] for row in rows] == ['out of memory'] * 2


def test_progress_and_results_of_a_worker():
    made = []
    run = run_job(QUICK, progress=lambda text, step: made.append(step), worker=fake_worker(ANSWER))
    assert run['status'] == 'measured'
    assert [row['times_ms'] for row in run['variants']] == [[1.0, 3.0]] * 2
    assert sum(made) == QUICK.steps == 5


@pytest.mark.parametrize(
    ('code', 'reason'),
    [
        (
            "print('preparing m0/half', flush=True); os.kill(os.getpid(), 9)",
            'the process was ended by SIGKILL (the system kills what takes too much memory) while preparing m0/half',
        ),
        (
            r"raise RuntimeError('CUDA error: a\nCompile with b')",
            'the process ended with status 1 (RuntimeError: CUDA error: a) while starting',
        ),
        ("raise SystemExit('no such thing')", 'the process ended with status 1 (no such thing) while starting'),
        ('print("{\\"batch\\": ", flush=True)', 'the process ended with status 0 while starting'),
    ],
    ids=['killed', 'raised, with more lines', 'exited', 'cut short'],
)
def test_a_worker_that_dies_is_a_row(code, reason, record, tmp_path):
    failures = run_jobs([QUICK], record, tmp_path / 'r.json', worker=fake_worker(code))
    assert failures == [f'eager 1x3x64x64 float32 contiguous, repeat 1: {reason}']
    (run,) = read_record(tmp_path / 'r.json')['runs']
    assert [row['status'] for row in run['variants']] == ['failed', 'failed']
    assert {row['reason'] for row in run['variants']} == {reason}


def test_an_interrupted_run_goes_on(record, tmp_path):
    path, other = tmp_path / 'r.json', replace(QUICK, shape=(1, 3, 96, 96))
    fails_for_other = f"if job['shape'][2] == 96: sys.exit('interrupted')\n{ANSWER}"
    assert len(run_jobs([QUICK, other], record, path, repeats=2, worker=fake_worker(fails_for_other))) == 2
    again = read_record(path)
    assert [run['status'] for run in again['runs']] == ['measured', 'failed'] * 2
    calls = tmp_path / 'calls'
    counted = f"open({str(calls)!r}, 'a').write(str(job['shape'][2]) + ' ')\n{ANSWER}"
    assert run_jobs([QUICK, other], again, path, repeats=2, worker=fake_worker(counted)) == []
    assert calls.read_text().split() == ['96', '96']
    assert sorted((run['job']['shape'][2], run['repeat']) for run in read_record(path)['runs']) == [
        (64, 0),
        (64, 1),
        (96, 0),
        (96, 1),
    ]


def test_a_record_is_replaced_whole_or_not_at_all(record, tmp_path, monkeypatch):
    path = tmp_path / 'folder' / 'r.json'
    record['runs'] = [{'times_ms': [1.23456, 2.0], 'name': 'x'}]
    write_record(record, path)
    text = path.read_text()
    assert '"times_ms": [1.2346, 2.0]' in text
    assert json.loads(text)['runs'] == [{'times_ms': [1.2346, 2.0], 'name': 'x'}]

    def full(*names):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='disk full'):
        write_record({**record, 'runs': []}, path)
    assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ['r.json']


def test_records_of_another_kind_or_machine_are_refused(record, tmp_path):
    with pytest.raises(ValueError, match='no benchmark record at'):
        read_record(tmp_path / 'none.json')
    (tmp_path / 'bad.json').write_text('{')
    with pytest.raises(ValueError, match='is not JSON'):
        read_record(tmp_path / 'bad.json')
    (tmp_path / 'other.json').write_text('[]')
    with pytest.raises(ValueError, match='is not an inference record'):
        read_record(tmp_path / 'other.json')
    with pytest.raises(ValueError, match="cannot resume: the record was measured with device 'here', this is 'there'"):
        check_same_machine(record, {'device': 'there'})


def test_what_cannot_be_measured_is_left_out_with_a_line():
    options = {**OPTIONS, 'runtimes': ['cudagraph', 'eager', 'torchscript']}
    options['dtypes'] = ['float32', 'bfloat16', 'native', 'int8', 'int8-nncf']
    jobs, skipped = plan((Variant('m0', 'train'), Variant('m0', 'half')), **options, throughput=4)
    assert [job.name for job in jobs] == [
        'eager 1x3x64x64 float32 contiguous',
        'eager 1x3x64x64 bfloat16 contiguous',
        'torchscript 1x3x64x64 float32 contiguous',
        'throughput eager 4x3x64x64 float32 contiguous',
        'throughput eager 4x3x64x64 bfloat16 contiguous',
        'throughput torchscript 4x3x64x64 float32 contiguous',
    ]
    assert jobs[2].variants == (Variant('m0', 'half'),)
    assert 'cudagraph 1x3x64x64 float32 contiguous: CUDA graphs need --device cuda' in skipped
    assert 'eager 1x3x64x64 native contiguous: only OpenVINO chooses its precision itself' in skipped
    assert 'eager 1x3x64x64 int8 contiguous: int8 runs in onnxruntime and openvino' in skipped
    assert 'torchscript 1x3x64x64 int8-nncf contiguous: NNCF quantizes for OpenVINO' in skipped
    assert len(skipped) == 1 + 2 * (5 + 3 + 4)


@pytest.mark.parametrize(
    ('runtime', 'dtype'),
    [pytest.param('onnxruntime', 'int8', marks=pytest.mark.slow), ('openvino', 'int8'), ('openvino', 'int8-nncf')],
)
def test_int8_is_timed_where_it_is_that_network(runtime, dtype):
    for package in ('onnxscript', 'onnxruntime', 'openvino', *(['nncf'] if dtype == 'int8-nncf' else [])):
        pytest.importorskip(package)
    variants = (Variant('m0', 'balanced'), *([Variant('repvit_m0_9', 'fused')] if runtime == 'onnxruntime' else []))
    result = run_job(replace(QUICK, runtime=runtime, dtype=dtype, variants=variants))
    for row in result['variants']:
        assert row['status'] == 'measured', row
        assert len(row['times_ms']) == QUICK.rounds
        assert 1e-3 < row['error'] < row['tolerance'] <= worker.TOLERANCE_INT8  # float32 would be at 1e-6


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(runtimes=['onnx']), "unknown runtime 'onnx': choose from eager"),
        (dict(dtypes=['int4']), "unknown dtype 'int4'"),
        (dict(memory_formats=['last']), "unknown memory format 'last'"),
        (dict(shapes=[(1, 3, 16, 64)]), 'cannot time images of shape 1x3x16x64'),
        (dict(rounds=0), 'rounds=0'),
        (dict(throughput=0), 'a throughput batch of 0'),
        (dict(runtimes=['cudagraph']), 'nothing is left to measure: cudagraph'),
    ],
    ids=['runtime', 'dtype', 'memory format', 'shape', 'rounds', 'batch', 'nothing left'],
)
def test_what_makes_no_job_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan((Variant('m0', 'half'),), **{**OPTIONS, **options})


def test_shapes_are_read():
    assert parse_shape('3x224x320') == parse_shape('1x3x224x320') == (1, 3, 224, 320)
    with pytest.raises(ValueError, match="'224' is not a shape"):
        parse_shape('224')


def test_failures_name_the_variant():
    run = {
        'status': 'measured',
        'batch': 1,
        'repeat': 0,
        'job': json.loads(json.dumps(vars(JOB))),
        'variants': [{'model': 'm0', 'form': 'half', 'status': 'failed', 'reason': 'too odd'}],
    }
    assert failures_of(run) == ['eager 1x3x64x64 float32 contiguous, repeat 1: m0/half: too odd']
    with pytest.raises(ValueError, match='repeats=0'):
        run_jobs([JOB], {'runs': []}, 'r.json', repeats=0)
