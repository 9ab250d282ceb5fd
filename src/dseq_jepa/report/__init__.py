"""One page about a whole experiment: tables, figures, runs, cost, data, gaps; a single file that needs no network."""
