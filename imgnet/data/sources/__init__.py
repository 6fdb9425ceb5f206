"""Where the bytes of image ``i`` come from."""
