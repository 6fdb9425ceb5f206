"""``imgnet doctor``: whether a machine can do what a run will ask of it, looked at before one is started."""
