"""From prepared faces to a distilled student: self-blending, networks, SAM, the loop, evaluation."""
