"""The console scripts that an installed wheel has, each a module of this package as a command."""

import runpy


def convert() -> None:
    """python -m tfrecords_tools.convert."""
    _run("convert")


def check() -> None:
    """python -m tfrecords_tools.check."""
    _run("check")


def browse() -> None:
    """python -m tfrecords_tools.browse."""
    _run("browse")


def _run(name: str) -> None:
    runpy.run_module(f"tfrecords_tools.{name}", run_name="__main__", alter_sys=True)
