"""Opens report pages in a real Chromium, without a window and without a network."""

import base64

import numpy as np
import pytest

from auto_deeplab.report import pages
from tests.auto_deeplab.report.test_pages import RECORD, ROWS, make_comparison
from tests.browser import find, needs_browser, start_browser

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser():
    driver = start_browser(1100, 1400)
    # A page that asked a server would say so in the console.
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


def show(browser, path, scheme="light"):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.resolve().as_uri())
    assert browser.get_log("browser") == []


def describe(browser):
    """What the picture of the network looks like."""
    parts = ".edge, .node, .route, .share, .share rect, .arc, .branch, .now"
    words = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => [e.getAttribute('class'),"
        " e.getAttribute('style'), e.getAttribute('points'), e.getAttribute('x1'), e.textContent])",
        parts,
    )
    return words


def test_the_slider_changes_the_picture(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    pages.write_run(tmp_path, RECORD, ROWS)
    show(browser, tmp_path / "report.html")
    (slider,) = find(browser, "input[type=range]")
    (said,) = find(browser, "output")
    last, picture = describe(browser), browser.get_screenshot_as_png()
    assert "step 20" in said.text
    assert [part.text for part in find(browser, ".branch")] == [
        "sep 3x3 of H l-1",
        "sep 3x3 of H l-2",
    ]
    # Of two edges, the first operation of three.
    assert [part.text for part in find(browser, ".kept text")] == ["80.0", "80.0"]

    slider.send_keys(Keys.ARROW_LEFT)
    assert "step 10" in said.text
    assert [part.text for part in find(browser, ".branch")] == ["skip of H l-1", "skip of H l-2"]
    assert describe(browser) != last and browser.get_screenshot_as_png() != picture

    slider.send_keys(Keys.ARROW_RIGHT)
    assert describe(browser) == last
    assert browser.get_log("browser") == []


def test_dark_and_light_and_on_paper(browser, tmp_path):
    pages.write_run(tmp_path, RECORD, ROWS)
    brightness = {}
    for scheme in ("light", "dark"):
        show(browser, tmp_path / "report.html", scheme)
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness[scheme] = np.mean([int(x) for x in colour.strip("rgb()").split(",")])
    assert brightness["light"] > 200 and brightness["dark"] < 60
    # On paper all is light, and what one would slide is gone.
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    assert not find(browser, "input")[0].is_displayed()
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_nothing_is_wider_than_the_window(browser, tmp_path):
    pages.write_comparison(tmp_path / "report.html", make_comparison(tmp_path))
    show(browser, tmp_path / "report.html")
    assert len(find(browser, ".architecture")) == 2
    assert len(find(browser, ".node.on")) == 6  # the stem's and two layers', of two networks
    for width in (1100, 600):
        browser.set_window_size(width, 1000)
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth"
        )
    browser.set_window_size(1100, 1400)
