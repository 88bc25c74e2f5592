"""How the benchmark measures: peers in processes of their own, gates, rounds in turn, records."""
