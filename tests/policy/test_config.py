# SPDX-License-Identifier: Apache-2.0
"""The policy document: its defaults, and the exact text of everything that is refused."""

import msgspec
import pytest

from extproc.policy.config import Duration, PolicyConfig, Promote, default_policy
from extproc.policy.document import DocumentError
from extproc.policy.loading import parse_policy
from tests.builders import HEAD, policy

DEFAULTS = {
    "apiVersion": "owned-by/v1alpha1",
    "kind": "OwnedByPolicy",
    "paths": ["/v1/*"],
    "sources": {
        "headers": ["x-owned-by"],
        "query": ["owned_by", "engine", "inference_server"],
        "body": ["owned_by", "engine", "inference_server"],
        "modelHeaders": ["x-llm-d-model-name-rewrite", "x-gateway-model-name"],
    },
    "match": {
        "engineFrom": ["label"],
        "ownedByLabels": [
            "llm-d.ai/engine-type",
            "inference.networking.k8s.io/engine-type",
            "model.aibrix.ai/engine",
        ],
        "unlabeledAs": "vllm",
        "models": "known",
        "modelLabels": [],
        "aliases": {"trtllm": "trtllm-serve", "trt-llm": "trtllm-serve"},
    },
    "modelAliases": {},
    "destinations": 3,
    "guard": True,
    "whenAbsent": {"action": "passthrough"},
    "whenUnknown": {"action": "reject"},
    "whenUnknownModel": {"action": "reject"},
    "whenUnready": {"action": "reject"},
    "whenTruncated": {"action": "passthrough"},
    "models": [],
    "routing": [],
    "body": {"strip": False, "maxBytes": 20971520, "timeout": 10.0},
    "promote": {"header": "", "model": "", "reroute": False},
}


def plain(policy_: PolicyConfig) -> object:
    return msgspec.json.decode(msgspec.json.encode(policy_, enc_hook=float))


def test_the_defaults_are_those_of_the_design() -> None:
    assert plain(default_policy()) == DEFAULTS


def test_a_document_that_says_nothing_more_is_the_default() -> None:
    assert plain(parse_policy(HEAD.encode())) == DEFAULTS


DURATIONS = {0.0: "0s", 10.0: "10s", 0.5: "500ms", 90.0: "1m30s", 3600.0: "1h", 3723.004: "1h2m3s4ms", 86400.0: "24h"}


@pytest.mark.parametrize(("seconds", "text"), DURATIONS.items(), ids=DURATIONS.values())
def test_a_duration_is_written_as_it_is_read(seconds: float, text: str) -> None:
    assert (str(Duration(seconds)), Duration.parse(text)) == (text, seconds)


def test_the_defaults_may_be_written_out() -> None:
    written = DEFAULTS | {"body": {"strip": False, "maxBytes": 20971520, "timeout": "10s"}}
    assert plain(parse_policy(msgspec.json.encode(written))) == DEFAULTS


def test_what_is_given_is_taken_and_the_rest_is_default() -> None:
    given = policy(
        "sources: {headers: [x-engine], modelHeaders: []}\nmatch: {unlabeledAs: '', models: any, modelLabels: [m]}\n"
        "modelAliases: {small: qwen}\ndestinations: 1\nguard: false\nwhenAbsent: {action: reject}\n"
        "whenUnknown: {action: passthrough}\nwhenTruncated: {action: reject}\n"
        "body: {strip: true, maxBytes: 7, timeout: 1m30s}\npromote: {header: x-a, model: x-b, reroute: true}\n"
    )
    assert plain(given) == DEFAULTS | {
        "sources": DEFAULTS["sources"] | {"headers": ["x-engine"], "modelHeaders": []},
        "match": DEFAULTS["match"] | {"unlabeledAs": "", "models": "any", "modelLabels": ["m"]},
        "modelAliases": {"small": "qwen"},
        "destinations": 1,
        "guard": False,
        "whenAbsent": {"action": "reject"},
        "whenUnknown": {"action": "passthrough"},
        "whenTruncated": {"action": "reject"},
        "body": {"strip": True, "maxBytes": 7, "timeout": 90.0},
        "promote": {"header": "x-a", "model": "x-b", "reroute": True},
    }


HEADER_NAME = "Expected the name of a header, in lower case"
NO_OWNER = "is not an owner: a-z 0-9 . _ / - in lower case"
WRONG = {
    "unknown key": ("pathes: []\n", "line 3: Object contains unknown field `pathes`, did you mean `paths`?"),
    "paths, no list": ("paths: /v1/*\n", "line 3, paths: Expected `array`, got `str`"),
    "paths, no path": ("paths:\n- /v1/*\n- v2\n", "line 5, paths[1]: Expected a path, which begins with /"),
    "header in capitals": ("sources:\n  headers: [X-Owned-By]\n", f"line 4, sources.headers[0]: {HEADER_NAME}"),
    "header, empty": ("sources:\n  headers: ['']\n", f"line 4, sources.headers[0]: {HEADER_NAME}"),
    "header, a line feed": ('sources:\n  headers: ["x-a\\n"]\n', f"line 4, sources.headers[0]: {HEADER_NAME}"),
    "query, empty": ("sources:\n  query: ['']\n", "line 4, sources.query[0]: Expected `str` of length >= 1"),
    "unknown source": ("sources:\n  cookies: []\n", "line 4, sources: Object contains unknown field `cookies`"),
    "models": ("match:\n  models: all\n", "line 4, match.models: Invalid value 'all', expected `known` or `any`"),
    "engineFrom": (
        "match:\n  engineFrom: [env]\n",
        "line 4, match.engineFrom[0]: Invalid value 'env', expected `label` or `probe`",
    ),
    "alias in capitals": ("match:\n  aliases: {TRT: x}\n", f"line 4, match.aliases.TRT: `TRT` {NO_OWNER}"),
    "alias of any": ("match:\n  aliases:\n    a: any\n", f"line 5, match.aliases.a: `any` {NO_OWNER}"),
    "alias of *": ("match:\n  aliases:\n    a: '*'\n", f"line 5, match.aliases.a: `*` {NO_OWNER}"),
    "unlabeledAs": (
        "match:\n  unlabeledAs: a b\n",
        "line 4, match.unlabeledAs: `a b` is not an owner: letters, digits and . _ / -",
    ),
    "model alias": ("modelAliases: {a: 1}\n", "line 3, modelAliases.a: Expected `str`, got `int`"),
    "destinations, none": ("destinations: 0\n", "line 3, destinations: Expected `int` >= 1"),
    "destinations, many": ("destinations: 65\n", "line 3, destinations: Expected `int` <= 64"),
    "destinations, text": ("destinations: '3'\n", "line 3, destinations: Expected `int`, got `str`"),
    "guard": ("guard: maybe\n", "line 3, guard: Expected `bool`, got `str`"),
    "whenAbsent": (
        "whenAbsent: {action: panic}\n",
        "line 3, whenAbsent.action: Invalid value 'panic', expected `passthrough` or `reject` or `prefer` or `split`",
    ),
    "whenAbsent, no action": ("whenAbsent: {}\n", "line 3, whenAbsent: Object missing required field `action`"),
    "whenAbsent, a foreign key": (
        "whenAbsent:\n  action: reject\n  owners: [a]\n",
        "line 5, whenAbsent: Object contains unknown field `owners`",
    ),
    "whenUnknown": ("whenUnknown: reject\n", "line 3, whenUnknown: Expected `object`, got `str`"),
    "whenUnknownModel": (
        "whenUnknownModel: {action: prefer}\n",
        "line 3, whenUnknownModel.action: Invalid value 'prefer', expected `passthrough` or `reject`",
    ),
    "whenUnready": (
        "whenUnready: {action: passthrough}\n",
        "line 3, whenUnready.action: Invalid value 'passthrough', expected `reject` or `fallback`",
    ),
    "whenTruncated": (
        "whenTruncated: {action: fallback}\n",
        "line 3, whenTruncated.action: Invalid value 'fallback', expected `passthrough` or `reject`",
    ),
    "maxBytes": ("body:\n  maxBytes: 0\n", "line 4, body.maxBytes: Expected `int` >= 1"),
    "timeout, a number": ("body:\n  timeout: 10\n", "line 4, body.timeout: expected a duration such as 10s, got `10`"),
    "timeout, spaced": (
        "body:\n  timeout: 10 s\n",
        "line 4, body.timeout: `10 s` is not a duration: write it as 10s, 500ms or 1m30s",
    ),
    "timeout, nothing": ("body:\n  timeout: 0s\n", "line 4, body.timeout: must be longer than nothing"),
    "strip": ("body:\n  strip: 1\n", "line 4, body.strip: Expected `bool`, got `int`"),
    "promote, unknown": ("promote:\n  owner: x\n", "line 4, promote: Object contains unknown field `owner`"),
    "reroute": ("promote:\n  reroute: maybe\n", "line 4, promote.reroute: Expected `bool`, got `str`"),
    "promote, the same twice": (
        "promote:\n  header: x-a\n  model: x-a\n",
        "line 3, promote: owner and model cannot stand in the same header, `x-a`",
    ),
    "a rule's own keys": (
        "models:\n- {model: a, allow: 3}\n",
        "line 4, models[0].allow: Expected `array | null`, got `int`",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_document_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        policy(text)
    assert str(caught.value) == message


REFUSED = [
    "host",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
    "content-type",
    "authorization",
    "cookie",
    "x-envoy-original-path",
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
]


@pytest.mark.parametrize("key", ["header", "model"])
@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_promoted_into_what_frames_authorises_or_steers_a_request(name: str, key: str) -> None:
    with pytest.raises(DocumentError) as caught:
        policy(f"promote:\n  {key}: {name}\n")
    assert str(caught.value) == f"line 4, promote.{key}: `{name}` is not a header that may be set here"


@pytest.mark.parametrize("key", ["header", "model"])
@pytest.mark.parametrize("name", ["X-Owned-By", ":path", "x owned", "x\u00e9", "x:", "x\\n", "\\n", "x" * 257])
def test_nothing_is_promoted_into_what_is_no_header(name: str, key: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_policy((HEAD + f'promote:\n  {key}: "{name}"\n').encode())
    assert str(caught.value).startswith(f"line 4, promote.{key}: ")


@pytest.mark.parametrize("name", ["", "x-engine", "x-gateway-base-model-name", "host-engine"])
def test_owner_and_model_may_stand_in_headers_of_their_own(name: str) -> None:
    assert [policy(f"promote: {{{key}: '{name}'}}\n").promote for key in ("header", "model")] == [
        Promote(header=name),
        Promote(model=name),
    ]


HEADLESS = {
    "no kind": ("apiVersion: owned-by/v1alpha1\n", "line 1: Object missing required field `kind`"),
    "no apiVersion": ("kind: OwnedByPolicy\n", "line 1: Object missing required field `apiVersion`"),
    "another version": (
        "kind: OwnedByPolicy\napiVersion: v2\n",
        "line 2, apiVersion: Invalid value 'v2', expected `owned-by/v1alpha1`",
    ),
    "another kind": (
        "apiVersion: owned-by/v1alpha1\nkind: Pod\n",
        "line 2, kind: Invalid value 'Pod', expected `OwnedByPolicy`",
    ),
    "empty": ("", "the document is empty"),
}


@pytest.mark.parametrize(("text", "message"), HEADLESS.values(), ids=HEADLESS)
def test_a_document_of_another_kind_is_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_policy(text.encode())
    assert str(caught.value) == message


WHENS = ("whenAbsent", "whenUnknown", "whenUnready", "whenTruncated")
ENTRY = "- {{model: {}, owned_by: {}, selector: {{matchLabels: {{app: x}}}}}}\n"


def routed(model: str, owner: str) -> dict[str, object]:
    selector = {"matchLabels": {"app": "x"}}
    return {"model": model, "owned_by": owner, "selector": selector}


ACCEPTED: dict[str, tuple[str, dict[str, object]]] = {
    # the document, and how it differs from the default once it is read
    "prefer": (
        "whenAbsent: {action: prefer, owners: [SGLang, vllm, '*']}\n",
        {"whenAbsent": {"action": "prefer", "owners": ["SGLang", "vllm", "*"]}},
    ),
    "prefer anything": (
        "whenAbsent: {action: prefer, owners: [any]}\n",
        {"whenAbsent": {"action": "prefer", "owners": ["any"]}},
    ),
    "split": (
        "whenAbsent: {action: split, weights: {vllm: 90, sglang: 10, tgi: 0}}\n",
        {"whenAbsent": {"action": "split", "weights": {"vllm": 90, "sglang": 10, "tgi": 0}}},
    ),
    "fallback": (
        "whenUnready: {action: fallback, owners: [vllm, '*']}\n",
        {"whenUnready": {"action": "fallback", "owners": ["vllm", "*"]}},
    ),
    "a rule with nothing": (
        "models:\n- {model: a}\n",
        {"models": [dict.fromkeys(("allow", *WHENS)) | {"model": "a"}]},
    ),
    "a rule with everything": (
        (
            "models:\n- model: meta-llama/*\n  allow: [TRT-LLM, vllm]\n"
            "  whenAbsent: {action: split, weights: {trtllm: 1}}\n  whenUnknown: {action: passthrough}\n"
            "  whenUnready: {action: fallback, owners: [vllm]}\n  whenTruncated: {action: reject}\n"
        ),
        {
            "models": [
                {
                    "model": "meta-llama/*",
                    "allow": ["TRT-LLM", "vllm"],
                    "whenAbsent": {"action": "split", "weights": {"trtllm": 1}},
                    "whenUnknown": {"action": "passthrough"},
                    "whenUnready": {"action": "fallback", "owners": ["vllm"]},
                    "whenTruncated": {"action": "reject"},
                }
            ]
        },
    ),
    "labels and expressions": (
        (
            "routing:\n- model: a\n  owned_by: vllm\n  selector:\n    matchLabels: {app: x}\n    matchExpressions:\n"
            "    - {key: tier, operator: In, values: [a, '']}\n    - {key: tier, operator: NotIn, values: [b]}\n"
            "    - {key: tier, operator: Exists}\n    - {key: gone, operator: DoesNotExist, values: []}\n"
        ),
        {
            "routing": [
                {
                    "model": "a",
                    "owned_by": "vllm",
                    "selector": {
                        "matchLabels": {"app": "x"},
                        "matchExpressions": [
                            {"key": "tier", "operator": "In", "values": ["a", ""]},
                            {"key": "tier", "operator": "NotIn", "values": ["b"]},
                            {"key": "tier", "operator": "Exists"},
                            {"key": "gone", "operator": "DoesNotExist"},
                        ],
                    },
                }
            ]
        },
    ),
    "one model and two owners, one owner and two models": (
        "routing:\n" + "".join(ENTRY.format(*names) for names in (("a", "vllm"), ("a", "tgi"), ("b", "vllm"))),
        {"routing": [routed("a", "vllm"), routed("a", "tgi"), routed("b", "vllm")]},
    ),
}


@pytest.mark.parametrize(("text", "changes"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_rule_is_read_as_it_is_written(text: str, changes: dict[str, object]) -> None:
    assert plain(policy(text)) == DEFAULTS | changes


NAMELESS = "is not an owner: letters, digits and . _ / -"
UNNAMED = "is not an owner here: name it"
MISTAKES: dict[str, tuple[str, str]] = {
    "prefer nobody": (
        "whenAbsent:\n  action: prefer\n  owners: []\n",
        "line 5, whenAbsent.owners: Expected `array` of length >= 1",
    ),
    "prefer without owners": (
        "whenAbsent: {action: prefer}\n",
        "line 3, whenAbsent: Object missing required field `owners`",
    ),
    "prefer no owner": (
        "whenAbsent:\n  action: prefer\n  owners: [a b]\n",
        f"line 5, whenAbsent.owners: `a b` {NAMELESS}",
    ),
    "prefer an empty owner": (
        "whenAbsent:\n  action: prefer\n  owners: [vllm, ' ']\n",
        f"line 5, whenAbsent.owners: ` ` {NAMELESS}",
    ),
    "prefer an owner that is too long": (
        f"whenAbsent:\n  action: prefer\n  owners: [{'x' * 129}]\n",
        f"line 5, whenAbsent.owners: `{'x' * 129}` {NAMELESS}",
    ),
    "prefer anything first": (
        "whenAbsent:\n  action: prefer\n  owners: ['*', vllm]\n",
        "line 5, whenAbsent.owners: `*` must be the last",
    ),
    "prefer any first": (
        "whenAbsent:\n  action: prefer\n  owners: [Any, vllm]\n",
        "line 5, whenAbsent.owners: `Any` must be the last",
    ),
    "prefer weights": (
        "whenAbsent:\n  action: prefer\n  owners: [vllm]\n  weights: {vllm: 1}\n",
        "line 6, whenAbsent: Object contains unknown field `weights`",
    ),
    "split between nobody": (
        "whenAbsent:\n  action: split\n  weights: {}\n",
        "line 5, whenAbsent.weights: Expected `object` of length >= 1",
    ),
    "split by no weight": (
        "whenAbsent:\n  action: split\n  weights: {vllm: 0, sglang: 0}\n",
        "line 5, whenAbsent.weights: no owner has a weight",
    ),
    "split by less than nothing": (
        "whenAbsent:\n  action: split\n  weights: {vllm: -1}\n",
        "line 5, whenAbsent.weights.vllm: Expected `int` >= 0",
    ),
    "split by a part": (
        "whenAbsent:\n  action: split\n  weights: {vllm: 0.5}\n",
        "line 5, whenAbsent.weights.vllm: Expected `int`, got `float`",
    ),
    "split to anything": (
        "whenAbsent:\n  action: split\n  weights: {vllm: 1, '*': 1}\n",
        f"line 5, whenAbsent.weights: `*` {UNNAMED}",
    ),
    "split to any": (
        "whenAbsent:\n  action: split\n  weights: {any: 1}\n",
        f"line 5, whenAbsent.weights: `any` {UNNAMED}",
    ),
    "split to no owner": (
        "whenAbsent:\n  action: split\n  weights: {v@l: 1}\n",
        f"line 5, whenAbsent.weights: `v@l` {NAMELESS}",
    ),
    "fall back to nobody": (
        "whenUnready:\n  action: fallback\n  owners: []\n",
        "line 5, whenUnready.owners: Expected `array` of length >= 1",
    ),
    "fall back to no owner": (
        "whenUnready:\n  action: fallback\n  owners: [é]\n",
        f"line 5, whenUnready.owners: `é` {NAMELESS}",
    ),
    "fall back to anything first": (
        "whenUnready:\n  action: fallback\n  owners: ['*', vllm]\n",
        "line 5, whenUnready.owners: `*` must be the last",
    ),
    "a rule without a model": (
        "models:\n- {allow: [vllm]}\n",
        "line 4, models[0]: Object missing required field `model`",
    ),
    "a rule for an empty name": (
        "models:\n- {model: ''}\n",
        "line 4, models[0].model: Expected `str` of length >= 1",
    ),
    "a rule with an unknown key": (
        "models:\n- model: a\n- model: b\n  deny: [vllm]\n",
        "line 6, models[1]: Object contains unknown field `deny`",
    ),
    "a rule that has no whenUnknownModel": (
        "models:\n- model: a\n  whenUnknownModel: {action: reject}\n",
        "line 5, models[0]: Object contains unknown field `whenUnknownModel`, did you mean `whenUnknown`?",
    ),
    "allow nobody": (
        "models:\n- model: a\n  allow: []\n",
        "line 5, models[0].allow: Expected `array` of length >= 1",
    ),
    "allow anything": ("models:\n- model: a\n  allow: ['*']\n", f"line 5, models[0].allow: `*` {UNNAMED}"),
    "allow any": ("models:\n- model: a\n  allow: [vllm, ANY]\n", f"line 5, models[0].allow: `ANY` {UNNAMED}"),
    "allow no owner": ("models:\n- model: a\n  allow: [a,b c]\n", f"line 5, models[0].allow: `b c` {NAMELESS}"),
    "a rule's prefer": (
        "models:\n- model: a\n- model: b\n  whenAbsent:\n    action: prefer\n    owners: [a b]\n",
        f"line 8, models[1].whenAbsent.owners: `a b` {NAMELESS}",
    ),
    "a rule's split": (
        "models:\n- model: a\n  whenAbsent:\n    action: split\n    weights: {vllm: 0}\n",
        "line 7, models[0].whenAbsent.weights: no owner has a weight",
    ),
    "a rule's fallback": (
        "models:\n- model: a\n  whenUnready:\n    action: fallback\n    owners: ['*', a]\n",
        "line 7, models[0].whenUnready.owners: `*` must be the last",
    ),
    "route nothing": (
        "routing:\n- {model: a, owned_by: vllm}\n",
        "line 4, routing[0]: Object missing required field `selector`",
    ),
    "route an empty name": (
        "routing:\n- {model: '', owned_by: vllm, selector: {matchLabels: {app: x}}}\n",
        "line 4, routing[0].model: Expected `str` of length >= 1",
    ),
    "route an owner in camel case": (
        "routing:\n- model: a\n  ownedBy: vllm\n",
        "line 5, routing[0]: Object contains unknown field `ownedBy`, did you mean `owned_by`?",
    ),
    "route anything": (
        "routing:\n- model: a\n  selector: {matchLabels: {app: x}}\n  owned_by: '*'\n",
        f"line 6, routing[0].owned_by: `*` {UNNAMED}",
    ),
    "route no owner": (
        "routing:\n- model: a\n  selector: {matchLabels: {app: x}}\n  owned_by: a b\n",
        f"line 6, routing[0].owned_by: `a b` {NAMELESS}",
    ),
    "select everything": (
        "routing:\n- model: a\n  owned_by: vllm\n  selector: {}\n",
        "line 6, routing[0].selector: an empty selector would mean every endpoint",
    ),
    "select everything in words": (
        "routing:\n- model: a\n  owned_by: vllm\n  selector: {matchLabels: {}, matchExpressions: []}\n",
        "line 6, routing[0].selector: an empty selector would mean every endpoint",
    ),
    "an unknown key of a selector": (
        "routing:\n- model: a\n  owned_by: vllm\n  selector:\n    app: x\n",
        "line 7, routing[0].selector: Object contains unknown field `app`",
    ),
    **{
        f"{operator}, {wrong}": (
            (
                "routing:\n- model: a\n  owned_by: vllm\n  selector:\n    matchExpressions:\n"
                f"    - {{key: app, operator: Exists}}\n    - {{key: app, operator: {operator}{values}}}\n"
            ),
            f"line 9, routing[0].selector.matchExpressions[1]: `{operator}` {wrong}",
        )
        for operator, values, wrong in (
            ("In", "", "needs values"),
            ("NotIn", ", values: []", "needs values"),
            ("Exists", ", values: [x]", "takes no values"),
            ("DoesNotExist", ", values: [x]", "takes no values"),
        )
    },
    "an unknown operator": (
        "routing:\n- model: a\n  owned_by: vllm\n  selector:\n    matchExpressions: [{key: app, operator: in}]\n",
        "line 7, routing[0].selector.matchExpressions[0].operator: Invalid value 'in', did you mean `In`?",
    ),
    "an expression about no label": (
        "routing:\n- model: a\n  owned_by: vllm\n  selector:\n    matchExpressions: [{key: '', operator: Exists}]\n",
        "line 7, routing[0].selector.matchExpressions[0].key: Expected `str` of length >= 1",
    ),
    "twins": (
        "routing:\n" + ENTRY.format("a", "vllm") + ENTRY.format("b", "vllm") + ENTRY.format("a", "vllm"),
        "line 6, routing[2]: the same model and owner as in routing[0]",
    ),
    "twins by an alias": (
        "routing:\n" + ENTRY.format("a", "trtllm") + ENTRY.format("a", "TRT-LLM"),
        "line 5, routing[1]: the same model and owner as in routing[0]",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_rule_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        policy(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("2h0m1s", 7201), ("0s", 0)],
)
def test_a_duration_is_read_as_go_writes_it(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "-1s", "1d", "10S", " 10s", "10s ", "s", "1e3s", "+1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^`.*` is not a duration: write it as 10s, 500ms or 1m30s$"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("said", "normal"),
    [(" SGLang ", "sglang"), ("TRTLLM", "trtllm-serve"), ("trt-llm", "trtllm-serve"), ("vllm", "vllm"), ("", "")],
)
def test_an_owner_is_trimmed_lower_cased_and_aliased(said: str, normal: str) -> None:
    assert policy().normal(said) == normal


def test_a_duration_is_at_most_a_day() -> None:
    found = [Duration.parse(text) for text in ("24h", "23h59m60s")]
    with pytest.raises(DocumentError) as caught:
        policy("body: {timeout: 24h1ms}\n")

    assert found == [86400, 86400]
    assert str(caught.value) == "line 3, body.timeout: `24h1ms` is longer than a day"
