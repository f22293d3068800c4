"""TensorRT with all parts. The wheel of 8.6.0 has its libraries beside the module, later ones have them in
tensorrt_libs, JetPack and Debian packages in the system's folder, where the analysis finds them by itself.

The builder's resources, a gigabyte and more, are opened when a plan is built: only with EDGEAPP_BUILDER=1.
"""

import os
from glob import glob

from PyInstaller.utils.hooks import collect_dynamic_libs

BUILDER = "libnvinfer_builder_resource"
builds = os.environ.get("EDGEAPP_BUILDER") == "1"

binaries = collect_dynamic_libs("tensorrt", search_patterns=["*.so.*"])
binaries = [entry for entry in binaries if builds or BUILDER not in entry[0]]
if builds:
    binaries += [(file, ".") for file in glob(f"/usr/lib/*-linux-gnu/{BUILDER}*.so.*")]
bindepend_symlink_suppression = ["**/tensorrt/*.so*"]
excludedimports = ["tensorrt.plugin"]  # plugins written in Python, compiled at run time
