"""Bytes that are nearly right: good samples with a few things done to them. What is wholly random is refused at its
first byte and tries nothing behind it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import strategies as st

# What readers trip over: ends of ranges, of lines and of texts, endless varints, lengths of everything.
WORDS = (
    *(
        b"\0",
        b"\xff",
        b"\x7f",
        b"\x80",
        b"\0\0",
        b"\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\x07",
    ),
    *(
        b"\xff\xff\xff\xff\xff\xff",
        b"\r\n",
        b" ",
        b",",
        b"=",
        b":",
        b".",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b"*",
        b"\x01",
    ),
    *("ÿ".encode(), "\u202e".encode(), b"\xed\xa0\x80", b"\xc0\x80", b"1e999", b"-1", b"null", b"true"),
)


def bent(samples: Sequence[bytes], words: Sequence[bytes] = ()) -> st.SearchStrategy[bytes]:
    """One of the samples with up to six of: a byte changed, a word put in or over, a part taken out, said twice, or
    replaced by a part of another sample, the end cut off. All of it follows from one number: a draw for each step would
    cost ten times as long, and what is found is small anyway."""
    known = (*WORDS, *words)
    return st.integers(0, (1 << 64) - 1).map(lambda number: _bent(random.Random(number), samples, known))


def _bent(source: random.Random, samples: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    data = bytearray(source.choice(samples))
    for _ in range(source.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        start = source.randint(0, len(data))
        end = min(len(data), start + source.randint(0, 40))
        match source.randrange(7):
            case 0:
                data[start : start + 1] = bytes([source.randrange(256)])
            case 1:
                data[start:start] = source.choice(words)
            case 2:
                word = source.choice(words)
                data[start : start + len(word)] = word
            case 3:
                del data[start:end]
            case 4:
                data[start:start] = data[start:end]
            case 5:
                other = source.choice(samples)
                at = source.randint(0, len(other))
                data[start:end] = other[at : at + 40]
            case _:
                del data[end:]
    return bytes(data)


def pieces(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The same bytes as they might come from a socket."""
    found, position, number = [], 0, 0
    while position < len(data):
        size = sizes[number % len(sizes)] if sizes else len(data)
        found.append(data[position : position + size])
        position += size
        number += 1
    return found
