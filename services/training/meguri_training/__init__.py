"""Decides when a model is due, and fits it."""

import os

# onnxruntime sends usage data unless it is told not to before it is imported. What users predict is nobody's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
