"""The page of --mode=demo: drop a photograph, see its classes. Gradio serves it, to this machine.

Nothing of it asks another host: no fonts, no scripts, no counters, and the browser is told to let
none through. What gradio is made to show of an answer is one piece of HTML, in which a script
names what is pointed at: gradio's own picture with masks names classes in its legend alone, and
sends a picture for each class.
"""

import base64
import contextlib
import dataclasses
import importlib
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auto_deeplab.report.page import TEMPLATES
from official.drawing import Palette, draw_overlay
from official.errors import RunError, UsageError
from official.images import encode_png
from official.segmenter import Segmentation

HOST = "127.0.0.1"
SHOWN_SIDE = 1280
"""Pixels of the longer side on the page, at most; what is downloaded is as large as the picture."""
KEPT_SECONDS = 3600
"""So long what was uploaded is kept, while the page is served."""
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'"
)
"""What the browser lets the page ask: its own server."""

Segment = Callable[[str], Segmentation]


@dataclasses.dataclass(frozen=True)
class About:
    """What the page says of the network.

    Attributes:
        title: the page's heading.
        words: a line below it.
        device: what it runs on, in words.
        class_names: C names.
        palette: C colours (red, green, blue) in 0..255.
    """

    title: str
    words: str
    device: str
    class_names: Sequence[str]
    palette: Palette


def import_gradio(folder: Path) -> Any:
    """The module gradio, told not to count its users and not to look for a newer one.

    Args:
        folder: where it keeps what is uploaded; it makes one elsewhere when it is imported without.

    Raises:
        UsageError: it is not installed.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # It asks its own server whether it is there, which no proxy can tell.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise UsageError("--mode=demo needs gradio: pip install 'auto-deeplab-tf2[demo]'") from None


def find_port(port: int) -> int:
    """The same port, or for 0 a free one.

    Raises:
        RunError: it is in use, or may not be used.
    """
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            one.bind((HOST, port))
        except OSError as error:
            raise _make_port_error(port, str(error.strerror)) from None
        found: int = one.getsockname()[1]
        return found


def _make_port_error(port: int, reason: str) -> RunError:
    return RunError(
        f"--port={port} on {HOST}: {reason}: give another, or --port=0, which takes any that is "
        "free"
    )


@contextlib.contextmanager
def serve(
    segment: Segment, about: About, *, port: int, folder: Path, examples: Sequence[Path] = ()
) -> Iterator[str]:
    """Serves the page to this machine, and to no other, while the context lasts.

    Pictures are segmented one at a time.

    Args:
        segment: the file of a picture -> its segmentation; raises RunError for one that it cannot
            read.
        about: what the page says of the network.
        port: see `find_port`.
        folder: for uploaded files and answers; whoever made it removes it.
        examples: files of pictures.

    Yields:
        the page's address.

    Raises:
        UsageError: gradio is not installed.
        RunError: the port is in use.
    """
    gradio = import_gradio(folder)
    port = find_port(port)
    page = _make_page(gradio, _Answers(segment, about, folder), about, examples)
    page.queue(default_concurrency_limit=1)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            root_path="",
            num_workers=0,
            allowed_paths=[str(path.parent) for path in examples[:1]],
            theme=gradio.themes.Base(
                font=["system-ui", "DejaVu Sans", "sans-serif"],
                font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
            ),
            css=_read("demo_page.css"),
            app_kwargs={"middleware": [_make_middleware()]},
        )
    except OSError as error:
        raise _make_port_error(port, str(error)) from None
    try:
        yield address
    finally:
        page.close(verbose=False)


def _read(name: str) -> str:
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8")


def _make_middleware() -> Any:
    """Adds POLICY to every answer of the server."""
    from starlette.middleware import Middleware  # comes with gradio

    def make(app: Any) -> Any:
        async def call(scope: Any, receive: Any, send: Any) -> None:
            async def send_with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    added = (b"content-security-policy", POLICY.encode())
                    message = {**message, "headers": [*message.get("headers", []), added]}
                await send(message)

            await app(scope, receive, send_with_policy)

        return call

    return Middleware(make)


def _make_page(gradio: Any, answers: "_Answers", about: About, examples: Sequence[Path]) -> Any:
    page = gradio.Blocks(
        title=about.title, analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)
    )
    with page:
        heading = TEMPLATES.get_template("demo_heading.html")
        gradio.HTML(heading.render(title=about.title, words=about.words), apply_default_css=False)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                picture = gradio.Image(
                    label="Photograph (PNG or JPEG)",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    image_mode=None,
                    height=280,
                    buttons=[],
                    placeholder="Drop a photograph here, or click to choose one",
                    elem_id="picture",
                )
                if examples:
                    gradio.Examples(
                        [str(path) for path in examples],
                        picture,
                        cache_examples=False,
                        label="Examples from the data",
                    )
                overlay = gradio.DownloadButton(
                    "Download the overlay (PNG)", interactive=False, elem_id="overlay"
                )
                labels = gradio.DownloadButton(
                    "Download the label map (PNG)", interactive=False, elem_id="labels"
                )
            with gradio.Column(scale=3, min_width=400):
                answer = gradio.HTML(
                    render_answer(about),
                    css_template=_read("demo.css"),
                    js_on_load=_read("demo.js"),
                    apply_default_css=False,
                    elem_id="answer",
                )

        def show(found: dict[str, Any] | None) -> list[Any]:
            html, files = answers.answer(found)
            shown = [gradio.DownloadButton(value=path, interactive=bool(path)) for path in files]
            return [html, *shown]

        # Without its preprocessing, which reads pictures by Pillow: files are decoded as in
        # training. That the file is an uploaded one gradio has looked at before.
        picture.change(
            show, picture, [answer, overlay, labels], preprocess=False, api_visibility="private"
        )
    return page


class _Answers:
    """What the page shows of each picture."""

    def __init__(self, segment: Segment, about: About, folder: Path) -> None:
        self._segment, self._about, self._folder = segment, about, folder
        self._last: str | None = None

    def answer(self, found: dict[str, Any] | None) -> tuple[str, list[str | None]]:
        """The HTML, and the files of overlay and label map.

        Args:
            found: what gradio knows of the uploaded file; None: it was taken away.
        """
        if self._last:  # gradio has a copy
            shutil.rmtree(self._last, ignore_errors=True)
        if not found or not found.get("path"):
            return render_answer(self._about), [None, None]
        path = found["path"]
        name = os.path.basename(found.get("orig_name") or path)
        try:
            segmentation = self._segment(path)
        except RunError as error:
            words = str(error).replace(path, name)
            return render_answer(self._about, notices=[words]), [None, None]
        stem = name.removesuffix(os.path.splitext(name)[1]) or "picture"
        self._last = tempfile.mkdtemp(dir=self._folder)
        files: list[str | None] = []
        drawn = segmentation.draw(self._about.class_names, self._about.palette)
        for kind, png in zip(("overlay", "labels"), drawn, strict=True):
            # A long name has no room for more.
            file = Path(self._last, f"{stem[:100]}_{kind}.png")
            file.write_bytes(png)
            files.append(str(file))
        return render_answer(self._about, segmentation), files


def render_answer(
    about: About, segmentation: Segmentation | None = None, notices: Sequence[str] = ()
) -> str:
    """The HTML of an answer, in which all text is escaped.

    Args:
        about: what the network is.
        segmentation: of a picture; None: there is none yet, or it could not be read.
        notices: what is wrong with the picture.
    """
    template = TEMPLATES.get_template("demo.html")
    if segmentation is None:
        return template.render(notices=notices, shares=[])
    height, width = segmentation.labels.shape
    notices = [*notices, TURNED] if segmentation.turned else notices
    photo, labels = shrink(segmentation.image, segmentation.labels)
    overlay = draw_overlay(photo, labels, np.asarray(about.palette, np.uint8))
    shares = [
        {
            "index": index,
            "name": about.class_names[index],
            "colour": [int(value) for value in about.palette[index]],
            "share": share,
            "percent": format_share(share),
        }
        for index, share in segmentation.count_shares()
    ]
    return template.render(
        notices=notices,
        shares=shares,
        photo=_encode_jpeg(photo),
        overlay=_encode_jpeg(overlay),
        labels=base64.b64encode(encode_png(Image.fromarray(labels))).decode(),
        facts=(
            f"{width} x {height} pixels; the network alone took "
            f"{segmentation.milliseconds:,.0f} ms on {about.device}."
        ),
    )


TURNED = (
    "The file has a rotation mark (EXIF), which is not obeyed: pixels are taken as they are "
    "stored, as in training. If the picture lies on its side here, turn it first."
)


def format_share(share: float) -> str:
    """A share, above 0 and up to 1, as people read it."""
    percent = 100 * share
    return f"{percent:.1f} %" if percent >= 0.05 else "below 0.1 %"


def shrink(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its labels, at most SHOWN_SIDE large, for the page.

    Args:
        image: uint8 [H, W, 3].
        labels: uint8 [H, W].

    Returns:
        uint8 [h, w, 3] and uint8 [h, w], each label one of those that were there.
    """
    height, width = labels.shape
    factor = min(1.0, SHOWN_SIDE / max(height, width))
    if factor == 1.0:
        return image, labels
    size = max(1, round(factor * width)), max(1, round(factor * height))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    nearest = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(nearest)


def _encode_jpeg(image: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=92, subsampling=0)
    return base64.b64encode(stream.getvalue()).decode()
