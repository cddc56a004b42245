"""Pickles of others: plain data are read, and nothing else runs, crashes or fills memory."""

import collections
import functools
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy._core.multiarray import scalar

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.pickles import read_plain_pickle


class Call:
    """Pickles as a call of `function`, which a careless unpickler makes."""

    def __init__(self, function, *arguments, state=None):
        self.content = (function, arguments, state) if state else (function, arguments)

    def __reduce__(self):
        return self.content


def lying_dtype():
    """A dtype whose state hides that its bytes are taken for a pointer."""
    state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
    return Call(np.dtype, "V8", False, True, state=state)


REFUSED = {
    "os_system": Call(os.system, "exit"),  # noqa: TID251 - it is refused
    "eval": Call(eval, "1"),
    "exec": Call(exec, "pass"),
    "getattr": Call(getattr, "a", "upper"),
    "import": Call(__import__, "os"),
    "open": Call(open, os.devnull),
    "partial": functools.partial(print, 1),
    "function": len,
    "class": InputError,
    "defaultdict": collections.defaultdict(list),
    "range": range(3),
    "array": np.array([1, 2]),
    "array_of_objects": np.array([{}, None], dtype=object),
    "table": pd.DataFrame({"a": [1]}),
    "scalar_of_objects": Call(scalar, np.dtype("O"), "x"),
    "record": np.zeros(1, dtype=[("a", "i4"), ("b", "f8")])[0],
    "record_of_objects": Call(scalar, np.dtype([("a", "O")]), "x"),
    "record_with_a_pointer": Call(scalar, lying_dtype(), bytes(8)),
    "scalar_too_short": Call(scalar, np.dtype("f8"), b"x"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_holds_anything_but_plain_data_is_refused(tmp_path, name, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": REFUSED[name]}, protocol))
    with pytest.raises(InputError, match=r"x\.pkl: refused as a dictionary of plain data: .*Only builtin containers"):
        read_plain_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("where", ["value", "key", "whole"])
def test_the_code_in_a_refused_pickle_does_not_run(tmp_path, protocol, where):
    call = Call(os.mkdir, str(tmp_path / "ran"))
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"value": {"a": call}, "key": {call: 1}, "whole": call}[where], protocol)
    )
    with pytest.raises(InputError, match=r"it refers to posix\.mkdir|it refers to nt\.mkdir"):
        read_plain_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


def test_the_code_in_that_pickle_would_run_elsewhere(tmp_path):
    pickle.loads(pickle.dumps(Call(os.mkdir, str(tmp_path / "ran"))))  # noqa: TID251 - shows that the test above could fail
    assert (tmp_path / "ran").exists()


PLAIN = {
    "strings": {"a": "b", "µ": "é"},
    "numbers": {"a": 1, "b": 2.5, "c": True, "d": None, "e": 10**30},
    "containers": {"a": [1, (2, 3)], "b": {"c": {}}},
    "ordered": collections.OrderedDict(a=1, b=2),
    "bytes": {"a": b"\x00\xff"},
    "int16": {"a": np.int16(-3)},
    "int64": {"a": np.int64(2**40)},
    "uint8": {"a": np.uint8(255)},
    "float32": {"a": np.float32(0.1)},
    "float64": {"a": np.float64(0.1)},
    "numpy_bool": {"a": np.True_},
    "numpy_str": {"a": np.str_("abc")},
    "empty": {},
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_a_pickle_of_plain_data_is_read(tmp_path, name, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(PLAIN[name], protocol))
    assert read_plain_pickle(tmp_path / "x.pkl") == PLAIN[name]


@pytest.mark.parametrize("kind", ["<f8", ">f8", "<i2", ">i2"])
def test_numpy_scalars_keep_their_byte_order(tmp_path, kind):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": Call(scalar, np.dtype(kind), np.array(3, kind).tobytes())}))
    assert read_plain_pickle(tmp_path / "x.pkl") == {"a": 3}


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_are_read_from_pickles_of_old_and_new_numpy(tmp_path, module):
    content = pickle.dumps({"a": np.float64(0.5)}, 2)
    assert content.count(b"cnumpy._core.multiarray\n") == 1
    (tmp_path / "x.pkl").write_bytes(content.replace(b"numpy._core.multiarray", module.encode()))
    assert read_plain_pickle(tmp_path / "x.pkl") == {"a": 0.5}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cut_anywhere_is_refused(tmp_path, protocol):
    whole = pickle.dumps({"ENSG00000000003": np.float64(0.5), "ENSG00000000005": 1}, protocol)
    for stop in range(len(whole)):
        (tmp_path / "x.pkl").write_bytes(whole[:stop])
        with pytest.raises(InputError, match=r"x\.pkl: refused"):
            read_plain_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"gene,token\nENSG00000000003,2\n", id="text"),
        pytest.param(b"\x80\x04\x95" + b"\xff" * 8 + b"}.", id="frame_longer_than_memory"),
        pytest.param(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00nonetR.", id="unknown_encoding"),
        pytest.param(b"\x80\xff}.", id="protocol_of_the_future"),
        pytest.param(b"h\x05.", id="nothing_remembered"),
        pytest.param(b"P1\n.", id="persistent_id"),
    ],
)
def test_a_file_that_is_no_pickle_is_refused(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pkl: refused as a dictionary of plain data"):
        read_plain_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(("content", "found"), [([1], "list"), ("a", "str"), (3, "int")])
def test_a_pickle_of_no_dictionary_is_refused(tmp_path, content, found):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=rf"x\.pkl: expected a dictionary, found a {found}"):
        read_plain_pickle(tmp_path / "x.pkl")


# hostile ones


def nested(depth, opening=b"]", closing=b"a"):
    return b"\x80\x04}\x8c\x01a" + opening * (depth + 1) + closing * depth + b"s."


def nested_tuples(depth, as_key=False):
    tuples = b")" + b"\x85" * depth
    return b"\x80\x04}" + (tuples + b"K\x01" if as_key else b"K\x01" + tuples) + b"s."


def doubling(times, *, put=b"q", get=b"h", pair=b"\x86"):
    """A tuple of a tuple twice, and so on."""
    steps = b"".join(put + bytes([i]) + b"0" + (get + bytes([i])) * 2 + pair for i in range(times))
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"K\x01\x85" + steps + b"s."


def filled_later():
    """Lists that are put into one another while they are empty, and filled when nothing counts any more."""
    made = b"".join(b"]q" + bytes([i]) + b"0" for i in range(40))
    filled = b"".join(b"h" + bytes([i]) + (b"h" + bytes([i + 1]) + b"a") * 2 + b"0" for i in range(39))
    return b"\x80\x02" + made + filled + b"}X\x01\x00\x00\x00ah\x00s."


HOSTILE = {
    "lists, 100,000 deep": ("16 deep", nested(100_000)),
    "tuples, 100,000 deep": ("16 deep", nested_tuples(100_000)),
    "a key of tuples, 100,000 deep": ("16 deep", nested_tuples(100_000, as_key=True)),
    "lists, 17 deep": ("16 deep", nested(17)),
    "a tuple that doubles": ("two places", doubling(60)),
    "a tuple that is duplicated": ("does DUP", b"\x80\x02}X\x01\x00\x00\x00aK\x01\x85" + b"2\x86" * 60 + b"s."),
    "lists filled later": ("two places", filled_later()),
    "a list in itself": ("two places", b"\x80\x02}X\x01\x00\x00\x00a]q\x00h\x00as."),
    "bytes that claim 10^11": ("expected", b"\x80\x04}K\x01\x8e" + struct.pack("<Q", 10**11) + b"x" * 9 + b"s."),
    "text that claims 10^11": ("expected", b"\x80\x04}K\x01\x8d" + struct.pack("<Q", 10**11) + b"x" * 9 + b"s."),
    "a number that claims 2^31 bytes": (
        "not enough data",
        b"\x80\x02}K\x01\x8b" + struct.pack("<i", 2**31 - 1) + b"x" * 9 + b"s.",
    ),
    "a place of the memory at 2^31": ("number 2147483647", b"\x80\x02}r\xff\xff\xff\x7f."),
    "10^11 bytes of a number": (
        "calls|makes bytes of a number",
        b"\x80\x02}K\x01cbuiltins\nbytes\n\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85Rs.",
    ),
    "an array of 10^9 bytes": ("", b"\x80\x05}K\x01\x96" + struct.pack("<Q", 10**9) + b"s."),
    "lists made of text": (
        "refers to builtins.list",
        b"\x80\x02}K\x01c__builtin__\nlist\nX\x03\x00\x00\x00abc\x85Rs.",
    ),
    "text encoded again and again": (
        "makes much of little",
        b"\x80\x02X"
        + struct.pack("<I", 10**4)
        + b"x" * 10**4
        + b"q\x000}("
        + b"".join(b"K%cc_codecs\nencode\nh\x00\x85R" % i for i in range(100))
        + b"u.",
    ),
    "a numpy scalar that claims a million bytes": (
        "buffer",
        b"\x80\x02}K\x01cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x07\x00\x00\x00S999999\x85RC\x01x\x86Rs.",
    ),
    "an object made without its class": ("does NEWOBJ", b"\x80\x02}K\x01c__builtin__\ncomplex\n)\x81s."),
}


@pytest.fixture
def little_memory():
    """Not more than a gigabyte than there is: what asks for more fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("why", "content"), HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_would_crash_hang_or_fill_memory_is_refused(tmp_path, why, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.pkl: refused as a dictionary of plain data: .*({why})") as refused:
        read_plain_pickle(tmp_path / "x.pkl")
    assert len(str(refused.value)) < 500
    assert not isinstance(refused.value.__cause__, MemoryError)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_numbers_and_texts_may_stand_in_many_places(tmp_path, protocol):
    one, name = np.float64(0.5), "a name that is remembered"
    content = {f"gene{i}": [one, name, (name, {"x": name})] for i in range(1000)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    assert read_plain_pickle(tmp_path / "x.pkl") == content


def test_a_pickle_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "x.pkl").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(InputError, match="it has 268,435,457 bytes, more than 268,435,456"):
        read_plain_pickle(tmp_path / "x.pkl")
