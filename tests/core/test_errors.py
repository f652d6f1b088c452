"""Text that fits on one line."""

from harness.core.errors import first_line, one_line


def test_one_line_takes_out_what_would_break_a_table_or_a_terminal():
    assert one_line("a\nb\t c\x1b[31m\u2028d\udc80") == "a b c [31m d"


def test_an_error_s_first_line_is_its_type_where_it_has_no_message():
    assert first_line(ValueError("\nno gradient\nand more")) == "no gradient"
    assert [first_line(NotImplementedError()), first_line(AssertionError(" \n"))] == [
        "NotImplementedError",
        "AssertionError",
    ]
