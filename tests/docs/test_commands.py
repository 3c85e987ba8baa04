"""What the documents say can be done: every command has a test or says what it needs, options and links exist."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from repnext_mm import cli
from repnext_mm._moved import MOVED

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').rglob('*.md'))]
BEHIND = yaml.safe_load((ROOT / 'tests/docs/commands.yml').read_text())
LANGUAGES = {'bash', 'python', 'bibtex', 'text', ''}
VERBS = {
    f'python tools/{path.name}': found[1]
    for path in (ROOT / 'tools').glob('*.py')
    if (found := re.search(r'`repnext ([\w -]+)`', path.read_text()))
}
SCRIPTS = {verb: script for script, verb in VERBS.items()} | {
    'check data': 'python tools/new_config.py',  # the same checks
    'fuse': 'python tools/checkpoint.py fuse',
    'ops': 'python -m repnext_mm.mmcv_ops',
}


class Command(NamedTuple):
    """One command line, on one line, and the comment behind it."""

    document: Path
    text: str
    comment: str


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for match in re.finditer(r'^```([^\n]*)\n(.*?)^```', document.read_text(), re.MULTILINE | re.DOTALL):
        yield match[1].strip(), match[2]


def commands() -> Iterator[Command]:
    for document in DOCUMENTS:
        for language, text in blocks(document):
            if language in ('bash', 'text'):  # in the latter, what follows a prompt
                for line in text.replace('\\\n', ' ').splitlines():
                    if language == 'text' and not line.startswith('$ '):
                        continue
                    command, _, comment = line.removeprefix('$ ').partition(' #')
                    if command.strip() and not re.match(r'#|[A-Z]+=', command):
                        yield Command(document, ' '.join(command.split()), comment)


COMMANDS = list(dict.fromkeys(commands()))


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def as_script(command: str) -> str:
    """`repnext VERB ...` as the script that is the same: the list names one form of each command."""
    verb = next((verb for verb in SCRIPTS if f'{command} '.startswith(f'repnext {verb} ')), None)
    return command if verb is None else SCRIPTS[verb] + command.removeprefix(f'repnext {verb}')


def behind(command: str) -> dict[str, str] | None:
    return next((entry for entry in BEHIND if fnmatchcase(as_script(command), entry['command'])), None)


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_blocks_are_of_a_known_kind(document: Path):
    """A command in a block of another kind would be seen by no test here."""
    assert {language for language, _ in blocks(document)} <= LANGUAGES
    for language, text in blocks(document):
        assert language == 'bash' or not re.search(r'^(python|repnext|bash|make|mim|pip) ', text, re.MULTILINE)
    assert document.read_text().count('\n```') % 2 == 0


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command.text[:60])
def test_every_command_is_run_by_a_test_or_says_what_it_needs(command: Command):
    entry = behind(command.text)
    assert entry, f'{name(command.document)} shows `{command.text}`: list it in tests/docs/commands.yml'
    assert entry.get('test') or entry.get('needs')


@pytest.mark.parametrize('entry', BEHIND, ids=lambda entry: entry['command'])
def test_the_list_names_tests_that_exist_and_commands_that_are_shown(entry: dict[str, str]):
    assert set(entry) <= {'command', 'test', 'needs'}
    assert any(behind(command.text) is entry for command in COMMANDS), 'no document shows such a command'
    if 'test' in entry:
        path, _, function = entry['test'].partition('::')
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, 'name')}
        assert function in defined


@cache
def options_of(verb: str) -> set[str]:
    """The options that a verb defines, with those of its subcommands."""
    found: set[str] = set()
    waiting = [cli.parser_of(verb)]
    while waiting:
        for action in waiting.pop()._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    return found


def uses() -> Iterator[tuple[Path, str, str]]:
    """Document, script and what follows it, in blocks (with their comments) and in running text."""
    for command in COMMANDS:
        yield command.document, command.text, f'{command.text} {command.comment}'
    for document in DOCUMENTS:
        prose = re.sub(r'^```.*?^```', '', document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r'`([^`]+)`', prose):
            yield document, ' '.join(code.split()), ' '.join(code.split())


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_tools_options_configs_and_targets_exist(document: Path):
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for where, command, text in uses():
        if where != document:
            continue
        verb = next((verb for verb in cli.VERBS if f'{command} '.startswith(f'repnext {verb} ')), None)
        if script := re.match(r'(?:python|bash) tools/(?:dist_|slurm_)?([\w.]+)', command):
            assert (ROOT / command.split()[1]).is_file(), text
            verb = VERBS.get(f'python tools/{script[1].replace(".sh", ".py")}')
        if verb:
            assert set(re.findall(r'(?<![\w-])--[\w-]+', text)) <= options_of(verb), text
        if target := re.match(r'make ([\w-]+)$', command):
            assert target[1] in targets, text
        for config in re.findall(r'(?<![\w/.])configs/[\w/]+\.py', text):
            assert (ROOT / config).is_file(), text


def verb_and_words(command: str) -> tuple[str, list[str]] | None:
    """The verb that a command runs and what its parser gets; None of what is not a verb of ours."""
    if script := re.match(r'(?:python|bash) tools/(?:dist_|slurm_)?(\w+)\.(?:py|sh) ?', command):
        verb, words = VERBS.get(f'python tools/{script[1]}.py'), shlex.split(command[script.end() :])
        if command.startswith('bash tools/slurm_'):
            words = words[2:]  # partition and name of the job
        elif command.startswith('bash tools/dist_'):
            words.pop(1 if script[1] == 'train' else 2)  # number of GPUs
    else:
        verb = next((verb for verb in cli.VERBS if f'{command} '.startswith(f'repnext {verb} ')), None)
        words = shlex.split(command.removeprefix(f'repnext {verb}'))
    return None if verb is None else (verb, words)


def in_full() -> Iterator[Command]:
    """Every command of a block, with the variables that its page sets and what is in brackets; the audit's too."""
    for command in COMMANDS:
        text = re.sub(r' \[(--[^]]+)\]', r' \1', command.text)
        for variable, value in re.findall(r'^([A-Z]+)="?([^"\n]*)"?$', command.document.read_text(), re.MULTILINE):
            text = text.replace(f'${variable}', value)
        yield command._replace(text=text)
    audit = ROOT / 'docs/records/source_documents.md'
    for text in re.findall(r'`((?:python|bash) tools/[^`]+ [^`]+)`', audit.read_text()):
        yield Command(audit, text, '')


@pytest.mark.parametrize('command', list(dict.fromkeys(in_full())), ids=lambda command: command.text[:60])
def test_every_command_is_one_that_its_parser_takes(command: Command):
    """All that it needs is given, with options and choices that are there."""
    found = verb_and_words(command.text)
    if found is None or '--help' in found[1]:
        return
    verb, words = found
    cli.parser_of(verb).parse_args(words)


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = re.sub(r'^```.*?^```', '', document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path):
    text = re.sub(r'^```.*?^```', '', document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize('document', DOCUMENTS, ids=name)
def test_python_blocks_run_from_top_to_bottom(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Config fragments too; `...` after keywords stands for what a reader fills in."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in blocks(document):
        if language == 'python':
            exec(compile(text.replace(', ...)', ')'), name(document), 'exec'), names)


def test_every_page_is_linked():
    """From a front page, or from a page that is; records of benchmarks have a folder of their own."""
    seen, queue = set(), [ROOT / 'README.md', ROOT / 'docs/getting_started.md']
    while queue:
        document = queue.pop()
        if document not in seen:
            seen.add(document)
            links = re.findall(r'\]\(([^)#\s]+\.md)', document.read_text())
            queue += [path for link in links if (path := (document.parent / link).resolve()).is_file()]
    assert [name(page) for page in DOCUMENTS if page not in seen and page.parent.name != 'benchmarks'] == []


def test_the_changelog_lists_what_moved():
    shown = [line.strip() for line in (ROOT / 'CHANGELOG.md').read_text().splitlines() if '  | `repnext_mm.' in line]
    assert sorted(shown) == sorted(
        f'| `repnext_mm.{former}` | ' + ', '.join(f'`repnext_mm.{home}`' for home in homes) + ' |'
        for former, homes in MOVED.items()
    )
