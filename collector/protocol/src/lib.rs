//! wattmill-protocol
