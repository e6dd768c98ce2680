"""Turns a generated network into a package of an embedded ecosystem, with its golden samples."""

from tinyq.export.formats import FORMATS, export_files
from tinyq.export.golden import Golden, golden_samples
from tinyq.export.source import Package, Source

__all__ = ["FORMATS", "Golden", "Package", "Source", "export_files", "golden_samples"]
