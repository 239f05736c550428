"""Flagfiles inside flagfiles: where they are looked for, what wins, what is refused."""

import os

import pytest
from absl import flags

from official.flagfiles import expand, locate


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def test_a_flagfile_is_its_lines(write):
    file = write("one.cfg", "# comment", "", "--a=1", "  --b=x,y  ", "// absl knows this one too")
    wanted = ["train", "--z=0", "--a=1", "--b=x,y", "--c"]
    assert expand(["train", "--z=0", f"--flagfile={file}", "--c"]) == wanted
    assert expand(["train", "--z=0", "-flagfile", str(file), "--c"]) == wanted
    assert expand(["train", "--a"]) == ["train", "--a"]


def test_a_flagfile_in_a_flagfile_stands_beside_it(write, tmp_path, monkeypatch):
    write("parts/size.cfg", "--size=3")
    write("parts/recipe.cfg", "--flagfile=size.cfg", "--rate=1")
    file = write("mine.cfg", "--flagfile=parts/recipe.cfg", "--rate=2")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # where absl would look
    # In this order: the later --rate wins.
    assert expand([f"--flagfile={file}"]) == ["--size=3", "--rate=1", "--rate=2"]
    monkeypatch.chdir(tmp_path)
    assert expand(["--flagfile=mine.cfg"]) == ["--size=3", "--rate=1", "--rate=2"]


def test_the_same_part_may_come_twice(write):
    write("part.cfg", "--a=1")
    file = write("whole.cfg", "--flagfile=part.cfg", "--a=2", "--flagfile=part.cfg")
    assert expand([f"--flagfile={file}"]) == ["--a=1", "--a=2", "--a=1"]


def test_what_follows_a_double_dash_is_no_flag():
    assert expand(["--a", "--", "--flagfile=nowhere"]) == ["--a", "--", "--flagfile=nowhere"]


def test_a_flagfile_that_contains_itself(write):
    write("a.cfg", "--flagfile=b.cfg")
    write("b.cfg", "--flagfile=a.cfg")
    file = write("start.cfg", "--flagfile=a.cfg")
    with pytest.raises(
        flags.CantOpenFlagFileError, match=r"a\.cfg \(in .*b\.cfg\) contains itself"
    ):
        expand([f"--flagfile={file}"])


def test_a_flagfile_that_is_missing_or_no_text(write, tmp_path):
    file = write("a.cfg", "--flagfile=gone.cfg")
    with pytest.raises(flags.Error, match=r"gone\.cfg \(in .*a\.cfg\) cannot be read: No such"):
        expand([f"--flagfile={file}"])
    (tmp_path / "gone.cfg").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(flags.Error, match="cannot be read: not text in UTF-8: save it so"):
        expand([f"--flagfile={file}"])
    with pytest.raises(flags.Error, match="Is a directory"):
        expand([f"--flagfile={tmp_path}"])
    with pytest.raises(flags.Error, match="cannot be read"):
        expand(["--flagfile"])


def test_a_byte_order_mark_and_line_ends_of_windows(write, tmp_path):
    (tmp_path / "mark.cfg").write_bytes("\ufeff--a=ä\r\n# comment\r\n--b\r\n".encode())
    assert expand([f"--flagfile={tmp_path / 'mark.cfg'}"]) == ["--a=ä", "--b"]
    file = write("outer.cfg", "--flagfile=mark.cfg")
    assert expand([f"--flagfile={file}"]) == ["--a=ä", "--b"]
    (tmp_path / "mark.cfg").write_bytes("\ufeff# comment\n--b\n".encode())
    assert expand([f"--flagfile={file}"]) == ["--b"]


def test_where_an_argument_stands(write):
    inner = write("inner.cfg", "--b")
    outer = write("outer.cfg", "--flagfile=inner.cfg", "--c=1")
    wanted = [("--a", None), ("--b", inner), ("--c=1", outer), ("--", None), ("--d", None)]
    assert locate(["--a", f"--flagfile={outer}", "--", "--d"]) == wanted


def test_other_directories_are_looked_into_last(write, tmp_path, monkeypatch):
    write("shipped/size.cfg", "--size=1")
    write("shipped/whole.cfg", "--flagfile=size.cfg", "--rate=1")
    mine = write("mine/size.cfg", "--size=2")
    also = [tmp_path / "shipped", tmp_path / "elsewhere"]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert expand(["--flagfile=size.cfg"], also=also) == ["--size=1"]
    # The file here wins on the command line, but does not change what a shipped one means.
    (here / "size.cfg").write_text("--size=3")
    assert expand(["--flagfile=size.cfg"], also=also) == ["--size=3"]
    assert expand(["--flagfile=whole.cfg"], also=also) == ["--size=1", "--rate=1"]
    # One in a flagfile: beside it first.
    file = write("mine/mine.cfg", "--flagfile=size.cfg", "--flagfile=whole.cfg")
    assert expand([f"--flagfile={file}"], also=also) == ["--size=2", "--size=1", "--rate=1"]
    mine.unlink()
    assert expand([f"--flagfile={file}"], also=also) == ["--size=1", "--size=1", "--rate=1"]
    with pytest.raises(
        flags.Error, match=r"--flagfile=whol\.cfg cannot be read: No such .* mean --f"
    ):
        expand(["--flagfile=whol.cfg"], also=also)


def test_flagfiles_that_name_the_next_one_twice_end(write):
    for number in range(30):  # 2^30 files
        write(f"{number}.cfg", f"--flagfile={number + 1}.cfg\n--flagfile={number + 1}.cfg")
    write("30.cfg", "--x=1")
    file = write("start.cfg", "--flagfile=0.cfg")
    with pytest.raises(flags.CantOpenFlagFileError, match=r"start\.cfg leads to more than 1000"):
        expand([f"--flagfile={file}"])


def test_a_flagfile_of_nobody():
    with pytest.raises(flags.CantOpenFlagFileError, match=r"~nosuchuser/x.*cannot be read"):
        expand(["--flagfile=~nosuchuser/x"])


def test_names_that_no_file_has(write, tmp_path):
    (tmp_path / "loop.cfg").symlink_to("loop.cfg")
    for name in ("x" * 10**5, str(tmp_path / "loop.cfg")):
        with pytest.raises(flags.CantOpenFlagFileError, match=r"cannot be read: [\w ]+"):
            expand([f"--flagfile={name}"])
    file = write("nul.cfg", "--flagfile=a\0b")
    with pytest.raises(flags.CantOpenFlagFileError, match=r"\(in .*nul\.cfg\) cannot be read"):
        expand([f"--flagfile={file}"])


def test_a_pipe_of_the_shell_is_a_flagfile():
    read, end = os.pipe()
    os.write(end, b"--a=1\n")
    os.close(end)
    assert expand([f"--flagfile=/dev/fd/{read}"]) == ["--a=1"]
    os.close(read)
