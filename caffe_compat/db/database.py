"""Databases of records: ordered maps from key bytes to value bytes, read in key order and written whole or not at all.

    database = open_database("mnist_train_lmdb", "LMDB")
    cursor = Cursor(database)
    records = cursor.take(64)                       # [(key, value), ...]; after the last record comes the first again

    with create_database("new_lmdb", "LMDB") as writer:
        writer.put(b"00000000", value)
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import ClassVar
from weakref import WeakValueDictionary

from ..errors import DataError
from ..registry import Registry

Record = tuple[bytes, bytes]

#: A writer hands records to the backend in groups of at most so many records or bytes.
COMMIT_RECORDS, COMMIT_BYTES = 1000, 64 << 20


class Database(ABC):
    """One database that is open for reading. Backends are registered under DataParameter.backend's names.

    `marker` is the file by which a folder is known to hold a database of this kind, `held` the one that an open
    database keeps open.
    """

    marker: ClassVar[str]
    held: ClassVar[str]

    def __init__(self, path: str) -> None:
        """Opens the database in folder `path`; `DataError` if it cannot be read."""
        self.path = path

    @classmethod
    @abstractmethod
    def store(cls, path: str) -> Store:
        """A new database in the folder `path`, which exists and is empty."""

    @abstractmethod
    def count(self) -> int:
        """The number of records."""

    @abstractmethod
    def records(self, after: bytes | None = None) -> Iterator[Record]:
        """The records in the order of their keys' bytes: all, or those whose key is greater than `after`."""


class Store(ABC):
    """A database that is being written, in a place of its own that `Writer` moves to its final one."""

    @abstractmethod
    def add(self, records: list[Record]) -> None:
        """Stores the records; `DataError` for a key that is there already."""

    @abstractmethod
    def close(self) -> None:
        """Makes sure that all is on the disk, and lets go of it."""


#: The databases that are open: a process can open each only once, so all its readers share one object.
_OPEN: WeakValueDictionary[tuple[int, int], Database] = WeakValueDictionary()

#: Every database backend, by the names of DataParameter.DB.
BACKENDS: Registry[type[Database]] = Registry("database backend")


def open_database(path: str | os.PathLike[str], backend: str = "LMDB", where: str | None = None) -> Database:
    """Opens the database in folder `path` for reading, without writing anything.

    `backend` is a name in `BACKENDS` (in any case), `where` the layer that errors name. Raises `DataError` for a
    database that is missing, empty, damaged, unreadable, or of another kind than `backend`.
    """
    path = os.fspath(path)
    cls = BACKENDS.get(backend.upper(), where)
    try:
        _check_folder(path, backend.upper(), cls)
        database = _OPEN.get(_identity(path, cls))
        if database is None:
            database = cls(path)
            _OPEN[_identity(path, cls)] = database
        if next(database.records(), None) is None:
            raise DataError(f"{path}: the {backend.upper()} database is empty; write records into it before it is read")
    except DataError as error:
        raise (DataError(f"{where}: {error}") if where else error) from error.__cause__
    return database


def create_database(path: str | os.PathLike[str], backend: str = "LMDB") -> Writer:
    """A writer of a new database at `path`, to be used in a `with` statement: an exception in it leaves nothing behind.

    Raises `DataError` if `path` exists (as Caffe's tools do) or its parent folder does not.
    """
    return Writer(os.fspath(path), BACKENDS.get(backend.upper()))


class Cursor:
    """A position in a database; `take` reads on from there and starts again at the first record after the last."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.seek(None)

    def seek(self, after: bytes | None) -> None:
        """Moves to the first record after the key `after` (None: to the first of all)."""
        self._after = after
        self._records: Iterator[Record] | None = None

    @property
    def after(self) -> bytes | None:
        """The key of the record taken last, where `seek` comes back to; None before the first."""
        return self._after

    def take(self, count: int) -> list[Record]:
        """The next `count` records."""
        if self._records is None:
            self._records = self.database.records(self._after)
        taken = list(islice(self._records, count))
        while len(taken) < count:
            self._records = self.database.records()
            taken += islice(self._records, count - len(taken))
        self._after = taken[-1][0]
        return taken


class Writer:
    """Writes a new database beside its final place, and moves it there when the `with` block ends without an error."""

    def __init__(self, path: str, backend: type[Database]) -> None:
        self.path = path = path.rstrip(os.sep)
        self._backend = backend
        self._check_target()
        self._folder = f"{path}.partial-{os.getpid()}"
        self._pending: list[Record] = []
        self._bytes = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Adds a record; keys must differ."""
        self._pending.append((key, value))
        self._bytes += len(key) + len(value)
        if len(self._pending) >= COMMIT_RECORDS or self._bytes >= COMMIT_BYTES:
            self._flush()

    def put_all(self, records: Iterable[Record]) -> None:
        """Adds records; keys must differ."""
        for key, value in records:
            self.put(key, value)

    def __enter__(self) -> Writer:
        try:
            os.mkdir(self._folder)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}; choose another place") from error
        try:
            self._store = self._backend.store(self._folder)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._check_target()
        except BaseException:
            self._discard()
            raise
        if kind is not None:
            self._discard()
            return
        self._store.close()
        os.rename(self._folder, self.path)

    def _flush(self) -> None:
        try:
            self._store.add(self._pending)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error.__cause__
        self._pending, self._bytes = [], 0

    def _discard(self) -> None:
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_target(self) -> None:
        if os.path.lexists(self.path):
            raise DataError(f"{self.path}: exists already, and databases are not overwritten; remove it or choose "
                            "another name")
        parent = os.path.dirname(self.path) or "."
        if not os.path.isdir(parent):
            raise DataError(f"{self.path}: there is no folder {parent} to write the database into; make it first")


def _identity(path: str, cls: type[Database]) -> tuple[int, int]:
    """Tells databases apart by a file that, being open, lends its inode to no other."""
    try:
        status = os.stat(os.path.join(path, cls.held))
    except OSError:
        return 0, 0  # no such file yet: surely not open
    return status.st_dev, status.st_ino


def _check_folder(path: str, backend: str, cls: type[Database]) -> None:
    """Tells a folder that cannot be a database of this kind, in words that say what it is instead."""
    if not path:
        raise DataError(f"no source is given for the {backend} database; set `source` to its folder")
    if not os.path.exists(path):
        raise DataError(f"{path}: there is no such {backend} database (relative paths start at the working folder, "
                        f"{os.getcwd()})")
    if not os.path.isdir(path):
        raise DataError(f"{path}: is a file, but a {backend} database is a folder with a file {cls.marker}")
    if os.path.exists(os.path.join(path, cls.marker)):
        return
    for name in BACKENDS.names():
        if os.path.exists(os.path.join(path, BACKENDS.get(name).marker)):
            raise DataError(f"{path}: is of the kind {name}, but backend is {backend}; write `backend: {name}`")
    raise DataError(f"{path}: is not a {backend} database: the folder has no file {cls.marker}")
