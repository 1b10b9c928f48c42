# SPDX-License-Identifier: Apache-2.0
"""Which licence each distribution in a folder has, as its own metadata says, in SPDX's words.

What is not in the tables here is an error, so that somebody looks at a new dependency before it is shipped.
"""

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final, NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

SPELT: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "MIT License": "MIT",
}
"""What older metadata says in its own words."""

SHIPPED: Final = {
    "Apache-2.0": "our own",
    "BSD-2-Clause": "asks for its text to be kept, which the distribution's own folder does",
    "BSD-3-Clause": "as BSD-2-Clause",
    "ISC": "as BSD-2-Clause",
    "MIT": "as BSD-2-Clause",
    "MIT-0": "asks for nothing",
    "MPL-2.0": "asks for the source of its own files, which are shipped as they are, as source",
    "PSF-2.0": "as BSD-2-Clause",
}
"""The licences that an Apache-2.0 program may be shipped with in one image, and what each asks for."""


class LicenceError(Exception):
    """A distribution whose licence is not known or not one that is shipped; the text says which."""


class Package(NamedTuple):
    """A distribution, its version and its licence as an SPDX expression."""

    name: str
    version: str
    licence: str


def packages(folder: Path) -> list[Package]:
    """What is installed in a folder, by name. Raises LicenceError, which tells all that is wrong."""
    found, wrong = list[Package](), list[str]()
    for each in distributions(path=[str(folder)]):
        try:
            found.append(Package(each.metadata["Name"], each.version, licence_of(each)))
        except LicenceError as error:
            wrong.append(str(error))
    if wrong:
        raise LicenceError("\n".join(sorted(wrong)))
    return sorted(found, key=lambda package: package.name.lower())


def licence_of(distribution: Distribution) -> str:
    """The SPDX expression of a distribution's licence. Raises LicenceError.

    Source: the core metadata's `License-Expression`, else `License`, else the classifiers below `License ::`.
    """
    metadata = distribution.metadata
    who = f"{metadata['Name']} {distribution.version}"
    written = [metadata[name].strip() for name in ("License-Expression", "License") if name in metadata]
    said = next(filter(None, written), " AND ".join(_classified(metadata)))
    if not said:
        raise LicenceError(f"{who}: its metadata names no licence")
    try:
        expression = canonicalize_license_expression(SPELT.get(said, said))
    except InvalidLicenseExpression as error:
        raise LicenceError(f"{who}: `{said.splitlines()[0]}` is no SPDX expression, and not in SPELT") from error
    names = re.split(r" (?:AND|OR|WITH) ", expression.replace("(", "").replace(")", ""))
    if other := [name for name in names if name not in SHIPPED]:
        raise LicenceError(f"{who}: {', '.join(other)} is not in SHIPPED")
    return str(expression)


def listed(found: Iterable[Package]) -> str:
    """The list for people: a line each, name, version, licence."""
    rows = list(found)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{name:<{widths[0]}}  {version:<{widths[1]}}  {licence}\n" for name, version, licence in rows)


def _classified(metadata: object) -> list[str]:
    classifiers: list[str] = metadata.get_all("Classifier", [])  # type: ignore[attr-defined]
    last = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    return [SPELT.get(each, each) for each in last]
