"""What a record says of the machine."""

import json
from pathlib import Path

import torch

import repnext_mm
from repnext_mm.lab.bench.record import LIBRARIES, environment


def test_it_is_plain_and_names_what_counts():
    found = environment('cpu')
    assert json.loads(json.dumps(found)) == found
    assert found['torch'] == torch.__version__
    assert found['threads'] == torch.get_num_threads()
    assert found['device'] == found['cpu'] != ''
    assert set(found['libraries']) <= set(LIBRARIES)
    assert found['libraries']['mmengine']  # under either lane's distribution name


def test_it_names_no_folder():
    assert str(Path.home()) not in json.dumps(environment('cpu'))


def test_it_names_the_commit_of_a_clone():
    commit = environment('cpu')['commit']
    assert (commit is not None) == (Path(repnext_mm.__file__).parents[1] / '.git').exists()
    assert commit is None or len(commit.removesuffix('+changes')) == 12
