# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 - the disk is what these tests are about
"""Routing entries in a file: on a real disk, by several processes, and where it cannot be written."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from extproc.discovery.routingfile import FileRouting
from extproc.policy.config import Route, Selector
from extproc.policy.routing import Edit, Refused, Routing, parse_routing, plain, put, remove, routing_document

ROOT: Final = Path(__file__).parents[2]
NOBODY: Final = 65534
WRITER: Final = """
import asyncio, sys
from pathlib import Path
from extproc.discovery.routingfile import FileRouting
from extproc.policy.config import Route, Selector
from extproc.policy.routing import Routing, put

async def main(path, name, count):
    store = FileRouting(Path(path))
    print("here", flush=True)
    sys.stdin.readline()
    routes = [Route(f"{name}-{number}", "vllm", Selector({"app": "x"})) for number in range(int(count))]
    outcomes = await asyncio.gather(*(store.change(put(route)) for route in routes))
    assert all(isinstance(outcome, Routing) for outcome in outcomes), outcomes

asyncio.run(main(*sys.argv[1:]))
"""


def route(model: str) -> Route:
    return Route(model, "vllm", Selector({"app": "canary"}))


def document(*models: str) -> bytes:
    return routing_document(tuple(map(route, models))).encode()


def shown(outcome: Routing | Refused) -> list[str] | Refused:
    """The models of the entries."""
    return outcome if isinstance(outcome, Refused) else [each.model for each in outcome.routes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "owned-by-routing.yaml"


@pytest.fixture
def store(path: Path) -> FileRouting:
    return FileRouting(path)


class TestRead:
    """What is stored."""

    async def test_it_is_what_the_file_says_at_a_version_of_its_content(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(document("m", "n"))
        found = await store.read()

        assert isinstance(found, Routing)
        assert [plain(each) for each in found.routes] == [plain(route("m")), plain(route("n"))]
        assert found.version == hashlib.sha256(document("m", "n")).hexdigest()

    async def test_no_file_has_no_entries_and_no_version(self, store: FileRouting) -> None:
        assert await store.read() == Routing()

    async def test_an_empty_file_has_no_entries(self, store: FileRouting, path: Path) -> None:
        path.touch()

        assert await store.read() == Routing((), hashlib.sha256(b"").hexdigest())

    async def test_a_bad_document_is_told_with_its_place(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(b"kind: OwnedByRouting\n")

        assert await store.read() == Refused(
            "unreadable", f"{path}: line 1: Object missing required field `apiVersion`"
        )

    async def test_what_is_no_file_is_told(self, store: FileRouting, path: Path) -> None:
        os.mkfifo(path)

        assert await store.read() == Refused("unreadable", f"{path}: it is not a file")

    async def test_what_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 300)

        assert await FileRouting(path).read() == Refused(
            "unavailable", f"{path}: it cannot be read: File name too long"
        )


class TestChange:
    """What is written."""

    async def test_entries_come_and_go(self, store: FileRouting, path: Path, tmp_path: Path) -> None:
        steps: list[Edit] = [put(route("m")), put(route("n")), remove("m", "vllm"), remove("n", "vllm")]
        seen = []
        for edit in steps:
            outcome, found = await store.change(edit), await store.read()
            assert isinstance(outcome, Routing)
            assert isinstance(found, Routing)
            seen.append((shown(outcome), shown(found), outcome.version == found.version))

        assert seen == [(models, models, True) for models in (["m"], ["m", "n"], ["n"], [])]
        assert path.read_bytes() == document()
        assert list(tmp_path.iterdir()) == [path]

    async def test_each_change_is_another_version(self, store: FileRouting) -> None:
        outcomes = [await store.change(edit) for edit in (put(route("m")), put(route("n")), remove("n", "vllm"))]
        first, second, third = (each.version for each in outcomes if isinstance(each, Routing))

        assert first == third != second

    async def test_what_is_so_already_is_not_written(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(b"# by hand\n" + document("m"))
        before = path.stat()
        outcomes = [await store.change(put(route("m"))), await store.change(remove("n", "vllm"))]

        assert [shown(each) for each in outcomes] == [["m"], ["m"]]
        assert path.read_bytes() == b"# by hand\n" + document("m")
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    async def test_no_file_is_made_to_remove_something(self, store: FileRouting, tmp_path: Path) -> None:
        assert await store.change(remove("m", "vllm")) == Routing()
        assert list(tmp_path.iterdir()) == []

    async def test_at_the_version_that_was_meant_it_is_written(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(document("m"))
        now = await store.read()
        assert isinstance(now, Routing)

        assert shown(await store.change(put(route("n")), now.version)) == ["m", "n"]

    async def test_at_another_version_than_was_meant_nothing_is_written(self, store: FileRouting, path: Path) -> None:
        gone = await store.change(put(route("n")), "old")
        path.write_bytes(document("m"))
        version = hashlib.sha256(document("m")).hexdigest()

        assert gone == Refused("conflict", f"the file {path} does not exist; version old was meant")
        assert await store.change(put(route("n")), "old") == Refused(
            "conflict", f"the file {path} is at version {version}; version old was meant"
        )
        assert path.read_bytes() == document("m")

    async def test_a_bad_document_is_not_overwritten(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(b"routing: {}")
        refused = await store.change(put(route("m")))

        assert isinstance(refused, Refused)
        assert (refused.code, path.read_bytes()) == ("unreadable", b"routing: {}")

    async def test_entries_that_nobody_could_read_are_not_written(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(document("m"))
        refused = await store.change(lambda routes: (*routes, *routes))

        assert refused == Refused(
            "invalid", "the entries would be refused: line 14, routing[1]: the same model and owner as in routing[0]"
        )
        assert path.read_bytes() == document("m")

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
    async def test_the_mode_stays(self, store: FileRouting, path: Path, mode: int) -> None:
        path.write_bytes(document("m"))
        path.chmod(mode)
        await store.change(put(route("n")))

        assert stat.S_IMODE(path.stat().st_mode) == mode

    async def test_what_a_process_left_that_died_is_no_obstacle(self, store: FileRouting, tmp_path: Path) -> None:
        (tmp_path / ".owned-by-routing.yaml.new").write_bytes(b"half of")

        assert shown(await store.change(put(route("m")))) == ["m"]
        assert [each.name for each in tmp_path.iterdir()] == ["owned-by-routing.yaml"]


class TestTogether:
    """Several who write at once lose nothing."""

    async def test_many_in_one_process(self, path: Path) -> None:
        stores = [FileRouting(path), FileRouting(path)]
        names = [f"m{number}" for number in range(40)]
        await asyncio.gather(*(stores[number % 2].change(put(route(name))) for number, name in enumerate(names)))

        assert sorted(route.model for route in parse_routing(path.read_bytes())) == sorted(names)

    async def test_many_in_two_processes_and_who_reads_meanwhile_sees_whole_documents(self, path: Path) -> None:
        count = 25
        writers = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                WRITER,
                str(path),
                name,
                str(count),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for name in ("a", "b")
        ]
        seen = set()
        async with asyncio.timeout(60):
            for writer in writers:
                assert writer.stdout is not None
                assert await writer.stdout.readline() == b"here\n"
            ended = asyncio.gather(*(writer.communicate(b"go\n") for writer in writers))
            while not ended.done():
                found = await FileRouting(path).read()
                assert isinstance(found, Routing)
                seen.add(len(found.routes))
            await ended

        assert [writer.returncode for writer in writers] == [0, 0]
        assert sorted(route.model for route in parse_routing(path.read_bytes())) == sorted(
            f"{name}-{number}" for name in ("a", "b") for number in range(count)
        )
        assert len(seen) > 2  # they were at it

    async def test_who_leaves_lets_the_next_one_in(self, store: FileRouting, path: Path) -> None:
        with locked(path.parent):
            first = asyncio.create_task(store.change(put(route("a"))))
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.wait([first])
            second = asyncio.create_task(store.change(put(route("b"))))
        outcome = await second

        assert isinstance(outcome, Routing)
        assert first.cancelled()

    async def test_a_lock_that_is_kept_too_long_is_told(
        self, store: FileRouting, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("extproc.discovery.routingfile.PATIENCE", 0.05)
        with locked(path.parent):
            refused = await store.change(put(route("m")))

        assert refused == Refused("unavailable", f"{path}: another process has kept the folder locked for 0.05 s")
        assert shown(await store.change(put(route("m")))) == ["m"]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """As another process would lock it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A folder in which this process may not write, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())
    (folder / "owned-by-routing.yaml").write_bytes(document("m"))
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


class TestRefused:
    """What cannot be written stays as it is."""

    async def test_a_folder_that_may_not_be_written_to(self, foreign: Path) -> None:
        path = foreign / "owned-by-routing.yaml"
        other = foreign / "other.yaml"
        refused = [await FileRouting(each).change(put(route("n"))) for each in (path, other)]
        found = await FileRouting(path).read()

        assert refused == [
            Refused("read_only", f"{each}: it cannot be written: Permission denied") for each in (path, other)
        ]
        assert shown(found) == ["m"]

    async def test_a_file_that_may_not_be_written_to(self, foreign: Path) -> None:
        path = foreign / "owned-by-routing.yaml"
        with contextlib.suppress(PermissionError):
            os.seteuid(0)
        path.chmod(0o444)
        foreign.chmod(0o777)
        with contextlib.suppress(PermissionError):
            os.seteuid(NOBODY)

        assert await FileRouting(path).change(put(route("n"))) == Refused(
            "read_only", f"{path}: it cannot be written: Permission denied"
        )

    @pytest.mark.parametrize("dangling", [False, True])
    async def test_a_link_as_in_a_mounted_configmap(self, store: FileRouting, path: Path, *, dangling: bool) -> None:
        target = path.with_name("target.yaml")
        if not dangling:
            target.write_bytes(document("m"))
        path.symlink_to(target)
        found = await store.read()

        assert shown(found) == ([] if dangling else ["m"])
        assert await store.change(put(route("n"))) == Refused(
            "read_only", f"{path}: it is a link, as in a mounted ConfigMap, and is not replaced"
        )
        assert target.exists() is not dangling
        assert path.is_symlink()

    async def test_a_file_that_is_mounted_by_itself(
        self, store: FileRouting, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def busy(_self: Path, _target: Path) -> None:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # to mount something takes root

        path.write_bytes(document("m"))
        monkeypatch.setattr(Path, "replace", busy)

        assert await store.change(put(route("n"))) == Refused(
            "read_only", f"{path}: it cannot be written: Device or resource busy"
        )
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    async def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "none" / "owned-by-routing.yaml"

        assert await FileRouting(path).read() == Routing()
        assert await FileRouting(path).change(put(route("m"))) == Refused(
            "unavailable", f"{path}: it cannot be written: No such file or directory"
        )

    async def test_a_disk_that_takes_no_more_leaves_the_old_file(self, store: FileRouting, path: Path) -> None:
        path.write_bytes(document("m"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            refused = await store.change(put(route("n")))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert refused == Refused("unavailable", f"{path}: it cannot be written: File too large")
        assert path.read_bytes() == document("m")
        assert [each.name for each in path.parent.iterdir()] == [path.name]
