"""Reading and writing databases: order, position, wholeness, and every way a database can be bad."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import islice

import lmdb
import pytest

from caffe_compat.db import BACKENDS, Cursor, create_database, open_database
from caffe_compat.db.lmdb_backend import FIRST_MAP_SIZE
from caffe_compat.errors import DataError, UnknownType


def plyvel_or_skip(backend: str) -> None:
    if backend == "LEVELDB":
        pytest.importorskip("plyvel", reason="LevelDB needs plyvel")


@pytest.fixture(params=BACKENDS.names())
def backend(request):
    plyvel_or_skip(request.param)
    return request.param


def write(path, count=10, backend="LMDB"):
    with create_database(path, backend) as writer:
        writer.put_all((b"%d" % i, b"value %d" % i) for i in range(count))
    return path


def test_cursor_reads_in_key_order_and_wraps(tmp_path, backend):
    cursor = Cursor(open_database(write(tmp_path / "db", 11, backend), backend))
    assert cursor.after is None
    keys = [key for key, _ in cursor.take(8)] + [key for key, _ in cursor.take(8)] + [key for key, _ in cursor.take(25)]
    order = sorted(b"%d" % i for i in range(11))
    assert order[:3] == [b"0", b"1", b"10"]
    assert keys == (order * 4)[:41]
    assert cursor.take(1) == [(b"7", b"value 7")] and cursor.after == b"7"


@pytest.mark.parametrize("taken", [0, 1, 10, 11, 12])
def test_cursor_comes_back_to_a_position(tmp_path, backend, taken):
    database = open_database(write(tmp_path / "db", 11, backend), backend)
    cursor = Cursor(database)
    cursor.take(taken) if taken else None
    other = Cursor(database)
    other.seek(cursor.after)
    assert other.take(13) == cursor.take(13)


def test_cursor_position_of_a_record_that_is_gone(tmp_path):
    cursor = Cursor(open_database(write(tmp_path / "db")))
    cursor.seek(b"45")
    assert cursor.take(1)[0][0] == b"5"
    cursor.seek(b"95")
    assert cursor.take(1)[0][0] == b"0"


def test_one_object_for_all_readers_of_a_database(tmp_path, monkeypatch):
    write(tmp_path / "db")
    monkeypatch.chdir(tmp_path)
    assert open_database("db") is open_database(tmp_path / "db")
    shutil.copytree("db", "copy")
    assert open_database("copy") is not open_database("db")


def test_database_grows_over_its_first_size(tmp_path, backend):
    value = bytes(1 << 20)
    count = (FIRST_MAP_SIZE >> 20) + 8
    with create_database(tmp_path / "db", backend) as writer:
        writer.put_all((b"%04d" % i, value) for i in range(count))
    database = open_database(tmp_path / "db", backend)
    assert sum(1 for _ in database.records()) == count


def test_unordered_keys_over_several_commits(tmp_path):
    keys = [b"%05d" % (i * 7919 % 2500) for i in range(2500)]
    with create_database(tmp_path / "db") as writer:
        writer.put_all((key, key) for key in keys)
    assert [key for key, _ in open_database(tmp_path / "db").records()] == sorted(keys)


def test_new_database_has_no_lock_file_and_the_usual_mode(tmp_path):
    write(tmp_path / "db")
    (tmp_path / "folder").mkdir()
    assert os.listdir(tmp_path / "db") == ["data.mdb"]
    assert (tmp_path / "db").stat().st_mode == (tmp_path / "folder").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_writing_leaves_nothing(tmp_path, backend, error):
    with pytest.raises(error), create_database(tmp_path / "db", backend) as writer:
        writer.put_all((b"%d" % i, b"") for i in range(3000))
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("distance", [1, 3000])
def test_a_key_written_twice_is_an_error(tmp_path, backend, distance):
    twice = pytest.raises(DataError, match=r"db: .*key.* written twice")
    with twice, create_database(tmp_path / "db", backend) as writer:
        writer.put_all((b"%d" % (i % distance), b"") for i in range(distance + 1))
    assert os.listdir(tmp_path) == []


def test_existing_databases_are_not_overwritten(tmp_path):
    write(tmp_path / "db")
    with pytest.raises(DataError, match="db: exists already"):
        create_database(tmp_path / "db")
    (tmp_path / "late").mkdir()
    shutil.rmtree(tmp_path / "late")
    with pytest.raises(DataError, match="late: exists already"), create_database(tmp_path / "late") as writer:
        writer.put(b"0", b"")
        (tmp_path / "late").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["db", "late"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        create_database(tmp_path / "nowhere" / "db")
    with pytest.raises(UnknownType, match='"LMBD".*did you mean "LMDB"'):
        create_database(tmp_path / "db", "LMBD")


# -- databases that cannot be read ------------------------------------------------------------------------------------


def bad(tmp_path, what: str):
    path = tmp_path / "db"
    data = path / "data.mdb"
    if what == "a file":
        path.write_bytes(b"x")
    elif what != "missing":
        write(path, 1000)
        content = data.read_bytes()
        if what == "without data":
            data.rename(path / "other")
        elif what == "no records":
            shutil.rmtree(path)
            write(path, 0)
        elif what == "leveldb":
            data.rename(path / "CURRENT")
        else:
            data.write_bytes({"0 bytes": b"", "garbage": bytes(range(256)) * 100, "one page": content[:5000],
                              "truncated": content[:-5000]}[what])
    return path


@pytest.mark.parametrize(("what", "message"), [
    ("missing", "there is no such LMDB database"),
    ("a file", "is a file, but a LMDB database is a folder with a file data.mdb"),
    ("without data", "not a LMDB database: the folder has no file data.mdb"),
    ("leveldb", "is of the kind LEVELDB, but backend is LMDB"),
    ("no records", "is empty; write records"),
    ("0 bytes", r"data.mdb is empty \(0 bytes\)"),
    ("garbage", "data.mdb is not an LMDB file"),
    ("one page", "data.mdb is truncated: it has 5000 bytes and should have at least"),
    ("truncated", "data.mdb is truncated"),
])
def test_bad_databases(tmp_path, what, message):
    path = bad(tmp_path, what)
    with pytest.raises(DataError, match=f"^layer: {path}: .*{message}"):
        open_database(path, "LMDB", "layer")


def test_damaged_pages(tmp_path):
    path = write(tmp_path / "db", 1000)
    content = bytearray((path / "data.mdb").read_bytes())
    pages = len(content) // 4096
    for page in range(2, pages):
        content[page * 4096 + 8 : page * 4096 + 16] = bytes(8)  # the page's kind and where its free space starts
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(DataError, match="db: the LMDB database is damaged"):
        list(open_database(path).records())


def test_no_source():
    with pytest.raises(DataError, match="no source is given"):
        open_database("", "LMDB")


def test_database_held_by_other_means(tmp_path):
    path = write(tmp_path / "db")
    environment = lmdb.open(str(path))
    with pytest.raises(DataError, match="db: the LMDB database is locked: this process has it open already"):
        open_database(path)
    environment.close()
    assert list(islice(open_database(path).records(), 1)) == [(b"0", b"value 0")]


def test_unreadable_database(tmp_path, monkeypatch):
    path = write(tmp_path / "db")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who can read everything
    with pytest.raises(DataError, match="db: there is no permission to read data.mdb"):
        open_database(path)


def test_database_that_another_process_writes(tmp_path):
    """Its lock file is used, and records that are not committed are not seen."""
    path = write(tmp_path / "db", 3)
    code = ("import lmdb, sys; environment = lmdb.open(sys.argv[1]); transaction = environment.begin(write=True);"
            "transaction.put(b'9', b''); print('ready', flush=True); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as other:
        assert other.stdout.readline() == b"ready\n"
        database = open_database(path)
        assert [key for key, _ in database.records()] == [b"0", b"1", b"2"]
        other.stdin.close()


def test_lock_file_that_cannot_be_used(tmp_path):
    path = write(tmp_path / "db", 3)
    (path / "lock.mdb").mkdir()
    assert sum(1 for _ in open_database(path).records()) == 3


def test_leveldb_without_plyvel(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(DataError, match=r"need the Python package plyvel.*pip install \"caffe-compat\[leveldb\]\""):
        create_database(tmp_path / "db", "LEVELDB").__enter__()
    assert os.listdir(tmp_path) == []
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "CURRENT").touch()
    with pytest.raises(DataError, match="need the Python package plyvel"):
        open_database(tmp_path / "db", "LEVELDB")


def test_leveldb_locked_or_damaged(tmp_path):
    plyvel = pytest.importorskip("plyvel", reason="LevelDB needs plyvel")
    path = write(tmp_path / "db", 3, "LEVELDB")
    held = plyvel.DB(str(path))
    with pytest.raises(DataError, match="db: the LevelDB database is locked"):
        open_database(path, "LEVELDB")
    held.close()
    assert sum(1 for _ in open_database(path, "LEVELDB").records()) == 3
    with pytest.raises(DataError, match="is of the kind LEVELDB, but backend is LMDB"):
        open_database(path, "LMDB")
    (path / "CURRENT").write_text("nothing\n")
    with pytest.raises(DataError, match="db: the LevelDB database cannot be opened"):
        open_database(path, "LEVELDB")
