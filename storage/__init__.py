"""Files and geometry: DICOM and NIfTI to HU, the grid, the Zarr store, the patch stream."""
