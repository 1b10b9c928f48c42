# SPDX-License-Identifier: Apache-2.0
"""What an engine answers to `GET /v1/models`, read with care: it comes from a pod, and its models reach every client."""

from typing import Any, Final

import msgspec

from extproc.policy.types import Model

MAX_MODELS: Final = 1000
MAX_LENGTH: Final = 256
"""The longest name of a model or an owner, in characters."""
_MAX_NUMBER: Final = 2**53 - 1  # what JSON keeps exactly; msgspec cannot write numbers beyond 64 bits at all


class Listing(msgspec.Struct, frozen=True, weakref=True):
    """What an engine says of itself: its owner ("" if it names none) and its models, LoRA adapters among them."""

    owned_by: str
    models: tuple[Model, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """What two answers have in common if they say the same.

        `created` is not compared: vLLM and SGLang put the moment of the request there, so that no two answers are equal.
        """
        return (self.owned_by, *((model.id, model.created is None, model.max_model_len) for model in self.models))


class _Entry(msgspec.Struct):
    id: Any = None
    created: Any = None
    max_model_len: Any = None
    owned_by: Any = None


class _Answer(msgspec.Struct):
    data: list[_Entry]


_DECODER: Final = msgspec.json.Decoder(_Answer)


def parse_listing(body: bytes) -> Listing:
    """Read the body of an answer to `GET /v1/models`.

    Unknown fields are ignored, an optional field of a wrong type is as if it were absent, and of entries with the same id
    the first counts; the owner is the first entry's. Raises ValueError, with a text that shows nothing of the body, if
    that is no list of models (a number that no double holds is not JSON here), an id is not a string of 1 to 256
    characters, or there are more than 1,000.
    """
    try:
        entries = _DECODER.decode(body.decode()).data
    except UnicodeDecodeError:
        raise ValueError("not a list of models: not UTF-8") from None
    except RecursionError:
        raise ValueError("not a list of models: nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"not a list of models: {error}") from None
    if len(entries) > MAX_MODELS:
        raise ValueError(f"more than {MAX_MODELS} models")
    models: dict[str, Model] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry.id, str) or not 0 < len(entry.id) <= MAX_LENGTH:
            raise ValueError(
                f"not a list of models: `$.data[{number}].id` is not a string of 1 to {MAX_LENGTH} characters"
            )
        models.setdefault(entry.id, Model(entry.id, _number(entry.created), _number(entry.max_model_len)))
    owner = entries[0].owned_by if entries else None
    owner = owner.strip() if isinstance(owner, str) and len(owner) <= MAX_LENGTH else ""
    return Listing(owner, tuple(models.values()))


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_NUMBER:
        return None
    return int(value)
