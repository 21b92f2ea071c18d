"""Vocabularies: ids in the right order, and text that comes back as it went in."""

import pytest

from seqlab.data.encoding import Vocabulary, plain
from seqlab.errors import UserError

TEXTS = {"train": "b a\n\nc b\n", "validation": "a\n", "test": "c\n"}


def test_words_are_numbered_as_they_first_appear_in_training():
    vocabulary = Vocabulary.of({**TEXTS, "test": "new\n"}, "word")
    assert vocabulary.symbols == ["b", "a", "<eos>", "c"]
    assert vocabulary.encode("c a\n\n").tolist() == [3, 1, 2, 2]


def test_characters_are_the_sorted_ones_of_the_whole_corpus():
    assert Vocabulary.of({**TEXTS, "test": "zé"}, "character").symbols == ["\n", " ", "a", "b", "c", "z", "é"]


@pytest.mark.parametrize("text", ["a b\nc\n", "a", "\n", "\n\na\n", "b\n\n\nc a", ""])
@pytest.mark.parametrize("unit", ["word", "character"])
def test_decoding_undoes_encoding(text, unit):
    vocabulary = Vocabulary.of(TEXTS, unit)
    assert vocabulary.decode(vocabulary.encode(text).tolist()) == text


def test_only_a_line_feed_ends_a_line():
    text = "a b\u2028a\x0cb\x85a\r\n"
    vocabulary = Vocabulary.of({"train": text}, "word")
    assert vocabulary.symbols == ["a", "b", "<eos>"]
    assert vocabulary.encode(text).tolist() == [0, 1, 0, 1, 0, 2]


def test_an_unknown_word_becomes_unk_where_there_is_one():
    vocabulary = Vocabulary.of({"train": "a <unk> b\n"}, "word")
    assert vocabulary.encode("a new b").tolist() == [0, 1, 2]


@pytest.mark.parametrize("unit, text", [("word", "a new b"), ("character", "abé")])
def test_an_unknown_symbol_is_refused_otherwise(unit, text):
    with pytest.raises(UserError, match=f"prompt='{text}': holds the {unit} '(new|é)', which is not in the vocab"):
        Vocabulary.of(TEXTS, unit).encode(text)


def test_a_long_text_is_shortened_in_the_message():
    with pytest.raises(UserError) as info:
        Vocabulary.of(TEXTS, "word").encode("d" * 1000)
    assert info.value.value == repr("d" * 37 + "...")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffa\r\nb\r\n", "a\nb\n"),
        ("a\rb\n\r", "a\rb\n\r"),  # a CR by itself ends no line
        ("a\r\r\nb", "a\r\nb"),
        ("a\ufeff\ufeffb", "a\ufeff\ufeffb"),  # only before the text is it a mark
        ("", ""),
    ],
)
def test_what_an_editor_adds_is_no_part_of_a_text(text, expected):
    assert plain(text) == expected
