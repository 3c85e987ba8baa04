"""tools/demo_app.py as a user runs it: what it refuses; and, driven in headless Chromium, what its page shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from repnext_mm.data.scene import compose_scene
from repnext_mm.lab.demo.app_inputs import Pair
from repnext_mm.lab.demo.app_results import load_forms, run_forms
from tests.lab.demo.test_app_results import CONFIGS, Planted, write_weights
from tests.tools.running import ROOT, run_tool

TOOL = ROOT / 'tools/demo_app.py'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')


def test_the_tool_says_what_it_lacks(tmp_path):
    assert "error: no config lies beside a checkpoint under 'work_dirs'" in run_tool(TOOL, cwd=tmp_path, expect=1)
    (tmp_path / 'without').mkdir()
    (tmp_path / 'without/gradio.py').write_text('raise ModuleNotFoundError("No module named \'gradio\'")\n')
    for name in ('a.py', 'a.pth'):
        (tmp_path / name).touch()
    shown = run_tool(TOOL, 'a.py', 'a.pth', cwd=tmp_path, expect=1, PYTHONPATH=str(tmp_path / 'without'))
    assert shown.endswith(
        "error: the page needs the package gradio (No module named 'gradio'): pip install 'repnext_mm[demo]'\n"
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two runs under work_dirs, a third that holds code, and images."""
    folder = tmp_path_factory.mktemp('app')
    for age, (name, scope) in enumerate((('segments', 'mmseg'), ('boxes', 'mmdet'))):
        run = folder / 'work_dirs' / name
        run.mkdir(parents=True)
        shutil.copy(ROOT / 'configs' / CONFIGS[scope].name, run)
        config = run / CONFIGS[scope].name
        config.write_text(config.read_text().replace("'_base_/", f"'{ROOT}/configs/_base_/"))
        write_weights(scope, run / 'weights.pth')
        os.utime(run / 'weights.pth', (2e9 - age, 2e9 - age))
    cv2.imwrite(str(folder / 'scene.jpg'), compose_scene(split='val', index=0).image[..., ::-1])
    cv2.imwrite(str(folder / 'large.png'), np.zeros((2001, 2000), np.uint8))
    return folder


@pytest.fixture(scope='module')
def address(folder):
    """The tool, running in a folder that is not the repository's."""
    pytest.importorskip('gradio', reason='needs requirements/demo.txt')
    left_over = folder / 'temporary'
    left_over.mkdir()
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'TMPDIR': str(left_over)}
    with (
        (folder / 'shown.txt').open('w') as shown,
        subprocess.Popen(
            [sys.executable, str(TOOL)], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=shown, text=True
        ) as app,
    ):
        try:
            line = app.stdout.readline()
            found = re.match(r'open (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)', line)
            assert found, line + (folder / 'shown.txt').read_text()
            yield found[1]
        finally:
            app.terminate()
            try:
                app.wait(timeout=30)
            except subprocess.TimeoutExpired:
                app.kill()
                raise
    assert list(left_over.glob('repnext_mm_*')) == []  # uploads are gone


@pytest.fixture
def browser():
    """Debian's Chromium; Playwright's own where there is no other."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs requirements/demo.txt')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        path = path or driver.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip(f'no browser: none of {", ".join(BROWSERS)} is installed')
        started = driver.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-dev-shm-usage'])
        try:
            yield started
        finally:
            started.close()


@pytest.mark.slow
def test_drop_choose_and_read(folder, address, browser):
    """An image is dropped, both forms run, and the page shows what the library calls return."""
    page = browser.new_page(viewport={'width': 1300, 'height': 1250})
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_role('button', name='Run both forms').click()
    page.get_by_text('no image yet: drop one into the field above').wait_for()

    page.locator('input[type=file]').first.set_input_files(folder / 'scene.jpg')
    page.locator('img[src*="scene.jpg"]').wait_for()
    page.get_by_role('button', name='Run both forms').click()
    page.get_by_text('rounds in turns').wait_for(timeout=60_000)
    cells = texts(page)
    run = folder / 'work_dirs/segments'
    outcome = run_forms(load_forms(Pair(run / CONFIGS['mmseg'].name, run / 'weights.pth')), str(folder / 'scene.jpg'))
    for row in outcome.findings.rows:
        assert all(text in cells for text in row), (row, cells)
    for name in outcome.differences:
        assert name in cells
    milliseconds = [text for text in cells if re.fullmatch(r'\d+\.\d \(\d+\.\d to \d+\.\d\)', text)]
    assert len(milliseconds) == 4
    assert all(float(text.split()[0]) > 0 for text in milliseconds)

    page.get_by_label('Config').click()
    page.get_by_role('option', name='boxes/').click()
    page.get_by_role('button', name='Run both forms').click()
    page.get_by_text('box: left, top, right, bottom').first.wait_for(timeout=60_000)
    assert 'boxes, pixels' in texts(page)
    page.screenshot(path=str(folder / 'page.png'))
    assert cv2.imread(str(folder / 'page.png')).std() > 5
    assert {url.split('/')[2] for url in asked if url.startswith('http')} == {address.split('/')[2]}


def texts(page):
    return [text.strip() for text in page.get_by_role('gridcell').all_inner_texts()]


@pytest.mark.slow
def test_what_the_server_refuses(folder, address):
    """Other hosts' names, too large files and images, paths of the caller's choice, and checkpoints with code."""
    from gradio_client import Client, handle_file

    with urllib.request.urlopen(address) as answer:
        assert answer.headers['content-security-policy'].startswith("default-src 'self'")
    with pytest.raises(urllib.error.HTTPError, match='400'):
        urllib.request.urlopen(urllib.request.Request(address, headers={'Host': 'elsewhere.example'}))
    client = Client(address, verbose=False)
    config = f'segments/{CONFIGS["mmseg"].name}'
    (folder / 'huge.bmp').write_bytes(bytes(17 * 2**20))
    for image, name, words in (
        ('large.png', config, "'large.png' is 2000 x 2001, more than 4,000,000 pixels"),
        ('huge.bmp', config, 'exceed'),
        ('scene.jpg', str(ROOT / 'setup.py'), 'is not in the list of choices'),
    ):
        with pytest.raises(Exception, match=words):
            client.predict(handle_file(str(folder / image)), name, 'weights.pth', 0.3, 3, api_name='/run')
    run = folder / 'work_dirs/segments'
    torch.save({'state_dict': {}, 'meta': Planted(folder / 'ran')}, run / 'planted.pth')
    client.predict(config, api_name='/choose_config')
    with pytest.raises(Exception, match="was not read: it asks for 'pathlib"):
        client.predict(handle_file(str(folder / 'scene.jpg')), config, 'planted.pth', 0.3, 3, api_name='/run')
    assert not (folder / 'ran').exists()


@pytest.mark.slow
def test_one_job_at_a_time(folder, address):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    config = f'segments/{CONFIGS["mmseg"].name}'
    client.predict(config, api_name='/choose_config')
    values = (handle_file(str(folder / 'scene.jpg')), config, 'weights.pth', 0.3, 20)
    jobs = [client.submit(*values, api_name='/run') for _ in range(3)]
    most = 0
    while not all(job.done() for job in jobs):
        most = max(most, sum(job.status().code.name == 'PROCESSING' for job in jobs))
        time.sleep(0.1)
    assert most == 1
    seen, table, latency, differences, remarks = jobs[0].result()
    assert len(seen['value']['annotations']) == len([row for row in table['data'] if row[0] != 'background'])
    assert [row[0] for row in latency['data']] == ['backbone', 'whole network']
    assert differences['data'][0][0] == 'features of the backbone, relative'
    assert '20 rounds in turns, input 1x3x160x160' in remarks
