"""A certificate's subject as text, by RFC 2253, as Java's X500Principal writes it: what Kafka calls the principal of a
client with a certificate (KIP-371).

Pure: DER in, text out. Reads the Name itself, and not what a library makes of it, because two names that differ must
never read the same: escapes, unknown attributes and values that are no text follow the RFC to the letter.
"""

from __future__ import annotations

from typing import Final

from kafscale.errors import ProtocolError

NAME_BYTES_MAX: Final = 8192

# RFC 2253 section 2.3 and what Java knows for this format.
_KEYWORDS: Final = {
    "2.5.4.3": "CN",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.6": "C",
    "2.5.4.9": "STREET",
    "0.9.2342.19200300.100.1.25": "DC",
    "0.9.2342.19200300.100.1.1": "UID",
}
_EXPLICIT_VERSION: Final = b"\xa0"
_SEQUENCE, _SET, _OBJECT_IDENTIFIER = 0x30, 0x31, 0x06
# UTF8String, NumericString, PrintableString, TeletexString, IA5String, UniversalString, BMPString.
_ENCODINGS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
# More than the RFC asks for: Java escapes "=" and "#" wherever they stand.
_ESCAPED: Final = frozenset(',=+<>#;"\\')


def rfc2253_name(der: bytes) -> str:
    """The text of a DER-encoded Name; an empty Name is the empty text. Raises ProtocolError."""
    if len(der) > NAME_BYTES_MAX:
        raise ProtocolError(f"a certificate's subject of {len(der)} bytes; {NAME_BYTES_MAX} are allowed")
    content, rest = _element(der, _SEQUENCE)
    if rest:
        raise ProtocolError("a certificate's subject with something behind it")
    parts: list[str] = []
    while content:
        relative, content = _element(content, _SET)
        attributes: list[str] = []
        while relative:
            pair, relative = _element(relative, _SEQUENCE)
            attributes.append(_attribute(pair))
        parts.append("+".join(attributes))
    # The most specific comes first in the text, and last in the certificate.
    return ",".join(reversed(parts))


def subject_of(certificate_der: bytes) -> bytes:
    """The subject's Name, DER-encoded, as it stands in a certificate (RFC 5280 section 4.1). Raises ProtocolError."""
    certificate, _ = _element(certificate_der, _SEQUENCE)
    rest, _ = _element(certificate, _SEQUENCE)
    if rest[:1] == _EXPLICIT_VERSION:
        _, rest = _element(rest, rest[0])
    # Serial number, signature, issuer, validity: whatever is in them, the subject comes behind.
    for _ in range(4):
        if not rest:
            break
        _, rest = _element(rest, rest[0])
    _, behind = _element(rest, _SEQUENCE)
    return rest[: len(rest) - len(behind)]


def _attribute(pair: bytes) -> str:
    identifier, value = _element(pair, _OBJECT_IDENTIFIER)
    name = _dotted(identifier)
    keyword = _KEYWORDS.get(name)
    if not value:
        raise ProtocolError("a certificate's subject with an attribute that has no value")
    kind = value[0]
    _, rest = _element(value, kind)
    if rest:
        raise ProtocolError("a certificate's subject with an attribute that has two values")
    encoding = _ENCODINGS.get(kind)
    if keyword is None or encoding is None:
        return f"{keyword or name}=#{value.hex()}"
    content, _ = _element(value, kind)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return f"{keyword}=#{value.hex()}"
    return f"{keyword}={_escaped(text)}"


def _escaped(text: str) -> str:
    begin = len(text) - len(text.lstrip(" \r"))
    end = len(text.rstrip(" \r"))
    pieces = []
    for index, character in enumerate(text):
        if character in _ESCAPED or not begin <= index < end:
            pieces.append("\\" + character)
        elif character == "\0":
            pieces.append("\\00")
        else:
            pieces.append(character)
    return "".join(pieces)


def _dotted(identifier: bytes) -> str:
    """An object identifier as numbers with dots (X.690 section 8.19)."""
    numbers: list[int] = []
    value = 0
    for position, byte in enumerate(identifier):
        value = value << 7 | byte & 0x7F
        if value >= 1 << 128:
            raise ProtocolError("a certificate's subject with an endless object identifier")
        if not byte & 0x80:
            if not numbers:
                first = min(value // 40, 2)
                numbers += [first, value - 40 * first]
            else:
                numbers.append(value)
            value = 0
        elif position == len(identifier) - 1:
            raise ProtocolError("a certificate's subject with an object identifier that ends early")
    if not numbers:
        raise ProtocolError("a certificate's subject with an empty object identifier")
    return ".".join(map(str, numbers))


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the element of `tag` that `data` begins with, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ProtocolError("a certificate's subject that is no Name")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 3 or len(data) < 2 + count:
            raise ProtocolError("a certificate's subject with a length that is none")
        length, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    end = start + length
    if end > len(data):
        raise ProtocolError("a certificate's subject that ends early")
    return data[start:end], data[end:]
