"""`resume` without a path goes on from the newest whole checkpoint."""

from __future__ import annotations

import os

import pytest

from repnext_mm.hooks.resume import NoWholeCheckpointError, has_begun, is_whole, newest_whole, step_of
from tests.hooks.tiny_run import make_runner


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('three') / 'run'
    make_runner(folder, length=3, scores=[1.0, 2.0, 3.0]).train()
    return folder


@pytest.fixture
def folder(run, tmp_path):
    """The run's checkpoints, best one and record, a second apart."""
    record = (run / 'last_checkpoint').read_text()
    for second, name in enumerate(['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'best_score_epoch_3.pth']):
        (tmp_path / name).write_bytes((run / name).read_bytes())
        os.utime(tmp_path / name, (second, second))
    (tmp_path / 'last_checkpoint').write_text(record.replace(str(run), str(tmp_path)))
    os.utime(tmp_path / 'last_checkpoint', (10, 10))
    return tmp_path


def choose(folder, template='epoch_{}.pth'):
    return newest_whole(work_dir=folder, folder=folder, template=template)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    """What a power cut leaves: the length is right, a page is not."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 512] = bytes(512)
    path.write_bytes(content)


DAMAGES = {'truncated': truncate, 'zeros': zero, 'empty': lambda path: path.write_bytes(b''), 'gone': os.remove}


def test_the_recorded_one(folder):
    assert choose(folder) == (str(folder / 'epoch_3.pth'), '')


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_torn_one_is_passed_over(damage, folder):
    time = os.stat(folder / 'epoch_3.pth').st_mtime
    DAMAGES[damage](folder / 'epoch_3.pth')
    if damage != 'gone':
        assert not is_whole(folder / 'epoch_3.pth')
        os.utime(folder / 'epoch_3.pth', (time, time))
    path, note = choose(folder)
    assert path == str(folder / 'epoch_2.pth')
    assert "epoch_3.pth', which is missing or torn: '" in note


@pytest.mark.parametrize('text', ['', '/no/such/epoch_9.pth', 'epo', '\0\0\0', 'x' * 5000])
def test_a_torn_record(text, folder):
    (folder / 'last_checkpoint').write_text(text)
    path, note = choose(folder)
    assert path == str(folder / 'epoch_3.pth')
    assert 'last_checkpoint names' in note


def test_no_record(folder):
    (folder / 'last_checkpoint').unlink()
    path, note = choose(folder)
    assert path == str(folder / 'epoch_3.pth')
    assert 'there is no last_checkpoint' in note


def test_a_checkpoint_that_was_not_yet_recorded(folder):
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    os.utime(folder / 'last_checkpoint', (1, 1))
    path, note = choose(folder)
    assert path == str(folder / 'epoch_3.pth')
    assert "'epoch_3.pth' is newer than 'epoch_2.pth'" in note


def test_a_later_step_of_an_older_run_is_not_taken(folder):
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    os.utime(folder / 'last_checkpoint', (10, 10))  # epoch_3 was there before
    assert choose(folder) == (str(folder / 'epoch_2.pth'), '')


def test_nothing_whole_is_an_error_and_nothing_at_all_is_not(folder, tmp_path):
    for path in folder.glob('epoch_*.pth'):
        truncate(path)
    with pytest.raises(NoWholeCheckpointError, match=r'no whole checkpoint: restore one, or delete .*last_ch'):
        choose(folder)
    assert choose(tmp_path / 'nowhere') == (None, '')


def test_a_store_is_asked_as_it_is(folder):
    (folder / 'last_checkpoint').write_text('s3://bucket/epoch_3.pth\n')
    assert choose(folder) == ('s3://bucket/epoch_3.pth', '')


def test_training_goes_on_from_it(folder):
    truncate(folder / 'epoch_3.pth')
    runner = make_runner(folder, length=2, resume=True)
    runner.train()
    assert runner._load_from == str(folder / 'epoch_2.pth')
    assert (runner.epoch, runner.iter) == (2, 4)


def test_training_starts_where_there_is_none(tmp_path):
    runner = make_runner(tmp_path, length=1, resume=True)
    runner.train()
    assert runner._load_from is None
    assert (runner.epoch, runner.iter) == (1, 2)


TEMPLATES = [
    'epoch_{}.pth',
    '{}',
    '{}.pt',
    'ckpt-{:04d}.ckpt',
    'run.{0}.tar',
    '{:x}.bin',
    'at {:,}',
    'a/{}/w.pth',
    'last.pth',
    'model[1]*{}.pth',
    '{{x}}_{}.pth',
    'x/iter_{:08d}',
]


@pytest.mark.parametrize('template', TEMPLATES)
def test_steps_of_any_template(template):
    for step in (0, 1, 12, 1500, 123456):
        expected = step if template.format(step) != template.format(step + 1) else 0
        assert step_of(template.format(step), template) == expected
    for name in ('', 'epoch_x.pth', 'best_score_epoch_3.pth', 'x' * 5000):
        assert step_of(name, template) is None


@pytest.mark.parametrize('template', TEMPLATES)
def test_names_of_any_template(template, run, tmp_path):
    """The record first; without it, or when it is torn, what the template finds."""
    for step in (1, 2, 10):
        path = tmp_path / template.format(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((run / 'epoch_1.pth').read_bytes())
        os.utime(path, (step, step))
    newest, before = (str(tmp_path / template.format(step)) for step in (10, 2))
    assert choose(tmp_path, template).path == newest
    (tmp_path / 'last_checkpoint').write_text(newest)
    assert choose(tmp_path, template) == (newest, '')
    (tmp_path / 'last_checkpoint').write_text('/moved/' + template.format(10))
    assert choose(tmp_path, template).path == newest
    if newest != before:
        truncate(tmp_path / template.format(10))
        assert choose(tmp_path, template).path == before


def test_a_moved_run_goes_on_from_its_own_files(folder, run):
    """Also while those at the old place are still there."""
    (folder / 'last_checkpoint').write_text(str(run / 'epoch_2.pth'))
    os.utime(folder / 'last_checkpoint', (10, 10))
    path, note = choose(folder)
    assert path == str(folder / 'epoch_2.pth')
    assert 'in another folder' in note


def test_a_relative_record_of_another_folder(folder, monkeypatch):
    (folder / 'last_checkpoint').write_text('work_dirs/run/epoch_3.pth')
    os.utime(folder / 'last_checkpoint', (10, 10))
    assert choose(folder).path == str(folder / 'epoch_3.pth')


def test_a_run_that_counted_otherwise_before(folder):
    """By epochs first, by iterations now."""
    assert choose(folder, 'iter_{}.pth') == (str(folder / 'epoch_3.pth'), '')
    (folder / 'last_checkpoint').unlink()
    assert choose(folder, 'iter_{}.pth').path == str(folder / 'epoch_3.pth')
    (folder / 'iter_9.pth').write_bytes((folder / 'epoch_3.pth').read_bytes())
    assert choose(folder, 'epoch_{}.pth').path == str(folder / 'iter_9.pth')


def test_whether_a_run_has_begun(folder, tmp_path):
    assert has_begun(work_dir=folder, folder=folder, template='epoch_{}.pth')
    assert not has_begun(work_dir=tmp_path / 'new', folder=tmp_path / 'new', template='{}')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/pretrained.pth').touch()
    assert not has_begun(work_dir=tmp_path / 'other', folder=tmp_path / 'other', template='epoch_{}.pth')
    (tmp_path / 'other/7.ckpt').touch()
    assert has_begun(work_dir=tmp_path / 'other', folder=tmp_path / 'other', template='{}.ckpt')


@pytest.mark.parametrize('template', ['last.pth', '{}/w.pth', '{}'])
def test_training_saves_and_goes_on_under_any_template(template, tmp_path):
    make_runner(tmp_path / 'run', length=2, filename_tmpl=template, max_keep_ckpts=1).train()
    assert (tmp_path / 'run' / template.format(2)).is_file()
    runner = make_runner(tmp_path / 'run', length=3, filename_tmpl=template, max_keep_ckpts=1, resume=True)
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 6)
    assert runner._load_from == str(tmp_path / 'run' / template.format(2))
    assert (tmp_path / 'run' / template.format(3)).is_file()
    assert template == 'last.pth' or not (tmp_path / 'run' / template.format(2)).exists()
