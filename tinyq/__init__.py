"""tinyq: a deployment compiler from quantized networks to integer-only C for Arm Cortex-M."""

__version__ = "0.1.0"
