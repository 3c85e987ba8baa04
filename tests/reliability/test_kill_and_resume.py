"""Trainings that are killed again and again end where one that is left alone ends, to the last bit.

``REPNEXT_MM_KILLS`` is the number of kills over the three tasks (51), ``REPNEXT_MM_RELIABILITY_LOGS`` the folder for
``kills.log``, with a line for every kill, and ``kills-TASK.json``.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from repnext_mm.checkpoints import read_checkpoint
from tests.reliability.kill_tasks import TASKS, KillTask
from tests.reliability.killing import Training, drafts, newest, recorded_at

KILLS = -(-int(os.environ.get('REPNEXT_MM_KILLS', 51)) // len(TASKS))
INSIDE_A_WRITE = KILLS // 4  # at least
AIMS = ('write', 'train', 'write', 'validate', 'write', 'train', 'start')  # in turn
LENGTH = 6 + 2 * KILLS  # checkpoints of a whole training; it has to be longer than the kills let it come


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS, ids=lambda task: task.name)
def test_killed_again_and_again(task: KillTask, tmp_path: Path):
    logs = Path(os.environ.get('REPNEXT_MM_RELIABILITY_LOGS', tmp_path))
    logs.mkdir(parents=True, exist_ok=True)
    config = task.write_config(tmp_path, length=LENGTH)
    began = time.monotonic()
    with Training(config, tmp_path / 'whole', tmp_path / 'whole.log', resume=False) as training:
        training.finish()
    whole_s = time.monotonic() - began

    chance = random.Random(f'{task.name} {KILLS}')
    cut, kills, expected = tmp_path / 'cut', [], None
    for number in range(KILLS):
        aim = AIMS[number % len(AIMS)]
        with Training(config, cut, tmp_path / f'cut_{number}.log', resume=True) as training:
            wait_and_kill(training, aim, chance)
            resumed = training.resumed()
            if training.doing() != 'starting':
                assert resumed == (expected and expected[1:])
            left, found = drafts(cut), newest(cut)
            kills.append(
                dict(
                    task=task.name,
                    kill=number + 1,
                    aim=aim,
                    doing=training.doing(),
                    draft_left=left,
                    resumed_from=expected and expected[0],
                    resumed=resumed,
                    newest_whole=found and found[0],
                )
            )
        with (logs / 'kills.log').open('a') as file:
            file.write(line(kills[-1]))
        assert found is None or expected is None or found[1:] >= expected[1:]
        expected = found
    with Training(config, cut, tmp_path / 'cut_end.log', resume=True) as training:
        training.finish()
        assert training.resumed() == (expected and expected[1:])

    compared = compare(tmp_path / 'whole', cut, task.last(length=LENGTH))
    inside = sum(bool(kill['draft_left']) for kill in kills)
    summary = dict(
        task=task.name,
        kills=len(kills),
        inside_a_write=inside,
        checkpoints=LENGTH,
        seconds_uninterrupted=whole_s,
        seconds=time.monotonic() - began,
        tensors_equal=compared,
        list=kills,
    )
    (logs / f'kills-{task.name}.json').write_text(json.dumps(summary, indent=1))
    assert not drafts(cut)
    assert inside >= INSIDE_A_WRITE


def wait_and_kill(training: Training, aim: str, chance: random.Random) -> None:
    """Kill at a random moment of a kind."""
    before, folder = recorded_at(training.work_dir), training.work_dir
    if aim == 'start':
        time.sleep(chance.uniform(0.5, 6))
    elif aim == 'write':
        if chance.random() < 0.8:  # else the very first write after the start
            training.wait_for(lambda: recorded_at(folder) > before)
            training.wait_for(lambda: not drafts(folder))
        training.wait_for(lambda: bool(drafts(folder)))
        time.sleep(chance.uniform(0, 0.015))
    elif aim == 'train':
        training.wait_for(lambda: recorded_at(folder) > before)
        time.sleep(chance.uniform(0, 1.5))
    else:
        training.wait_for(lambda: recorded_at(folder) > before)
        seen = training.text().count('(val)')
        training.wait_for(lambda: training.text().count('(val)') > seen)  # within a validation
        time.sleep(chance.uniform(0, 0.05))
    training.kill()


def compare(whole: Path, cut: Path, name: str) -> int:
    """Weights, averaged weights and the optimizer's state are equal to the last bit, and so is the best score."""
    first, second = read_checkpoint(whole / name), read_checkpoint(cut / name)
    runtime = [content['message_hub']['runtime_info'] for content in (first, second)]
    assert runtime[0]['best_score'] == runtime[1]['best_score']
    assert Path(runtime[0]['best_ckpt']).name == Path(runtime[1]['best_ckpt']).name
    assert {path.name for path in whole.glob('*.pth')} == {path.name for path in cut.glob('*.pth')}
    compared = 0
    for entry in ('state_dict', 'ema_state_dict', 'optimizer'):
        tensors = [dict(flat(content.get(entry, {}))) for content in (first, second)]
        assert tensors[0].keys() == tensors[1].keys()
        differing = [key for key, value in tensors[0].items() if not value.equal(tensors[1][key])]
        assert not differing, f'{len(differing)} of {len(tensors[0])} in {entry} differ, {differing[:3]}'
        compared += len(tensors[0])
    return compared


def flat(node, path=()):
    """Tensors of nested dicts and lists, with their paths."""
    if hasattr(node, 'equal'):
        yield path, node
    elif isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from flat(value, (*path, key))


def line(kill: dict) -> str:
    state = f'inside the write of {", ".join(kill["draft_left"])}' if kill['draft_left'] else 'between writes'
    return (
        f'{kill["task"]} {kill["kill"]:2}: aimed at {kill["aim"]}, resumed from {kill["resumed_from"]}, killed at '
        f'{kill["doing"]}, {state}; newest whole one: {kill["newest_whole"]}\n'
    )
