"""What is written as text format is read back by Protocol Buffers itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_export.cluster.pbtxt import Symbol, map_entries, to_pbtxt

text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf to read the text back")
struct_pb2 = pytest.importorskip("google.protobuf.struct_pb2", reason="needs protobuf to read the text back")
descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2", reason="needs protobuf to read the text back")

# Surrogates are no characters, and Protocol Buffers has no strings with them.
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@given(entries=st.dictionaries(any_text, any_text, max_size=4))
def test_any_text_comes_back(entries: dict[str, str]) -> None:
    written = to_pbtxt({"fields": map_entries({key: {"string_value": value} for key, value in entries.items()})})
    read = text_format.Parse(written, struct_pb2.Struct())
    assert {key: value.string_value for key, value in read.fields.items()} == entries


@given(number=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53), flag=st.booleans())
def test_numbers_and_truth_come_back(number: float, flag: bool) -> None:
    values = [{"number_value": number}, {"bool_value": flag}]
    read = text_format.Parse(to_pbtxt({"values": values}), struct_pb2.ListValue())
    assert list(read) == [number, flag]


@given(numbers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), comment=any_text)
def test_repeated_numbers_symbols_and_comments(numbers: list[int], comment: str) -> None:
    kinds = [Symbol("TYPE_INT32"), Symbol("LABEL_REPEATED")]
    message = {"field": {"name": "f", "type": kinds[0], "label": kinds[1]}, "reserved_name": ["a", "b"]}
    read = text_format.Parse(to_pbtxt(message, [comment]), descriptor_pb2.DescriptorProto())
    assert (read.field[0].type, read.field[0].label, list(read.reserved_name)) == (5, 3, ["a", "b"])  # descriptor.proto
    path = text_format.Parse(to_pbtxt({"location": {"path": numbers}}), descriptor_pb2.SourceCodeInfo())
    assert list(path.location[0].path) == numbers


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"no name": 1}, "'no name' is not the name of a field"),
        ({"number": float("nan")}, "nan has no place"),
        ({"number": float("inf")}, "inf has no place"),
        ({"kind": Symbol("KIND CPU")}, "'KIND CPU' is not the name of an enumeration's value"),
        ({"nothing": None}, "None has no place"),
    ],
)
def test_what_the_format_does_not_have_is_refused(message: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_pbtxt(message)
