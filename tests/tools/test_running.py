"""A forked process is for a tool what one of its own is."""

from __future__ import annotations

import json
import os

import pytest

from tests.tools.running import FORKS, FRESH, _Starter, run_tool

SAID = """
import json, os, random, sys, tempfile
print(json.dumps({
    'name': __name__, 'file': __file__, 'main': sys.modules['__main__'].__file__, 'words': sys.argv,
    'path': sys.path, 'folder': os.getcwd(), 'variables': dict(os.environ), 'temporary': tempfile.gettempdir(),
    'input': sys.stdin.read(), 'random': random.random(), 'loaded': 'mmdet' in sys.modules,
    'parent threads': len(os.listdir(f'/proc/{os.getppid()}/task')) if os.path.exists('/proc/self/task') else 1,
}))
"""
ITS_OWN = ('random', 'loaded', 'parent threads')


@pytest.fixture
def said(tmp_path):
    (tmp_path / 'said.py').write_text(SAID)

    def run(*words, **variables):
        return json.loads(run_tool(*(words or ['said.py']), 'a', '-b', cwd=tmp_path, **variables))

    return run


@pytest.mark.skipif(not FORKS, reason='starts processes by fork')
@pytest.mark.parametrize('words', [('said.py',), ('-m', 'said')])
def test_what_a_process_knows_of_itself(said, words, monkeypatch, tmp_path):
    said(*words)  # the process that forks is there from now on
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    forked, again = said(*words), said(*words)
    monkeypatch.setenv(FRESH, '1')
    fresh = said(*words)
    fresh['variables'].pop(FRESH)
    assert (forked['loaded'], fresh['loaded']) == (True, False)
    assert forked['random'] != again['random']
    assert forked['parent threads'] == 1, 'a fork takes one thread along; what waits for the others never ends'
    for name in ITS_OWN:
        forked.pop(name), again.pop(name), fresh.pop(name)
    assert forked == fresh
    assert again == fresh
    assert fresh['temporary'] == str(tmp_path / 'temporary')


def test_a_changed_variable_has_a_process_of_its_own(said, monkeypatch):
    said()
    assert not said(HF_HOME='elsewhere')['loaded']
    monkeypatch.delenv('HOME')
    assert not said()['loaded']


@pytest.mark.parametrize('time', ['first', 'second'])
def test_a_variable_that_a_test_leaves_is_gone_in_the_next(time):
    assert 'LEFT_BY_A_LIBRARY' not in os.environ
    os.environ['LEFT_BY_A_LIBRARY'] = time


def test_the_first_to_start_a_tool_sets_no_variable_for_others(monkeypatch):
    started = []
    monkeypatch.setattr('subprocess.Popen', lambda *words, env, **options: started.append(env))
    monkeypatch.setenv('HF_HOME', 'elsewhere')
    starter = _Starter()
    assert started == [starter.environment]
    assert 'HF_HOME' not in starter.environment


@pytest.mark.parametrize('fresh', ['', '1'])
def test_exit_status_and_output(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv(FRESH, fresh)
    ends = {'sys.exit(3)': 3, 'sys.exit("said")': 1, 'assert 0': 1, 'os.kill(os.getpid(), 9)': -9, 'pass': 0}
    for how, status in ends.items():
        (tmp_path / 'end.py').write_text(
            'import atexit, os, sys\n'
            'atexit.register(print, "last")\n'
            'print("first", flush=True)\n'
            'os.write(2, b"second\\n")\n'
            'os.system(f"{sys.executable} -c \'print(1)\'")\n' + how
        )
        shown = run_tool('end.py', cwd=tmp_path, expect=status).splitlines()
        assert shown[:3] == ['first', 'second', '1']
        assert (shown[-1] == 'last') == (status >= 0)
        assert ('AssertionError' in shown) == (how == 'assert 0')
        assert ('said' in shown) == ('said' in how)
