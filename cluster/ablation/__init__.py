"""Run the trials of an ablation: as child processes here, as slices of a job array on a cluster."""
