"""What a row is, one file a kind of row: which there are, what trains on them, what is asked about them."""
