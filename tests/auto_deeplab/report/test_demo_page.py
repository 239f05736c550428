"""The page of --mode=demo, without a browser: what it says, and what it keeps."""

import base64
import io
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from auto_deeplab.report import demo_page
from auto_deeplab.report.demo_page import About, render_answer
from official.errors import RunError, UsageError
from official.segmenter import Segmentation

NAMES = ("road", "<b>${7*7}{{sky}}</b>", "person & \"rider'")
ABOUT = About("title", "words", "a device, 2 threads", NAMES, ((1, 2, 3), (200, 0, 0), (0, 9, 0)))


def make_segmentation(size=(40, 60), turned=False):
    rng = np.random.default_rng(0)
    labels = np.zeros(size, np.uint8)
    labels[:, size[1] // 2 :] = 2
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    return Segmentation(image, labels, 1234.4, turned)


def test_only_classes_in_the_picture_are_named_largest_first_and_escaped():
    found = make_segmentation()
    found.labels[0, 0] = 1
    html = render_answer(ABOUT, found)
    rows = re.findall(r'data-class="(\d+)".*?<th scope="row">(.*?)</th>', html, re.DOTALL)
    assert [int(index) for index, _ in rows] == [2, 0, 1]
    assert rows[0][1] == "person &amp; &#34;rider&#39;" and "<b>" not in html
    assert re.findall(r'class="share">(.*?)<', html) == ["50.0 %", "50.0 %", "below 0.1 %"]
    assert "60 x 40 pixels; the network alone took 1,234 ms on a device, 2 threads." in html
    assert "EXIF" not in html
    assert "EXIF" in render_answer(ABOUT, make_segmentation(turned=True))
    assert "&lt;i&gt;" in render_answer(ABOUT, notices=["<i>"])


def test_the_page_has_the_picture_smaller_and_its_labels_unmixed():
    html = render_answer(ABOUT, make_segmentation((1000, 2560)))
    sources = re.findall(r'src="data:image/\w+;base64,(.*?)"', html)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in sources]
    photo, overlay, labels = images
    assert photo.shape == overlay.shape == (500, 1280, 3) and labels.shape == (500, 1280)
    assert set(labels[:, :640].ravel()) == {0} and set(labels[:, 640:].ravel()) == {2}


def make_answers(tmp_path, segment):
    return demo_page._Answers(segment, ABOUT, tmp_path)


def test_answers_are_files_of_the_pictures_name_until_the_next(tmp_path):
    found = make_segmentation()
    answers = make_answers(tmp_path, lambda path: found)
    html, files = answers.answer({"path": "/x/1f/a.b.jpg", "orig_name": "a.b.jpg"})
    assert "road" in html
    names = [Path(file).name for file in files]
    assert names == ["a.b_overlay.png", "a.b_labels.png"]
    assert [Path(file).read_bytes() for file in files] == [*found.draw(NAMES, ABOUT.palette)]
    html, none = answers.answer(None)
    assert none == [None, None] and "Drop a photograph" in html
    assert not any(Path(file).exists() for file in files)
    long = "x" * 255
    _, files = answers.answer({"path": "/x/" + long, "orig_name": long})
    assert all(Path(file).exists() for file in files)


def test_an_error_names_the_file_as_its_owner_does(tmp_path):
    def segment(path):
        raise RunError(f"cannot read the image {path}: neither PNG nor JPEG")

    answers = make_answers(tmp_path, segment)
    html, files = answers.answer({"path": "/x/1f/notes.txt", "orig_name": "my notes.txt"})
    assert "cannot read the image my notes.txt: neither" in html and "/x/" not in html
    assert files == [None, None] and 'role="alert"' in html


def test_a_port_in_use_is_told_with_its_remedy():
    with socket.socket() as one:
        one.bind((demo_page.HOST, 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(RunError, match=rf"^--port={port} on 127.0.0.1: .*--port=0"):
            demo_page.find_port(port)
    assert 0 < demo_page.find_port(0) < 2**16


def test_without_gradio_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("no_proxy", "example.org")
    with pytest.raises(UsageError, match=r"pip install 'auto-deeplab-tf2\[demo\]'"):
        demo_page.import_gradio(tmp_path)
