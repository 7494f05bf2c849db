//! The mathematics of PF-PPO and the losses of the field, on slices.
