"""Pseudonyms: stable under one key, nothing without it, and reasons free of names."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from pathlib import Path

import pydicom
import pytest
from make_cohort import body_hu, write_dicom
from pydicom.dataset import Dataset

from storage.errors import StoreError
from storage.pseudonym import KEY_BYTES, Pseudonyms, load_key, scrub, text_values

NAMES = Pseudonyms(bytes(range(KEY_BYTES)))


def test_a_pseudonym_is_the_hmac_of_kind_and_parts_with_their_lengths() -> None:
    message = b"".join(len(part).to_bytes(8, "little") + part for part in (b"patient", b"Doe^J"))
    expected = hmac.new(bytes(range(32)), message, hashlib.sha256).digest()[:10]
    assert NAMES.of("patient", "Doe^J") == "patient-" + base64.b32encode(expected).decode().lower()


def test_kinds_parts_and_keys_do_not_share_pseudonyms() -> None:
    others = [
        NAMES.of("patient", "ab", "c"),
        NAMES.of("patient", "a", "bc"),
        NAMES.of("patient", "abc"),
        NAMES.of("series", "abc"),
        Pseudonyms(bytes(32)).of("patient", "abc"),
    ]
    assert len({name.split("-")[1] for name in others}) == len(others)


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "key"
    names = load_key(path, tmp_path / "store")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == KEY_BYTES
    assert load_key(path, tmp_path / "store") == names
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]


def test_two_ingests_that_make_the_key_at_once_use_the_same(tmp_path: Path) -> None:
    found: list[Pseudonyms] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(load_key(tmp_path / "key", tmp_path / "store"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_key_inside_the_store_is_refused_even_through_a_link(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "link").symlink_to(store)
    for path in (store / "key", tmp_path / "link" / "key", store / ".." / "store" / "key"):
        with pytest.raises(StoreError, match="lies inside"):
            load_key(path, store)
    assert not list(store.iterdir())


def test_a_key_that_others_can_read_or_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load_key(path, tmp_path / "store")
    path.chmod(0o644)
    with pytest.raises(StoreError, match=r"mode 0644.*expected 0600"):
        load_key(path, tmp_path / "store")
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(StoreError, match="5 bytes; expected 32"):
        load_key(path, tmp_path / "store")


def test_a_key_is_not_printed() -> None:
    assert repr(NAMES) == "Pseudonyms()"


@pytest.mark.parametrize(
    "uid",
    ["1.2.826.0.1.3680043.8.498.17", "1.3.12.2.1107.5", "1.2.840...17", "1.2.840…17", "2.25.3298"],
)
def test_scrub_replaces_uids_in_full_and_shortened(uid: str) -> None:
    text = scrub(f"series {uid}: gap of 12.5 mm (0020,0032), zarr 3.1.6.", NAMES, [])
    assert text == f"series {NAMES.of('uid', uid)}: gap of 12.5 mm (0020,0032), zarr 3.1.6."


def test_scrub_gives_uids_of_the_standard_their_names() -> None:
    text = scrub("syntax 1.2.840.10008.1.2.4.70; expected another", NAMES, [])
    assert "1.2.840" not in text
    assert "JPEG Lossless" in text


def test_scrub_numbers_files_and_hides_folders(tmp_path: Path) -> None:
    files = [tmp_path / "DOE_JOHN" / f"IM{n}.dcm" for n in range(1, 4)]
    text = scrub(f"{files[1]} and IM3.dcm in {files[0].parent}: doubled", NAMES, [], files)
    folder = NAMES.of("path", str(files[0].parent))
    assert text == f"file 2 of 3 and file 3 of 3 in {folder}: doubled"


def test_scrub_replaces_header_values_whole_and_cut_off() -> None:
    long = "Doe John, born 1 May 1950, liver transplant list"
    private = {"DOE", long}
    assert "DOE" not in scrub("PatientName is DOE^J; expected none", NAMES, private)
    assert scrub("DOES it stay?", NAMES, private) == "DOES it stay?"
    for shown in (long, long[:43] + "..."):
        text = scrub(f"Comment is {shown}; expected none", NAMES, private)
        assert "John" not in text
        assert "transplant" not in text
        assert text.endswith("; expected none")


def test_text_values_reach_into_sequences_and_private_elements(tmp_path: Path) -> None:
    inner = Dataset()
    inner.CodeMeaning = "nested words"
    hu = body_hu((2, 8, 8), 0)
    write_dicom(tmp_path, hu, PatientName="Roe^Jane", ProcedureCodeSequence=[inner])
    path = tmp_path / "slice_000.dcm"
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "private words")
    dataset.save_as(path)
    found = text_values(path)
    assert {"Roe^Jane", "Roe", "Jane", "nested words", "private words", "ACME"} <= found
    assert not found & {"CT", "ORIGINAL", "120"}
