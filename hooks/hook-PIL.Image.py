"""Pillow finds its plugins by their names at run time; without this hook PyInstaller 6.22 takes them all."""

hiddenimports = [
    "PIL.BmpImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.MpoImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.TiffImagePlugin",
    "PIL.WebPImagePlugin",
]
