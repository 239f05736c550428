"""The console script that an installed wheel has: auto-deeplab is train.py."""

import runpy


def train() -> None:
    """python auto_deeplab/train.py, under whatever arguments were given."""
    runpy.run_module("auto_deeplab.train", run_name="__main__", alter_sys=True)
