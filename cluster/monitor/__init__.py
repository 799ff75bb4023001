"""How jobs stand: Slurm's word and the status files, together, for people."""
