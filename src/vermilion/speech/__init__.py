"""Speech recognition and synthesis on this machine, with weights that the package index carries."""

import os

# Set before it is imported: onnxruntime 1.32 otherwise keeps a device id below ~/.cache and reports home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
