"""Image files <-> rgb in [0, 1], 8 or 16 bits, with alpha, orientation and colour profile: everything, in one import.

read_picture, read_rgb, read_raster  imaging/files/decode.py   (16-bit PNG and TIFF: imaging/files/deep.py)
image_size                           imaging/files/header.py
write_picture, write_levels,
  check_format, grey_plane, png_rows imaging/files/encode.py   (PNG itself: imaging/files/png.py)
quantize_u8, quantize_u16            imaging/quantize.py
list_images, list_others, inside     imaging/files/folders.py
"""

from imaging.files.decode import read_picture, read_raster, read_rgb
from imaging.files.encode import TRANSPARENT, check_format, grey_plane, write_levels, write_picture
from imaging.files.folders import SUFFIXES, in_words, inside, list_images, list_others
from imaging.files.header import image_size
from imaging.files.picture import MAX_PIXELS, Depth, Picture
from imaging.files.png import png_rows
from imaging.quantize import quantize_u8, quantize_u16

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "TRANSPARENT",
    "Depth",
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
    "read_picture",
    "read_raster",
    "read_rgb",
    "write_levels",
    "write_picture",
]
