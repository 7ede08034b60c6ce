"""Ways to write a value that a reader still recognises, and texts that hold it. Pure functions."""

from __future__ import annotations

import base64
import codecs
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

_SMALL_WORDS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_SMALL: Final = _SMALL_WORDS.split()
_TENS_WORDS: Final = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
_TENS: Final = _TENS_WORDS.split()
_SCALES: Final = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1_000, "thousand"))
#: Numbers of more digits are not written in words.
_MAX_DIGITS: Final = 15
#: Largest share of other texts that hold a text's value as often, by chance.
_MAX_ELSEWHERE: Final = 0.2
#: Words that label an answer, in a text or as the name of a file or a field.
LABEL: Final = r"(?:answers?|solutions?|secrets?|oracle|ground.?truth)"


def stored(text: str) -> set[bytes]:
    """A text as files and memory hold it: plain, JSON, Python source, wide characters."""
    texts = {text, repr(text)[1:-1], *(json.dumps(text, ensure_ascii=a)[1:-1] for a in (True, False))}
    found: set[bytes] = set()
    for each, code in itertools.product(texts, ("utf-8", "latin-1", "utf-16-le", "utf-32-le")):
        with contextlib.suppress(UnicodeEncodeError):  # latin-1 has few letters; no code has lone surrogates
            found.add(each.encode(code))
    return found


def spellings(text: str) -> Mapping[str, str]:
    """A text, or a number in decimal, spelled in other ways: way -> spelling. Compare them without case.

    Equal spellings occur once.

    >>> ways = spellings("42")
    >>> ways["in words"], ways["hexadecimal"], ways["spaced"], ways["binary"]
    ('forty-two', '0x2a', '4 2', '101010')
    """
    found: dict[str, str] = {}
    for way, spelled in _spelled(text):
        if spelled and spelled not in found.values():
            found[way] = spelled
    return found


def spelled_in_each(values: Sequence[str], texts: Sequence[str]) -> str:
    """The way in which each text spells its own value, and others do not; empty if there is none."""

    def is_told(index: int, word: str) -> bool:
        own = occurrences(word, texts[index])
        others = [text for text, value in zip(texts, values, strict=True) if value != values[index]]
        return own > 0 and sum(occurrences(word, text) >= own for text in others) <= _MAX_ELSEWHERE * len(
            others
        )

    spelled = [spellings(value) for value in values]
    for way in spelled[0] if spelled else ():
        if all(way in ways and is_told(index, ways[way]) for index, ways in enumerate(spelled)):
            return way
    return ""


def occurrences(word: str, text: str) -> int:
    """Count a word in a text, in small or capital letters; inside a longer word it does not count."""
    return len(re.findall(rf"(?i)(?<!\w){re.escape(word)}(?!\w)", text))


def _spelled(text: str) -> Iterator[tuple[str, str]]:
    yield "plain", text
    for way, spell in _WAYS.items():
        with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair
            yield way, spell(text)
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS:
        number = int(text)
        yield "in words", in_words(number)
        yield "in words without hyphens", in_words(number).replace("-", " ")
        yield "digit by digit", " ".join(_SMALL[int(digit)] for digit in digits)
        yield "hexadecimal", hex(number)
        yield "bare hexadecimal", f"{number:x}"
        yield "binary", f"{number:b}"
        yield "octal", f"{number:o}"
        yield "with commas", f"{number:,}"


def in_words(number: int) -> str:
    """A whole number in English words.

    >>> in_words(1_204_013), in_words(-70), in_words(21)
    ('one million two hundred four thousand thirteen', 'minus seventy', 'twenty-one')
    """
    if number < 0:
        return f"minus {in_words(-number)}"
    if number < len(_SMALL):
        return _SMALL[number]
    if number < 100:
        tens, one = divmod(number, 10)
        return f"{_TENS[tens]}-{_SMALL[one]}" if one else _TENS[tens]
    size, name = next(((size, name) for size, name in _SCALES if number >= size), (100, "hundred"))
    count, rest = divmod(number, size)
    return f"{in_words(count)} {name}" + (f" {in_words(rest)}" if rest else "")


_WAYS: Final[Mapping[str, Callable[[str], str]]] = {
    "reversed": lambda text: text[::-1],
    "spaced": " ".join,
    "with hyphens": "-".join,
    "with dots": ".".join,
    "with commas between": ",".join,
    "without spaces": lambda text: "".join(text.split()),
    "in base64": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "in base32": lambda text: base64.b32encode(text.encode()).decode().rstrip("="),
    "as hexadecimal bytes": lambda text: text.encode().hex(),
    "as spaced hexadecimal bytes": lambda text: text.encode().hex(" "),
    "as character codes": lambda text: " ".join(str(ord(character)) for character in text),
    "in ROT13": lambda text: codecs.encode(text, "rot13"),
    "as in a URL": lambda text: quote(text, safe=""),
}
