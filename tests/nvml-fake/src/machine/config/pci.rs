//! PCI addresses as NVML writes them.

/// Where a GPU sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    /// PCI domain.
    pub domain: u32,
    /// PCI bus.
    pub bus: u32,
    /// PCI device.
    pub device: u32,
}

impl PciAddress {
    /// Reads `domain:bus:device.function` or `bus:device.function`, in hexadecimal, as NVML does.
    #[must_use]
    pub fn parse(text: &str) -> Option<PciAddress> {
        let (place, function) = text.rsplit_once('.')?;
        u32::from_str_radix(function, 16).ok()?;
        let (rest, device) = place.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
        Some(PciAddress { domain: hex(domain)?, bus: hex(bus)?, device: hex(device)? })
    }

    /// `00000000:18:00.0`.
    #[must_use]
    pub fn bus_id(self) -> String {
        format!("{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }

    /// `0000:18:00.0`, the form of the first 16 bytes of `nvmlPciInfo_t`.
    #[must_use]
    pub fn legacy_bus_id(self) -> String {
        format!("{:04X}:{:02X}:{:02X}.0", self.domain & 0xffff, self.bus, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_ids_are_read_in_both_forms() {
        let address = PciAddress { domain: 1, bus: 0xaf, device: 2 };
        assert_eq!(PciAddress::parse(&address.bus_id()), Some(address));
        assert_eq!(PciAddress::parse("0001:af:02.0"), Some(address));
        assert_eq!(PciAddress::parse("18:00.0").unwrap().bus, 0x18);
        assert_eq!(PciAddress::parse("nowhere"), None);
    }
}
