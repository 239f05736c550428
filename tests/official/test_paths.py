import os

import pytest

from official.checkpoints import Checkpoints, find
from official.errors import RunError
from official.paths import check_no_pattern, expand_path


def test_home_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_path("~") == "/home/me"
    assert expand_path("~/data") == "/home/me/data"
    assert expand_path("~root/x") == os.path.expanduser("~root/x") != "~root/x"


@pytest.mark.parametrize(
    "path",
    ["", "published", "./~x", "a~", "-x", "a:b", "gs:", "C:\\x", "a b", "é日", "#a,b", "x//y"],
)
def test_other_paths_stay(path):
    assert expand_path(path) == path


@pytest.mark.parametrize(
    ("path", "saying"),
    [
        ("gs://bucket/data", "only paths on this machine"),
        ("s3://bucket", "only paths on this machine"),
        ("file:///home/me", "only paths on this machine"),
        ("~nobody-of-this-name/x", r"no user 'nobody-of-this-name'; .* written \./~"),
        ("run ", "blank"),
        (" run", "blank"),
        ("a\nb", "line break"),
        ("a\0b", "line break"),
        (os.fsdecode(b"caf\xe9"), "not UTF-8"),
    ],
)
def test_what_cannot_work(path, saying):
    with pytest.raises(ValueError, match=saying):
        expand_path(path)


def test_patterns(tmp_path):
    check_no_pattern("a]b{c}")
    for name in ("run[1]", "run*", "run?", "a\\b"):
        with pytest.raises(ValueError, match="take for a pattern"):
            check_no_pattern(f"{name}/x")
        with pytest.raises(RunError, match=r"the checkpoint .* take for a pattern"):
            find(f"{tmp_path}/{name}/ckpt-1")
        with pytest.raises(RunError, match=r"directory of checkpoints .* take for a pattern"):
            Checkpoints(f"{tmp_path}/{name}", {})
    assert list(tmp_path.iterdir()) == []
