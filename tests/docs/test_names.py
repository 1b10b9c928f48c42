# SPDX-License-Identifier: Apache-2.0
"""Every file, flag, variable, label, header, metric, port, path, key and object on our pages is one that there is.

What there is: the manifests as kustomize makes them, the files of the guide, the program. Names of others are in foreign.py,
with whose they are.
"""

from pathlib import Path

import pytest

from tests.docs import foreign, mentions
from tests.docs.known import IMAGE, components, known
from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow  # each component is built

PAGES = [
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *(ROOT / "docs" / name for name in ("gateways.md", "attachments.md", "alternatives.md")),
    ROOT / "manifests" / "README.md",
    ROOT / "README.md",
]


def unknown(text: str, page: Path) -> list[tuple[str, object]]:
    """The names of a page's text that nobody has, each with what it looks like."""
    there = known()
    headers = there.headers | foreign.HEADERS.keys()
    known_words = there.words | headers | foreign.WORDS.keys() | {name for _, name in there.objects}
    ours = {
        "flags": there.flags | foreign.FLAGS.keys(),
        "variables": there.variables | foreign.VARIABLES.keys(),
        "labels": there.labels | foreign.LABELS.keys(),
        "headers": headers,
        "metrics": there.metrics,
        "ports": there.ports | foreign.PORTS.keys(),
        "words": known_words,
        "objects": there.objects | foreign.OBJECTS.keys(),
        "images": {IMAGE},
        "namespaces": there.namespaces,
        "alerts": there.alerts,
        "keys": there.keys,
        "paths": there.paths,
        "values": there.values | foreign.VALUES.keys(),
        "defaults": there.defaults,
    }
    written = mentions.written(text)
    return [
        (kind, name)
        for kind, name in mentions.spellings(text)
        if (
            str(name) not in written | foreign.FILES.keys() and mentions.missing(str(name), page, ROOT)
            if kind == "files"
            else name not in ours[kind]
        )
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_is_one_that_there_is(page: Path) -> None:
    assert unknown(page.read_text(), page) == []


@pytest.mark.parametrize(
    ("slip", "found"),
    [
        ("`--drain-dealy`", ("flags", "--drain-dealy")),
        ("`OWNED_BY_LOG_LEVLE`", ("variables", "OWNED_BY_LOG_LEVLE")),
        ("`${NAMESPCAE}`", ("variables", "NAMESPCAE")),
        ("`llm-d.ai/engine`", ("labels", "llm-d.ai/engine")),
        ("`x-owned-by-raeson`", ("headers", "x-owned-by-raeson")),
        ("`owned_by_epp_pick_total`", ("metrics", "owned_by_epp_pick_total")),
        ("port 9012", ("ports", 9012)),
        ("`curl localhost:9019/statusz`", ("ports", 9019)),
        ("`routes.yaml.md`", ("files", "routes.yaml.md")),
        ("`kubectl apply -k manifests/overlays/staging`", ("files", "manifests/overlays/staging")),
        ("`kubectl logs deploy/ownedby`", ("objects", ("Deployment", "ownedby"))),
        ("`kubectl logs deployment/ownedby`", ("objects", ("Deployment", "ownedby"))),
        ("`kubectl create secret generic hf-tokne`", ("objects", ("Secret", "hf-tokne"))),
        ("`kubectl get pods -n llm-d-muti-model`", ("namespaces", "llm-d-muti-model")),
        ("`/labels/gateway.networking.k8s.io~1gatway-name`", ("labels", "gateway.networking.k8s.io/gatway-name")),
        ("`kubectl port-forward deployment/owned-by 9019`", ("ports", 9019)),
        ("`--envoy http://127.0.0.1:15001`", ("ports", 15001)),
        ("`overlays/staging`", ("files", "overlays/staging")),
        ("`localhost:9091/statsuz`", ("paths", "/statsuz")),
        ("`POST /admin/discovery`", ("paths", "/admin/discovery")),
        ("`/statsuz`", ("paths", "/statsuz")),
        ("`llm-d.ai/engine-type: vlm`", ("values", ("llm-d.ai/engine-type", "vlm"))),
        ("`app: llama-vlm`", ("values", ("app", "llama-vlm"))),
        ("`--metrics-port` (9091)", ("defaults", ("--metrics-port", 9091))),
        ("`k3d cluster delete llmd`", ("objects", ("Simple", "llmd"))),
        ("the alert `OwnedByLongHint`", ("alerts", "OwnedByLongHint")),
        ("`body.maxByte`", ("keys", "body.maxByte")),
        ("the EnvoyFilter `owned-by`", ("objects", ("EnvoyFilter", "owned-by"))),
        ("`{kind: Role, name: owned}`", ("objects", ("Role", "owned"))),
        ("`istio-befor`", ("words", "istio-befor")),
        ("`owned-by.befor` comes", ("words", "owned-by.befor")),
        ("`envoy.lb.subset_hnit`", ("words", "envoy.lb.subset_hnit")),
        ("`docker build -t owned-by:9.9.9 .`", ("images", "owned-by:9.9.9")),
    ],
)
def test_a_slip_is_found(slip: str, found: tuple[str, object]) -> None:
    assert found in unknown(f"We say {slip} here.\n", ROOT / "README.md")


def test_every_component_stands_in_a_table_of_the_guide_to_installing() -> None:
    guide = (ROOT / "docs" / "guides" / "install.md").read_text()
    cells = {cell.strip(" `") for row in guide.splitlines() if row.startswith("| ") for cell in row.split("|")}

    assert [name for name in components() if name not in cells] == []


def test_every_foreign_name_is_on_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    said = {str(name) for _, name in mentions.spellings(text)} | mentions.written(text)
    tables = (foreign.FLAGS, foreign.VARIABLES, foreign.LABELS, foreign.HEADERS, foreign.FILES, foreign.WORDS)
    kept = {str(name) for table in (*tables, foreign.PORTS, foreign.OBJECTS, foreign.VALUES) for name in table}

    assert sorted(kept - said) == []
