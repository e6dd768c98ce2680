"""tinyq: a deployment compiler from quantized networks to integer-only C for Arm Cortex-M."""

from tinyq.api import CompileOptions, compile, verify
from tinyq.errors import Diagnostic, TinyqError

__version__ = "0.1.0"
__all__ = ["CompileOptions", "Diagnostic", "TinyqError", "__version__", "compile", "verify"]
