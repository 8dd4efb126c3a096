"""The text of a stream: whole characters, and nothing of a stop string."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from loradrop.text_stream import TextStream

# Few letters, so that stop strings overlap and occur; characters of one to four bytes.
LETTERS = "ab€😀"
TEXTS = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS + "\ufffd", min_size=1, max_size=6), max_size=4)
# Valid UTF-8 with bytes thrown in that are none.
BYTES = st.lists(st.one_of(TEXTS.map(str.encode), st.binary(max_size=3))).map(b"".join)


def cut(text: str, stops: list[str]) -> str:
    found = [i for i in map(text.find, stops) if i >= 0]
    return text[: min(found)] if found else text


@st.composite
def split_bytes(draw: st.DrawFn, data: st.SearchStrategy[bytes] = BYTES) -> list[bytes]:
    whole = draw(data)
    at = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[i:j] for i, j in zip([0, *at], [*at, len(whole)], strict=True)]


@given(split_bytes(), STOPS)
def test_joined_text_is_the_decoded_text_up_to_the_first_stop(pieces: list[bytes], stops: list[str]) -> None:
    stream = TextStream(stops)
    text = "".join([*map(stream.push, pieces), stream.finish()])
    decoded = b"".join(pieces).decode("utf-8", "replace")
    assert text == cut(decoded, stops)
    assert stream.stopped == (text != decoded)
    assert stream.n_shown == len(text)


@given(split_bytes(TEXTS.map(str.encode)), STOPS)
def test_no_more_is_held_back_than_must_be(pieces: list[bytes], stops: list[str]) -> None:
    stream = TextStream(stops)
    shown, fed = "", b""
    longest = max(map(len, stops), default=1)
    for piece in pieces:
        shown += stream.push(piece)
        fed += piece
        if stream.stopped:
            return
        whole = fed.decode("utf-8", "ignore")
        assert stream.n_decoded == len(whole)
        assert len(whole) - len(shown) < longest


# Pieces of text, and texts of special tokens, which do not show.
MIXED = st.lists(st.tuples(st.text("ab€", max_size=2), st.booleans()), max_size=12)
SHORT_STOPS = st.lists(st.text("ab€", min_size=1, max_size=3), max_size=2)


@given(MIXED, SHORT_STOPS)
@example([("a", False), ("b", True), ("a", False)], ["aa"])
@example([("a", False), ("b", True), ("a", False)], ["ba", "aab"])
def test_stop_strings_count_with_special_tokens_and_without(pieces: list[tuple[str, bool]], stops: list[str]) -> None:
    stream = TextStream(stops)
    text = "".join(stream.push_special(piece) if special else stream.push(piece.encode()) for piece, special in pieces)
    text += stream.finish()
    full = "".join(piece for piece, _ in pieces)
    shows = [not special for piece, special in pieces for _ in piece]
    visible = "".join(piece for piece, special in pieces if not special)
    ends = [i for i in map(visible.find, stops) if i >= 0]
    ends += [sum(shows[:i]) for i in map(full.find, stops) if i >= 0]
    assert text == visible[: min(ends, default=None)]
    assert stream.stopped == bool(ends)
    assert stream.n_shown == len(text)


@given(split_bytes(TEXTS.map(str.encode)), st.lists(st.sampled_from(["<x>", "<y>"]), min_size=12, max_size=12))
def test_special_tokens_change_nothing_without_stop_strings(pieces: list[bytes], specials: list[str]) -> None:
    stream = TextStream()
    text = ""
    for piece, special in zip(pieces, [*specials, ""], strict=False):
        text += stream.push(piece) + stream.push_special(special)
    text += "".join(map(stream.push, pieces[13:])) + stream.finish()
    assert text == b"".join(pieces).decode()
    assert stream.n_decoded == stream.n_shown == len(text)


def test_a_special_token_stops_alone_or_with_text() -> None:
    for stop in ("<|user|>", "<|user|>Hi", "b<|user|>", "|user|"):
        stream = TextStream([stop])
        shown = stream.push(b"ab") + stream.push_special("<|user|>") + stream.push(b"Hi") + stream.finish()
        assert (shown, stream.stopped) == ("a" if stop.startswith("b") else "ab", True)
    stream = TextStream(["<|user|>Ho"])
    assert [stream.push(b"ab"), stream.push_special("<|user|>"), stream.push(b"H")] == ["ab", "", ""]
    assert stream.push(b"i") == "Hi"


def test_a_character_waits_for_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "a€".encode()] == ["a", "", "", "€"]


def test_bytes_that_cannot_be_completed_are_replaced() -> None:
    stream = TextStream()
    assert stream.push(b"\xe2\x82") == ""
    assert stream.push(b"x") == "\ufffdx"
    assert stream.push(b"\xe2") == ""
    assert stream.finish() == "\ufffd"


def test_a_stop_string_over_several_pieces_does_not_show() -> None:
    stream = TextStream(["STOP"])
    assert [stream.push(piece) for piece in (b"one S", b"T", b"OP two", b"three")] == [
        "one ",
        "",
        "",
        "",
    ]
    assert stream.stopped
    assert stream.finish() == ""


def test_the_beginning_of_a_stop_string_shows_when_it_is_none() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"a ST") == "a "
    assert stream.push(b"AY STO") == "STAY "
    assert stream.finish() == "STO"
    assert not stream.stopped


def test_of_overlapping_stop_strings_the_one_that_starts_first_counts() -> None:
    stream = TextStream(["abcd", "bc"])
    assert stream.push(b"abc") == ""  # "bc" is there, but "abcd" may still come
    assert not stream.stopped
    assert stream.push(b"d") == ""
    assert stream.stopped

    stream = TextStream(["abcd", "bc"])
    stream.push(b"abc")
    assert stream.push(b"x") == "a"
    assert stream.stopped

    stream = TextStream(["abcd", "bc"])
    stream.push(b"abc")
    assert stream.finish() == "a"
    assert stream.stopped
