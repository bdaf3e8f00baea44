"""Broken model files by the thousand: seeded mutations of good ones, and what each of them may do when it is read."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from caffe_compat import hdf5, proto
from caffe_compat.errors import CaffeError
from caffe_compat.net import Net
from caffe_compat.trust import confined_to
from caffe_compat.weights import STRICT, LoadOptions, copy_weights, read_weights

GOLDEN = Path(__file__).parent / "golden"
_TOKEN = re.compile(r'"[^"]*"|[\w.+\-]+|\S|\s+')
_NUMBERS = ("0", "-1", "1", "2", "3", "7", "100", "65536", "2147483647", "2147483648", "4294967295", "-2147483648",
            "1000000000", "1000000000000", "1099511627776", "9223372036854775807", "18446744073709551616", "0.5", "-0.0",
            "1e-30", "1e30", "1e400", "nan", "inf", "0x7fffffff", "1f")
_VARINTS = (b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\x20", b"\xff" * 9 + b"\x01", b"\x00",
            b"\xff" * 12, b"\x80")


def mutate_text(text: str, others: list[str], rng: random.Random) -> str:
    """The text with one to four mistakes."""
    tokens = _TOKEN.findall(text)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        i = rng.randrange(len(tokens) or 1)
        kind = rng.choice((0, 0, 0, 0, 0, 0, 4, 5, 6, 6, 7, 8, 9, 10))
        if kind == 0:
            numbers = [k for k, token in enumerate(tokens) if re.fullmatch(r"[-+.\d]\S*", token)]
            if numbers:
                tokens[rng.choice(numbers)] = rng.choice(_NUMBERS)
        elif kind == 4:
            del tokens[i:i + rng.randrange(1, 6)]
        elif kind == 5:
            start = rng.randrange(len(tokens) or 1)
            tokens[i:i] = tokens[start:start + rng.randrange(1, 30)]
        elif kind == 6:
            theirs = _TOKEN.findall(rng.choice(others))
            words = [token for token in theirs if re.match(r"[\w\"]", token)]
            places = [k for k, token in enumerate(tokens) if re.match(r"[\w\"]", token)]
            if words and places:
                tokens[rng.choice(places)] = rng.choice(words)
        elif kind == 7:
            layers = re.findall(r"(?s)layer \{.*?\n\}", rng.choice(others))
            tokens += [f"\n{rng.choice(layers)}\n"] if layers else ["layer { }"]
        elif kind == 8:
            tokens = tokens[:i]
        elif kind == 9:
            tokens.insert(i, rng.choice(("{", "}", '"', "'", ":", "#", "<", "\0", "é", "\udc80", "[", "{ " * 500, " " * 2000)))
        else:
            names = [k for k, token in enumerate(tokens) if token[:1] == '"']
            if len(names) > 1:
                tokens[rng.choice(names)] = tokens[rng.choice(names)]
        tokens = tokens or ["x"]
    return "".join(tokens)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to five mistakes, most of them near the beginning, where the headers are."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        if not data:
            break
        i = rng.randrange(min(len(data), rng.choice((16, 64, 512, len(data)))))
        kind = rng.randrange(7)
        if kind == 0:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[i] = rng.randrange(256)
        elif kind == 2:
            varint = rng.choice(_VARINTS)
            data[i:i + (len(varint) if rng.random() < 0.5 else 1)] = varint
        elif kind == 3:
            del data[i:i + rng.choice((1, 2, 8, 100))]
        elif kind == 4:
            del data[i:]
        elif kind == 5:
            start = rng.randrange(len(data))
            data[i:i] = data[start:start + rng.randrange(1, 200)]
        else:
            data[i:i] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    return bytes(data)


@contextmanager
def only_our_errors(what: Callable[[], str]) -> Iterator[None]:
    """A CaffeError is all that may come of a broken file; anything else fails, with the file in the message."""
    try:
        yield
    except CaffeError as error:
        assert str(error).strip(), what()
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{what()}") from error


def use_net(text: str, folder: Path) -> None:
    """Reads a prototxt, builds the net in both phases and runs it."""
    with confined_to(folder / "net.prototxt"):
        document = proto.parse_text(text, "NetParameter")
        for phase in ("TEST", "TRAIN"):
            net = Net(document, phase, seed=0)
            with torch.no_grad():
                net.forward()


def use_weights(path: Path, target: Path) -> None:
    """Reads weights, and copies them into a net in all ways there are."""
    document = read_weights(path)
    for options in (LoadOptions(), STRICT, LoadOptions(reshape=("*",))):
        copy_weights(Net(target, seed=0), document, options)


def use_state(path: Path) -> None:
    """Reads a solver's state."""
    document = (hdf5.read_state(str(path), proto.BVLC) if hdf5.is_hdf5(str(path))
                else proto.read_binary(path, "SolverState"))
    assert all(np.asarray(values).size < 1 << 28 for values in document.arrays.values())


def use_blob(path: Path) -> None:
    """Reads a single blob."""
    proto.read_binary(path, "BlobProto")
