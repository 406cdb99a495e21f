"""A report as one self-contained page of HTML or as Markdown, and the files beside it."""

from sparsebert.report.page.files import save_pictures, save_tables
from sparsebert.report.page.report import Report, require_renderer

__all__ = ["Report", "require_renderer", "save_pictures", "save_tables"]
