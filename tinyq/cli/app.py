"""The verbs put together."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyq.cli.compile import compile_command
from tinyq.cli.demo import demo_command
from tinyq.cli.export import export_command
from tinyq.cli.fit import fit_command
from tinyq.cli.flash import flash_command
from tinyq.cli.inspect import inspect_command
from tinyq.cli.listings import boards_command, explain_command, ops_command, targets_command
from tinyq.cli.profile import profile_command
from tinyq.cli.quantize import quantize_command
from tinyq.cli.report import report_command
from tinyq.cli.sensitivity import sensitivity_command
from tinyq.cli.verify import verify_command

app = typer.Typer(
    name="tinyq",
    help="Compile quantized networks to integer-only C for Arm Cortex-M, and prove that the C "
    "computes what onnxruntime does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tinyq import __version__

        typer.echo(f"tinyq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version


for _name, _verb in (
    ("demo", demo_command),
    ("compile", compile_command),
    ("verify", verify_command),
    ("profile", profile_command),
    ("report", report_command),
    ("export", export_command),
    ("flash", flash_command),
    ("quantize", quantize_command),
    ("sensitivity", sensitivity_command),
    ("fit", fit_command),
    ("inspect", inspect_command),
    ("targets", targets_command),
    ("boards", boards_command),
    ("ops", ops_command),
    ("explain", explain_command),
):
    app.command(_name)(_verb)


def main() -> None:
    """Entry point of the ``tinyq`` program."""
    app(prog_name="tinyq")
