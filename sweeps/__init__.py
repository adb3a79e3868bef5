"""The science of a sweep: specs, grids, run keys, gathered run tables and scaling-law fits."""
