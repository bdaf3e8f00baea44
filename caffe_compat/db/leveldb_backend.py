"""LevelDB databases, Caffe's first kind and still the default of DataParameter. They need the package `plyvel`."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from ..errors import DataError
from .database import BACKENDS, Database, Record, Store


@BACKENDS.add("LEVELDB")
class LevelDB(Database):
    """A LevelDB database open for reading. LevelDB lets one process at a time open it, and tidies its files up then."""

    marker, held = "CURRENT", "LOCK"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        plyvel = _plyvel(path)
        try:
            self._database = plyvel.DB(path, create_if_missing=False, max_open_files=100)
        except plyvel.Error as error:
            reason = _reason(error)
            if isinstance(error, plyvel.IOError) and "lock" in reason.lower():
                raise DataError(f"{path}: the LevelDB database is locked ({reason}); it can be open only once, so end "
                                "the other program, and check that the folder can be written") from error
            raise DataError(f"{path}: the LevelDB database cannot be opened ({reason}); make it anew") from error

    @classmethod
    def store(cls, path: str) -> LevelDBStore:
        return LevelDBStore(path)

    def count(self) -> int:
        with self._database.iterator(include_value=False) as keys:
            return sum(1 for _ in keys)

    def records(self, after: bytes | None = None) -> Iterator[Record]:
        plyvel = _plyvel(self.path)
        try:
            with self._database.iterator(start=after, include_start=False) as records:
                yield from records
        except plyvel.Error as error:
            raise DataError(f"{self.path}: the LevelDB database is damaged ({_reason(error)}); make it anew") from error


class LevelDBStore(Store):
    """A LevelDB database in the making."""

    def __init__(self, path: str) -> None:
        plyvel = _plyvel(path)
        self._error = plyvel.Error
        # Caffe's sizes: they make fewer and larger files.
        self._database = plyvel.DB(path, create_if_missing=True, write_buffer_size=256 << 20, block_size=64 << 10)

    def add(self, records: list[Record]) -> None:
        batch = dict(records)
        try:
            if len(batch) != len(records) or any(self._database.get(key) is not None for key in batch):
                raise DataError(f"a key was written twice, one of {records[0][0]!r} to {records[-1][0]!r}; give every "
                                "record a key of its own")
            with self._database.write_batch() as writer:
                for key, value in batch.items():
                    writer.put(key, value)
        except self._error as error:
            raise DataError(f"cannot be written: {_reason(error)}; is the disk full?") from error

    def close(self) -> None:
        self._database.close()


def _reason(error: Exception) -> str:
    """LevelDB's words, which plyvel hands over as bytes."""
    return " ".join(part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in error.args)


def _plyvel(path: str) -> ModuleType:
    try:
        import plyvel
    except ImportError as error:
        raise DataError(f"{path}: LevelDB databases need the Python package plyvel, which is not installed; "
                        'run `pip install "caffe-compat[leveldb]"`, or convert the database to LMDB') from error
    return plyvel
