"""What a person runs: `python -m bench`. Knows no FHE library."""
