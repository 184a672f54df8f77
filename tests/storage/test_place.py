"""Places: what holds on a disk and on an object store alike, and what each refuses by itself."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from s3_server import KEYS
from tampering import delete, files, overwrite
from writers import lock_and_replace, lock_for_ever, lock_once, locked_within, read_or_refuse

import storage.s3
from storage.errors import StoreCorrupt, StoreError, StoreMissing
from storage.place import Place
from storage.s3 import S3Place

SPAWN = multiprocessing.get_context("spawn")


class TestBoth:
    def test_a_file_comes_back_as_it_was_written(self, place: Place) -> None:
        place.replace("a/b/c", b"old")
        place.replace("a/b/c", b"new bytes")
        assert place.read("a/b/c") == b"new bytes"
        assert place.size("a/b/c") == 9
        ranges = place.read_ranges("a/b/c", [4, 0, 8], [5, 3, 1])
        assert [bytes(data) for data in ranges] == [b"bytes", b"new", b"s"]
        assert list(place.read_ranges("a/b/c", [], [])) == []

    def test_a_file_written_piece_by_piece_is_there_whole_or_as_it_was(self, place: Place) -> None:
        place.replace("a/b", b"old")
        with suppress(KeyboardInterrupt), place.replacing("a/b") as file:
            file.write(b"half of it")
            raise KeyboardInterrupt
        assert place.read("a/b") == b"old"
        assert list(place.list("a")) == ["a/b"]
        with place.replacing("a/b") as file:
            file.write(bytes(4))
            file.write(b" behind")
            file.seek(0)
            file.write(b"head")
        assert place.read("a/b") == b"head behind"

    def test_folders_are_listed_one_level_at_a_time(self, place: Place) -> None:
        for name in ("x", "a/1", "a/b/2", "ab/3"):
            place.replace(name, b"data")
        assert sorted(place.list()) == ["a/", "ab/", "x"]
        assert sorted(place.list("a")) == ["a/1", "a/b/"]
        assert list(place.list("nothing")) == []

    def test_a_tree_is_removed_with_all_that_is_in_it_and_nothing_beside(
        self, place: Place
    ) -> None:
        for name in ("a/1", "a/b/2", "ab/3"):
            place.replace(name, b"data")
        place.remove_tree("a")
        place.remove_tree("never-there")
        assert files(place) == ["ab/3"]

    def test_what_is_missing_is_named(self, place: Place) -> None:
        place.replace("here", b"1")
        for ask in (
            lambda: place.read("a/b"),
            lambda: place.size("a/b"),
            lambda: place.read_ranges("a/b", [0], [1]),
        ):
            with pytest.raises(StoreMissing, match=r"place.*a/b: .*missing"):
                ask()

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (2**40, 8)])
    def test_what_is_truncated_is_named(self, place: Place, start: int, length: int) -> None:
        place.replace("shard", b"0123456789")
        with pytest.raises(StoreCorrupt, match=r"place.*shard: truncated"):
            place.read_ranges("shard", [0, start], [1, length])

    @pytest.mark.parametrize(
        "name", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "", "a/", "a\\..\\b", "a\0"]
    )
    def test_a_name_that_leads_out_is_refused(self, place: Place, name: str) -> None:
        for ask in (
            lambda: place.read(name),
            lambda: place.read_ranges(name, [0], [1]),
            lambda: place.size(name),
            lambda: place.replace(name, b"x"),
            lambda: place.remove_tree(name),
        ):
            with pytest.raises(StoreCorrupt, match="leads out of the store"):
                ask()

    def test_a_file_beyond_the_limit_is_refused(self, place: Place) -> None:
        place.replace("large", bytes(1001))
        assert len(place.read("large", limit=1001)) == 1001
        with pytest.raises(StoreCorrupt, match=r"large: has 1001 bytes; expected at most 1000"):
            place.read("large", limit=1000)

    def test_a_file_that_was_replaced_meanwhile_stays(self, place: Place) -> None:
        first = place.replace("f", b"first")
        assert place.read_version("f") == (b"first", first)
        second = place.replace("f", b"second", expected=first)
        with pytest.raises(StoreError, match=r"f: another process has replaced it"):
            place.replace("f", b"third", expected=first)
        assert place.read_version("f") == (b"second", second)
        delete(place, "f")
        with pytest.raises(StoreError, match=r"f: another process has replaced it"):
            place.replace("f", b"third", expected=second)

    def test_it_is_the_same_place_in_another_process(self, place: Place) -> None:
        place.replace("f", b"data")
        for again in (pickle.loads(pickle.dumps(place)), Place.of(place.address)):
            assert str(again) == str(place)
            assert again.read("f") == b"data"

    def test_one_process_at_a_time_may_write(self, place: Place) -> None:
        with place.locked(), SPAWN.Pool(1) as pool:
            assert f"process {os.getpid()} " in pool.apply(lock_once, (place,))
            with pytest.raises(StoreError, match="is writing to this store"), place.locked():
                pass
        with SPAWN.Pool(1) as pool:
            assert pool.apply(lock_once, (place,)) == "locked"
        with place.locked():
            pass

    def test_a_killed_writer_does_not_keep_the_lock(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 1)
        parent, child = SPAWN.Pipe()
        process = SPAWN.Process(target=lock_for_ever, args=(place, child))
        process.start()
        assert parent.recv() == "locked"
        with pytest.raises(StoreError, match=f"process {process.pid} "), place.locked():
            pass
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        with locked_within(place, 20):
            pass


class TestLocal:
    def test_a_link_out_of_the_folder_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"private")
        place = Place.of(tmp_path / "place")
        place.replace("f", b"1")
        (tmp_path / "place" / "link").symlink_to(tmp_path / "secret")
        (tmp_path / "place" / "folder").symlink_to(tmp_path)
        for name in ("link", "folder/secret"):
            for ask in (place.read, place.size, lambda name: place.read_ranges(name, [0], [1])):
                with pytest.raises(StoreCorrupt, match=r"place/.*leads out of the store"):
                    ask(name)
        with pytest.raises(StoreCorrupt, match="leads out"):
            place.replace("folder/new", b"x")
        place.remove_tree("folder")
        assert (tmp_path / "secret").exists()
        assert sorted(place.list()) == ["f", "link"]

    def test_a_folder_behind_a_link_is_a_place(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        place = Place.of(tmp_path / "link")
        place.replace("a/b", b"1")
        assert place.read("a/b") == b"1"

    def test_a_pipe_in_a_files_place_does_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        for name in ("pipe", "folder"):
            with pytest.raises(StoreCorrupt, match=f"{name}: is not a file"):
                Place.of(tmp_path).read(name)

    def test_many_files_read_by_many_threads_leave_few_open(self, tmp_path: Path) -> None:
        place = Place.of(tmp_path)
        for number in range(600):
            place.replace(f"f{number}", str(number).encode())
        wrong: list[int] = []

        def read_all(place: Place = place) -> None:
            for number in range(600):
                text = str(number).encode()
                (data,) = place.read_ranges(f"f{number}", [0], [len(text)])
                if data != text:
                    wrong.append(number)

        before = len(os.listdir("/proc/self/fd"))
        threads = [threading.Thread(target=read_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(os.listdir("/proc/self/fd")) - before <= 256 + 2
        del place, read_all, threads, thread
        assert len(os.listdir("/proc/self/fd")) <= before

    def test_an_open_file_that_is_deleted_or_replaced_is_noticed(self, tmp_path: Path) -> None:
        place = Place.of(tmp_path / "place")
        place.replace("a/f", b"first")
        assert place.read_ranges("a/f", [0], [5]) == [b"first"]
        place.replace("a/f", b"other")
        assert place.read_ranges("a/f", [0], [5]) == [b"other"]
        delete(place, "a/f")
        with pytest.raises(StoreMissing, match=r"a/f: the file is missing"):
            place.read_ranges("a/f", [0], [5])
        (tmp_path / "private").write_bytes(b"private")
        (tmp_path / "place/a/f").symlink_to(tmp_path / "private")
        with pytest.raises(StoreCorrupt, match=r"a/f: this path leads out"):
            place.read_ranges("a/f", [0], [5])

    def test_what_the_disk_refuses_leaves_the_old_file(self, tmp_path: Path) -> None:
        place = Place.of(tmp_path)
        place.replace("a/f", b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(StoreError, match=r"a/f: not written \(File too large\)"):
                place.replace("a/f", bytes(30_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert place.read("a/f") == b"old"
        assert files(place) == ["a/f"]

    def test_a_url_of_another_kind_is_refused(self) -> None:
        with pytest.raises(StoreError, match=r"gs:\.\.\.: expected a path or s3://bucket/prefix"):
            Place.of("gs://user:secret@bucket/x")


class TestS3:
    @pytest.mark.parametrize(
        "url",
        [
            "s3://",
            "s3:/bucket/x",
            "s3://key:SECRET@bucket/x",
            "s3://bucket/x?versionId=SECRET",
            "s3://bucket/a/../b",
            "s3://Bucket/x",
            "s3://bucket/a//b",
        ],
    )
    def test_what_is_no_place_is_refused_without_repeating_it(self, url: str) -> None:
        with pytest.raises(StoreError, match="expected s3://bucket/prefix") as refused:
            Place.of(url)
        assert "SECRET" not in str(refused.value)

    def test_the_whole_bucket_and_a_final_slash_are_places(self, s3_bucket: str) -> None:
        Place.of(f"{s3_bucket}/whole/").replace("f", b"1")
        assert Place.of(f"{s3_bucket}").read("whole/f") == b"1"

    def test_messages_are_short_and_hold_no_secret(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(StoreError, match=r"s3://no-such-bucket.*no bucket") as refused:
            Place.of("s3://no-such-bucket/x").replace("f", b"1")
        messages = [str(refused.value)]
        monkeypatch.setattr(storage.s3, "_RETRIES", 1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:a-secret-word@127.0.0.1:1")
        with pytest.raises(StoreError, match=r"s3://cohort/x/f: .*no answer") as refused:
            Place.of(f"{s3_bucket}/x").read("f")
        messages.append(str(refused.value))
        for message in messages:
            assert len(message) < 200
            assert not any(secret in message for secret in (*KEYS.values(), "a-secret-word"))

    def test_missing_credentials_are_said_to_be_missing(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in KEYS:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setattr(storage.s3, "_RETRIES", 1)
        with pytest.raises(StoreError, match=r"x/f: no credentials; expected AWS_ACCESS_KEY_ID"):
            Place.of(f"{s3_bucket}/x").read("f")

    def test_volumes_do_not_cross_the_network_as_plain_text(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:SECRET@storage.hospital.example:9000")
        with pytest.raises(StoreError, match=r"http://storage\.hospital.*AWS_ALLOW_HTTP") as error:
            Place.of("s3://cohort/x").read("f")
        assert "SECRET" not in str(error.value)

    def test_a_forked_process_is_told_to_spawn(self, s3_bucket: str) -> None:
        place = Place.of(f"{s3_bucket}/forked")
        place.replace("f", b"1")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert "by spawn" in pool.apply_async(read_or_refuse, (place,)).get(timeout=30)

    def test_a_writer_that_slept_finds_its_lock_and_its_versions_gone(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 4)
        place = Place.of(f"{s3_bucket}/slept")
        version = place.replace("catalogue", b"empty")
        parent, child = SPAWN.Pipe()
        process = SPAWN.Process(target=lock_and_replace, args=(place, version, child))
        process.start()
        assert parent.recv() == "locked"
        os.kill(process.pid or 0, signal.SIGSTOP)
        try:
            with locked_within(place, 20):
                place.replace("catalogue", b"of the second writer", expected=version)
                os.kill(process.pid or 0, signal.SIGCONT)
                assert "another process has replaced it" in parent.recv()
                process.join()
                with pytest.raises(StoreError, match=f"process {os.getpid()} "), place.locked():
                    pass
        finally:
            process.kill()
        assert place.read("catalogue") == b"of the second writer"

    def test_a_living_writer_keeps_its_lock_alive(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 2)
        monkeypatch.setattr(storage.s3, "LOCK_RENEWED_S", 0.3)
        place = Place.of(f"{s3_bucket}/alive")
        with place.locked():
            time.sleep(4)
            with pytest.raises(StoreError, match="is writing"), place.locked():
                pass

    def test_a_lock_object_that_is_no_lock_is_one_until_it_is_old(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = Place.of(f"{s3_bucket}/odd")
        overwrite(place, "lock", b"[]")
        with pytest.raises(StoreError, match="left no name"), place.locked():
            pass
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 1)
        with locked_within(place, 20):
            pass

    def test_a_repeated_request_that_meets_its_own_object_has_succeeded(
        self, s3_bucket: str
    ) -> None:
        place = Place.of(f"{s3_bucket}/repeated")
        assert isinstance(place, S3Place)
        old = place.replace("f", b"old")
        new = place.replace("f", b"new", expected=old)
        assert place.replace("f", b"new", expected=old) == new

    def test_a_server_that_ignores_conditions_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with careless_server() as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            place = Place.of("s3://cohort/x")
            with pytest.raises(StoreError, match="ignores conditional writes"), place.locked():
                pass


@contextmanager
def careless_server() -> Iterator[str]:
    """An object store that takes every PUT, whatever its conditions; its endpoint."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
