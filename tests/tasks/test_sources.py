"""Rows record their position; unreadable data give a one-line error that says where."""

import gzip

import pyarrow
import pytest
from pyarrow import parquet

from harness.core.bounded import FREE, LONGEST_ROW
from harness.core.errors import UserError
from harness.tasks.rows import split_of
from harness.tasks.sources import read_packaged, read_rows

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": 3, "b": "ü"}]


@pytest.mark.parametrize("name", ["x.json", "x.json.gz", "x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_every_format_gives_the_same_rows(write, name):
    assert [row.values for row in read_rows(str(write(name, ROWS)))] == ROWS


@pytest.mark.parametrize(
    "name, content, places",
    [
        ("x.jsonl", '{"a": 1}\n\n{"a": 2}\n', [":1", ":3"]),
        ("x.json", '[{"a": 1},\n\n {"a":\n 2}, {"a": 3}]', [":1", ":3", ":4"]),
        ("x.json", '{"a": 1}\n{"a": 2}\n', [":1", ":2"]),  # JSON lines in a file named .json
    ],
)
def test_a_row_knows_its_file_and_line(tmp_path, name, content, places):
    (tmp_path / name).write_text(content)
    assert [row.where for row in read_rows(str(tmp_path / name))] == [f"{tmp_path / name}{place}" for place in places]


def test_a_parquet_row_knows_its_number(write):
    path = write("x.parquet", ROWS)
    assert [row.where for row in read_rows(str(path))] == [f"{path} row {n}" for n in (1, 2, 3)]


def test_line_separators_and_byte_order_marks_inside_the_file_do_not_shift_lines(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('\ufeff{"a": "x\u2028y"}\r\n{"a": 2}'.encode())
    first, second = read_rows(str(tmp_path / "x.jsonl"))
    assert first.values == {"a": "x\u2028y"} and second.where.endswith(":2")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', ":2: not valid JSON: Expecting value (column "),
        ("x.jsonl", b'{"a": 1}\n[1]\n', ":2: a row must be an object of columns, got list"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2: not UTF-8 text: invalid start byte"),
        ("x.jsonl", b"[" * 100_000, ":1: not valid JSON: "),
        ("x.json", b'[{"a": 1},\n {"a": 2}\n {"a": 3}]', ":3: not valid JSON: Expecting ',' delimiter"),
        ("x.json", b'[{"a": 1},\n {"a": 2}', ":2: not valid JSON: "),
        ("x.json", b'{"a": 1},\n{"a": 2}', ":1: not valid JSON: "),
        ("x.json", b'[{"a": 1},\n "\xff"]', ":2: not UTF-8 text: "),
        ("x.jsonl", b'{"a": 1, "split": "train"}\n{"a": 1, "split": "blue"}', ":2: column 'split' holds 'blue', which"),
        ("x.jsonl", b'{"a": 1, "split": 3}', ":1: column 'split' holds 3, which names no split; accepted: train, "),
        ("x.jsonl", b'{"a": 1}\n{"a": %s}' % (5000 * b"9"), ":2: cannot be read: Exceeds the limit"),
        ("x.json", b'[{"a": 1},\n {"a": %s}]' % (5000 * b"9"), ":1: cannot be read: Exceeds the limit"),
        ("x.jsonl", b"\n \n", " is empty: it holds no rows"),
        ("x.json", b"[]", " is empty: it holds no rows"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "Compressed file ended before"),
        ("x.jsonl.gz", b'{"a": 1}\n', "Not a gzipped file"),
        ("x.parquet", b"PAR1 is not enough", ": not a readable Parquet file: "),
        ("x.csv", b"a,b\n", ": unknown kind of file; accepted: .jsonl, .jsonl.gz, .json, .json.gz, .parquet"),
    ],
)
def test_bad_files_are_reported_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_rows(str(tmp_path / name)))
    assert f"{tmp_path / name}" in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_reported_with_the_nearest(write):
    path = write("pairs.jsonl", ROWS)
    with pytest.raises(UserError, match=r"no data at .*pair\.jsonl: neither a file.*did you mean 'pairs.jsonl'"):
        list(read_rows(str(path.parent / "pair.jsonl")))


def test_a_missing_relative_file_is_not_looked_for_on_the_hub():
    with pytest.raises(UserError, match=r"no data at no_such/file\.jsonl: neither a file, a folder, nor a hub id"):
        list(read_rows("no_such/file.jsonl"))


@pytest.mark.parametrize(
    "name, split",
    [
        ("train", "train"),
        ("train-00000-of-00001.parquet", "train"),
        ("train_prefs", "train"),
        ("validation", "dev"),
        ("valid2", "dev"),
        ("test.jsonl.gz", "test"),
        ("eval", "test"),
        ("latest", None),
        ("trainer", None),
        ("harmless-base", None),
    ],
)
def test_splits_are_recognised_by_whole_words(name, split):
    assert split_of(name) == split


def test_a_folder_is_read_by_split_wherever_the_split_stands(write, tmp_path):
    write("data/train-00000-of-00002.parquet", ROWS[:1])
    write("data/train-00001-of-00002.parquet", ROWS[1:2])
    write("data/validation/0000.parquet", ROWS[1:])
    write("test.jsonl.gz", ROWS)
    write("data/.cache/train.jsonl", ROWS)
    write("dataset_infos.json", [{"train": "is not data"}])
    rows = [(row.split, row.values["a"]) for row in read_rows(str(tmp_path))]
    assert sorted(rows) == sorted(
        [("train", 1), ("train", 2), ("dev", 2), ("dev", 3), ("test", 1), ("test", 2), ("test", 3)]
    )


def test_a_folder_without_names_of_splits_is_read_whole(write, tmp_path):
    write("b.jsonl", ROWS[:1])
    write("a.json", ROWS[1:])
    assert [(row.split, row.values["a"]) for row in read_rows(str(tmp_path))] == [(None, 2), (None, 3), (None, 1)]


def test_the_folder_above_says_nothing_about_the_split(write, tmp_path):
    write("test/rows.jsonl", ROWS)
    assert {row.split for row in read_rows(str(tmp_path / "test"))} == {None}


def test_a_split_column_goes_before_the_name_of_the_file(write, tmp_path):
    write("train.jsonl", [{"a": 1, "split": "test"}, {"a": 2, "split": None}])
    assert [row.split for row in read_rows(str(tmp_path))] == ["test", "train"]


def test_a_subset_is_a_sub_folder(write, tmp_path):
    write("one/train.jsonl", ROWS[:1])
    write("two/train.jsonl", ROWS[1:])
    assert [row.values["a"] for row in read_rows(str(tmp_path), "two")] == [2, 3]
    with pytest.raises(UserError, match=r"has no subset 'tow'; did you mean 'two'\?"):
        list(read_rows(str(tmp_path), "tow"))


def test_a_folder_without_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"holds no data file; looked for \.jsonl, "):
        list(read_rows(str(tmp_path)))


def test_files_and_packaged_data_have_no_subsets(write):
    with pytest.raises(UserError, match="is a file, so it has no subset 'x'"):
        list(read_rows(str(write("x.jsonl", ROWS)), "x"))
    with pytest.raises(UserError, match="the packaged hh data has no subset 'x'"):
        list(read_packaged("hh", "x"))


LONG = b'{"a": 1}\n{"a": "' + LONGEST_ROW * b"x" + b'"}\n'


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz"])
def test_a_line_has_a_size_limit(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(LONG) if name.endswith(".gz") else LONG)
    with pytest.raises(UserError, match=rf"{name}:2: the (line|row) is longer than 16 MiB"):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize("unit", [b"\n", b'{"a": 1}\n'], ids=["line breaks", "rows"])
def test_a_small_file_that_unpacks_to_much_is_refused_before_a_row_is_read(tmp_path, name, unit):
    (tmp_path / name).write_bytes(gzip.compress(unit * (FREE // len(unit) + 1), 1))
    with pytest.raises(UserError, match=r"unpacks to more than 64 MiB, over 200 times its size"):
        next(read_rows(str(tmp_path / name)))


def test_a_parquet_file_that_unpacks_to_much_is_not_unpacked(tmp_path):
    """Many rows share one string, which the file holds once."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 700, pyarrow.int32()), [100_000 * "x"])
    parquet.write_table(pyarrow.table({"a": column}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="unpacks to far more than its size"):
        for _ in read_rows(str(tmp_path / "x.parquet")):
            pass


def test_a_row_of_a_parquet_file_has_the_size_limit_of_a_line(tmp_path):
    parquet.write_table(pyarrow.table({"a": [["x"], ["x" * LONGEST_ROW, "y"]]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="row 2: the row is longer than 16 MiB"):
        list(read_rows(str(tmp_path / "x.parquet")))
