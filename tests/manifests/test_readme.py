# SPDX-License-Identifier: Apache-2.0
"""What manifests/README.md shows is what there is, and its example builds."""

import re
import shutil
from pathlib import Path

import yaml

from extproc.policy.config import default_policy
from extproc.policy.loading import parse_policy
from tests.docs.pages import blocks
from tests.manifests.kustomize import ROOT, build, deployed, one
from tests.manifests.schema import wrong

README = (ROOT / "README.md").read_text()


def test_every_component_and_overlay_has_its_line() -> None:
    tables = README.partition("## Components")[2].partition("## What to patch")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \|", tables, re.MULTILINE)

    assert sorted(listed) == sorted(folder.name for folder in (ROOT / "components").iterdir())
    assert {folder.name for folder in (ROOT / "overlays").iterdir()} == {"dev", "production"}


def test_the_example_builds_in_its_two_layers(tmp_path: Path) -> None:
    shutil.copytree(ROOT.parent / "monitoring", tmp_path / "monitoring")
    shutil.copytree(ROOT, tmp_path / "manifests")
    for block in blocks(README):
        path = tmp_path / block.text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir()
        path.write_text(block.text)
    (tmp_path / "gateway" / "policy.yaml").write_text("another\n")
    documents = build(tmp_path / "all")
    (container,) = one(documents, "Deployment", "owned-by")["spec"]["template"]["spec"]["containers"]

    assert wrong(documents) == {}
    assert container["image"].startswith("REGISTRY/owned-by:")
    assert container["args"][-1] == "--namespaces=gateway,team-a"
    assert one(documents, "ConfigMap", "owned-by")["data"] == {"policy.yaml": "another\n"}
    assert one(documents, "NetworkPolicy", "owned-by")["metadata"]["namespace"] == "gateway"
    assert one(documents, "RoleBinding", "owned-by-discovery")["metadata"]["namespace"] == "team-a"
    asked = one(documents, "NetworkPolicy", "owned-by")["spec"]["egress"][0]["to"]
    places = [each["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for each in asked]
    assert places == ["gateway", "team-a"]  # as --namespaces


def test_a_second_binding_stands_beside_the_one_that_the_example_moves(tmp_path: Path) -> None:
    shipped = ROOT / "components" / "several-namespaces" / "rolebindings.yaml"
    copied = yaml.safe_load(shipped.read_text())
    copied["metadata"]["namespace"] = "team-b"
    example = next(block.text for block in blocks(README) if block.text.startswith("# all/"))
    patches = [each for each in yaml.safe_load(example)["patches"] if each["target"]["kind"] == "RoleBinding"]
    documents = deployed(tmp_path, ["several-namespaces"], patches=patches, objects=[copied])
    bindings = [each for each in documents if each["metadata"]["name"] == "owned-by-discovery" and "subjects" in each]

    assert sorted(each["metadata"]["namespace"] for each in bindings) == ["team-a", "team-b"]
    assert [each["subjects"] for each in bindings] == [
        [{"kind": "ServiceAccount", "name": "owned-by", "namespace": "llm-d"}]
    ] * 2


def test_the_policy_that_is_shipped_is_what_holds_without_one() -> None:
    shipped = parse_policy((ROOT / "base" / "policy.yaml").read_bytes())

    assert repr(shipped) == repr(default_policy())  # every key: policies are the same only if they are one
