"""From a checkpoint to a bundle that can be deployed, each artefact proven equal to what was trained."""
