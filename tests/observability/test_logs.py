# SPDX-License-Identifier: Apache-2.0
"""Log lines."""

import io
import re
import secrets
from collections.abc import Callable

import msgspec
import pytest

from extproc.observability.logs import DecisionLog, make_logger
from tests.builders import decision_line


def at_once(_seconds: float, callback: Callable[[], None]) -> None:
    callback()


def test_a_line_is_json_with_the_epps_field_names() -> None:
    stream = io.BytesIO()
    make_logger("json", "info", stream).info("ready", logger="lifecycle", grpc_port=1)
    line = msgspec.json.decode(stream.getvalue())

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("ts"))
    assert line == {"level": "info", "logger": "lifecycle", "msg": "ready", "grpc_port": 1}


def test_a_decision_line_has_the_same_shape() -> None:
    stream = io.BytesIO()
    logger = make_logger("json", "info", stream)
    DecisionLog(logger, "json", "info", at_once, stream)(decision_line())
    line = msgspec.json.decode(stream.getvalue())

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("ts"))
    assert line == {
        "level": "info",
        "logger": "extproc",
        "msg": "decision",
        "x-request-id": "r-1",
        "attachment": "before",
        "decision": "restrict",
        "reason": "owner-matched",
        "owner": "sglang",
        "owners": ["sglang"],
        "model": "m",
        "endpoints": 2,
        "destination": "127.0.0.1:1",
        "microseconds": 40,
    }


@pytest.mark.parametrize("form", ["json", "console"])
def test_decisions_are_silent_above_info(form: str) -> None:
    stream = io.BytesIO()
    logger = make_logger(form, "warning", stream)
    DecisionLog(logger, form, "warning", at_once, stream)(decision_line())

    assert stream.getvalue() == b""


def test_a_console_line_can_be_read_by_a_person() -> None:
    stream = io.BytesIO()
    logger = make_logger("console", "info", stream)
    DecisionLog(logger, "console", "info", at_once, stream)(decision_line())

    assert b"decision" in stream.getvalue()
    assert b"reason=owner-matched" in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_values(form: str) -> None:
    def fails(header: str) -> None:
        raise ValueError(len(header))

    stream, credential = io.BytesIO(), secrets.token_hex(8)
    logger = make_logger(form, "info", stream)
    try:
        fails(credential)
    except ValueError:
        logger.exception("internal error")

    assert b"ValueError: 16" in stream.getvalue()
    assert credential.encode() not in stream.getvalue()


def test_lines_that_come_together_are_written_together() -> None:
    stream = io.BytesIO()
    deferred: list[Callable[[], None]] = []
    log = DecisionLog(
        make_logger("json", "info", stream), "json", "info", lambda _, call: deferred.append(call), stream
    )
    log(decision_line())
    log(decision_line())
    held = stream.getvalue()
    deferred.pop()()

    assert (held, deferred, stream.getvalue().count(b"\n")) == (b"", [], 2)


def test_a_sink_that_fails_once_loses_its_lines_and_no_more() -> None:
    class Full(io.BytesIO):
        fails = True

        def write(self, data: object) -> int:
            if self.fails:
                self.fails = False
                raise OSError("no space")
            return super().write(data)  # type: ignore[arg-type]

    stream = Full()
    log = DecisionLog(make_logger("json", "info", stream), "json", "info", at_once, stream)
    log(decision_line())
    log(decision_line())

    assert stream.getvalue().count(b"\n") == 1
