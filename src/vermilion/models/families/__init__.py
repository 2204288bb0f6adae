"""The family table: what tells one published kind of checkpoint from another, as data. No torch here.

`Architecture` is the shape of the one backbone, `Traits` how its denoiser wants to be asked, `TensorNames`
where its weights are. A new family is a row of `family_table.py`, never a new class and never a branch
elsewhere.
"""

from vermilion.models.families.architecture import Architecture, Experts, LayerKind
from vermilion.models.families.family import Family, GGUFKind, ModelSpec
from vermilion.models.families.family_table import FAMILIES, family_of, family_of_gguf
from vermilion.models.families.names import LLAMA, ExpertNames, TensorNames
from vermilion.models.families.rope import Rope, RopeScaling
from vermilion.models.families.traits import AUTOREGRESSIVE, Context, Traits

__all__ = [
    "AUTOREGRESSIVE",
    "FAMILIES",
    "LLAMA",
    "Architecture",
    "Context",
    "ExpertNames",
    "Experts",
    "Family",
    "GGUFKind",
    "LayerKind",
    "ModelSpec",
    "Rope",
    "RopeScaling",
    "TensorNames",
    "Traits",
    "family_of",
    "family_of_gguf",
]
