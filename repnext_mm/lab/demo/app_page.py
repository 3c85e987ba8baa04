"""The page in the browser, served to this machine only, by the package gradio."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from importlib import import_module
from typing import Any

from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.lab.demo.app_inputs import MAX_FILE, MAX_PIXELS, Offer, Pair, check_upload, chosen
from repnext_mm.lab.demo.app_results import FUSED, TRAIN, BothForms, Outcome, for_screen, load_forms, run_forms
from repnext_mm.timing import Latency

TITLE = 'RepNeXt: train form and fused'
HOST = '127.0.0.1'
_HEAD = f"""# {TITLE}
Drop an image, choose a trained model: its results come from the fused network, and both forms are timed in turns.
Images stay on this machine; at most {MAX_FILE.upper()} and {MAX_PIXELS:,} pixels."""
_LATENCY = ['part', f'{TRAIN}, ms', f'{FUSED}, ms', 'speed-up']
_DIFFERENCES = ['compared', 'largest difference']
# A browser obeys this: nothing is fetched from, or sent to, any other host (fonts, scripts, statistics).
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def build_page(offer: Callable[[], Offer]) -> Any:
    """The page, a ``gradio.Blocks``; ``offer`` is asked again whenever it is opened or run.

    Raises:
        UserError: gradio is not installed, or there is nothing to choose from.
    """
    offered = offer()
    gr = _gradio()

    @_errors_as_sentences
    def opened() -> Any:
        offered = offer()
        return _dropdown(gr, offered), _dropdown(gr, next(iter(offered.values())))

    @_errors_as_sentences
    def config_chosen(config: str) -> Any:
        return _dropdown(gr, offer().get(config, {}))

    @_errors_as_sentences
    def run(image: str | None, config: str, checkpoint: str, threshold: float, rounds: float) -> Any:
        path = check_upload(image)
        forms = _loaded(chosen(offer(), config, checkpoint))
        outcome = run_forms(forms, str(path), score_threshold=threshold, rounds=int(rounds))
        found = outcome.findings
        return (
            gr.AnnotatedImage(value=for_screen(outcome.image, found.areas), color_map=found.colors),
            {'headers': list(found.columns), 'data': [list(row) for row in found.rows]},
            {'headers': _LATENCY, 'data': latency_rows(outcome)},
            {'headers': _DIFFERENCES, 'data': [list(row) for row in outcome.differences.items()]},
            note(forms, outcome),
        )

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(_HEAD)
        with gr.Row():
            with gr.Column():
                # no mode: gradio must not decode the image before its size is checked
                image = gr.Image(
                    label='Image', type='filepath', image_mode=None, sources=['upload', 'clipboard'], height=300
                )
                config = _dropdown(gr, offered, label='Config')
                checkpoint = _dropdown(gr, next(iter(offered.values())), label='Checkpoint')
                threshold = gr.Slider(0, 1, value=0.3, step=0.05, label='Hide detections that score below')
                rounds = gr.Slider(3, 50, value=10, step=1, label='Rounds of the latency measurement')
                start = gr.Button('Run both forms', variant='primary')
            with gr.Column():
                seen = gr.AnnotatedImage(label='What the fused network sees')
                table = gr.Dataframe(label='Results', interactive=False)
        with gr.Row():
            latency = gr.Dataframe(label='Latency', interactive=False, headers=_LATENCY, scale=5)
            differences = gr.Dataframe(
                label='Train form and fused, on this image', interactive=False, headers=_DIFFERENCES, scale=4
            )
        remarks = gr.Markdown()
        page.load(opened, outputs=[config, checkpoint], api_visibility='private')
        config.change(config_chosen, inputs=config, outputs=checkpoint, api_name='choose_config')
        start.click(
            run,
            inputs=[image, config, checkpoint, threshold, rounds],
            outputs=[seen, table, latency, differences, remarks],
            concurrency_limit=1,
            api_name='run',
        )
    page.queue(default_concurrency_limit=1, max_size=8)
    return page


def serve(page: Any, *, port: int | None = None, open_browser: bool = False) -> str:
    """Start to serve a page, on this machine's loopback address only; returns its address.

    Raises:
        UserError: the port, or without one each port from 7860 to 7959, is taken.
    """
    gr = _gradio()
    middleware = import_module('starlette.middleware').Middleware  # gradio is built on it
    trusted_host = import_module('starlette.middleware.trustedhost').TrustedHostMiddleware
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=open_browser,
            max_file_size=MAX_FILE,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']),
            # Other sites' pages must not reach this one under a name of theirs that leads to this machine.
            app_kwargs={
                'middleware': [
                    middleware(trusted_host, allowed_hosts=[HOST, 'localhost']),
                    middleware(_NothingFromElsewhere),
                ]
            },
        )
    except OSError as error:
        taken = 'all ports from 7860 to 7959 are' if port is None else f'port {port} is'
        raise UserError(f'{taken} taken or not allowed: choose another with --port') from error
    return str(address)


def latency_rows(outcome: Outcome) -> list[list[str]]:
    """A row for each part of the network: the median in both forms with its first and last decile, and their ratio."""
    rows = []
    for part, forms in outcome.latency.items():
        train, fused = forms[TRAIN], forms.get(FUSED)
        rows.append(
            [part, _quantiles(train), '', '']
            if fused is None
            else [part, _quantiles(train), _quantiles(fused), f'{train.median_ms / fused.median_ms:.2f}']
        )
    return rows


def note(forms: BothForms, outcome: Outcome) -> str:
    """What the numbers were measured on, in Markdown."""
    latency = outcome.latency['whole network'][TRAIN]
    lines = [
        f'Latency: median (first to last decile) of {latency.n} rounds in turns, input '
        f'{"x".join(map(str, outcome.input_shape))}, {forms.device}, threads: {outcome.threads}; reading and scaling '
        'the image are not in it. The train form of RepNeXt merges its branches at every pass and runs one '
        'convolution; running the branches one by one is slower.',
        f'Backbone: {forms.report}.' if forms.report else 'Nothing to fuse: the backbone is fused already, or plain.',
    ]
    if outcome.findings.left_out:
        lines.append(f'{outcome.findings.left_out} further results are not marked in the image.')
    return '\n\n'.join(lines)


def _errors_as_sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show every error on the page; print an unexpected one with its traceback in the terminal too."""

    @wraps(function)
    def run(*values: Any) -> Any:
        try:
            return function(*values)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise _shown(str(error), in_full=False) from error
        except Exception as error:  # the mm packages raise anything on an image that they do not take
            text = f'this model does not take this image ({type(error).__name__}: {error}): try another'
            raise _shown(text, in_full=True) from error

    return run


def _shown(text: str, *, in_full: bool) -> Exception:
    error: Exception = _gradio().Error(html.escape(text, quote=False), print_exception=in_full)  # shown as HTML
    return error


def _dropdown(gr: Any, offered: Mapping[str, Any], *, label: str | None = None) -> Any:
    """A choice of names, the first one chosen; without a label, the change of one that is on the page."""
    names = list(offered)
    labeled = {} if label is None else {'label': label}
    return gr.Dropdown(choices=names, value=names[0] if names else None, **labeled)


def _quantiles(value: Latency) -> str:
    return f'{value.median_ms:.1f} ({value.p10_ms:.1f} to {value.p90_ms:.1f})'


def _loaded(pair: Pair) -> BothForms:
    return _load(pair, *(path.stat().st_mtime_ns for path in pair))


@lru_cache(maxsize=1)  # one model in memory, read again once its files change
def _load(pair: Pair, *changed: int) -> BothForms:
    return load_forms(pair)


class _NothingFromElsewhere:
    """Adds the content security policy to every response (an ASGI middleware)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], (b'content-security-policy', _POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _gradio() -> Any:
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read when gradio is imported
    try:
        return import_module('gradio')
    except ImportError as error:
        raise MissingPackageError(
            f"the page needs the package gradio ({error}): pip install 'repnext_mm[demo]'"
        ) from error
