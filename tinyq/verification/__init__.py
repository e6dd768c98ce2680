"""Exact comparison of onnxruntime, the integer reference, and C on hosts, emulators and boards."""
