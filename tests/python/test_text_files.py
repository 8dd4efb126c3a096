"""Files of text: UTF-8, with a byte order mark or without."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from loradrop.cli import main
from loradrop.text_files import read_texts

TEXT = "the cat \ufeff is on\r\nthe É🙂 hat\n"


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes(TEXT.encode())
    marked.write_bytes(codecs.BOM_UTF8 + TEXT.encode())
    assert read_texts([plain, marked]) == {str(plain): TEXT, str(marked): TEXT}
    marked.write_bytes(codecs.BOM_UTF8 * 2 + TEXT.encode())
    assert read_texts([marked]) == {str(marked): "\ufeff" + TEXT}  # but one is


@pytest.mark.parametrize("data", [codecs.BOM_UTF8 + b"\xff", b"a\xff", TEXT.encode("utf-16"), codecs.BOM_UTF8[:2]])
def test_what_is_not_utf8_names_the_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"text\.txt: not UTF-8"):
        read_texts([path])


@pytest.mark.parametrize("how", ["--raw", "--chat"])
def test_prompt_of_a_file_on_the_command_line(tmp_path: Path, how: str) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.make_model(n_layer=2), chat_template=True)
    results = []
    for prompt in ("the cat", "\ufeffthe cat"):
        ran = CliRunner().invoke(main, ["generate", str(path), prompt, how, "-n", "4", "--seed", "1", "--json"])
        assert ran.exit_code == 0, ran.output
        result = json.loads(ran.stdout)
        results.append((result["text"], result["stats"]["prompt_tokens"]))
    assert results[0] == results[1]
