//! wattmill-optim
