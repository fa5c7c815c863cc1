"""A compiled or exported network beside torch eager: the whole, and the smallest parts that differ."""
