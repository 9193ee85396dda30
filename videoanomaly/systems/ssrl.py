"""Scale-aware spatio-temporal relations (SSRL), first stage."""

from videoanomaly.systems.rtfm import RTFM


class SSRL(RTFM):
    """First stage of scale-aware spatio-temporal relations (Li et al., ECCV 2022; nutuniv/SSRL): RTFM on these
    features.

    The later stages add features of patches, which no feature file here holds: without them it is RTFM under another
        name.
    """

    NAME = "ssrl"
