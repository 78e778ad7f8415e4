"""A person's photo library: an index of their photos on disk, searched with words. It knows of a model only what ``PhotoMatcher`` says."""

from triptych.library.find import FoundPhoto, Library, find, open_library
from triptych.library.index import Report, index_photos, scan
from triptych.library.matcher import PairScores, PhotoMatcher, as_matcher
from triptych.library.sheet import sheet_page

__all__ = [
    "FoundPhoto",
    "Library",
    "PairScores",
    "PhotoMatcher",
    "Report",
    "as_matcher",
    "find",
    "index_photos",
    "open_library",
    "scan",
    "sheet_page",
]
