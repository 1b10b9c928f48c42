# SPDX-License-Identifier: Apache-2.0
"""What the README shows is what happens."""

import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from extproc.cli import main
from extproc.discovery.file import parse_endpoints
from extproc.policy.loading import parse_policy
from extproc.policy.types import STATUS

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_endpoints_file_and_the_policy_are_accepted() -> None:
    endpoints, policy = blocks("yaml")

    assert len(parse_endpoints(endpoints.encode())) == 1
    assert parse_policy(policy.encode()).destinations == 3


def test_the_error_is_the_one_that_a_client_sees(tmp_path: Path) -> None:
    (tmp_path / "endpoints.yaml").write_text(
        "pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:9', models: [m]}]}]"
    )
    (tmp_path / "body.json").write_text('{"model": "m"}')
    arguments = ["--endpoints-file", str(tmp_path / "endpoints.yaml"), "-d", str(tmp_path / "body.json"), "--json"]
    result = CliRunner().invoke(main, ["explain", *arguments, "-H", "x-owned-by: tgi", "/v1/completions"])
    explained = msgspec.json.decode(result.output)

    assert msgspec.json.decode(explained["body"]) == msgspec.json.decode(blocks("json")[0])
    assert explained["reason"] == "owner-not-found"


def test_every_code_has_the_status_that_the_table_gives_it() -> None:
    table = README.partition("| status | `code` |")[2].partition("\n\n")[0]
    shown = {
        code: {int(status) for status in re.findall(r"\d{3}", row.partition("|")[0])}
        for row in re.findall(r"^\| (\d.*)$", table, re.MULTILINE)
        for code in re.findall(r"`([a-z_]+_[a-z_]+)`", row)
    }
    codes = {reason.replace("-", "_"): status for reason, status in STATUS.items()}

    assert all(codes[code] in statuses for code, statuses in shown.items())
    assert len(shown) == 10


@pytest.mark.parametrize(
    "line", re.findall(r"^\| .* \| (`.*)\|$", README.partition("| where |")[2].partition("\n\n")[0], re.MULTILINE)
)
def test_every_way_to_name_an_owner_reaches_it(line: str, tmp_path: Path) -> None:
    (tmp_path / "endpoints.yaml").write_text(
        "pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:9', labels: {llm-d.ai/engine-type: sglang}}]}]"
    )
    for said in re.findall(r"`([^`]+)`", line):
        arguments, path = ["--endpoints-file", str(tmp_path / "endpoints.yaml"), "--json"], "/v1/completions"
        if said.startswith("x-owned-by"):
            arguments += ["-X", "POST", "-H", said]
        elif said.startswith("?"):
            path += said
        elif said.startswith('"'):
            (tmp_path / "body.json").write_text(f"{{{said}}}")
            arguments += ["-d", str(tmp_path / "body.json")]
        else:  # the name of a field alone
            path += f"?{said}=sglang"
        explained = msgspec.json.decode(CliRunner().invoke(main, ["explain", *arguments, path]).output)

        assert explained["owner"] == "sglang"
