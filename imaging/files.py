"""Image files <-> rgb in [0, 1], 8 or 16 bits, with alpha, orientation and colour profile: everything, in one import.

read_picture, read_rgb, read_raster  imaging/decode.py   (16-bit PNG and TIFF: imaging/deep.py)
image_size                           imaging/header.py
write_picture, write_levels,
  check_format, grey_plane, png_rows imaging/encode.py   (PNG itself: imaging/png.py)
quantize_u8, quantize_u16            imaging/quantize.py
list_images, inside                  imaging/folders.py
"""

from imaging.decode import read_picture, read_raster, read_rgb
from imaging.encode import check_format, grey_plane, write_levels, write_picture
from imaging.folders import SUFFIXES, inside, list_images
from imaging.header import image_size
from imaging.picture import MAX_PIXELS, Depth, Picture
from imaging.png import png_rows
from imaging.quantize import quantize_u8, quantize_u16

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Depth",
    "Picture",
    "check_format",
    "grey_plane",
    "image_size",
    "inside",
    "list_images",
    "png_rows",
    "quantize_u8",
    "quantize_u16",
    "read_picture",
    "read_raster",
    "read_rgb",
    "write_levels",
    "write_picture",
]
