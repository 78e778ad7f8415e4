"""Whole folders of photos, described in one pass that can be stopped and continued at any time."""

from triptych.folders.journal import Journal
from triptych.folders.metadata import PhotoMetadata
from triptych.folders.outputs import OUTPUTS, write_output
from triptych.folders.pipeline import Summary, describe_photos, on_this_machine
from triptych.folders.scan import PhotoShard, count_photos, parse_shard, walk_photos
from triptych.folders.sidecars import EXISTING, SIDECARS, Sidecars
from triptych.folders.watch import Arrivals, WatchedPhotos

__all__ = [
    "EXISTING",
    "OUTPUTS",
    "SIDECARS",
    "Arrivals",
    "Journal",
    "PhotoMetadata",
    "PhotoShard",
    "Sidecars",
    "Summary",
    "WatchedPhotos",
    "count_photos",
    "describe_photos",
    "on_this_machine",
    "parse_shard",
    "walk_photos",
    "write_output",
]
