# SPDX-License-Identifier: Apache-2.0
"""What there is: the names of the manifests as kustomize makes them, of the guide's files, and of the program."""

import re
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import yaml

from extproc import __version__
from extproc.cli import main
from extproc.demo import bootstrap
from extproc.discovery.objects import ACTIVE_PORTS
from extproc.doctor.findings import Check
from extproc.envoy import names
from extproc.envoy.binding import Attachment
from extproc.observability.metrics import Metrics
from extproc.policy.config import default_policy
from extproc.policy.types import ROLE_LABEL, Reason
from extproc.server import openapi
from tests.docs.walkthrough import documents
from tests.manifests.kustomize import ROOT, build, deployed

IMAGE: Final = f"owned-by:{__version__}"
_BESIDE: Final = {"only-when-asked": ("istio-strict",)}
"""What a component changes, where it does not stand by itself."""
_LABEL: Final = r"[a-z0-9-]+(?:\.[a-z0-9-]+)+/[a-zA-Z][\w.-]*"


@dataclass
class Known:
    """Names by what they are; `words` are those of all objects, components, reasons, filters and the rest.

    `keys` are the policy's, `paths` the admin port's; the kind of the policy counts as one of the `alerts`, as which it looks.
    """

    flags: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    headers: set[str] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    objects: set[tuple[str, str]] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    alerts: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    values: set[tuple[str, str]] = field(default_factory=set)
    defaults: set[tuple[str, int]] = field(default_factory=set)


def components() -> list[str]:
    """The folders of manifests/components/."""
    return sorted(path.parent.name for path in (ROOT / "components").glob("*/kustomization.yaml"))


@cache
def known() -> Known:
    """Everything that a page may name."""
    found = Known()
    _of_program(found)
    for document in (*rendered(), *documents()):
        _of_object(found, document)
    found.words |= {*components(), *(path.name for path in (ROOT / "overlays").glob("*"))}
    return found


@cache
def rendered() -> tuple[dict[str, Any], ...]:
    """The objects of the base, of each component in an operator's two layers, and of each overlay."""
    found = []
    for name in components():
        with tempfile.TemporaryDirectory() as folder:
            found += deployed(Path(folder), [*_BESIDE.get(name, ()), name])
    for overlay in sorted((ROOT / "overlays").glob("*/kustomization.yaml")):
        found += build(overlay.parent)
    return tuple(found)


def _of_program(found: Known) -> None:
    for command in main.commands.values():
        for parameter in command.params:
            found.flags |= {flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")}
            if parameter.name and parameter.name.endswith("port") and isinstance(parameter.default, int):
                found.ports.add(parameter.default)
                found.defaults |= {(flag, parameter.default) for flag in parameter.opts}
            if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
                found.variables.add(parameter.envvar)
    found.flags |= {"--help", "--version"}
    policy = default_policy()
    found.labels |= {*policy.match.owned_by_labels, ROLE_LABEL, *ACTIVE_PORTS}
    found.headers |= {*policy.sources.headers, *policy.sources.model_headers}
    for value in vars(names).values():
        found.headers |= {word for word in (value if isinstance(value, tuple) else (value,)) if _is_header(word)}
    ends = ("", "_bucket", "_count", "_sum")
    found.metrics |= {each.name + end for each in Metrics().catalogue for end in ends}
    found.metrics |= {
        f"{names.NAMESPACE}_{reason.replace('-', '_')}" for reason in Reason
    }  # details of Envoy's access log
    filters = (bootstrap.HEADER_FILTER, bootstrap.BEFORE_FILTER, bootstrap.PICKER_FILTER, bootstrap.AFTER_FILTER)
    found.words |= {*filters, *(each.value for each in Attachment), *(each.value for each in Reason)}
    found.words |= {each.value for each in Check}
    found.alerts.add(policy.kind)
    found.keys |= set(_keys(msgspec.to_builtins(policy, enc_hook=str)))
    found.paths |= openapi.document()["paths"].keys()
    found.words |= {*main.commands, tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]["name"]}


def _is_header(word: object) -> bool:
    return isinstance(word, str) and word.startswith("x-")


def _of_object(found: Known, document: dict[str, Any]) -> None:
    metadata = document["metadata"]
    found.objects.add((document["kind"], metadata["name"]))
    found.namespaces.add(metadata.get("namespace", metadata["name"] if document["kind"] == "Namespace" else ""))
    for key, value in _leaves(document):
        found.words.add(str(value))
        found.values.add((key, str(value)))
        if key == "secretName":
            found.objects.add(("Secret", value))
        if key == "kubernetes.io/metadata.name":
            found.namespaces.add(value)
        if key == "alert":
            found.alerts.add(value)
        if isinstance(value, int) and re.search("port|number", key, re.IGNORECASE):
            found.ports.add(value)
    text = yaml.safe_dump(document)
    found.objects |= {("Secret", name) for name in re.findall(r"secretKeyRef:\n +key: \S+\n +name: (\S+)", text)}
    found.labels |= {label for label in re.findall(_LABEL, text) if "/v1" not in label}
    found.variables |= set(re.findall(r"^ *(?:- )?name: ([A-Z][A-Z0-9_]*)$", text, re.MULTILINE))
    found.words |= set(re.findall(r"owned-by[\w.-]*", text))


def _keys(value: dict[str, Any], above: str = "") -> Iterator[str]:
    """Every key of a document, behind those that it stands under."""
    for key, each in value.items():
        yield above + key
        if isinstance(each, dict):
            yield from _keys(each, f"{above}{key}.")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no list and no mapping, with its key."""
    if isinstance(value, dict):
        for inner, each in value.items():
            yield from _leaves(each, inner)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    else:
        yield key, value
