# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses: too many requests, credentials, permissions, resources that it does not serve."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.discovery.objects import POOLS, REWRITES, InferenceModelRewrite, InferencePoolV1, InferencePoolV1alpha2
from extproc.discovery.reflector import Timing
from tests.discovery.reflector.following import PATIENT, Following, document, page, pod, status

V1 = "/apis/inference.networking.k8s.io/v1/namespaces/default/inferencepools"
V1ALPHA2 = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/default/inferencepools"
REWRITES_V1 = "/apis/llm-d.ai/v1alpha2/namespaces/default/inferencemodelrewrites"
REWRITES_OLD = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/default/inferencemodelrewrites"
METADATA = {"name": "chat", "namespace": "default", "resourceVersion": "3"}
POOL_V1 = {"metadata": METADATA, "spec": {"selector": {"matchLabels": {"app": "x"}}, "targetPorts": [{"number": 8000}]}}
POOL_V1ALPHA2 = {"metadata": METADATA, "spec": {"selector": {"app": "x"}, "targetPortNumber": 8000}}
REWRITE = {"metadata": METADATA, "spec": {"poolRef": {"name": "chat"}, "rules": []}}
NOT_SERVED = status(404, "the server could not find the requested resource", "NotFound")
FORBIDDEN = status(403, 'User "me" cannot list resource', "Forbidden")


class TestTooMany:
    """429."""

    @pytest.mark.parametrize(("said", "waits"), [("7", 7.0), ("0", 0.5), ("86400", 300.0), ("soon", 0.5), ("-3", 0.5)])
    async def test_it_waits_as_long_as_it_is_told_within_bounds(
        self, server: Any, follow: Any, said: str, waits: float
    ) -> None:
        following: Following = follow()
        await (await server.request()).json(429, status(429, "too many requests"), {"Retry-After": said})

        assert await following.nap() == waits
        assert following.restarts() == {"throttled": 1.0}

    @pytest.mark.parametrize(("seconds", "least", "most"), [(60, 55, 60), (-60, 0.5, 0.5), (86400, 300, 300)])
    async def test_it_may_be_told_a_date(
        self, server: Any, follow: Any, seconds: int, least: float, most: float
    ) -> None:
        following: Following = follow()
        when = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        await (await server.request()).json(503, status(503, "starting"), {"Retry-After": when})

        assert least <= await following.nap() <= most


class TestUnauthorized:
    """401."""

    async def test_the_credentials_are_read_again(self, server: Any, follow: Any, token: Path) -> None:
        following: Following = follow()
        await following.lists(document("a"))
        watch = await server.request()
        token.write_text("second\n")  # noqa: ASYNC240
        await watch.json(401, status(401, "Unauthorized", "Unauthorized"))
        await following.nap()
        again = await server.request()

        assert [one.headers["authorization"] for one in (watch, again)] == ["Bearer first", "Bearer second"]
        assert (again.query["watch"], again.query["resourceVersion"]) == ("1", "1")
        assert following.restarts() == {"unauthorized": 1.0}

    async def test_credentials_that_cannot_be_read_are_told_and_tried_again(
        self, server: Any, follow: Any, token: Path
    ) -> None:
        following: Following = follow()
        refused = await server.request()
        token.unlink()  # noqa: ASYNC240
        await refused.json(401, status(401, "Unauthorized"))
        await following.nap()
        error = following.reflector.status()["error"]
        refused = await server.request()
        token.write_text("second")  # noqa: ASYNC240
        await refused.json(401, status(401, "Unauthorized"))
        await following.nap()

        assert error.startswith("the credentials cannot be read again: ")
        assert str(token) in error
        assert (await server.request()).headers["authorization"] == "Bearer second"


class TestForbidden:
    """403."""

    async def test_the_missing_permission_is_named(self, server: Any, follow: Any) -> None:
        following: Following = follow()
        await (await server.request()).json(403, FORBIDDEN)
        await following.nap()

        assert following.reflector.status() == {
            "objects": 0,
            "synced": False,
            "age_seconds": None,
            "error": "the permission to list pods in namespace default is missing: " + FORBIDDEN["message"],
        }

    async def test_it_may_be_the_permission_to_watch(self, server: Any, follow: Any) -> None:
        following: Following = follow()
        await following.lists(document("a"))
        await (await server.request()).json(403, FORBIDDEN)
        await following.nap()

        assert str(following.reflector.error).startswith(
            "the permission to watch pods in namespace default is missing: "
        )
        assert following.reflector.objects == {("default", "a"): pod("a")}

    async def test_an_optional_resource_is_synced_and_keeps_its_objects(self, server: Any, follow: Any) -> None:
        following: Following = follow(REWRITES)
        await following.lists(REWRITE)
        await (await server.request()).json(403, FORBIDDEN)
        nap, error = await following.nap(), str(following.reflector.error)
        again = await server.request()

        assert (nap, again.path, again.query["watch"]) == (0.5, REWRITES_V1, "1")
        assert error.startswith("the permission to watch inferencemodelrewrites in namespace default is missing: ")
        assert following.reflector.objects == {("default", "chat"): msgspec.convert(REWRITE, InferenceModelRewrite)}

    async def test_an_optional_resource_is_synced_with_nothing_if_it_was_never_seen(
        self, server: Any, follow: Any
    ) -> None:
        following: Following = follow(REWRITES)
        await (await server.request()).json(403, FORBIDDEN)
        await following.nap()

        assert (following.reflector.synced.is_set(), following.reflector.objects) == (True, {})

    async def test_what_is_optional_and_was_never_seen_cannot_be_stale(self, server: Any, follow: Any) -> None:
        following: Following = follow(REWRITES)
        ages = [following.staleness()]
        for _ in range(2):
            await (await server.request()).json(403, FORBIDDEN)
            await following.nap()
            ages.append(following.staleness())
        await following.lists(REWRITE)
        await (await server.request()).json(403, FORBIDDEN)  # what was seen is kept, and grows old
        await following.nap()
        ages.append(following.staleness())

        assert [age is not None and 0 <= age < 60 for age in ages] == [True, False, False, True]
        assert ages[1:3] == [None, None]

    async def test_what_is_needed_and_may_not_be_seen_is_stale(self, server: Any, follow: Any) -> None:
        following: Following = follow()
        await (await server.request()).json(403, FORBIDDEN)
        await following.nap()

        assert (following.staleness() or 0) > 0


class TestNotServed:
    """404."""

    async def test_the_older_version_is_listed_and_watched_and_then_the_newer_one_is_tried_again(
        self, server: Any, follow: Any
    ) -> None:
        following: Following = follow(POOLS, timing=PATIENT)
        asked = []
        for answer in (NOT_SERVED, page(POOL_V1ALPHA2, version="5")):
            exchange = await server.request()
            asked.append((exchange.path, "watch" in exchange.query))
            await exchange.json(answer.get("code", 200), answer)
        watch = await server.request()
        asked.append((watch.path, "watch" in watch.query))
        await watch.stream()
        await watch.end()
        newer = await server.request()
        asked.append((newer.path, "watch" in newer.query))
        await newer.json(200, page(POOL_V1, version="6"))
        watch = await server.request()
        asked.append((watch.path, "watch" in watch.query))

        assert asked == [(V1, False), (V1ALPHA2, False), (V1ALPHA2, True), (V1, False), (V1, True)]
        old, new = msgspec.convert(POOL_V1ALPHA2, InferencePoolV1alpha2), msgspec.convert(POOL_V1, InferencePoolV1)
        assert following.changes == [(None, old), (old, new)]

    async def test_a_version_that_is_no_longer_served_is_listed_anew(self, server: Any, follow: Any) -> None:
        following: Following = follow(POOLS)
        await following.lists(POOL_V1)
        await (await server.request()).json(404, NOT_SERVED)
        await following.nap()
        newer = await server.request()
        await newer.json(404, NOT_SERVED)
        older = await server.request()

        assert [(one.path, one.query) for one in (newer, older)] == [
            (V1, {"limit": "500"}),
            (V1ALPHA2, {"limit": "500"}),
        ]
        assert list(following.reflector.objects) == [("default", "chat")]

    async def test_a_resource_that_is_needed_is_waited_for(self, server: Any, follow: Any) -> None:
        following: Following = follow(POOLS)
        for _ in range(2):
            await (await server.request()).json(404, NOT_SERVED)
        await following.nap()
        error, synced = following.reflector.error, following.reflector.synced.is_set()
        await following.lists(POOL_V1)

        assert (error, synced) == (NOT_SERVED["message"], False)
        assert await following.told(1) == [(None, msgspec.convert(POOL_V1, InferencePoolV1))]

    async def test_a_resource_that_is_optional_is_done_without_and_asked_for_later(
        self, server: Any, follow: Any
    ) -> None:
        following: Following = follow(REWRITES, timing=Timing(most=9.0))
        paths = []
        for _ in range(2):
            exchange = await server.request()
            paths.append(exchange.path)
            await exchange.json(404, NOT_SERVED)
        nap = await following.nap()
        synced = following.reflector.synced.is_set()
        await following.lists(REWRITE)

        assert (paths, nap, synced) == ([REWRITES_V1, REWRITES_OLD], 9.0, True)
        assert await following.told(1) == [(None, msgspec.convert(REWRITE, InferenceModelRewrite))]

    async def test_a_resource_that_goes_takes_its_objects_with_it(self, server: Any, follow: Any) -> None:
        following: Following = follow(REWRITES)
        await following.lists(REWRITE)
        for _ in range(3):  # the watch, and the lists of both versions
            await (await server.request()).json(404, NOT_SERVED)
            if len(following.changes) == 1:
                await following.nap()

        one = msgspec.convert(REWRITE, InferenceModelRewrite)
        assert await following.told(2) == [(None, one), (one, None)]
        assert following.reflector.objects == {}
