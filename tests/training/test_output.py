"""The program's output on terminals of any encoding."""

import io

from score_sde.training.interrupt import printable


def test_characters_without_a_code_are_replaced():
    raw = io.BytesIO()
    stream = printable(io.TextIOWrapper(raw, "ascii", write_through=True))
    stream.write("1.81 ± 0.01 of caf\xe9 \udcff")
    assert raw.getvalue() == b"1.81 +- 0.01 of caf? ?"
