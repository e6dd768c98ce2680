"""Generates the C library."""

from tinyq.codegen.folder import write_program
from tinyq.codegen.generate import generate
from tinyq.codegen.program import GenerateOptions, Program

__all__ = ["GenerateOptions", "Program", "generate", "write_program"]
