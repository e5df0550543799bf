"""What every feature of a trained crosscoder is and how strong the evidence is: the run's `analyse` stage."""
