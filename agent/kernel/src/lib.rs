//! wattmill-kernel
