"""``imgnet data``: from the archives of ImageNet to shards that were verified."""
