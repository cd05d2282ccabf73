import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from qexp.base.errors import UserError
from qexp.base.files import SaveError, check_readable, discard_partials, names_in, write_atomic, write_text_atomic

# Files of the process may not grow beyond 100 kB; the file is written in the way that the last argument names.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from qexp.base.files import SaveError, write_atomic, write_text_atomic

writers = {
    "text": lambda partial: partial.write_text("x" * 200_000),
    "torch": lambda partial: torch.save({"a": torch.zeros(50_000)}, partial),
    "safetensors": lambda partial: save_file({"a": torch.zeros(50_000)}, partial),
}
write_text_atomic(Path("file"), "before")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, writer in writers.items():
    try:
        write_atomic(Path("file"), writer)
    except SaveError as error:
        print(name, error.errno, error.filename, type(error.__cause__).__name__, [str(path) for path in Path().iterdir()])
"""


def test_whatever_a_library_raises_a_full_disk_is_one_error_and_leaves_the_old_file():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, timeout=900)
    said = f"{errno.EFBIG} file {{}} ['file']"
    assert done.stdout.splitlines() == [
        f"{name} {said.format(cause)}"
        for name, cause in (("text", "OSError"), ("torch", "RuntimeError"), ("safetensors", "SafetensorError"))
    ]
    assert Path("file").read_text() == "before"


@pytest.mark.parametrize("error", [RuntimeError("our own fault"), TypeError("not a tensor"), KeyboardInterrupt()], ids=repr)
def test_what_is_not_the_systems_fault_is_raised_as_it_is(tmp_path, error):
    def write(partial):
        partial.write_text("part")
        raise error

    with pytest.raises(type(error)) as raised:
        write_atomic(tmp_path / "file", write)
    assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"file/sub/a.txt could not be saved: Not a directory\. .* Mend that and run") as raised:
        write_text_atomic(tmp_path / "file" / "sub" / "a.txt", "text")
    assert raised.value.errno == errno.ENOTDIR


def test_no_space(tmp_path):
    def write(partial):
        partial.write_text("part")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SaveError, match=r"No space left on device\. What was saved before is intact\. Free space on that disk"):
        write_atomic(tmp_path / "file", write)
    assert not list(tmp_path.iterdir())


def test_the_error_travels_between_processes():
    error = SaveError(Path("a/last.pt"), OSError(errno.EDQUOT, "Disk quota exceeded"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno, again.filename) == (str(error), errno.EDQUOT, "a/last.pt")


def test_text_arrives_whole(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    for text in ("first", "sécond\n"):
        write_text_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


@pytest.fixture
def umask():
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_files_have_the_mode_of_the_umask(tmp_path, umask):
    def of_its_own(partial):  # as safetensors does it
        other = partial.with_name("other")
        other.touch(0o600)
        os.replace(other, partial)

    for name, write in {"text": lambda partial: partial.write_text("x"), "own": of_its_own}.items():
        write_atomic(tmp_path / name, write)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o664


def test_a_temporary_file_is_nobody_elses(tmp_path, monkeypatch):
    names = []
    for _ in range(2):
        write_atomic(tmp_path / "a", lambda partial: names.append(partial.name))
    assert len(set(names)) == 2
    write_atomic(tmp_path / ("n" * 255), lambda partial: partial.write_text("long"))
    (tmp_path / "target").write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".b.guessed.tmp").symlink_to(tmp_path / "target")
    with pytest.raises(SaveError, match="b could not be saved: File exists"):
        write_text_atomic(tmp_path / "b", "through the link")
    discard_partials(tmp_path)
    assert (tmp_path / "target").read_text() == "kept" and not list(tmp_path.glob("*.tmp"))


def test_unreadable_is_not_missing(tmp_path):
    path = tmp_path / "a"
    check_readable(path)
    check_readable(tmp_path / "a" / "b")
    assert names_in(path) == []
    path.mkdir()  # stands for a file of another user's, which root may read
    with pytest.raises(UserError, match=r"a: allowed is what can be read\. Is a directory\. It is there, and not made again"):
        check_readable(path)
    (path / "b").touch()
    with pytest.raises(UserError, match="Not a directory"):
        names_in(path / "b")
