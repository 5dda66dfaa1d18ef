"""Data that can be contrasted: rows → inputs (:mod:`.contract`), read ahead of the step (:mod:`.ahead`)."""
