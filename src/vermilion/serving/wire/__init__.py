"""One file a protocol: request bodies in, replies and stream events out."""
