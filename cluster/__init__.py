"""Where and how jobs run: profiles, local processes, Slurm text. Imports no torch."""
