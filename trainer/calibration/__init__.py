"""Calibration: a null run and spike-ins, whose truth is known, say how far a run's claims can be trusted."""

from trainer.calibration.stage import calibrate

__all__ = ["calibrate"]
