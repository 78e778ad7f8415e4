"""A person's photo library: an index of their photos on disk, searched with words. It knows of a model only what ``PhotoMatcher`` says."""

from triptych.library.find import FoundPhoto, Library, SearchedLibrary, find, open_library
from triptych.library.index import Report, index_photos, scan
from triptych.library.matcher import PairScores, PhotoMatcher, UnreadablePhotosError, as_matcher
from triptych.library.sheet import SheetPhoto, sheet_page
from triptych.library.similar import PhotoGroup, SimilarPhoto, find_duplicates, similar_photos

__all__ = [
    "FoundPhoto",
    "Library",
    "PairScores",
    "PhotoGroup",
    "PhotoMatcher",
    "Report",
    "SearchedLibrary",
    "SheetPhoto",
    "SimilarPhoto",
    "UnreadablePhotosError",
    "as_matcher",
    "find",
    "find_duplicates",
    "index_photos",
    "open_library",
    "scan",
    "sheet_page",
    "similar_photos",
]
