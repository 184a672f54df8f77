"""Files and geometry: DICOM and NIfTI to HU, the cohort's grid, the Zarr store, the patch stream."""
