"""The decoders again, as plainly as they can be said: what the engine is held equal to."""

from vermilion.decoding.reference.reference_answer import Reference, Result
from vermilion.decoding.reference.reference_canvases import denoise
from vermilion.decoding.reference.reference_filling import fill_gap, fill_seeds, grow, read_seeds
from vermilion.decoding.reference.reference_infill import infill

__all__ = ["Reference", "Result", "denoise", "fill_gap", "fill_seeds", "grow", "infill", "read_seeds"]
