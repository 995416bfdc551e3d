"""Image files <-> rgb in [0, 1], 8 or 16 bits, with alpha, orientation and colour profile: everything, in one import.

read_picture, read_rgb, read_raster  imaging/files/decode.py   (16-bit PNG and TIFF: imaging/files/deep.py)
image_size                           imaging/files/header.py   (AVIF, HEIC: heif.py; what is not read: foreign.py)
read_metadata, Metadata              imaging/files/metadata.py (EXIF: exif.py, directories.py; XMP: xmp.py)
write_picture, write_levels,
  check_format, grey_plane, png_rows imaging/files/encode.py   (PNG itself: imaging/files/png.py)
quantize_u8, quantize_u16            imaging/quantize.py
list_images, list_others, inside     imaging/files/folders.py
"""

from imaging.files.decode import read_picture, read_raster, read_rgb
from imaging.files.encode import LOSSY, TRANSPARENT, check_format, grey_plane, write_levels, write_picture
from imaging.files.folders import SUFFIXES, WRITTEN, in_words, inside, list_images, list_others
from imaging.files.header import image_size
from imaging.files.metadata import Metadata, read_metadata
from imaging.files.picture import MAX_PIXELS, Depth, Picture
from imaging.files.png import png_rows
from imaging.quantize import quantize_u8, quantize_u16

__all__ = [
    "LOSSY",
    "MAX_PIXELS",
    "SUFFIXES",
    "TRANSPARENT",
    "WRITTEN",
    "Depth",
    "Metadata",
    "Picture",
    "check_format",
    "grey_plane",
    "image_size",
    "in_words",
    "inside",
    "list_images",
    "list_others",
    "png_rows",
    "quantize_u8",
    "quantize_u16",
    "read_metadata",
    "read_picture",
    "read_raster",
    "read_rgb",
    "write_levels",
    "write_picture",
]
