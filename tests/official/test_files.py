import os

import pytest

from official.errors import RunError
from official.files import find_files, glob_files, make_directory, write_atomically


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"file: No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_missing_directory_and_a_file_in_the_way_are_named(tmp_path):
    with pytest.raises(RunError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        make_directory(tmp_path / "file" / "below")


@pytest.fixture
def linked(tmp_path):
    """top: a.png, in/b.png, .hid/x.png, a link to a folder elsewhere, and links in circles."""
    top, elsewhere = tmp_path / "top [1]", tmp_path / "elsewhere"
    for path in (top / "a.png", top / "in" / "b.png", top / ".hid" / "x.png", elsewhere / "c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (top / ".y.png").write_text("hidden")
    (top / "link").symlink_to(elsewhere)
    (top / "in" / "again").symlink_to(elsewhere)  # the same once more, which is no circle
    (elsewhere / "round").symlink_to(top)
    (top / "in" / "self").symlink_to(top / "in")
    (top / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    return top


ALL = ("a.png", "in/again/c.png", "in/b.png", "in/gone.png", "link/c.png")


def names(paths, folder):
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def test_linked_folders_are_followed_and_circles_end(linked, capsys):
    assert names(find_files(linked), linked) == ALL
    said = capsys.readouterr().err.splitlines()
    ends = [f"{linked}/{end} leads back" for end in ("in/again/round", "in/self", "link/round")]
    assert len(said) == 3 and all(end in line for end, line in zip(ends, said, strict=True))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.png", ALL),
        ("**", ALL),
        ("*.png", ("a.png",)),
        ("*/c.png", ("link/c.png",)),
        ("**/again/**/c.*", ("in/again/c.png",)),
        ("in/**/[bc].png", ("in/again/c.png", "in/b.png")),
        ("**/*.jpg", ()),
    ],
)
def test_patterns_find_what_is_linked(linked, pattern, found, monkeypatch):
    root = linked / "in" if pattern.startswith("in/") else linked
    monkeypatch.chdir(linked)
    assert names(glob_files(pattern, root.relative_to(linked)), "") == found
    if "**" in pattern:
        assert names(glob_files(f"{linked}/{pattern}", root), linked) == found


def test_a_root_that_is_not_there_has_no_files(tmp_path):
    assert glob_files(f"{tmp_path}/nowhere/**/*.png", tmp_path / "nowhere") == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        find_files(tmp_path / "nowhere")
