"""A digital phantom: cohorts of synthetic CT series in DICOM, with the truth beside test series.

Realistic: anatomy from the aortic arch to the iliac crests that varies between subjects (size,
fat, pose, organ shape and place, smooth deformation), HU of every tissue in three phases with
variation, an iodine dose per subject, partial volume, slice thickness, blur, correlated noise,
air-fluid levels, fat planes, small plaques of aorta and iliac arteries whose exact mask is known,
and DICOM as a scanner writes it.

Not realistic: organs are smooth textbook shapes without disease other than plaque; no arms,
shoulders, neck, pelvis or breasts; bowel without folds; breathing, pulsation and the mixing of
contrast do not exist, so that two phases of a test subject lie on one another exactly, which real
ones never do; `phantom_scanner` says what the scanner lacks. A model that works here has passed a
test, not a trial.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from .dicom_write import write_series
from .nifti import write_nifti
from .phantom_anatomy import Subject, draw_subject
from .phantom_plaque import Plaque
from .phantom_render import Labels, labels, render, render_phases
from .phantom_scanner import TO_ILIACS, Protocol
from .phantom_tissue import PHASES, TISSUES, Label, Phase
from .volume import Volume

__all__ = [
    "PHASES",
    "TISSUES",
    "TO_ILIACS",
    "Label",
    "Labels",
    "Phase",
    "Plaque",
    "Protocol",
    "Subject",
    "draw_subject",
    "labels",
    "render",
    "vary",
    "write_cohort",
]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Scan:
    """One subject's place in a cohort."""

    name: str
    role: str  # domain1, domain2, test or labelled
    index: int
    subject_seed: int


def write_cohort(
    folder: Path,
    seed: int,
    subjects_per_domain: int,
    test_subjects: int,
    protocol: Protocol | None = None,
    *,
    phase: Phase = "portal",
    test_domain: Literal[1, 2] = 1,
    labelled_subjects: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write an unpaired training set and a paired test set; returns the manifest's path.

    folder/domain1/NAME/*.dcm: non-contrast series. folder/domain2/NAME/*.dcm: series in `phase`,
    of other subjects. folder/test/NAME/source/*.dcm: non-contrast, and under truth/, all on the
    source's grid: target.nii.gz (int16 HU of `phase`, free of noise), source.nii.gz (the same
    without contrast), organs.nii.gz (uint8, `Label`), plaques.nii.gz (float32 share of each voxel)
    and plaques.csv. folder/labelled/NAME/source/*.dcm: series in `phase` of further subjects, with
    organs.nii.gz and plaques.nii.gz beside source/, to train a segmentation on.
    folder/manifest.csv lists the training series of both domains: path,domain,phase.

    Every series has its own pose, field of view, table height, scan range, blur and noise (`vary`);
    no subject appears twice. The same arguments write the same bytes of pixel data and the same
    UIDs. progress(done, total, name) is called after every subject.

    Raises ValueError for counts below 0, an unknown phase or a non-contrast target, and
    FileExistsError where a series' folder holds files already.
    """
    if min(subjects_per_domain, test_subjects, labelled_subjects) < 0 or seed < 0:
        raise ValueError(
            f"seed {seed}, subjects_per_domain {subjects_per_domain}, test_subjects "
            f"{test_subjects}, labelled_subjects {labelled_subjects}: expected numbers of at "
            f"least 0"
        )
    if phase not in PHASES[1:]:
        raise ValueError(f"phase {phase!r}: expected one of {', '.join(PHASES[1:])}")
    base = protocol or Protocol()
    scans = list(_plan(seed, subjects_per_domain, test_subjects, labelled_subjects))
    rows = []
    for done, scan in enumerate(scans, 1):
        subject = draw_subject(scan.subject_seed)
        own = vary(base, subject, scan.role, scan.subject_seed)
        place = folder / scan.role / scan.name
        if scan.role == "test":
            _write_test(place, scan, subject, own, phase, test_domain)
        elif scan.role == "labelled":
            volume = render(subject, phase, own, scan.subject_seed)
            write_series(volume, place / "source", _headers(volume, scan, phase, own))
            _write_labels(place, labels(subject, own))
        else:
            domain = 1 if scan.role == "domain1" else 2
            shown: Phase = "non_contrast" if domain == 1 else phase
            volume = render(subject, shown, own, scan.subject_seed)
            write_series(volume, place, _headers(volume, scan, shown, own))
            rows.append((place.relative_to(folder).as_posix(), domain, shown))
        if progress is not None:
            progress(done, len(scans), scan.name)
    manifest = folder / "manifest.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "domain", "phase"), *rows])
    return manifest


def vary(base: Protocol, subject: Subject, role: str, seed: int) -> Protocol:
    """The protocol of one series: `base` with its own field of view, range, table, blur and noise.

    The pixel size varies by +-8 % (more where the body needs it), the scan range by 10 mm. The
    domains differ as real ones do: contrast series (domain2, labelled) have the lower half of the
    noise range, a larger field of view and a scan range that starts a little lower; the others the
    upper half.
    """
    rng = np.random.default_rng([seed, 0x73657269])
    contrast = role in ("domain2", "labelled")
    spacing_z, row, column = base.spacing_mm
    zoom = rng.uniform(0.97, 1.1) if contrast else rng.uniform(0.92, 1.05)
    need = 1.03 * subject.width_mm / (base.shape[2] * column)
    zoom = max(float(zoom), need)
    low, high = base.noise_sd_hu
    middle = 0.5 * (low + high)
    x, y, z = base.centre_mm
    shift = rng.uniform(-8, 8, 2)
    return replace(
        base,
        spacing_mm=(spacing_z, row * zoom, column * zoom),
        centre_mm=(
            x + float(shift[0]),
            y + float(shift[1]),
            z + float(rng.uniform(-10, 6) if contrast else rng.uniform(-6, 10)),
        ),
        blur_px=float(rng.uniform(0.5, 0.8)),
        noise_sd_hu=(low, middle) if contrast else (middle, high),
        table_gap_mm=None if base.table_gap_mm is None else float(rng.uniform(0, 12)),
    )


def _plan(
    seed: int, subjects_per_domain: int, test_subjects: int, labelled_subjects: int
) -> Iterator[_Scan]:
    counts = {
        "domain1": subjects_per_domain,
        "domain2": subjects_per_domain,
        "test": test_subjects,
        "labelled": labelled_subjects,  # last: the others are the same subjects with and without
    }
    number = 0
    for role, count in counts.items():
        for index in range(count):
            # One running number: no two scans of a cohort, nor of two cohorts, share a subject.
            yield _Scan(f"{role}-{index:03d}", role, index, seed * 1_000_000 + number)
            number += 1


def _write_test(
    place: Path,
    scan: _Scan,
    subject: Subject,
    protocol: Protocol,
    phase: Phase,
    domain: Literal[1, 2],
) -> None:
    seed = scan.subject_seed
    bare_phase: Phase = "non_contrast"
    shown, wanted = (bare_phase, phase) if domain == 1 else (phase, bare_phase)
    source, bare, target = render_phases(
        subject, [shown, shown, wanted], protocol, [seed, None, None]
    )
    write_series(source, place / "source", _headers(source, scan, shown, protocol))
    truth = place / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    exact = labels(subject, protocol)
    write_nifti(target, truth / "target.nii.gz")
    write_nifti(bare, truth / "source.nii.gz")
    _write_labels(truth, exact)
    sizes = ("diameter_mm", "length_mm", "arc_mm", "thickness_mm", "peak_hu")
    with (truth / "plaques.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("id", *sizes, "x_mm", "y_mm", "z_mm"))
        for plaque, centre in exact.plaques:
            numbers = (*(getattr(plaque, size) for size in sizes), *centre)
            table.writerow((plaque.id, *(f"{number:.3f}" for number in numbers)))
    about = {"subject_seed": seed, "phase": phase, "dose_factor": subject.dose_factor}
    (truth / "subject.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _write_labels(folder: Path, exact: Labels) -> None:
    write_nifti(Volume(exact.organs, exact.affine), folder / "organs.nii.gz")
    write_nifti(Volume(exact.plaque, exact.affine), folder / "plaques.nii.gz")


def _headers(volume: Volume, scan: _Scan, phase: Phase, protocol: Protocol) -> list[Dataset]:
    """One header per slice, as a scanner fills it; UIDs are functions of subject and protocol."""

    def uid(*what: object) -> str:
        sources = ["pmg phantom", str(scan.subject_seed), repr(protocol), *map(str, what)]
        return str(generate_uid(entropy_srcs=sources))

    contrast = phase != "non_contrast"
    region = "chest" if protocol.centre_mm[2] > 120 else "abdomen"
    minute = scan.subject_seed % 60
    series = Dataset()
    series.PatientName = f"PHANTOM^{scan.name.upper()}"
    series.PatientID = f"PMG-{scan.subject_seed:08d}"
    series.PatientBirthDate = ""
    series.PatientSex = "O"
    series.StudyInstanceUID = uid("study")
    series.StudyID = f"{scan.subject_seed % 10**8}"
    series.StudyDate = series.SeriesDate = series.AcquisitionDate = series.ContentDate = "20240102"
    series.StudyTime = f"09{minute:02d}00"
    series.SeriesTime = series.AcquisitionTime = series.ContentTime = f"09{minute:02d}30"
    series.StudyDescription = f"CT {region} (digital phantom)"
    series.AccessionNumber = ""
    series.ReferringPhysicianName = ""
    series.Modality = "CT"
    series.SeriesInstanceUID = uid("series", phase)
    series.SeriesNumber = 3 if contrast else 2
    series.SeriesDescription = (
        f"{region.title()} {phase.replace('_', '-')} {protocol.thickness_mm:g} mm"
    )
    series.ProtocolName = f"pmg phantom {region}"
    series.FrameOfReferenceUID = uid("frame")
    series.PositionReferenceIndicator = ""
    series.PatientPosition = "HFS"
    series.Manufacturer = "pmg phantom"
    series.ManufacturerModelName = "digital phantom"
    series.BodyPartExamined = region.upper()
    series.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    series.AcquisitionNumber = 1
    series.KVP = 120
    series.SliceThickness = f"{protocol.thickness_mm:g}"
    series.ReconstructionDiameter = f"{protocol.shape[2] * protocol.spacing_mm[2]:.2f}"
    series.ConvolutionKernel = "PMG-SOFT"
    series.WindowCenter, series.WindowWidth = 40, 400
    series.BurnedInAnnotation = "NO"
    if contrast:
        series.ContrastBolusAgent = "IODINE (SIMULATED)"
        series.ContrastBolusRoute = "IV"
    headers = []
    for index in range(volume.shape[0]):
        header = Dataset()
        header.update(series)
        header.SOPInstanceUID = uid("image", phase, index)
        headers.append(header)
    return headers
