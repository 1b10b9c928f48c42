# SPDX-License-Identifier: Apache-2.0
"""The names that a page mentions, by what they look like."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import blocks

_KINDS = {
    "deploy": "Deployment",
    "deployment": "Deployment",
    "svc": "Service",
    "service": "Service",
    "gateway": "Gateway",
    "httproute": "HTTPRoute",
    "configmap": "ConfigMap",
    "secret": "Secret",
}
_KIND = (
    "EnvoyFilter|DestinationRule|InferencePool|HTTPRoute|Gateway|GatewayExtension|TrafficPolicy|EnvoyExtensionPolicy|"
    "BackendTrafficPolicy|ClientTrafficPolicy|ConfigMap|Secret|ServiceAccount|Role|RoleBinding|Deployment|Service"
)
_TARGET = re.compile(r"kind: (\w+), name: ([a-z][\w-]*)(?=[,}])")


def code(page: str) -> str:
    """What stands in fences and in backticks, a piece a line; addresses of other sites are left out."""
    fenced = [block.text for block in blocks(page)]
    rest = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", rest)
    return re.sub(r"https?://(?!localhost)\S+", "", "\n".join([*fenced, *spans]))


def flags(page: str) -> set[str]:
    """`--drain-delay`."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code(page)))


def variables(page: str) -> set[str]:
    """`OWNED_BY_LOG_LEVEL`, `$HF_TOKEN`, `HF_TOKEN=`."""
    text = code(page)
    ours = re.findall(r"\bOWNED_BY_[A-Z_]+\b(?!<)", text)
    return {*ours, *re.findall(r"\$\{?([A-Z][A-Z_]+)", text), *re.findall(r"(?<![\w$])([A-Z][A-Z_]{3,})=", text)}


def labels(page: str) -> set[str]:
    """`llm-d.ai/engine-type`, of labels and annotations; `/v1` is an API's version."""
    text = re.sub(r"/([\w.-]+)~1", r" \1/", code(page))  # in the path of a JSON patch
    found = re.findall(r"(?<![\w./@-])[a-z0-9-]++(?:\.[a-z0-9-]++)++/[a-zA-Z][\w.-]*+(?!/)", text)
    return {label for label in found if not re.search(r"/v\d", label) and not label.startswith("type.googleapis.com/")}


def headers(page: str) -> set[str]:
    """`x-owned-by-reason`."""
    return set(re.findall(r"(?<![\w-])x-[a-z0-9-]*[a-z0-9](?![\w*])", code(page)))


def metrics(page: str) -> set[str]:
    """`owned_by_served_total`."""
    return set(re.findall(r"\bowned_by_[a-z_]*[a-z]\b", code(page)))


def ports(page: str) -> set[int]:
    """`localhost:9091`, port 9002; those behind 127.x are examples."""
    text = page if "```" not in page else re.sub(r"127\.\d+\.\d+\.\d+:\d+", "", page)
    found = re.findall(r"(?:localhost:|\b[Pp]ort (?:is )?`?|(?:deploy(?:ment)?|svc|service)/[a-z-]+ )(\d{2,5})\b", text)
    found += re.findall(r"port`? \((\d{4,5})\b", text)
    found += re.findall(r"--(?:gateway|envoy|admin) http://127\.0\.0\.1:(\d+)", page)  # these are not
    return {int(port) for port in found}


def files(page: str) -> set[str]:
    """`policy.yaml`, `manifests/overlays/dev`, and where links lead."""
    text = code(page)
    named = re.findall(r"(?<![\w./$@*-])(?:\.\./)*[\w-][\w./-]*\.(?:ya?ml|md|json|py|toml|txt)\b(?![\w.]*\()", text)
    rooted = re.findall(
        r"(?<![\w./$-])(?:\.\./)*(?:manifests|overlays|components|docs|tests|monitoring|extproc|bench|protos|requirements)/[\w./-]+",
        text,
    )
    return {name.rstrip("./") for name in (*named, *rooted)}


def written(page: str) -> set[str]:
    """The files that a page shows: their name is the first line of a block, or stands before what is in them."""
    shown = {match[1] for block in blocks(page) if (match := re.match(r"# ([\w./-]+\.ya?ml)", block.text))}
    return shown | set(re.findall(r"`([\w.-]+\.json)`\s+is\s+`\{", page))


def objects(page: str) -> set[tuple[str, str]]:
    """`deploy/owned-by`, the EnvoyFilter `owned-by-before`, `{kind: EnvoyFilter, name: ...}`."""
    text = code(page)
    spoken = re.findall(rf"\b({_KIND})s? `([a-z][a-z0-9-]*)`", page)
    short = [
        (_KINDS[kind], name)
        for kind, name in re.findall(rf"(?<![\w./-])({'|'.join(_KINDS)})/([a-z0-9-]++)(?!\.)", text)
    ]
    clusters = re.findall(r"k3d (?:cluster (?:delete|start|stop) |image import .* -c )([\w-]+)", text)
    made = [("Simple", name) for name in clusters]  # k3d's own kind
    made += [("Secret", name) for name in re.findall(r"create secret [a-z-]+ ([a-z0-9-]+)", text)]
    return {*spoken, *short, *made, *_TARGET.findall(text)}


def namespaces(page: str) -> set[str]:
    """`-n llm-d-multi-model`, the namespace `llm-d-multi-model`."""
    said = re.findall(r"(?<![\w-])(?:-n|--namespace)[ =]([a-z][a-z0-9-]*)", code(page))
    return {*said, *re.findall(r"\bnamespace `([a-z][a-z0-9-]*)`", page)}


def alerts(page: str) -> set[str]:
    """`OwnedByLongHints`."""
    return set(re.findall(r"\bOwnedBy[A-Z]\w+", code(page)))


def keys(page: str) -> set[str]:
    """Keys of the policy: `whenAbsent`, `body.maxBytes`, `match.engineFrom`."""
    return set(re.findall(r"(?<![\w.])(?:when[A-Z]\w*|(?:match|body)\.[a-z]\w*)", code(page)))


def paths(page: str) -> set[str]:
    """Paths of the admin port: `localhost:9091/statusz`."""
    text = code(page)
    asked = [path for path in re.findall(r"localhost:9091(/[\w/.]*)", text) if path != "/"]
    return {*asked, *re.findall(r"(?<![\w.)])(/admin/[\w/]+|/[a-z]+z)(?![\w/.])", text)}


def values(page: str) -> set[tuple[str, str]]:
    """`llm-d.ai/engine-type: vllm`, `"app": "llama-vllm"`: labels and what they are."""
    said = re.findall(r"(?<![\w.-])\"?(llm-d\.ai/[\w.-]+|app)\"?(?:: ?|=)\"?([a-z][\w.-]*)", code(page))
    return set(said)


def defaults(page: str) -> set[tuple[str, int]]:
    """`--metrics-port` (9090)."""
    return {(flag, int(port)) for flag, port in re.findall(r"`(--[a-z-]+port)` \((\d+)\b", page)}


def words(page: str) -> set[str]:
    """What stands alone in backticks with a hyphen in it, what begins with `owned-by-` or `owned-by.`, Envoy's names."""
    rest = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    alone = re.findall(r"`([a-z][a-z0-9]*(?:[-.][a-z0-9]+)*-[a-z0-9.]*[a-z0-9])`", rest)
    ours = re.findall(r"(?<![\w./-])owned-by[-.][a-z][a-z-]*[a-z](?![\w.*-]*\.ya?ml)", code(page))
    ours += re.findall(r"(?<![\w.])envoy\.(?:lb|filters\.http)(?:\.\w+)*(?![\w/])", code(page))
    return {word for word in (*alone, *ours) if not re.search(r"\.(ya?ml|md|json)$", word)}


def images(page: str) -> set[str]:
    """`owned-by:0.1.0`."""
    return set(re.findall(r"\bowned-by:\d[\w.]*", code(page)))


def missing(name: str, page: Path, root: Path) -> bool:
    """Whether a file is neither beside the page, nor in the repository, nor among the guide's."""
    places = (page.parent, root, root / "manifests", root / "manifests" / "base", root / "docs/guides/llm-d-on-k3d")
    return not any((place / name).exists() for place in places)


def spellings(page: str) -> Iterator[tuple[str, object]]:
    """Every name of a page with what it looks like."""
    kinds = (
        flags,
        variables,
        labels,
        headers,
        metrics,
        ports,
        files,
        objects,
        namespaces,
        words,
        images,
        alerts,
        keys,
        paths,
        values,
        defaults,
    )
    for kind in kinds:
        yield from ((kind.__name__, name) for name in sorted(kind(page)))  # type: ignore[type-var]
