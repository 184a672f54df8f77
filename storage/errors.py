"""What storage raises. Messages name the file or volume, the value, and what would be right."""

__all__ = ["GeometryError", "IngestError", "StoreCorrupt", "StoreError", "StoreMissing"]


class GeometryError(ValueError):
    """A series or grid whose geometry is unusable (spacing, orientation, gaps, shape)."""


class IngestError(ValueError):
    """A series that cannot enter the store for another reason (no pixels, wrong modality, ...)."""


class StoreError(ValueError):
    """A store that does not exist, is of another version, or lacks what was asked of it."""


class StoreCorrupt(StoreError):
    """Bytes of a store that do not have the digest its catalogue states."""


class StoreMissing(StoreCorrupt):
    """A file of a store that is not there."""
