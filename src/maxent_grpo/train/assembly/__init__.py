"""Settings become the parts of a run: `assemble` puts together what `inputs`, `policies` and `samplers` make."""
