"""Images as uint8 tensors (:mod:`.images`, :mod:`.sources`) and their batched random views (:mod:`.augment`)."""
