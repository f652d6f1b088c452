"""Text that fits on one line."""

from harness.core.errors import one_line


def test_one_line_takes_out_what_would_break_a_table_or_a_terminal():
    assert one_line("a\nb\t c\x1b[31m\u2028d\udc80") == "a b c [31m d"
