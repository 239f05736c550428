"""A real Chromium without a window, for tests that open pages; skipped where there is none."""

import shutil

import pytest

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium: apt-get install chromium chromium-driver"
)


def start_browser(width, height, *logs):
    """A driver, whose `quit` ends it; its get_log gives the console, and `logs`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", dict.fromkeys(("browser", *logs), "ALL"))
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def find(browser, selector):
    """The elements that a CSS selector finds."""
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)
