"""A place is claimed before the work; what is written is complete or absent; leftovers of kills go."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import InputError, ReportedError, StorageError, as_reported
from shards.files import require_name
from shards.output import claimed, make_folder, require_free, staged_folder
from tests.support.refused import refused


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staged_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert names_in(tmp_path) == ["out"]
    with refused("out: the folder already holds files; choose another or empty it"):
        require_free(tmp_path / "out")


def test_a_folder_that_failed_leaves_nothing_not_even_its_parents(tmp_path: Path) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "a" / "b" / "out") as folder:
            (folder / "half").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names_in(tmp_path) == []


def test_the_next_one_removes_what_a_killed_one_left_of_this_place_alone(tmp_path: Path) -> None:
    script = "import os; from pathlib import Path; from shards.output import staged_folder\n"
    script += f"with staged_folder(Path('{tmp_path}/out')): os.kill(os.getpid(), {signal.SIGKILL})"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert len(names_in(tmp_path)) == 2
    (tmp_path / ".other.partial-x").write_text("of somebody else")
    with staged_folder(tmp_path / "out"):
        pass
    assert names_in(tmp_path) == [".other.partial-x", "out"]


def test_the_second_program_is_told_who_writes_there(tmp_path: Path) -> None:
    holder = rf"another program is writing there: .*\.out\.lock is held by process {os.getpid()} on "
    out = tmp_path / "out"
    with claimed(out), refused(f"--out .*out: {holder}"), staged_folder(out):
        pytest.fail("it has begun to work")
    with (
        claimed(out, part="0-of-2"),
        claimed(out, part="1-of-2"),
        refused("part 0-of-2: "),
        claimed(out, part="0-of-2"),
    ):
        pytest.fail("it has begun to work")
    with claimed(out, part="1-of-2"), refused("is writing there"), claimed(out):
        pytest.fail("it has begun to work")
    (tmp_path / ".out.0-of-2.lock").write_text("of one that was killed")
    with claimed(out):
        assert names_in(tmp_path) == [".out.lock"]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("file", "is a file; a new or empty folder is needed"),
        ("file/sub", "is a file, or a link that leads to no folder"),
        ("x" * 300, "File name too long"),
        ("x" * 250, "File name too long"),  # with what a temporary name adds
        ("dangling", "is a link that leads to no folder"),
        ("loop", "is a link that leads to no folder"),
        ("loop/sub", "is a file, or a link that leads to no folder"),
        ("dangling/sub", "is a file, or a link that leads to no folder"),
    ],
)
def test_a_place_that_cannot_be_is_one_line_before_the_work(tmp_path: Path, place: str, text: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with refused(text) as error, staged_folder(tmp_path / place):
        pytest.fail("it has begun to work")
    assert "\n" not in str(error.value)
    assert names_in(tmp_path) == ["dangling", "file", "loop"]


@pytest.mark.parametrize("place", ["/proc/out", "/sys/out", "/sys/deep/out"])
def test_a_place_that_cannot_be_written_is_one_line_before_the_work(place: str) -> None:
    with pytest.raises(ReportedError, match=r"^--out /(proc|sys)"), staged_folder(Path(place)):
        pytest.fail("it has begun to work")


def test_a_fault_in_the_block_names_the_place(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = r"^--out .*out: cannot be .*: No space left on device$"
    with pytest.raises(StorageError, match=told), staged_folder(tmp_path / "out"):
        raise full
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PermissionError(errno.EACCES, "x", "/a"), StorageError, "/a: cannot be .*: Permission denied"),
        (OSError(errno.EROFS, "x"), StorageError, "a file: cannot be .*: Read-only file system"),
        (OSError(errno.ELOOP, "x", "/a"), InputError, "/a: cannot be .*: Too many levels"),
        (RuntimeError('Os { code: 28, message: "No space left on device" }'), StorageError, "No space left"),
    ],
)
def test_faults_of_storage_and_impossible_paths_are_told(
    error: Exception, kind: type[ReportedError], text: str
) -> None:
    reported = as_reported(error)
    assert type(reported) is kind
    with pytest.raises(kind, match=text):
        raise reported


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x", "/a"), KeyError("a"), OSError("odd")])
def test_our_own_mistakes_keep_their_traceback(error: Exception) -> None:
    assert as_reported(error) is None


def test_an_existing_folder_is_no_fault(tmp_path: Path) -> None:
    make_folder(tmp_path)
    require_free(tmp_path)


@pytest.mark.parametrize("name", ["a", "Nacht fahrten-2", "optim.lr=1e-4,seed=0", "_x", "a" * 120])
def test_a_name_may_have(name: str) -> None:
    require_name(name, "name")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\\b", "a\nb", "a\tb", "-a", "=a", "@a", " a", "a" * 121, "a\0"]
)
def test_a_name_is_no_path_no_option_no_formula(name: str) -> None:
    with refused("^name: got .*; 120 letters"):
        require_name(name, "name")
