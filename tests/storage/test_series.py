"""Finding series under a folder: by content, grouped, with a reason for what is refused."""

import os
import pickle
import shutil

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from storage.dicom_write import write_series
from storage.errors import IngestError
from storage.nifti import write_nifti
from storage.series import Source, files_under, find_sources, group, read_source, scan
from storage.volume import Volume


def a_volume(seed):
    hu = np.random.default_rng(seed).integers(-1000, 1000, (3, 8, 9)).astype(np.int16)
    return Volume(hu, np.diag([1.0, 2.0, 3.0, 1.0])[[2, 1, 0, 3]])


def a_series(folder, seed):
    header = Dataset()
    header.SeriesInstanceUID = generate_uid()
    return header.SeriesInstanceUID, write_series(a_volume(seed), folder, header)


def test_series_are_told_apart_by_uid_wherever_their_files_lie_and_whatever_their_names(tmp_path):
    uid_1, files_1 = a_series(tmp_path / "1", seed=1)
    uid_2, files_2 = a_series(tmp_path / "2", seed=2)
    (tmp_path / "mixed" / "deep").mkdir(parents=True)
    moved_1 = [f.rename(tmp_path / "mixed" / "deep" / f"IM{n}") for n, f in enumerate(files_1)]
    moved_2 = [f.rename(tmp_path / "mixed" / f"{n}.jpg") for n, f in enumerate(files_2)]
    write_nifti(a_volume(3), tmp_path / "mixed" / "scan.nii.gz")
    (tmp_path / "mixed" / "notes.dcm").write_text("no DICOM at all " * 50)
    (tmp_path / "mixed" / "empty.dcm").touch()

    sources, refusals = find_sources(tmp_path)
    assert [one.path.name for one in refusals] == ["empty.dcm", "notes.dcm"]
    assert all("does not begin as DICOM" in one.reason for one in refusals)
    nifti = tmp_path / "mixed" / "scan.nii.gz"
    assert {source.key: source for source in sources} == {
        uid_1: Source("dicom", uid_1, tuple(moved_1)),
        uid_2: Source("dicom", uid_2, tuple(moved_2)),
        str(nifti): Source("nifti", str(nifti), (nifti,)),
    }
    seeds = {uid_1: 1, uid_2: 2, str(nifti): 3}
    for source in sources:
        volume, headers = read_source(source)
        np.testing.assert_array_equal(volume.hu, a_volume(seeds[source.key]).hu)
        assert len(headers) == (3 if source.kind == "dicom" else 0)


def test_a_single_file_is_a_root_as_well(tmp_path):
    write_nifti(a_volume(0), tmp_path / "scan.nii")
    ((source,), refusals) = find_sources(tmp_path / "scan.nii")
    assert (source.kind, refusals) == ("nifti", [])
    np.testing.assert_array_equal(read_source(source)[0].hu, a_volume(0).hu)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("DICOMDIR", "Media Storage Directory Storage"),
        ("rtplan.dcm", "RT Plan Storage"),
        ("MR_small.dcm", "MR Image Storage"),
        ("reportsi.dcm", "Basic Text SR"),
    ],
)
def test_dicom_that_is_no_ct_image_is_refused_with_what_it_is(tmp_path, name, what):
    shutil.copyfile(get_testdata_file(name, download=False), tmp_path / "file")
    sources, (refusal,) = find_sources(tmp_path)
    assert sources == []
    assert refusal.path == tmp_path / "file"
    assert what in refusal.reason
    assert "expected CT Image Storage" in refusal.reason


def test_unfinished_and_hidden_files_are_passed_over(tmp_path):
    a_series(tmp_path / ".series.abc.partial", seed=0)
    _, files = a_series(tmp_path / "series", seed=1)
    files[0].rename(tmp_path / "series" / "._CT_0001.dcm")
    ((source,), refusals) = find_sources(tmp_path)
    assert source.files == tuple(files[1:])
    assert refusals == []


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_without_preamble_is_recognised(tmp_path, implicit):
    uid, files = a_series(tmp_path / "series", seed=1)
    for file in files:
        dataset = dcmread(file)
        del dataset.file_meta, dataset.SpecificCharacterSet
        dataset.preamble = None
        dcmwrite(file, dataset, implicit_vr=implicit, little_endian=True)
        assert b"DICM" not in file.read_bytes()
    ((source,), _) = find_sources(tmp_path)
    assert (source.key, source.files) == (uid, tuple(files))
    np.testing.assert_array_equal(read_source(source)[0].hu, a_volume(1).hu)


def test_links_are_followed_wherever_they_lead_under_the_names_that_they_have(tmp_path):
    """As in an export that is a farm of links into an archive."""
    root, archive = tmp_path / "root", tmp_path / "archive"
    _, files = a_series(archive / "series", seed=1)
    other, others = a_series(archive / "2", seed=2)
    (root / "farm").mkdir(parents=True)
    for number, file in enumerate(files):
        (root / "farm" / f"{number}").symlink_to(file)
    (root / "folder").symlink_to(archive / "2")
    (root / "lost").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.dcm")
    sources, refusals = find_sources(root)
    assert [source.files for source in sources] == [
        tuple(root / "farm" / f"{number}" for number in range(len(files))),
        tuple(root / "folder" / file.name for file in others),
    ]
    assert sources[1].key == other
    np.testing.assert_array_equal(read_source(sources[0])[0].hu, a_volume(1).hu)
    reasons = {refusal.path.name: refusal.reason for refusal in refusals}
    assert set(reasons) == {"lost", "pipe.dcm"}
    assert "no regular file" in reasons["pipe.dcm"]
    assert "No such file" in reasons["lost"]


def test_links_in_a_circle_and_second_ways_to_a_file_give_it_once(tmp_path):
    _, files = a_series(tmp_path / "m" / "series", seed=1)
    (tmp_path / "m" / "up").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "m")
    (tmp_path / "b").symlink_to(files[0])
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert files_under(tmp_path) == [*files, tmp_path / "self"]
    ((source,), (refusal,)) = find_sources(tmp_path)
    assert source.files == tuple(files)
    assert "Too many levels of symbolic links" in refusal.reason


def test_a_link_to_a_file_below_the_root_is_that_file(tmp_path):
    uid, files = a_series(tmp_path / "root" / ".objects", seed=1)
    for file in files:
        (tmp_path / "root" / file.name).symlink_to(file)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    ((source,), refusals) = find_sources(tmp_path / "link")
    assert (source.key, len(source.files), refusals) == (uid, 3, [])
    np.testing.assert_array_equal(read_source(source)[0].hu, a_volume(1).hu)


def test_a_scan_in_parts_gives_the_same_as_one_of_the_whole(tmp_path):
    for seed in (1, 2):
        a_series(tmp_path / str(seed), seed)
    shutil.copyfile(get_testdata_file("MR_small.dcm", download=False), tmp_path / "mr")
    paths = list(files_under(tmp_path))
    assert paths == sorted(paths)
    parts = [scan(paths[start::3]) for start in range(3)]
    findings = [one for part in pickle.loads(pickle.dumps(parts)) for one in part]
    assert group(findings) == find_sources(tmp_path)
    assert [len(found) for found in group(findings)] == [2, 1]


def test_nothing_at_the_path_is_an_error(tmp_path):
    with pytest.raises(IngestError, match="no such file or folder"):
        find_sources(tmp_path / "nowhere")
    assert find_sources(tmp_path) == ([], [])
