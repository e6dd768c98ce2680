"""Runs a host build as a plain program."""

from __future__ import annotations

from tinyq.build import Artifact
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Samples, run_files
from tinyq.emulate.trace import RunTrace


class HostRunner:
    """The network compiled for this machine: outputs and layers, no counts."""

    name = "host"

    def run(
        self, artifact: Artifact, samples: Samples, *, timeout: float = DEFAULT_TIMEOUT
    ) -> RunTrace:
        """Run every sample; raises TQ404 (which quotes a sanitizer's finding) or TQ502."""
        command = [str(artifact.executable)]
        return run_files(self.name, command, artifact, samples, timeout=timeout, ticks=None)
