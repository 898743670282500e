"""Learning curves and open-loop images."""
