//! Calibration that needs gradients: the autograd side of Kvik.
