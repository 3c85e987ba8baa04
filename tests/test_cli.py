"""`repnext VERB`: one screen of help, one parser for script and verb, one sentence for what a user did wrong."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repnext_mm import cli
from repnext_mm.errors import UserError
from tests.tools.running import ROOT, run_tool

SCRIPTS = {path.stem: path for path in (ROOT / 'tools').glob('*.py') if path.stem not in ('setup_env', 'check_env')}
SHOWS_WHAT_IS_LOADED = """
import sys
sys.argv = ['-m', *sys.argv[1:]]
sys.orig_argv = ['python', '-m', 'repnext_mm', *sys.argv[1:]]
from repnext_mm.cli import main
try:
    main()
finally:
    print('LOADED', [name for name in ('torch', 'mmengine', 'numpy') if name in sys.modules])
"""


def repnext(*words: str, cwd: Path, expect: int = 0, **environment: str) -> str:
    return run_tool('-m', 'repnext_mm', *words, cwd=cwd, expect=expect, **environment)


def verb_of(script: Path) -> str:
    """The verb that a script names."""
    return re.search(r"^    tool\('(.+)'\)$", script.read_text(), re.MULTILINE)[1]


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)


@pytest.mark.parametrize('words', [(), ('--help',), ('-h',)], ids=['nothing', 'help', 'h'])
def test_help_lists_every_verb_on_one_screen(words, tmp_path):
    lines = repnext(*words, cwd=tmp_path).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 88
    assert [re.split('  +', line.strip())[0] for line in lines if line.startswith('  ')] == list(cli.VERBS)


@pytest.mark.parametrize('words', [['--help'], ['--version'], ['check', 'env', '--help'], ['nonsense']], ids=' '.join)
def test_what_needs_no_model_loads_no_torch(words, tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', SHOWS_WHAT_IS_LOADED, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.splitlines()[-1] == 'LOADED []', done.stderr


@pytest.mark.parametrize('verb', cli.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb.split(), '--help'])
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith(f'usage: repnext {verb} ')
    for action in actions(cli.parser_of(verb)):
        assert not re.search(r'^of |picture', action.help or ''), action


@pytest.mark.parametrize('script', SCRIPTS.values(), ids=list(SCRIPTS))
def test_a_script_is_a_verb_and_nothing_else(script):
    tree = ast.parse(script.read_text())
    assert len(script.read_text().splitlines()) <= 10
    assert [type(node).__name__ for node in tree.body] == ['Expr', 'ImportFrom', 'If']
    assert f'`repnext {verb_of(script)}`' in ast.get_docstring(tree)


def test_every_verb_has_a_script_or_is_new():
    assert set(cli.VERBS) - {verb_of(script) for script in SCRIPTS.values()} <= {
        'check data',
        'check env',  # its script runs without the package
        'fuse',  # as `checkpoint fuse`
        'predict',
        'ops',  # as `python -m repnext_mm.mmcv_ops`
    }


@pytest.mark.parametrize('verb', ['checkpoint', 'make-digit-scenes'])
def test_script_and_verb_say_the_same(verb, tmp_path):
    (script,) = (path for path in SCRIPTS.values() if verb_of(path) == verb)
    by_script, by_verb = run_tool(script, '--help', cwd=tmp_path), repnext(verb, '--help', cwd=tmp_path)
    assert by_script.startswith(f'usage: {script.name} ')
    assert words_of(by_script.replace(script.name, f'repnext {verb}')) == words_of(by_verb)


def words_of(text: str) -> list[str]:
    return text.split()


def test_a_verb_works_in_another_folder(tmp_path):
    assert repnext('make-digit-scenes', 'made', '--train', '2', '--val', '1', cwd=tmp_path) == 'made: made\n'
    assert (tmp_path / 'made/annotations/instances_training.json').is_file()
    assert repnext('make-digit-scenes', 'made', '--train', '2', '--val', '1', cwd=tmp_path) == (
        'made: was there already\n'
    )
    shown = repnext('make-digit-scenes', 'made', '--train', '3', cwd=tmp_path, expect=1)
    assert shown.startswith('error: made holds other')
    assert len(shown.splitlines()) == 1
    shown = repnext('check', 'data', '--task', 'det', '--data', 'made', cwd=tmp_path)
    assert 'found 0 errors' in shown


def test_configs_can_name_what_this_package_registers(tmp_path):
    (tmp_path / 'net.py').write_text(
        "from repnext_mm import RepNeXt\ncustom_imports = dict(imports='repnext_mm')\n"
        "model = dict(type='RepNeXt', arch='m0')\n"
    )
    shown = repnext('complexity', 'net.py', '--forms', 'default', cwd=tmp_path)
    assert re.search(r'^\| net +\| default +\|', shown, re.MULTILINE)


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['trian'], "there is no verb 'trian', did you mean 'train'? Choose from train, test, "),
        (['xyzzy'], "there is no verb 'xyzzy', choose from train, test, "),
        (['check'], 'check needs a second word: check env or check data'),
        (['--completion', 'cmd'], '--completion cmd: name one of bash, zsh'),
    ],
    ids=['near', 'far', 'half', 'shell'],
)
def test_unknown_words_are_one_sentence(words, sentence):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert str(stopped.value).startswith(f'error: {sentence}')


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        ('benchmark --config a.py --dtype bfloat16', '--dtype is not read with --config'),
        ('benchmark --config a.py --train a.py', '--config is not read with --train CONFIG'),
        ('benchmark --train a.py --arch m1', '--arch is not read with --train CONFIG'),
        ('benchmark --train --resume', '--resume is not read with --train'),
        ('benchmark --checkpoint a.pth', '--checkpoint is not read without --train or --config'),
        ('benchmark --render a.json --rounds 3', '--rounds is not read with --render'),
        ('benchmark --gpu-records a --output b', '--output is not read with --gpu-records'),
        ('profile --train --by module', '--by is not read with --train'),
        ('profile --norm-eval', '--norm-eval is not read without --train'),
        ('complexity a.py --arch m1', '--arch is not read with a config'),
        ('complexity --cfg-options a=1', '--cfg-options is not read without a config'),
        ('validate --table --form half', '--form is not read with --table'),
        ('export m1 a.onnx --threads 1', '--threads is not read without --form auto'),
        ('test a.onnx a.py --tta', '--tta is not read with an exported file'),
        ('test a.py a.tflite --out a.pkl', '--out is not read with an exported file'),
        ('test a.py a.pth --images 9', '--images is not read without an exported file'),
        ('export m1 a.onnx --images 9', '--images is not read without --data'),
    ],
    ids=lambda words: words.partition(' is ')[0],
)
def test_what_nothing_reads_is_not_taken(words, sentence, tmp_path, monkeypatch):
    """A float32 time would be taken for one of bfloat16."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == f'error: {sentence}: omit it'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('imported', 'kind'), [('absent_package.part', SystemExit), ('repnext_mm.absent', ImportError)]
)
def test_a_package_that_is_missing_is_named_and_a_module_of_ours_is_a_bug(imported, kind, tmp_path, monkeypatch):
    (tmp_path / 'a_verb.py').write_text(f'import {imported}\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, 'plot-zoo', cli.Verb('a_verb', ''))
    with pytest.raises(kind) as stopped:
        cli.main(['plot-zoo', '--help'])
    if kind is SystemExit:
        assert str(stopped.value).startswith(
            'error: plot-zoo needs the package absent_package, and it is not installed'
        )


class Foreign(Exception):
    pass


@pytest.mark.parametrize(
    'mistake',
    [UserError('value, rule, way out'), FileNotFoundError(2, 'No such file or directory', 'a.py')],
    ids=lambda mistake: type(mistake).__name__,
)
def test_a_user_s_mistake_is_one_sentence(mistake):
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: raised(mistake))
    assert stopped.value.code == f'error: {mistake}'


@pytest.mark.parametrize(
    'bug',
    [Foreign(), ValueError(), TypeError(), KeyError(), OSError(), AssertionError()],
    ids=lambda b: type(b).__name__,
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)) as raised_bug:
        cli.run(lambda: raised(bug))
    assert raised_bug.value is bug


def raised(error: Exception) -> int:
    raise error


@pytest.mark.parametrize(('status', 'code'), [(None, None), (0, None), (1, 1), (3, 3)])
def test_status_of_a_command_is_that_of_the_process(status, code):
    if code is None:
        cli.run(lambda: status)
        return
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: status)
    assert stopped.value.code == code


def test_interruption_ends_as_shells_expect():
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        cli.run(interrupted)
    assert stopped.value.code == 130


@pytest.mark.parametrize('shell', cli.SHELLS)
def test_completion_knows_verbs_options_and_choices(shell, capsys):
    pytest.importorskip('shtab', reason='an optional extra')
    cli.main(['--completion', shell])
    script = capsys.readouterr().out
    for word in ('new-config', '--auto-scale-lr', 'slurm', '--json', 'inspect'):
        assert word in script
