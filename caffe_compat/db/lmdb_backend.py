"""LMDB databases, Caffe's usual kind: a folder with `data.mdb`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

try:
    import lmdb
except ModuleNotFoundError:  # where the package has no build: these databases are then out of reach, all else is not
    lmdb = None

from ..errors import DataError
from .database import BACKENDS, Database, Record, Store

#: A new database's first size limit; it is doubled as often as needed.
FIRST_MAP_SIZE = 64 << 20


@BACKENDS.add("LMDB")
class LMDB(Database):
    """An LMDB database open for reading. LMDB keeps no checksums: only damage to its own structure is noticed."""

    marker = held = "data.mdb"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._environment = _open_environment(path)

    @classmethod
    def store(cls, path: str) -> LMDBStore:
        return LMDBStore(path)

    def count(self) -> int:
        return self._environment.stat()["entries"]

    def records(self, after: bytes | None = None) -> Iterator[Record]:
        try:
            with self._environment.begin() as transaction, transaction.cursor() as cursor:
                # `iternext` starts where the cursor is, or at the first record if it is nowhere yet.
                found = after is None or cursor.set_range(after)
                if found and after is not None and cursor.key() == after:
                    found = cursor.next()
                if found:
                    yield from cursor.iternext()
        except lmdb.Error as error:
            raise DataError(f"{self.path}: the LMDB database is damaged ({error}); make it anew") from error


class LMDBStore(Store):
    """An LMDB database in the making."""

    def __init__(self, path: str) -> None:
        self._path = path
        _need_lmdb(path)
        # A half-written database is thrown away, so it is enough to sync once, in `close`.
        self._environment = lmdb.open(path, map_size=FIRST_MAP_SIZE, sync=False, metasync=False)
        self._last = b""

    def add(self, records: list[Record]) -> None:
        # Keys that only go up may be appended, which fills the pages: the file is a fifth smaller.
        ordered = all(a < b for a, b in pairwise([self._last, *(key for key, _ in records)]))
        self._last = max([self._last, *(key for key, _ in records)])
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    _, added = transaction.cursor().putmulti(records, overwrite=False, append=ordered)
                    if added != len(records):
                        raise DataError(f"a key was written twice, one of {records[0][0]!r} to "
                                        f"{records[-1][0]!r}; give every record a key of its own")
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                raise DataError(f"cannot be written: {error}; is the disk full?") from error

    def close(self) -> None:
        self._environment.sync(True)
        self._environment.close()
        lock = os.path.join(self._path, "lock.mdb")
        if os.path.exists(lock):
            os.remove(lock)  # nobody else can have opened the database yet


def _need_lmdb(path: str) -> None:
    if lmdb is None:
        raise DataError(f"{path}: LMDB databases need the package lmdb: pip install lmdb")


def _open_environment(path: str) -> lmdb.Environment:
    """The environment, read-only. If there is a lock file someone may be writing, so it is used; none is made."""
    _need_lmdb(path)
    if not os.access(os.path.join(path, LMDB.marker), os.R_OK):
        raise DataError(f"{path}: there is no permission to read data.mdb; change its mode or owner")
    lock = os.access(os.path.join(path, "lock.mdb"), os.R_OK | os.W_OK)
    try:
        try:
            environment = lmdb.open(path, readonly=True, create=False, lock=lock)
        except lmdb.Error:
            if not lock:
                raise
            environment = lmdb.open(path, readonly=True, create=False, lock=False)
    except lmdb.InvalidError as error:
        raise DataError(f"{path}: data.mdb is not an LMDB file ({error}); make the database anew") from error
    except lmdb.Error as error:
        if "already open" in str(error):
            raise DataError(f"{path}: the LMDB database is locked: this process has it open already, by other means "
                            "than this package; close it there first") from error
        raise DataError(f"{path}: the LMDB database cannot be opened: {_reason(path, error)}") from error
    _check_complete(path, environment)
    return environment


def _reason(path: str, error: lmdb.Error) -> str:
    if not os.path.getsize(os.path.join(path, LMDB.marker)):
        return "data.mdb is empty (0 bytes); copy or make the database anew"
    return f"{str(error).removeprefix(f'{path}: ')}; check that the file can be read, or make the database anew"


def _check_complete(path: str, environment: lmdb.Environment) -> None:
    """Refuses a file that ends before its last page: reading past the end would kill the process (SIGBUS)."""
    found = os.path.getsize(os.path.join(path, LMDB.marker))
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if found < expected:
        environment.close()
        raise DataError(f"{path}: data.mdb is truncated: it has {found} bytes and should have at least {expected}; "
                        "copy or make the database anew")
