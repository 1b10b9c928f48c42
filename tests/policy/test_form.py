# SPDX-License-Identifier: Apache-2.0
"""The fields beside the file of a form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policy.form import boundary, read_form

NAMES = ("model", "owned_by")
EDGE = "----edge-7d1"


def part(head: str, value: bytes, edge: str = EDGE) -> bytes:
    return f"--{edge}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"


def field(name: str, value: str | bytes) -> bytes:
    return part(f'name="{name}"', value if isinstance(value, bytes) else value.encode())


def file(content: bytes) -> bytes:
    return part('name="file"; filename="a.wav"\r\nContent-Type: audio/wav', content)


END = f"--{EDGE}--\r\n".encode()
MODEL = field("model", "whisper")
WHISPER = {"model": "whisper"}

TYPES = {
    "bare": ("multipart/form-data; boundary=----edge-7d1", "----edge-7d1"),
    "quoted": ('multipart/form-data; boundary="a b:c"', "a b:c"),
    "in any case": ("Multipart/Form-Data;BOUNDARY=aB", "aB"),
    "with space": (" multipart/form-data \t; boundary = x ; charset=utf-8", "x"),
    "after others": ('multipart/form-data; a="; boundary=no"; charset=utf-8; boundary=x', "x"),
    "bare, though it should be quoted": ("multipart/form-data; boundary=----=_Part_1/2.3", "----=_Part_1/2.3"),
    "twice": ("multipart/form-data; boundary=a; boundary=b", "b"),
    "70 characters": ("multipart/form-data; boundary=" + "a" * 70, "a" * 70),
    "71 characters": ("multipart/form-data; boundary=" + "a" * 71, None),
    "no boundary": ("multipart/form-data", None),
    "another parameter": ("multipart/form-data; xboundary=a; charset=utf-8", None),
    "an extended parameter": ("multipart/form-data; boundary*=utf-8''a", None),
    "empty": ("multipart/form-data; boundary=", None),
    "empty, quoted": ('multipart/form-data; boundary=""', None),
    "a space at the end": ('multipart/form-data; boundary="a "', None),
    "an escape": ('multipart/form-data; boundary="a\\"b"', None),
    "a quote that does not end": ('multipart/form-data; boundary="a', None),
    "more after the quote": ('multipart/form-data; boundary="a"b', None),
    "an accent": ("multipart/form-data; boundary=\xe4", None),
    "a control character": ('multipart/form-data; boundary="a\r\n"', None),
    "mixed": ("multipart/mixed; boundary=a", None),
    "another type": ("application/json; boundary=a", None),
    "no type": ("", None),
    "only the parameter": ("; boundary=a", None),
}


@pytest.mark.parametrize(("content_type", "found"), TYPES.values(), ids=TYPES)
def test_the_content_type_names_the_boundary(content_type: str, found: str | None) -> None:
    assert boundary(content_type) == found


FORMS = {
    "a transcription": (MODEL + file(b"RIFF\0\xff\r\n--") + field("owned_by", "vllm"), WHISPER | {"owned_by": "vllm"}),
    "nothing": (b"", {}),
    "only others": (field("language", "en") + file(b""), {}),
    "empty": (field("model", ""), {"model": ""}),
    "as it is": (field("model", " a\r\nb\t"), {"model": " a\r\nb\t"}),
    "UTF-8": (field("model", "modèle 😀"), {"model": "modèle 😀"}),
    "no UTF-8": (field("owned_by", b"\xff") + MODEL, WHISPER),
    "twice": (field("model", "a") + MODEL, WHISPER),
    "twice, the last no UTF-8": (MODEL + field("model", b"\xc3"), WHISPER),
    "4096 bytes": (field("model", "a" * 4096), {"model": "a" * 4096}),
    "4097 bytes": (field("model", "a" * 4097) + field("owned_by", "vllm"), {"owned_by": "vllm"}),
    "a file of that name": (part('name="model"; filename="a"', b"x") + field("owned_by", "vllm"), {"owned_by": "vllm"}),
    "a file without a name": (part('name="model"; filename=""', b"x"), {}),
    "no quotes": (part("name=model", b"whisper"), WHISPER),
    "another case": (field("Model", "x"), {}),
    "no name": (part("x=y", b"x") + MODEL, WHISPER),
    "with a type": (part('name="model"\r\nContent-Type: text/plain; charset=utf-8', b"whisper"), WHISPER),
    "with a length": (part('name="model"\r\nContent-Length: 7', b"whisper"), WHISPER),
    "text before": (b"This is a form.\r\n" + MODEL, WHISPER),
}


@pytest.mark.parametrize(("parts", "fields"), FORMS.values(), ids=FORMS)
def test_a_form_names_its_text_fields(parts: bytes, fields: dict[str, str]) -> None:
    assert read_form(parts + END, EDGE, NAMES) == (fields, True)
    assert read_form(parts + END[:-2], EDGE, NAMES) == (fields, True)
    assert read_form(parts + END + b"more", EDGE, NAMES) == (fields, True)


VLLM = field("owned_by", "vllm")
PREFIXES = {
    "the end is missing": (MODEL, {}),
    "the end is cut": (MODEL + END[:-3], {}),
    "the next delimiter is cut": (MODEL + VLLM[: len(EDGE) + 2], {}),
    "the next delimiter's line is cut": (MODEL + VLLM[: len(EDGE) + 3], {}),
    "the next delimiter is whole": (MODEL + VLLM[: len(EDGE) + 4], WHISPER),
    "the next head is cut": (MODEL + VLLM[:40], WHISPER),
    "the next value is cut": (MODEL + VLLM[:-4], WHISPER),
    "the next value may go on": (MODEL + VLLM, WHISPER),
    "the file is cut": (MODEL + file(b"RIFF" * 1000)[:-1000], WHISPER),
    "a letter is cut": (MODEL + field("owned_by", "é")[:-3], WHISPER),
}


@pytest.mark.parametrize(("body", "fields"), PREFIXES.values(), ids=PREFIXES)
def test_of_a_prefix_count_the_parts_that_stand_in_it_wholly(body: bytes, fields: dict[str, str]) -> None:
    assert read_form(body, EDGE, NAMES) == (fields, False)


MALFORMED = {
    "no disposition": VLLM.replace(b"Content-Disposition", b"X"),
    "another disposition": VLLM.replace(b"form-data", b"attachment"),
    "a head without a colon": VLLM.replace(b": ", b" "),
    "a head that is no UTF-8": VLLM.replace(b"owned", b"\xff"),
    "a head that ends in a line feed": VLLM.replace(b"\r\n\r\n", b"\n\n"),
    "a head too long": VLLM.replace(b"owned", b"o" * 5000),
    "too many heads": VLLM.replace(b"\r\n\r\n", b"\r\na: b" * 9 + b"\r\n\r\n"),
    "another length": VLLM.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"),
    "more on the next delimiter's line": VLLM + VLLM.replace(b"\r\n", b"x\r\n", 1),
    "a line feed after the next delimiter": VLLM + VLLM.replace(b"\r\n", b"\n", 1),
    "too many parts": field("x", "") * 2000 + VLLM,
}


@pytest.mark.parametrize("fault", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_ends_the_reading(fault: bytes) -> None:
    assert read_form(MODEL + fault + field("model", "x") + END, EDGE, NAMES) == (WHISPER, False)


@pytest.mark.parametrize(
    "body", [b"", b"--", b'{"model": "whisper"}', b"model=whisper", b"--other--", bytes(range(256))]
)
def test_what_is_no_form_names_nothing(body: bytes) -> None:
    assert read_form(body, EDGE, NAMES) == ({}, False)


@pytest.mark.parametrize("edge", ["", "\n", "\ud83d"], ids=["empty", "a line feed", "half a pair"])
def test_a_boundary_that_cannot_be_names_nothing(edge: str) -> None:
    assert read_form(MODEL + END, edge, NAMES) == ({}, False)


def test_a_file_of_25_megabytes_is_passed_over() -> None:
    body = MODEL + file(b"\r\n--" * 6_250_000) + field("owned_by", "vllm") + END
    assert read_form(body, EDGE, NAMES) == (WHISPER | {"owned_by": "vllm"}, True)


edges = st.from_regex(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", fullmatch=True)
texts = st.text(max_size=8) | st.just("é" * 2048) | st.just("é" * 2049)
some_parts = st.lists(
    st.tuples(st.sampled_from([*NAMES, "prompt"]), st.booleans(), texts.map(str.encode) | st.binary(max_size=8)),
    max_size=5,
)


def kept(parts: list[tuple[str, bool, bytes]]) -> dict[str, str]:
    fields = {}
    for name, filed, value in parts:
        if name in NAMES and not filed and len(value) <= 4096 and value.decode(errors="replace").encode() == value:
            fields[name] = value.decode()
    return fields


@given(edges, some_parts, st.data())
def test_a_form_cut_anywhere_names_the_parts_before_the_cut(
    edge: str, parts: list[tuple[str, bool, bytes]], data: st.DataObject
) -> None:
    parts = [found for found in parts if b"--" + edge.encode() not in found[2]]
    written = [
        part(f'name="{name}"' + ('; filename="f"' if filed else ""), value, edge) for name, filed, value in parts
    ]
    body = b"".join(written) + f"--{edge}--".encode()
    at = data.draw(st.integers(0, len(body)))
    # A part ends with the delimiter of the next: a line feed after it, or two hyphens.
    ends = [sum(map(len, written[: number + 1])) + len(edge) + 4 for number in range(len(parts))]
    whole = [found for found, end in zip(parts, ends, strict=True) if end <= at]
    assert read_form(body[:at], edge, NAMES) == (kept(whole), at == len(body))


@given(edges, st.sampled_from(["{}", '"{}"']), st.sampled_from(["", "; charset=utf-8"]))
def test_every_boundary_is_found_as_it_was_written(edge: str, quotes: str, after: str) -> None:
    bare = quotes == "{}"
    found = boundary(f"multipart/form-data; boundary={quotes.format(edge)}{after}")
    assert found == (edge.strip() if bare else edge)


scraps = st.sampled_from(
    [MODEL, file(b"x"), END, b"\r\n", b"--", EDGE.encode(), b"Content-Length: 1\r\n", b": ", b";", b'"']
)


@given(
    st.binary(max_size=40) | st.lists(scraps | st.binary(max_size=3), max_size=12).map(b"".join), st.text(max_size=3)
)
def test_no_bytes_raise(body: bytes, edge: str) -> None:
    for name in (EDGE, edge):
        fields, _ = read_form(body, name, NAMES)
        assert set(fields) <= set(NAMES)


@given(st.text(max_size=20), st.text(st.sampled_from('boundary=";\\ *'), max_size=30))
def test_no_content_type_raises(text: str, parameters: str) -> None:
    for content_type in (text, f"multipart/form-data{text}", f"multipart/form-data; {parameters}"):
        assert boundary(content_type) != ""
