"""Parts of the demo: the table, the comparison of scores, the reuse of a training."""

from pathlib import Path

import pytest

from repnext_mm.lab.demo import run

CONFIG = Path(__file__).parents[3] / 'configs' / 'mask_rcnn_repnext_m0_digits.py'


def test_table_is_aligned_markdown():
    rows = {'box AP': (0.51234, 0.5124), 'backbone parameters': (2073200, 2007080), 'latency, ms': (12.34, 9.8)}
    assert run.format_table(rows).splitlines() == [
        '|                     | train form |     fused |',
        '| ------------------- | ---------: | --------: |',
        '| box AP              |      0.512 |     0.512 |',
        '| backbone parameters |  2,073,200 | 2,007,080 |',
        '| latency, ms         |       12.3 |       9.8 |',
    ]


@pytest.mark.parametrize('fused', [0.4985, float('nan')])
def test_a_changed_score_is_an_error(fused):
    with pytest.raises(RuntimeError, match=r'box AP is 0\.5000 in train form but (0\.4985|nan) fused: they may differ'):
        run.check_scores({'box AP': (0.5, fused)})


def test_equal_scores_pass():
    run.check_scores({'box AP': (0.5, 0.4995), 'mask AP': (0.0, 0.0)})


@pytest.fixture
def trainings(monkeypatch):
    """Counts trainings, which only leave a checkpoint behind."""
    done = []

    def pretend(config):
        done.append(config)
        work_dir = Path(config.work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
        (work_dir / 'epoch_1.pth').touch()
        (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))

    monkeypatch.setattr(run, 'run_training', pretend)
    return done


def test_a_finished_training_is_used_again(tmp_path, trainings):
    first = run.trained(CONFIG, tmp_path, {}, fresh=False)
    assert run.trained(CONFIG, tmp_path, {}, fresh=False) == first
    assert len(trainings) == 1
    assert first[0] == tmp_path / 'epoch_1.pth'


@pytest.mark.parametrize(
    ('options', 'fresh', 'lost'),
    [({}, True, None), ({'train_cfg.max_epochs': 9}, False, None), ({}, False, 'epoch_1.pth')],
    ids=['fresh', 'other config', 'lost checkpoint'],
)
def test_otherwise_it_trains_again(tmp_path, trainings, options, fresh, lost):
    run.trained(CONFIG, tmp_path, {}, fresh=False)
    if lost:
        (tmp_path / lost).unlink()
    run.trained(CONFIG, tmp_path, options, fresh=fresh)
    assert len(trainings) == 2


def test_an_interrupted_training_is_not_taken_for_finished(tmp_path, trainings, monkeypatch):
    run.trained(CONFIG, tmp_path, {}, fresh=False)

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, 'run_training', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.trained(CONFIG, tmp_path, {}, fresh=True)
    assert not (tmp_path / 'trained.json').exists()
