"""Falcon Mamba: Mamba with norms of the scan's parameters."""

from dataclasses import replace

from cupola.models import mamba

FAMILY = replace(mamba.FAMILY, model_type="falcon_mamba", title="Falcon Mamba")
