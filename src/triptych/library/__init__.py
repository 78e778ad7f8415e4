"""A person's photo library: an index of their photos on disk, searched with words. It knows of a model only what ``Matcher`` says."""

from triptych.library.find import Found, Library, find, open_library
from triptych.library.index import Report, index_photos, scan
from triptych.library.matcher import Match, Matcher, as_matcher
from triptych.library.sheet import sheet_page

__all__ = [
    "Found",
    "Library",
    "Match",
    "Matcher",
    "Report",
    "as_matcher",
    "find",
    "index_photos",
    "open_library",
    "scan",
    "sheet_page",
]
