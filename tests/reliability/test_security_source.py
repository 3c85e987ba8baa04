"""Our own code calls nothing that executes what it reads."""

from __future__ import annotations

import ast

import pytest

from tests.tools.running import ROOT

# What may be called all the same: an unpickler behind trust_pickle, and an export that was written a moment ago.
ALLOWED = {
    ('repnext_mm/checkpoints/read.py', 'torch.load'),
    ('repnext_mm/export/openers.py', 'torch.jit.load'),
    ('tools/check_env.py', 'runpy.run_path'),  # a file of this package, by its own path
}
FORBIDDEN = {
    'eval',
    'exec',
    'compile',
    '__import__',
    'os.system',
    'os.popen',
    'pickle.load',
    'pickle.loads',
    'pickle.Unpickler',
    'cloudpickle.load',
    'cloudpickle.loads',
    'dill.load',
    'dill.loads',
    'joblib.load',
    'marshal.load',
    'marshal.loads',
    'shelve.open',
    'pandas.read_pickle',
    'torch.load',
    'torch.jit.load',
    'torch.hub.load',
    'yaml.load',
    'yaml.unsafe_load',
    'runpy.run_path',
    'runpy.run_module',
}


def calls(path):
    """Full names of what a file calls, and the keywords of each call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize('part', ['repnext_mm', 'tools', 'configs'])
def test_our_code_executes_no_input(part):
    found = set()
    for path in (ROOT / part).rglob('*.py'):
        name = path.relative_to(ROOT).as_posix()
        for called, words in calls(path):
            risky = called in FORBIDDEN or words.get('shell') == 'True' or words.get('allow_pickle') == 'True'
            if risky and words.get('weights_only') != 'True':
                found.add((name, called))
    assert found - ALLOWED == set()


def test_the_search_for_risky_calls_finds_them(tmp_path):
    (tmp_path / 'risky.py').write_text('import os, pickle\npickle.loads(b"")\nos.run("x", shell=True)\neval("1")\n')
    found = dict(calls(tmp_path / 'risky.py'))
    assert {'pickle.loads', 'eval'} <= found.keys() & FORBIDDEN
    assert found['os.run'] == {'shell': 'True'}
