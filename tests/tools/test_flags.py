"""Flags in the spellings that Caffe's tools take: one dash or two, and switches that say whether they are on."""

from __future__ import annotations

import argparse

import pytest

from caffe_compat.cli import Parser
from caffe_compat.tools import convert_imageset, train
from caffe_compat.tools.flags import add_net_flags


def parse(module: object, *words: str) -> argparse.Namespace:
    """The arguments as a command of the command line gets them."""
    parser = Parser(prog="caffe-compat")
    command = parser.add_subparsers(parser_class=Parser).add_parser("it")
    module.add_arguments(command)
    return parser.parse_args(["it", *words])


@pytest.mark.parametrize("words, on", [
    ([], False),
    (["--gray"], True),
    (["-gray"], True),
    (["--gray=true"], True),
    (["-gray=TRUE"], True),
    (["--gray=1"], True),
    (["--gray=yes"], True),
    (["--gray=t"], True),
    (["--gray=false"], False),
    (["-gray=0"], False),
    (["--gray=No"], False),
    (["--nogray"], False),
    (["-nogray"], False),
    (["--nogray=false"], True),
    (["--gray", "--gray=false"], False),
    (["--gray=false", "--gray"], True),
    (["--gray", "--nogray"], False),
])
def test_switches(words: list[str], on: bool) -> None:
    """They never take the next word, and the last one counts."""
    args = parse(convert_imageset, *words, "root/", "list.txt", "db")
    assert (args.gray, args.shuffle) == (on, False)
    assert (args.root_folder, args.list_file, args.db_path) == ("root/", "list.txt", "db")
    assert parse(convert_imageset, "root/", "list.txt", "db", *words).gray == on


def test_one_dash_or_two() -> None:
    args = parse(convert_imageset, "-resize_width=32", "-resize_height", "24", "--encode_type", "png",
                 "-backend=leveldb", "-seed", "-1", "-check_size", "root/", "list.txt", "db")
    assert (args.resize_width, args.resize_height, args.encode_type, args.backend) == (32, 24, "png", "leveldb")
    assert (args.seed, args.check_size) == (-1, True)
    args = parse(train, "-solver=a=b.prototxt", "--weights", "x")
    assert (args.solver, args.weights) == ("a=b.prototxt", "x")


def test_after_two_dashes_there_are_no_flags() -> None:
    args = parse(convert_imageset, "--gray", "--", "-gray", "--nogray", "db")
    assert args.gray and (args.root_folder, args.list_file) == ("-gray", "--nogray")


@pytest.mark.parametrize("words, message", [
    (["--gray=maybe"], "--gray=maybe: expected true or false"),
    (["--gray="], "--gray=: expected true or false"),
    (["--grey"], "unrecognized arguments: --grey"),
    (["--nobackend"], "unrecognized arguments: --nobackend"),
])
def test_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(convert_imageset, *words, "root/", "list.txt", "db")
    assert stop.value.code == 1 and message in capsys.readouterr().err


def test_a_switch_with_an_effect_of_its_own() -> None:
    """What =false leaves out has no effect."""
    seen = []

    class Note(argparse.Action):
        def __call__(self, *_: object) -> None:
            seen.append(self.dest)

    parser = Parser()
    add_net_flags(parser, "TEST")
    parser.add_argument("--note", nargs=0, action=Note)
    parser.parse_args(["--model=x", "--note=false"])
    assert not seen
    parser.parse_args(["-model=x", "-note=true"])
    assert seen == ["note"]
