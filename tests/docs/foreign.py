# SPDX-License-Identifier: Apache-2.0
"""Names on our pages that are not ours, each with whose it is. What no page says any more goes."""

from typing import Final

FLAGS: Final = {
    "--allow-experimental-plugins": "llm-d-router, the EPP",
    "--disable-endpoint-subset-filter": "llm-d-router, the EPP",
    "--enable-metrics": "SGLang",
    "--config": "k3d cluster create",
    "--gpus": "k3d cluster create",
    "--image": "k3d cluster create",
    "--for": "kubectl wait",
    "--from-literal": "kubectl create secret",
    "--since": "kubectl logs",
    "--timeout": "kubectl wait, kubectl rollout status",
    "--set": "istioctl install",
}

VARIABLES: Final = {
    "ENABLE_GATEWAY_API_INFERENCE_EXTENSION": "istiod",
    "HF_TOKEN": "Hugging Face",
    "NAMESPACE": "the variable that others' YAML has",
    "ONCE": "our Makefile",
}

LABELS: Final = {
    "gateway.networking.k8s.io/gateway-name": "Istio, on the pods of a Gateway",
    "example.com/engine": "an example",
    "example.com/model": "an example",
    "kubernetes.io/tls": "Kubernetes, a type of Secret",
}

VALUES: Final = {
    ("app", "llama-canary"): "an example of a routing entry",
    ("app", "canary"): "an example of `routing`",
    ("app", "vllm"): "an example of --endpoint-selector",
}

HEADERS: Final = {
    "x-engine": "an example of `sources`",
    "x-model": "an example of `sources`",
    "x-gateway-engine": "an example of `promote`",
}

PORTS: Final = {
    80: "the Gateway's listener, HTTP",
    8080: "the guide's port on the reader's machine",
    15000: "Istio, Envoy's admin interface in a gateway's pod",
    4318: "OTLP over HTTP",
}

FILES: Final = {
    "dump.json": "what a command of the guide writes",
    "owned-by-routing.yaml": "what the program writes beside the file of --config-file",
}

WORDS: Final = {
    "disaggregatedset-rollout-screener": "llm-d-router",
    "header-label-affinity-scorer": "llm-d-router",
    "header-profile-handler": "llm-d-router",
    "label-selector-filter": "llm-d-router",
    "models-responder": "llm-d-router, main branch",
    "llm-d-router-standalone": "llm-d-router, a chart",
    "exemplar-storage": "Prometheus, a feature",
    "llama-3.2": "an example of a name that does not do",
}

OBJECTS: Final = {
    ("Deployment", "llm-d-inference-gateway-istio"): "Istio, of the Gateway",
}
