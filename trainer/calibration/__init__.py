"""The null run and the spike-ins: claims whose truth is known, which tell how far a run's claims can be trusted."""
