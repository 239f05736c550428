"""--mode=demo as a user has it: a command, and a real Chromium in which a photograph is dropped."""

import contextlib
import json
import re
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.browser import find, needs_browser, start_browser
from tests.command import (
    TINY_GENOTYPE,
    TINY_NETWORK,
    finish,
    start_train,
    train_here,
    train_there,
)
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

# Python runs a file of this name first: no connection to another machine comes about, and each that
# is tried is written down.
WATCH = """
import os, socket
def watch(name):
    old = getattr(socket.socket, name)
    def call(self, address, *rest):
        here = ("127.0.0.1", "::1")
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in here:
            with open(os.environ["TRIED"], "a") as file:
                print(name, address, file=file)
            raise OSError("this test has no network")
        return old(self, address, *rest)
    setattr(socket.socket, name, call)
for name in ("connect", "connect_ex", "bind"):
    watch(name)
look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **options):
    if host not in ("127.0.0.1", b"127.0.0.1", None):
        with open(os.environ["TRIED"], "a") as file:
            print("getaddrinfo", host, file=file)
        raise OSError("this test has no network")
    return look_up(host, *rest, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run in `run`, its data, and photographs in `in` with the answers of predict in `out`."""
    root = tmp_path_factory.mktemp("demo")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    done = train_here(
        *("--mode=train", f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}"),
        *(f"--genotype={root / 'genotype.json'}", *TINY_NETWORK, "--train_steps=2"),
        "--batch_norm_decay=0.1",
    )
    assert done.code == 0, done.stderr
    (root / "in").mkdir()
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3)).astype(np.uint8))
    coarse.resize((300, 200), Image.Resampling.BICUBIC).save(root / "in" / "my street.jpg")
    done = train_here(
        *("--mode=predict", f"--model_dir={root / 'run'}", f"--input={root / 'in'}"),
        f"--output_dir={root / 'out'}",
    )
    assert done.code == 0, done.stderr
    return root


@contextlib.contextmanager
def started(root, name, *flags, **environment):
    """The command and the address of its page."""
    where, temporary = root / f"{name}_cwd", root / f"{name}_tmp"
    where.mkdir()
    temporary.mkdir()
    (root / f"{name}_watch").mkdir()
    (root / f"{name}_watch" / "sitecustomize.py").write_text(WATCH)
    process = start_train(
        *("--mode=demo", f"--model_dir={root / 'run'}", "--port=0", *flags),
        cwd=where,
        TMPDIR=str(temporary),
        TRIED=str(root / f"{name}_tried.txt"),
        PYTHONPATH=str(root / f"{name}_watch"),
        **environment,
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate()
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def check_nothing_is_left(root, name):
    assert [*(root / f"{name}_cwd").iterdir()] == []
    # TensorFlow leaves its own files there, and removes them or not.
    left = [path.name for path in (root / f"{name}_tmp").iterdir()]
    assert [one for one in left if not one.startswith("__autograph")] == []
    tried = root / f"{name}_tried.txt"
    assert not tried.exists(), tried.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(1300, 1250, "performance")
    driver.downloads = tmp_path_factory.mktemp("downloads")
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(driver.downloads)},
    )
    yield driver
    driver.quit()


def wait_for(look, seconds=60):
    """What `look` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def read(browser, selector):
    """The texts of what is found, also where it is not in sight."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())"
    return browser.execute_script(script, selector)


def upload(browser, path):
    (box,) = wait_for(lambda: find(browser, "#picture input[type=file]"))
    box.send_keys(str(path))


def take_away(browser):
    """Removes the picture, and waits for the empty page."""
    (button,) = find(browser, "#picture button[aria-label='Remove Image']")
    button.click()
    wait_for(lambda: find(browser, "#answer .empty"))


def download(browser, name):
    from selenium.common.exceptions import WebDriverException

    def click():
        with contextlib.suppress(WebDriverException):  # it is replaced when it gets its file
            (button,) = find(browser, f"#{name}")
            if button.is_enabled():
                button.click()
                return True

    wait_for(click)
    file = browser.downloads / f"my street_{name}.png"
    wait_for(file.exists)
    wait_for(lambda: file.read_bytes().endswith(b"IEND\xaeB`\x82"))
    return file.read_bytes()


def list_hosts(browser):
    """Whom the browser has asked, since it was asked last."""
    hosts = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            url = urlsplit(parameters.get("request", parameters)["url"])
            if url.scheme not in ("data", "blob", "chrome", "about"):
                hosts.add(url.netloc)
    return hosts


@needs_browser
def test_a_photograph_is_dropped_and_its_classes_are_seen(root, browser, tmp_path):
    from selenium.webdriver import ActionChains

    with started(root, "browser", f"--data_dir={root / 'data'}") as (process, address):
        browser.get_log("performance")
        browser.get(address)
        wait_for(lambda: find(browser, "#answer .empty"))
        upload(browser, root / "in" / "my street.jpg")
        wait_for(lambda: find(browser, "#answer .facts"))

        labels = np.asarray(Image.open(root / "out" / "my street_labels.png"))
        names = prediction_names(root)
        counts = np.bincount(labels.ravel(), minlength=len(names))
        there = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        assert read(browser, "#answer th") == [names[index] for index in there]
        for said, index in zip(read(browser, "#answer td.share"), there, strict=True):
            percent = 100 * counts[index] / labels.size
            assert said == ("below 0.1 %" if percent < 0.05 else f"{percent:.1f} %")
        (facts,) = read(browser, "#answer .facts")
        assert re.match(
            r"300 x 200 pixels; the network alone took [\d,]+ ms on .* threads\.", facts
        )

        # Under the pointer is the name of the pixel's class, and its row stands out.
        (view,) = find(browser, "#answer .view")
        for across, down in ((0.2, 0.3), (0.7, 0.8)):
            shift = [round((at - 0.5) * view.size[side]) for at, side in
                     ((across, "width"), (down, "height"))]  # fmt: skip
            ActionChains(browser).move_to_element_with_offset(view, *shift).perform()
            beside = labels[int(200 * down) - 2 : int(200 * down) + 3]
            beside = beside[:, int(300 * across) - 2 : int(300 * across) + 3]
            (tip,) = wait_for(lambda: read(browser, "#answer .tip:not([hidden])"))
            assert tip.split(",")[0] in {names[index] for index in np.unique(beside)}
            assert read(browser, "#answer tr.on th") == [tip.split(",")[0]]
        (tmp_path / "demo.png").write_bytes(browser.get_screenshot_as_png())

        for kind in ("overlay", "labels"):
            wanted = (root / "out" / f"my street_{kind}.png").read_bytes()
            assert download(browser, kind) == wanted

        # What is no picture is told, and the next one is answered again; so is an example.
        notes = tmp_path / "notes.png"
        notes.write_text("hello")
        take_away(browser)
        upload(browser, notes)
        (notice,) = wait_for(lambda: read(browser, "#answer .notice"))
        assert notice == "cannot read the image notes.png: neither PNG nor JPEG"
        examples = wait_for(lambda: find(browser, ".gallery-item"))
        assert len(examples) == 2
        examples[0].click()
        (facts,) = wait_for(lambda: read(browser, "#answer .facts"))
        assert facts.startswith("72 x 40 pixels")

        assert list_hosts(browser) == {urlsplit(address).netloc}
        wrong = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert wrong == []
        browser.get("about:blank")
        process.send_signal(signal.SIGTERM)
        done = finish(process, timeout=60)
    assert done.code == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.endswith("the page is closed, and what was uploaded is removed\n")
    check_nothing_is_left(root, "browser")


def prediction_names(root):
    return json.loads((root / "run" / "run.json").read_text())["class_names"]


def test_it_is_served_to_this_machine_alone_and_ctrl_c_ends_it(root):
    # A proxy is not asked for one's own page.
    proxy = {"HTTP_PROXY": "http://192.0.2.1:9", "http_proxy": "http://192.0.2.1:9"}
    with started(root, "signal", **proxy) as (process, address):
        port = urlsplit(address).port
        listening = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
        ]
        assert listening == [f"0100007F:{port:04X}"]
        taken = train_there(
            *("--mode=demo", f"--model_dir={root / 'run'}", f"--port={port}"), cwd=root
        )
        assert taken.code == 1
        assert f"--port={port} on 127.0.0.1: Address already in use: give another" in taken.error
        process.send_signal(signal.SIGINT)
        done = finish(process, timeout=60)
    assert done.code == 0 and done.stdout == "", done.stderr
    check_nothing_is_left(root, "signal")
