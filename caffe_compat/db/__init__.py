"""Databases of images and what is done with them before they reach a net."""

from . import leveldb_backend, lmdb_backend  # registers the backends
from .database import BACKENDS, Cursor, Database, create_database, open_database
from .datum import datum_class, datum_image, decode_image, make_datum, parse_datum
from .transform import Transformer

__all__ = ["BACKENDS", "Cursor", "Database", "Transformer", "create_database", "datum_class", "datum_image",
           "decode_image", "leveldb_backend", "lmdb_backend", "make_datum", "open_database", "parse_datum"]
